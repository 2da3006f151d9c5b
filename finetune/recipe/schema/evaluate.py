"""The evaluate section: how answers are generated and scored."""

from typing import Annotated

from pydantic import Field

from data_prep.config import Section


class EvaluateSection(Section):
    """How answers are generated and scored."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts generated at once, and rows a forward pass when the loss is measured after training."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """The longest answer."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Score at most so many evaluation rows, the first ones; all when absent."""
