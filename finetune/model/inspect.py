"""What a LLaMA is, from its config.json and the headers of its safetensors: no weights are loaded, and no torch is imported.

Symbols: L layers, D model width, F feed-forward width, H heads, K key-value heads, E head width, V vocabulary, R rank.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection, RopeScaling

CACHE_BYTES_PER_NUMBER = 2
"""Keys and values are cached in 16 bit."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"

LARGEST_HEADER_BYTES = 100_000_000
"""safetensors' own limit; a larger number means that the file is something else."""


@dataclass(frozen=True)
class Shape:
    """The numbers of config.json that decide every size."""

    architecture: str
    model_type: str
    layers: int
    width: int
    feed_forward_width: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied_head: bool
    attention_biases: tuple[str, ...]
    """Projections of the attention that have a bias."""
    feed_forward_bias: bool
    query_key_norms: bool

    @property
    def queries_per_key_value_head(self) -> int:
        """The group size of grouped-query attention: 1 is multi-head attention."""
        return self.heads // self.key_value_heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in 16 bit: 2 x L x K x E x 2 bytes."""
        return 2 * self.layers * self.key_value_heads * self.head_width * CACHE_BYTES_PER_NUMBER


@dataclass(frozen=True)
class Rope:
    """How positions are encoded."""

    kind: str
    """default, linear, dynamic, yarn or llama3."""
    theta: float
    scaling: dict[str, Any]
    """The scaling's own numbers; empty for default."""


@dataclass(frozen=True)
class Stored:
    """What the headers of a folder's safetensors say."""

    parameters: int
    bytes: int
    """Of the weights, without the headers."""
    dtypes: dict[str, int]
    """safetensors' names of the types, and how many parameters are of each."""
    files: int


def read_shape(config: dict[str, Any]) -> Shape:
    """The sizes in a config.json. Raises ModelError where one is absent or impossible."""
    heads = _positive(config, "num_attention_heads")
    width = _positive(config, "hidden_size")
    groups = _positive(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    if heads % groups:
        raise ModelError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}.")
    kind = str(config.get("model_type"))
    biases = ("q_proj", "k_proj", "v_proj", "o_proj") if config.get("attention_bias") else ()
    return Shape(
        architecture=", ".join(config.get("architectures") or ["unknown"]),
        model_type=kind,
        layers=_positive(config, "num_hidden_layers"),
        width=width,
        feed_forward_width=_positive(config, "intermediate_size"),
        heads=heads,
        key_value_heads=groups,
        head_width=_positive(config, "head_dim") if config.get("head_dim") is not None else width // heads,
        vocabulary=_positive(config, "vocab_size"),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        # Qwen 2 has these three, whatever its config says.
        attention_biases=("q_proj", "k_proj", "v_proj") if kind == "qwen2" else biases,
        feed_forward_bias=bool(config.get("mlp_bias", False)),
        query_key_norms=kind == "qwen3",
    )


def _positive(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {key} is {value!r}; expected a whole number above 0.")
    return value


def read_rope(config: dict[str, Any], scaling: RopeScaling | None = None) -> Rope:
    """The rotary positions of a config.json, in transformers 5's writing or the one before; the recipe's scaling goes first."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(found.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = str(found.pop("rope_type", None) or found.pop("type", None) or "default")
    found.pop("type", None)
    if scaling is not None:
        kind = scaling.type
        found = {key: value for key, value in scaling.model_dump().items() if key != "type" and value is not None}
    return Rope(kind, theta, found)


def context_tokens(config: dict[str, Any], scaling: RopeScaling | None = None) -> int:
    """How many positions the base has; with the recipe's scaling, how many it then reaches."""
    positions = _positive(config, "max_position_embeddings")
    if scaling is None:
        return positions
    return int((scaling.original_max_length_tokens or positions) * scaling.factor)


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Every linear layer, the head included, by name, with (inputs, outputs)."""
    width, inner, feed_forward = shape.width, shape.heads * shape.head_width, shape.feed_forward_width
    shared = shape.key_value_heads * shape.head_width
    block = {
        "self_attn.q_proj": (width, inner),
        "self_attn.k_proj": (width, shared),
        "self_attn.v_proj": (width, shared),
        "self_attn.o_proj": (inner, width),
        "mlp.gate_proj": (width, feed_forward),
        "mlp.up_proj": (width, feed_forward),
        "mlp.down_proj": (feed_forward, width),
    }
    layers = {f"model.layers.{index}.{name}": sizes for index in range(shape.layers) for name, sizes in block.items()}
    return layers | {"lm_head": (width, shape.vocabulary)}


def count_parameters(shape: Shape) -> int:
    """All parameters in closed form: V D + L (2 D H E + 2 D K E + 3 D F + 2 D) + D, and V D once more for an untied head.

    To that come biases, where the architecture has them, and 2 E a layer for Qwen 3's norms of queries and keys.
    """
    total = shape.vocabulary * shape.width + shape.width
    for name, (inputs, outputs) in linear_shapes(shape).items():
        leaf = name.rsplit(".", 1)[-1]
        has_bias = leaf in shape.attention_biases or (".mlp." in name and shape.feed_forward_bias)
        if leaf != "lm_head" or not shape.tied_head:
            total += inputs * outputs + (outputs if has_bias else 0)
    norms = 2 * shape.width + (2 * shape.head_width if shape.query_key_norms else 0)
    return total + shape.layers * norms


def count_trainable(shape: Shape, adapter: AdapterSection, new_tokens: int = 0, head_outputs: int = 0) -> int:
    """What trains under a recipe, in closed form.

    full: all parameters. LoRA and QLoRA: R (inputs + outputs) a target (rsLoRA alike), and `outputs` more with DoRA, for the
    magnitudes; R (V + D), and D with DoRA, for the embedding as a target; modules_to_save in full; D for the embedding of
    each new token, and D for its row of an untied head; D for each output of a classification head, which takes the place of
    the other one. Raises ModelError where a target matches nothing.
    """
    head = head_outputs * shape.width
    if adapter.method == "full":
        untied = shape.vocabulary * shape.width if head and not shape.tied_head else 0
        return count_parameters(shape) - untied + head
    sizes = linear_shapes(shape) | {"model.embed_tokens": (shape.vocabulary, shape.width)}
    trainable = 0
    for name in _targets(adapter, sizes):
        inputs, outputs = sizes[name]
        trainable += adapter.rank * (inputs + outputs) + (outputs if adapter.use_dora else 0)
    for target in adapter.modules_to_save:
        trainable += sum(math.prod(sizes[name]) for name in _matches(target, sizes, "modules_to_save"))
    return trainable + head + new_tokens * shape.width * (1 if shape.tied_head or head else 2)


def _targets(adapter: AdapterSection, names: Iterable[str]) -> set[str]:
    if adapter.targets == "all-linear":
        return {name for name in names if name not in ("lm_head", "model.embed_tokens")}
    return {name for target in adapter.targets for name in _matches(target, names, "targets")}


def _matches(target: str, names: Iterable[str], key: str) -> set[str]:
    """peft's rule: a module whose name is the target, or ends with a dot and the target."""
    known = list(names)
    found = {name for name in known if name == target or name.endswith(f".{target}")}
    if not found:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in known})
        raise ModelError(f"adapter.{key}: {target!r} matches no module of this base. It has: {', '.join(leaves)}.")
    return found


def read_header(path: Path) -> dict[str, Any]:
    """The header of one safetensors file: name -> {dtype, shape, data_offsets}. Raises ModelError where it is damaged."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER_BYTES:
                raise ModelError(f"{path} is no safetensors file: its header would be {length:,} bytes long.")
            header = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path} is no safetensors file: its header is a {type(header).__name__}.")
    header.pop("__metadata__", None)
    return header


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter folder's adapter_config.json. Raises ModelError where it is absent or damaged."""
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} is not an adapter folder: expected adapter_config.json and {ADAPTER_WEIGHTS} in it.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; expected an object.")
    return config


def read_stored(folder: Path) -> Stored | None:
    """What a folder's safetensors hold, from their headers; None where there are none."""
    from finetune.model.checkpoint import weight_files

    files = weight_files(folder)
    if not files:
        return None
    dtypes: dict[str, int] = {}
    size = 0
    for path in files:
        for tensor in read_header(path).values():
            dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
            size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return Stored(sum(dtypes.values()), size, dict(sorted(dtypes.items(), key=lambda item: -item[1])), len(files))


def find_description(model: ModelSection) -> Path:
    """The folder with the base's config.json, and with its weights where they are on this machine.

    Of a hub model only config.json is fetched; a GGUF base is converted first, once. Raises ModelError.
    """
    from finetune.model.checkpoint import hub_errors, hub_token, read_config, resolve_base

    if not isinstance(model.base, str):
        return resolve_base(model).folder
    if Path(model.base).is_absolute():
        read_config(Path(model.base))
        return Path(model.base)
    from huggingface_hub import hf_hub_download

    with hub_errors(model.base):
        return Path(hf_hub_download(model.base, "config.json", revision=model.revision, token=hub_token())).parent


def describe(model: ModelSection, adapter: AdapterSection | None = None) -> dict[str, Any]:
    """Everything that `finetune inspect` reports, as plain values; with `adapter`, what would train under it too.

    Raises ModelError where the base can't be found, or its weights are not those that its config.json describes.
    """
    from finetune.model.checkpoint import check_architecture, read_config

    folder = find_description(model)
    config = read_config(folder)
    check_architecture(config, allow_untested=model.allow_untested)
    shape, stored = read_shape(config), read_stored(folder)
    computed = count_parameters(shape)
    if stored is not None and stored.parameters != computed:
        _refuse_other_count(folder, shape, stored, computed)
    context = context_tokens(config, model.rope_scaling)
    facts: dict[str, Any] = {
        "base": model.base if isinstance(model.base, str) else model.base.model_dump(exclude_none=True),
        "folder": str(folder),
        **asdict(shape),
        "queries_per_key_value_head": shape.queries_per_key_value_head,
        "cache_bytes_per_token": shape.cache_bytes_per_token,
        "cache_bytes_full_context": shape.cache_bytes_per_token * context,
        "context_tokens": context,
        "rope": asdict(read_rope(config, model.rope_scaling)),
        "rms_norm_eps": config.get("rms_norm_eps"),
        "parameters": computed,
        "parameters_from": "config.json and the weights' headers, which agree" if stored else "config.json, in closed form",
        "stored": asdict(stored) if stored else None,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
    }
    return facts if adapter is None else facts | _trainable_facts(shape, computed, model, adapter)


def _refuse_other_count(folder: Path, shape: Shape, stored: Stored, computed: int) -> None:
    # Some files store a tied head as well; transformers ignores that copy.
    head = shape.vocabulary * shape.width if shape.tied_head else 0
    if stored.parameters != computed + head:
        raise ModelError(
            f"{folder}: config.json describes {computed:,} parameters, the safetensors files hold {stored.parameters:,}. "
            "A shard may be missing, or the architecture isn't one that `finetune inspect` knows."
        )


def _trainable_facts(shape: Shape, parameters: int, model: ModelSection, adapter: AdapterSection) -> dict[str, Any]:
    trainable = count_trainable(shape, adapter, len(model.new_tokens), model.head_outputs)
    # An adapter comes on top of the base's parameters.
    together = parameters if adapter.method == "full" else parameters + trainable
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    return {
        "method": adapter.method,
        "rank": None if adapter.method == "full" else adapter.rank,
        "targets": None if adapter.method == "full" else targets,
        "trainable_parameters": trainable,
        "trainable_fraction": trainable / together,
    }
