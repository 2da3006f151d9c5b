"""The types that GGUF stores numbers in, and which of them each tensor gets, as llama.cpp's own quantiser
chooses.

A K-quant mixes types: what costs most quality where it is coarse (the head, the values, what leads out of the
MLP) is stored finer. gguf and numpy are imported where they are used: they are an extra.
"""

from dataclasses import dataclass

QUANTIZATIONS = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1",
    "q5_0": "Q5_0", "q5_1": "Q5_1", "q2_k": "Q2_K", "q3_k_m": "Q3_K", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K",
    "q6_k": "Q6_K",
}  # fmt: skip
"""What --quantize takes, and the type that most matrices then have."""
FLOATS = ("F32", "F16", "BF16")
BY_LLAMA_CPP = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
"""Types that llama.cpp's library alone writes; the others are written by the gguf package."""

COARSER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes for rows that are no whole blocks of 256: a type with blocks of 32, else F16."""


@dataclass(frozen=True)
class Layout:
    """What of a model the choice of types depends on."""

    layers: int
    queries_per_key_value_head: int
    own_head: bool
    """Whether the file has a head beside the embedding."""
    is_70b: bool
    """Whether llama.cpp takes it for a 70B model: 80 layers with grouped queries."""


@dataclass(frozen=True)
class ChosenType:
    """A tensor's type."""

    kind: str
    wanted: str
    """What it would be if its rows were whole blocks of that type."""


def choose_type(name: str, shape: tuple[int, ...], quantize: str, layout: Layout) -> ChosenType:
    """The type of a tensor by its name in GGUF: matrices are quantised, norms and biases stay in float32."""
    if len(shape) < 2:
        return ChosenType("F32", "F32")
    most = QUANTIZATIONS[quantize]
    wanted = most if most in FLOATS else _mixed(name, quantize, most, layout)
    kind = wanted
    if not _fits(kind, shape[-1]):
        kind = COARSER.get(kind, "F16")
    return ChosenType(kind if _fits(kind, shape[-1]) else "F16", wanted)


def _fits(kind: str, columns: int) -> bool:
    return columns % block_size(kind) == 0


def block_size(kind: str) -> int:
    """How many numbers of a row share their scales."""
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])


def row_bytes(kind: str, columns: int) -> int:
    """The size of a row."""
    import gguf

    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return columns // int(numbers) * int(size)


def _mixed(name: str, quantize: str, most: str, layout: Layout) -> str:
    module = name.removesuffix(".weight")
    if module == "output" or (module == "token_embd" and not layout.own_head):
        return most if most == "Q8_0" else "Q6_K"
    parts = module.split(".")
    if parts[0] != "blk":
        return most
    return _of_layer(parts[2], int(parts[1]), quantize, most, layout)


def _of_layer(module: str, layer: int, quantize: str, most: str, layout: Layout) -> str:
    """The type of one of a layer's matrices: a table where there is a rule for it, the most frequent type
    elsewhere."""
    finer, layers = _is_finer(layer, layout.layers), layout.layers
    of_values = {
        "q2_k": "Q4_K" if layout.queries_per_key_value_head >= 4 else "Q3_K",
        "q3_k_m": "Q5_K" if layer < 2 else "Q4_K",
        "q4_k_m": "Q6_K" if finer else most,
        "q5_k_m": "Q6_K" if finer else most,
    }
    rules = {
        "attn_v": of_values,
        "attn_qkv": of_values,
        "ffn_down": of_values | {"q2_k": "Q3_K", "q3_k_m": "Q5_K" if layer < layers // 16 else "Q4_K"},
        "attn_output": {"q2_k": "Q3_K", "q3_k_m": "Q4_K"},
    }
    found = rules.get(module, {}).get(quantize, most)
    if rules.get(module) is of_values and layout.is_70b and found in ("Q3_K", "Q4_K"):
        return "Q5_K"  # eight heads share these values
    return found


def _is_finer(layer: int, layers: int) -> bool:
    """Whether a layer is one of those that get more bits: the first and the last eighth, and each third
    between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
