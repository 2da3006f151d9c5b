"""What every section of a recipe shares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

PREPARATION = 4
"""The version of how rows become tokens; raising it makes every cache prepare again. A run resumes with the
version that it was started with. In 2, prompt and completion of a plain text are tokenised as one text, the
first token after a cut (over_length: split, pack_split) has no label, and files whose names say that they are
held out are trained on. In 3, the chat template alpaca has no heading for an input, and the column
chat_template_kwargs and the weights of a message's parts are not read."""

PATH = "path"
"""Marks a field that holds a path: Annotated[str, PATH]."""

NAMES = "names_of"
"""Marks a text that is a name of a registry above the schema, in a field's JSON schema:
json_schema_extra={NAMES: "metrics"}. What lists a recipe's keys puts the registry's names in its place
(finetune/recipe/reference.py)."""


@dataclass(frozen=True)
class OneOf:
    """Marks a name that is in a registry: Annotated[str, OneOf(names)]. It is looked up when a section is
    validated.

    Another value is refused as one of a Literal is: as a literal_error, which holds the choices.
    """

    names: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._checked, serialization=core_schema.str_schema()
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.names()), "type": "string"}

    def _checked(self, value: Any) -> str:
        choices = list(self.names())
        if isinstance(value, str) and value in choices:
            return value
        expected = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])])
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected, "choices": choices}
        )


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field's annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]
