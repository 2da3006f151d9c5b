"""What other tools call the knobs of a recipe: the table, and how a name or a value is looked up in it.

The messages of the recipe's reader say from it what a name of another tool is here, and `finetune convert`
translates by it.
"""

from collections.abc import Mapping

from finetune.recipe.aliases.base import ANY, Alias
from finetune.recipe.aliases.chosen import CHOSEN, LACKING
from finetune.recipe.aliases.dormant import DORMANT
from finetune.recipe.aliases.keys import KEYS
from finetune.recipe.aliases.values import FORMATS, OPTIMIZERS, SCHEDULES, TEMPLATES, Value, value_named

__all__ = [
    "ALIASES", "FORMATS", "OPTIMIZERS", "SCHEDULES", "TEMPLATES", "Alias", "Value", "alias_of",
    "counterpart", "value_named",
]  # fmt: skip

ALIASES: tuple[Alias, ...] = (*KEYS, *CHOSEN, *LACKING, *DORMANT)
"""Every name that is known, ours first; a tool's own line goes before one of any tool."""


def _by_name() -> Mapping[str, tuple[Alias, ...]]:
    found: dict[str, tuple[Alias, ...]] = {}
    for alias in ALIASES:
        for name in alias.names:
            found[name] = (*found.get(name, ()), alias)
    return found


BY_NAME = _by_name()
BEGINNINGS = tuple(name for name in BY_NAME if name.endswith("_*"))


def alias_of(tool: str, key: str) -> Alias | None:
    """What a key of a tool's file is here: the longest end of its dotted name that is known, before that the
    section that it is in (`profiler.*`); the tool's own lines first."""
    parts = key.split(".")
    starts = range(len(parts))
    sections = [".".join(parts[a:b]) + ".*" for a in starts for b in range(len(parts) - 1, a, -1)]
    begun = [name for name in BEGINNINGS if parts[-1].startswith(name[:-1])]
    names = [*(".".join(parts[start:]) for start in starts[:-1]), *sections, parts[-1], *begun]
    for name in names:
        for tools in (tool, ANY):
            for alias in BY_NAME.get(name, ()):
                if tools in alias.tools:
                    return alias
    return None


def counterpart(key: str, section: str) -> Alias | None:
    """What a name that somebody wrote in a section of a recipe is here, of whichever tool it comes; None
    where no tool has it, or two mean different things by it, neither of which is of this section."""
    name = key.strip().replace("-", "_")
    found = [alias for alias in ALIASES if alias.has(name)]
    here = [alias for alias in found if alias.ours.rpartition(".")[0] == section]
    anybody = here or [alias for alias in found if ANY in alias.tools] or found
    return anybody[0] if len({alias.ours for alias in anybody}) == 1 else None
