"""What an adapter_config.json may ask of peft: sizes with a bound, and regular expressions that come to an
end.

peft builds matrices of the sizes, and matches the expressions against each module's name with Python's `re`,
which can take years over a short one and can't be interrupted. So they are tried first, in a process that is
ended when it takes too long.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_prep.temporary import temporary_folder
from finetune.errors import ModelError, first_wrong
from finetune.models.architectures.base import EMBEDDING, last_part
from finetune.models.bases.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CHECKPOINT_MARKER,
    read_adapter_config,
    read_header,
)

LARGEST_SIZE = 65_536
SIZES = (
    "r",
    "rank",
    "num_virtual_tokens",
    "encoder_hidden_size",
    "encoder_num_layers",
    "adapter_len",
    "adapter_layers",
)
"""Keys of peft's kinds of adapters that say how large a matrix is."""

TOKEN_ROWS = re.compile(
    r"(^|\.)(?P<module>\w+)\.token_adapter\.(?P<part>base_layer\.weight|trainable_tokens_delta)$"
)
"""How peft names the rows of added tokens, and the weight that they lie in."""

PLAIN = re.compile(r"[\w.]*")
"""Names, whose matching takes no time to speak of."""

LORA = "LORA"
"""peft's name of the kind of adapter that is trained and merged here."""

NO_EXPRESSION = (re.error, RecursionError, OverflowError)
"""What `re` raises for a text that is none, or that it can't hold."""

LIMIT_SECONDS = 10
TRIED = "import json, re, sys; p, n = json.load(sys.stdin); [re.match(a, b) for a in p for b in n]"

Tokens = list[Annotated[int, Field(ge=0)]]
Names = str | list[str] | None


ROWS_ALTERED_BASE = ("corda", "lora_ga")
"""Ways to initialise that take a part out of the base which only the rows tell. peft loads LoRA-GA's beside
the whole base, silently, and says of CorDA's that a field of its own is absent."""


class LoraValues(BaseModel):
    """What is gone by in LoRA's adapter_config.json, with peft's defaults; other keys are kept as they
    are."""

    model_config = ConfigDict(extra="allow", strict=True)

    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)] = 8
    target_modules: Names = None
    exclude_modules: Names = None
    modules_to_save: list[str] | None = None
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Names = None
    trainable_token_indices: Tokens | dict[str, Tokens] | None = None
    init_lora_weights: bool | str | None = True

    @field_validator("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
    @classmethod
    def _are_patterns(cls, value: Any) -> Any:
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else []:
            try:
                re.compile(pattern)
            except NO_EXPRESSION as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value


def checked_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter folder's adapter_config.json with peft's defaults for LoRA. Raises ModelError for a value of
    another type."""
    found = read_adapter_config(folder)
    if found["peft_type"] != LORA:  # whose keys mean something else
        return LoraValues().model_dump() | found
    try:
        return LoraValues.model_validate(found).model_dump()
    except ValidationError as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: {first_wrong(error)}.") from None


def check_adapter_config(config: dict[str, Any], modules: Iterable[str], folder: Path) -> None:
    """Raises ModelError for a size out of bounds, for an expression that is none or takes too long on these
    names, and for an adapter of a base that peft can't make again."""
    path = folder / ADAPTER_CONFIG
    if config.get("init_lora_weights") in ROWS_ALTERED_BASE:
        raise ModelError(
            f"{path}: init_lora_weights is {config['init_lora_weights']}: this is an adapter of a base "
            "without the part where it started, which followed from rows and isn't in the file. Have peft "
            "save it as one of the base as it is (path_initial_model_for_weight_conversion); or, where the "
            "base here is the one without that part, set init_lora_weights to true."
        )
    pattern = config.get("rank_pattern")
    sizes = {key: config.get(key) for key in SIZES} | (pattern if isinstance(pattern, dict) else {})
    for key, value in sizes.items():
        if isinstance(value, int) and value > LARGEST_SIZE:
            raise ModelError(f"{path}: {key} is {value:,}; expected at most {LARGEST_SIZE:,}.")
    patterns = {name: written for name, written in _patterns(config).items() if not PLAIN.fullmatch(written)}
    if not patterns:
        return
    for written in patterns.values():
        try:
            re.compile(written)
        except NO_EXPRESSION as error:
            raise ModelError(f"{path}: {written!r} is no regular expression: {error}.") from None
    words = json.dumps([list(patterns), list(modules)])
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", TRIED],
            input=words,
            text=True,
            check=True,
            capture_output=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{path}: a regular expression takes more than {LIMIT_SECONDS} s on this base's module names, of "
            f"{', '.join(repr(written[:80]) for written in patterns.values())}: name the modules one by one."
        ) from None
    except subprocess.CalledProcessError as error:
        raise ModelError(
            f"{path}: its regular expressions can't be used: {error.stderr.splitlines()[-1:]}."
        ) from None


def frozen_copies(config: dict[str, Any], names: Iterable[str], folder: Path) -> set[str]:
    """Tensors in a training checkpoint that are no part of the adapter: copies of the base's embedding and
    head, rounded to the type that computes, and rows of a tied head, which are the embedding's. The run's
    result doesn't have them.
    """
    if not (folder / CHECKPOINT_MARKER).is_file():
        return set()
    trained = config.get("trainable_token_indices")
    modules = trained if isinstance(trained, dict) else {last_part(EMBEDDING): trained}
    found = {name: TOKEN_ROWS.search(name) for name in names}
    return {
        name
        for name, match in found.items()
        if match and (match["part"] != "trainable_tokens_delta" or match["module"] not in modules)
    }


@contextmanager
def only_the_adapter(folder: Path) -> Iterator[Path]:
    """The folder that peft is given to load while this lasts: without frozen copies where the adapter's own
    has some."""
    config = read_adapter_config(folder)
    unwanted = frozen_copies(config, read_header(folder / ADAPTER_WEIGHTS), folder)
    if not unwanted:
        yield folder
        return
    from safetensors import safe_open
    from safetensors.torch import save_file

    with temporary_folder("finetune-adapter-") as scratch:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys() if name not in unwanted}  # noqa: SIM118 - not a dict
        save_file(kept, scratch / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (scratch / ADAPTER_CONFIG).symlink_to((folder / ADAPTER_CONFIG).absolute())
        yield scratch


def _patterns(config: dict[str, Any]) -> dict[str, str]:
    """Expressions as peft composes them -> as they are written."""
    found = {}
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        for written in _texts(config.get(key), lists=False):
            found[f"(?:{written})\\Z"] = written
    for key in ("rank_pattern", "alpha_pattern"):
        value = config.get(key)
        for written in value if isinstance(value, dict) else ():
            found[rf"(.*\.)?({written})$"] = written
    for written in _texts(config.get("modules_to_save")):
        found[rf"(^|.*\.){written}($|\..*)"] = written
    for written in _texts(config.get("layers_pattern")):
        found[rf"(?:^|.*?\.){written}\.(?P<idx>\d+)\."] = written
    return found


def _texts(value: Any, *, lists: bool = True) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict) and lists:  # of an object, peft takes the keys
        yield from (item for item in value if isinstance(item, str))


def is_target(module: str, name: str) -> bool:
    """peft's rule of names: the module's name is this one, or ends with it after a dot."""
    return module == name or module.endswith(f".{name}")
