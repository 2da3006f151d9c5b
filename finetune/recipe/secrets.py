"""Keep secrets out of all that is written and printed: data_prep.secrets says what they are.

Values are scrubbed before they are serialised, so that no file's syntax breaks. Keys stay as they are, and so
do the recipe's paths (fields that the schema marks as PATH), for they must be found.
"""

from typing import TYPE_CHECKING, Any

from data_prep.secrets import scrubbed as scrubbed

if TYPE_CHECKING:
    from data_prep.config import Section


def scrubbed_values(value: Any) -> Any:
    """Nested values with each text in them scrubbed."""
    return _scrubbed(value, frozenset(), ())


def scrubbed_recipe(values: Any, *section: str) -> Any:
    """A recipe as plain values, or the section of it that is named, with each text scrubbed but its paths."""
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.objective import REFERENCE, TEACHER

    # A kind of objective has keys that the schema doesn't know; these may be paths.
    return _scrubbed(values, _paths_of(Recipe) | {REFERENCE, TEACHER}, section)


def _scrubbed(value: Any, paths: frozenset[tuple[str, ...]], location: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(below, paths, (*location, str(key))) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(below, paths, location) for below in value]
    return scrubbed(value) if isinstance(value, str) and location not in paths else value


def _paths_of(section: "type[Section]", location: tuple[str, ...] = ()) -> frozenset[tuple[str, ...]]:
    """The locations below a section of the schema that hold paths; what is in a list is where the list is."""
    from data_prep.config import PATH, sections_in

    found: set[tuple[str, ...]] = set()
    for name, field in section.model_fields.items():
        here = (*location, name)
        if PATH in field.metadata:
            found.add(here)
        for below in sections_in(field.annotation):
            found |= _paths_of(below, here)
    return frozenset(found)
