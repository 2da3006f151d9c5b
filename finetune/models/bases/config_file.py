"""What is gone by in the config.json of a supported family, and its bounds: checked before anything is built
from it."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from data_prep.text import shown
from finetune.errors import ModelError, first_wrong
from finetune.models.architectures import family_of
from finetune.models.architectures.base import ROPE_TYPES

MOST_LAYERS = 2_000
"""Each is a Python object, and a dozen names: the deepest known have 126."""

LARGEST_SIZE = 10_000_000
"""Of a width or a vocabulary: the largest known have 53,248 and 256,000."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Positions = Annotated[int, Field(ge=1, le=2**40)]
Positive = Annotated[float, Field(gt=0, lt=1e30, allow_inf_nan=False)]


def _fits_family(value: float, info: ValidationInfo) -> float:
    if value != 1 and not (info.context and info.context.partial_rope):
        raise ValueError("expected 1, because this family rotates complete heads")
    return value


def _is_rope_type(value: str, info: ValidationInfo) -> str:
    known = info.context.rope_types if info.context else ROPE_TYPES
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return value


HeadPart = Annotated[float, Field(gt=0, le=1), AfterValidator(_fits_family)]
"""The share of a head that is rotated."""
RopeType = Annotated[str, AfterValidator(_is_rope_type)]


class RopeValues(BaseModel):
    """rope_parameters, or rope_scaling as it was called; which of these a type needs, transformers checks."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: RopeType | None = None
    type: RopeType | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: HeadPart | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    short_factor: list[Positive] | None = None
    long_factor: list[Positive] | None = None
    mscale: Annotated[float, Field(ge=0, lt=1e30)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0, lt=1e30)] | None = None


class ConfigFile(BaseModel):
    """The sizes and settings, as config.json has them; other keys are the model's own."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model_type: str
    architectures: list[str] | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size
    max_position_embeddings: Positions | None = None
    sliding_window: Positions | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    rms_norm_eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: HeadPart | None = None
    rope_scaling: RopeValues | None = None
    rope_parameters: RopeValues | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    @property
    def head_width(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotated(self) -> int:
        """How many of them positions rotate, wherever the config says it."""
        said = (self.rope_parameters, self.rope_scaling, self)
        parts = (None if values is None else values.partial_rotary_factor for values in said)
        return int(self.head_width * next((part for part in parts if part is not None), 1.0))

    @field_validator("dtype", "torch_dtype")
    @classmethod
    def _is_a_type(cls, value: str | None) -> str | None:
        if value is not None and value.removeprefix("torch.") not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}")
        return value


def check_config(config: dict[str, Any], path: Path | str = "config.json") -> ConfigFile:
    """The checked values of a config.json. Raises ModelError where one is absent, of another type or out of
    bounds."""
    family = family_of(config.get("model_type"))
    try:
        found = ConfigFile.model_validate({**(family.defaults if family else {}), **config}, context=family)
    except ValidationError as error:
        raise ModelError(f"{path}: {first_wrong(error)}.") from None
    heads, groups = found.num_attention_heads, found.num_key_value_heads or found.num_attention_heads
    if heads % groups:
        raise ModelError(
            f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}."
        )
    if found.head_dim is None and found.hidden_size % heads:
        raise ModelError(
            f"{path}: hidden_size {found.hidden_size} is no multiple of num_attention_heads {heads}."
        )
    if found.rotated < 2 or found.rotated % 2:
        raise ModelError(
            f"{path}: positions rotate {found.rotated} of the {found.head_width} numbers of a head; expected "
            "an even number, for they rotate pairs."
        )
    for key in family.multipliers if family else ():
        value = config.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ModelError(f"{path}: {key} is {shown(value)}; expected a finite number above 0.")
    return found
