"""What is gone by in the config.json of a LLaMA-family model, and its bounds: checked before anything is built from it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from finetune.errors import ModelError, first_wrong

MOST_LAYERS = 2_000
"""Each is a Python object, and a dozen names: the deepest known have 126."""

LARGEST_SIZE = 10_000_000
"""Of a width or a vocabulary: the largest known have 53,248 and 256,000."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")

ABSENT: dict[str, dict[str, int]] = {
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes where a file says nothing, and a LLaMA's would be something else."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Those of transformers that turn a whole head, as a LLaMA does."""

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Positions = Annotated[int, Field(ge=1, le=2**40)]
Positive = Annotated[float, Field(gt=0, lt=1e30, allow_inf_nan=False)]
WholeHead = Annotated[float, Field(ge=1, le=1)]
"""The share of a head that is turned."""


class RopeValues(BaseModel):
    """rope_parameters, or rope_scaling as it was called; which of these a type needs, transformers checks."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: WholeHead | None = None
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

    @field_validator("rope_type", "type")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in ROPE_TYPES:
            raise ValueError(f"expected one of {', '.join(ROPE_TYPES)}")
        return value


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
    partial_rotary_factor: WholeHead | None = None
    rope_scaling: RopeValues | None = None
    rope_parameters: RopeValues | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    @field_validator("dtype", "torch_dtype")
    @classmethod
    def _is_a_type(cls, value: str | None) -> str | None:
        if value is not None and value.removeprefix("torch.") not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}")
        return value


def check_config(config: dict[str, Any], path: Path | str = "config.json") -> ConfigFile:
    """The checked values of a config.json. Raises ModelError where one is absent, of another type or out of bounds."""
    kind = config.get("model_type")
    absent = ABSENT.get(kind, {}) if isinstance(kind, str) else {}
    try:
        found = ConfigFile.model_validate(absent | config)
    except ValidationError as error:
        raise ModelError(f"{path}: {first_wrong(error)}.") from None
    heads, groups = found.num_attention_heads, found.num_key_value_heads or found.num_attention_heads
    if heads % groups:
        raise ModelError(f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}.")
    if found.head_dim is None and found.hidden_size % heads:
        raise ModelError(f"{path}: hidden_size {found.hidden_size} is no multiple of num_attention_heads {heads}.")
    return found
