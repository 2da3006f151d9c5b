"""What every section of a recipe shares."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

PREPARATION = 3
"""The version of how rows become tokens; raising it makes every cache prepare again. A run resumes with the version that it
was started with: in 2, prompt and completion of a plain text are tokenised as one text, the first token after a cut
(over_length: split, pack_split) has no label, and files whose names say that they are held out are trained on."""

PATH = "path"
"""Marks a field that holds a path: Annotated[str, PATH]."""


NAMES = "names_of"
"""Marks a text that is a name of a registry, in a field's JSON schema: json_schema_extra={NAMES: "metrics"}.
finetune/recipe/reference.py puts the registry's names in its place."""


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field's annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]
