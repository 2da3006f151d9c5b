"""What a model is made of, from its config.json and its safetensors' headers: no weights are loaded, and no
torch is imported.

Symbols: L layers, D model width, F feed-forward width, H heads, K key-value heads, E head width, V
vocabulary, R rank.
"""

import itertools
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.models.adapters.config_file import is_target
from finetune.models.architectures import family_of, last_part
from finetune.models.architectures.base import (
    DECODER,
    EMBEDDING,
    FINAL_NORM,
    LAYERS,
    LM_HEAD,
    DecoderLayer,
    Dimensions,
    LinearLayer,
)
from finetune.models.architectures.llama import LLAMA
from finetune.models.bases.config_file import check_config
from finetune.models.bases.folder import CONFIG, read_header, weight_files
from finetune.models.bases.hub import description_of, is_hub_id
from finetune.models.stored_quantization import BITSANDBYTES, stored_quantization
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection, RopeScaling

CACHE_BYTES_PER_NUMBER = 2
"""Keys and values are cached in 16 bit."""


@dataclass(frozen=True, kw_only=True)
class Shape(Dimensions):
    """What config.json says of every size."""

    architecture: str
    model_type: str
    tied_head: bool
    decoder_layer: DecoderLayer

    @property
    def queries_per_key_value_head(self) -> int:
        """The group size of grouped-query attention: 1 is multi-head attention."""
        return self.heads // self.key_value_heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in 16 bit: 2 x L x K x E x 2 bytes."""
        return 2 * self.layers * self.key_width * CACHE_BYTES_PER_NUMBER


@dataclass(frozen=True)
class Rope:
    """How positions are encoded."""

    kind: str
    """default, linear, dynamic, yarn or llama3."""
    theta: float
    scaling: dict[str, Any]
    """The scaling's own numbers; empty for default."""


@dataclass(frozen=True)
class StoredWeightsSize:
    """What the headers of a folder's safetensors say."""

    parameters: int
    bytes: int
    """Of the weights, without the headers."""
    dtypes: dict[str, int]
    """safetensors' names of the types, and how many parameters are of each."""
    files: int


def read_shape(config: dict[str, Any]) -> Shape:
    """The sizes in a config.json; of a family that isn't supported, as if it were LLaMA's.

    Raises ModelError where one is absent or impossible.
    """
    found = check_config(config)
    heads = found.num_attention_heads
    sizes = Dimensions(
        layers=found.num_hidden_layers,
        width=found.hidden_size,
        feed_forward_width=found.intermediate_size,
        heads=heads,
        key_value_heads=found.num_key_value_heads or heads,
        head_width=found.head_width,
        vocabulary=found.vocab_size,
    )
    family = family_of(found.model_type) or LLAMA
    return Shape(
        architecture=", ".join(found.architectures or ["unknown"]),
        model_type=found.model_type,
        tied_head=bool(found.tie_word_embeddings),
        decoder_layer=family.parameters(sizes, config),
        **asdict(sizes),
    )


def read_rope(config: dict[str, Any], scaling: RopeScaling | None = None) -> Rope:
    """The rotary positions of a config.json, in transformers 5's writing or the one before; the recipe's
    scaling goes first."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(found.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = str(found.pop("rope_type", None) or found.pop("type", None) or "default")
    found.pop("type", None)
    if scaling is not None:
        kind = scaling.type
        found = {
            key: value for key, value in scaling.model_dump().items() if key != "type" and value is not None
        }
    return Rope(kind, theta, found)


def context_tokens(config: dict[str, Any], scaling: RopeScaling | None = None) -> int:
    """How many positions the base has; with the recipe's scaling, how many it then reaches."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or isinstance(positions, bool) or positions < 1:
        raise ModelError(
            f"config.json: max_position_embeddings is {positions!r}; expected a whole number above 0."
        )
    if scaling is None:
        return positions
    return int((scaling.original_max_length_tokens or positions) * scaling.factor)


def linear_layers(shape: Shape) -> dict[str, LinearLayer]:
    """Every linear layer, the head included, by name."""
    block = shape.decoder_layer.linear
    layers = {
        f"{LAYERS}.{index}.{name}": layer for index in range(shape.layers) for name, layer in block.items()
    }
    return layers | {LM_HEAD: LinearLayer(shape.width, shape.vocabulary)}


def stored_name(held: Container[str], name: str) -> str | None:
    """The name under which a file has a parameter: some files leave `model.` out. None where it has
    neither."""
    return next((found for found in (name, name.removeprefix(f"{DECODER}.")) if found in held), None)


SCALES = (".absmax", ".SCB")
"""Ends of the names under which bitsandbytes stores what quantised numbers are multiplied with, in 4 bit and
in 8."""


def check_weights(
    folder: Path, config: dict[str, Any], *, fetched: bool = True, predicts: bool = False
) -> None:
    """Raises ModelError unless the weights' headers hold each tensor that config.json describes, in its
    shape, and no other in a layer: transformers would leave that one out, and say nothing.

    The head that predicts tokens may be absent where the base needn't be one that `predicts`. Matrices that
    are stored quantised are not looked at: their shapes follow from how.
    """
    headers = [read_header(path) for path in weight_files(folder, fetched=fetched)]
    held = {name: tuple(tensor["shape"]) for header in headers for name, tensor in header.items()}
    shape = read_shape(config)
    matrices = _matrix_shapes(shape)
    wanted = _norm_shapes(shape) | {f"{EMBEDDING}.weight": (shape.vocabulary, shape.width)}
    if not config.get("quantization_config"):
        wanted |= matrices
    if shape.tied_head or (not predicts and f"{LM_HEAD}.weight" not in held):
        wanted.pop(f"{LM_HEAD}.weight", None)
    for name, expected in wanted.items() if headers else ():
        found = stored_name(held, name)
        if found is None or held[found] != expected:
            there = "absent" if found is None else f"of shape {held[found]}"
            raise ModelError(
                f"{folder}: its config.json describes {name} of shape {expected}, which is {there}: one of "
                "the two files is not the other's, or the download is incomplete; fetch the base again."
            )
    stored = stored_quantization(config, folder / CONFIG)
    if headers and stored in BITSANDBYTES and not any(name.endswith(SCALES) for name in held):
        raise ModelError(
            f"{folder}: its config.json says in quantization_config that bitsandbytes stored the weights "
            f"({stored}), and they are not quantised: remove quantization_config, or fetch the base again."
        )
    modules = {name.rsplit(".", 1)[0] for name in matrices} if config.get("quantization_config") else set()
    for name in held:
        full = f"{DECODER}.{name.removeprefix(f'{DECODER}.')}"
        strange = (
            full.startswith(f"{LAYERS}.") and full not in wanted and not full.endswith("rotary_emb.inv_freq")
        )
        if strange and not _prefixes(full) & modules:
            raise ModelError(
                f"{folder}: the weights hold {name}, for which its config.json has no place: one of the two "
                "files is not the other's; fetch the base again."
            )


def _prefixes(name: str) -> set[str]:
    """The modules that a tensor's name may belong to."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _matrix_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Weights and biases of the linear layers, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for name, layer in linear_layers(shape).items():
        found[f"{name}.weight"] = (layer.outputs, layer.inputs)
        if layer.bias:
            found[f"{name}.bias"] = (layer.outputs,)
    return found


def _norm_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    norms, layers = shape.decoder_layer.norms, range(shape.layers)
    found = {f"{LAYERS}.{index}.{name}.weight": size for index in layers for name, size in norms.items()}
    return found | {f"{FINAL_NORM}.weight": (shape.width,)}


def count_parameters(shape: Shape) -> int:
    """All parameters, from the sizes alone: the embedding, the layers' matrices, biases and norms, the final
    norm, and a head that isn't tied to the embedding.

    Of a LLaMA without biases V D + L (2 D H E + 2 D K E + 3 D F + 2 D) + D, and V D once more for the head.
    """
    embedding = shape.vocabulary * shape.width
    matrices = sum(map(math.prod, _matrix_shapes(shape).values())) - (embedding if shape.tied_head else 0)
    return embedding + matrices + sum(map(math.prod, _norm_shapes(shape).values()))


def trainable_shapes(
    shape: Shape, adapter: AdapterSection, new_tokens: int = 0, head_outputs: int = 0
) -> Iterator[tuple[int, ...]]:
    """The shapes of the tensors that train under a recipe.

    full: all parameters. LoRA and QLoRA: R x inputs and outputs x R a target (rsLoRA alike), and `outputs`
    more with DoRA, for the magnitudes; R x V and D x R, and D with DoRA, for the embedding as a target;
    modules_to_save in full, with the rows of new tokens; where the embedding isn't among them, a row of D for
    the embedding of each new token, and one for its row of an untied head; D for each output of a
    classification head, which takes the place of the other one. Raises ModelError where a target matches
    nothing, and where the base has fewer layers than are named.
    """
    if head_outputs:
        yield head_outputs, shape.width
    sizes = {name: (layer.inputs, layer.outputs) for name, layer in linear_layers(shape).items()}
    sizes[EMBEDDING] = shape.vocabulary, shape.width
    if adapter.method == "full":
        yield shape.vocabulary, shape.width
        yield from _norm_shapes(shape).values()
        own_head = not shape.tied_head and not head_outputs
        yield from (
            size for name, size in _matrix_shapes(shape).items() if own_head or name != f"{LM_HEAD}.weight"
        )
        return
    for name in _targets(adapter, sizes, shape.layers):
        (inputs, outputs), rank = sizes[name], rank_of(adapter, name)
        if adapter.by_peft:
            yield from _by_peft(adapter, inputs, outputs, rank)
            continue
        yield rank, inputs
        yield outputs, rank
        if adapter.use_dora:
            yield (outputs,)
    whole = {
        name for target in adapter.modules_to_save for name in _matches(target, sizes, "modules_to_save")
    }
    for name in whole:
        yield ((shape.vocabulary + new_tokens, shape.width) if name in (EMBEDDING, LM_HEAD) else sizes[name])
    if new_tokens and EMBEDDING not in whole:
        for _ in range(1 if shape.tied_head or head_outputs else 2):
            yield new_tokens, shape.width


def _by_peft(adapter: AdapterSection, inputs: int, outputs: int, rank: int) -> Iterator[tuple[int, ...]]:
    """What trains of a layer whose adapter is peft's own."""
    block = adapter.block_size
    yield from {
        "miss": ((rank, outputs),),
        "oft": ((inputs // block, block * (block - 1) // 2),),
        "vera": ((outputs,), (rank,)),
        "loha": ((outputs, rank), (rank, inputs)) * 2,
    }[adapter.method]


def rank_of(adapter: AdapterSection, module: str) -> int:
    """The rank of a module's update."""
    own = (rank for name, rank in adapter.rank_pattern.items() if is_target(module, name))
    return next(own, adapter.rank)


def count_trainable(shape: Shape, adapter: AdapterSection, new_tokens: int = 0, head_outputs: int = 0) -> int:
    """What trains under a recipe, in closed form. Raises ModelError where a target matches nothing."""
    return sum(map(math.prod, trainable_shapes(shape, adapter, new_tokens, head_outputs)))


def start_numbers(shape: Shape, adapter: AdapterSection) -> int:
    """How many numbers are gathered of the rows for the adapter's start: with lora_ga a gradient of each
    weight that gets an adapter, with corda a covariance of each input of one; with eva such inputs of each
    token; else none."""
    if not adapter.reads_rows:
        return 0
    sizes = linear_layers(shape)
    targets = {name: sizes[name] for name in _targets(adapter, sizes, shape.layers)}
    if adapter.init == "lora_ga":
        return sum(layer.inputs * layer.outputs for layer in targets.values())
    inputs = {_input_of(shape, name): layer.inputs for name, layer in targets.items()}
    return sum(size if adapter.init == "eva" else size**2 for size in inputs.values())


def _input_of(shape: Shape, module: str) -> str:
    """A name for what a module reads: that of the first of those that read the same."""
    before, leaf = module.rsplit(".", 1)
    groups = (*(family_of(shape.model_type) or LLAMA).shared_inputs, ("gate_proj", "up_proj"))
    return f"{before}.{next((group[0] for group in groups if leaf in group), leaf)}"


def adapted_layers(adapter: AdapterSection, layers: int) -> list[int]:
    """The numbers of the decoder layers that get an adapter, of so many. Raises ModelError where the base has
    fewer."""
    if adapter.layers is None:
        return list(range(layers))
    asked = adapter.layers
    if isinstance(asked, str):
        last = int(asked.removeprefix("last "))
        if last <= layers:
            return list(range(layers - last, layers))
    elif max(asked) < layers:
        return sorted(asked)
    raise ModelError(
        f"adapter.layers is {asked if isinstance(asked, str) else list(asked)}, and this base has {layers} "
        f"layers, 0 to {layers - 1}."
    )


def _targets(adapter: AdapterSection, names: Iterable[str], layers: int) -> set[str]:
    adapted = {f"{LAYERS}.{number}." for number in adapted_layers(adapter, layers)}
    beside = (
        {name for name in names if name.startswith(f"{LAYERS}.")} if adapter.layers is not None else set()
    )
    left_out = {name for name in beside if not any(map(name.startswith, adapted))}
    return with_adapter(adapter, _named(adapter, names) - left_out)


def with_adapter(adapter: AdapterSection, targets: set[str]) -> set[str]:
    """Of the modules that target_modules and layers name, those that get an adapter.

    Raises ModelError where exclude_modules or a pattern has a name that matches none of them, exclude_modules
    leaves none, or two names of a pattern match one.
    """
    excluded = [_matches(name, targets, "exclude_modules") for name in adapter.exclude_modules]
    found = targets.difference(*excluded)
    if not found:
        raise ModelError("adapter.exclude_modules leaves no module that gets an adapter; remove some.")
    for key in ("rank_pattern", "alpha_pattern"):
        own = [_matches(name, found, key) for name in getattr(adapter, key)]
        for one, other in itertools.combinations(own, 2):
            if one & other:
                raise ModelError(f"adapter.{key}: two of its names match {min(one & other)}; expected one.")
    return found


def _named(adapter: AdapterSection, names: Iterable[str]) -> set[str]:
    if adapter.target_modules == "all-linear":
        return {name for name in names if name not in (LM_HEAD, EMBEDDING)}
    return {name for target in adapter.target_modules for name in _matches(target, names, "target_modules")}


def _matches(target: str, names: Iterable[str], key: str) -> set[str]:
    known = list(names)
    found = {name for name in known if is_target(name, target)}
    if not found:
        leaves = ", ".join(sorted(set(map(last_part, known))))
        have = (
            f"module of this base. It has: {leaves}"
            if key in ("target_modules", "modules_to_save")
            else f"module that gets an adapter. These do: {leaves}"
        )
        raise ModelError(f"adapter.{key}: {target!r} matches no {have}.")
    return found


def read_stored(folder: Path, *, fetched: bool = True) -> StoredWeightsSize | None:
    """What a folder's weights are, from their headers; None where there are none.

    Of a model that isn't `fetched`, also where some are absent. Raises ModelError for damaged ones.
    """
    files = weight_files(folder, fetched=fetched)
    if not files:
        return None
    dtypes: dict[str, int] = {}
    size = 0
    for path in files:
        for tensor in read_header(path).values():
            dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
            size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return StoredWeightsSize(
        sum(dtypes.values()), size, dict(sorted(dtypes.items(), key=lambda item: -item[1])), len(files)
    )


def find_description(model: ModelSection) -> tuple[Path, bool]:
    """The folder with the base's config.json, and whether its weights were fetched with it.

    Of a hub model only config.json and its like are; a GGUF base is converted first, once. Raises ModelError.
    """
    from finetune.models.bases.locate import check_base, resolve_base

    if isinstance(model.base, str) and is_hub_id(model.base):
        folder, _ = description_of(model.base, model.revision)
        check_base(folder, model, fetched=False)
        return folder, False
    if isinstance(model.base, str) and Path(model.base).is_dir() and not weight_files(Path(model.base)):
        # A config.json alone is enough to look at.
        check_base(Path(model.base), model, fetched=False)
        return Path(model.base), False
    return resolve_base(model).folder, True
