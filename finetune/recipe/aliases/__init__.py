"""What other tools call the knobs of a recipe: the table, and how a name or a value is looked up in it.

The messages of the recipe's reader say from it what a name of another tool is here, and `finetune convert`
translates by it.
"""

from collections.abc import Mapping

from finetune.recipe.aliases.base import ANY, Alias
from finetune.recipe.aliases.chosen import CHOSEN, LACKING
from finetune.recipe.aliases.keys import KEYS
from finetune.recipe.aliases.values import FORMATS, OPTIMIZERS, SCHEDULES, TEMPLATES, Value, value_named

__all__ = [
    "ALIASES", "FORMATS", "OPTIMIZERS", "SCHEDULES", "TEMPLATES", "Alias", "Value", "alias_of",
    "counterpart", "value_named",
]  # fmt: skip

ALIASES: tuple[Alias, ...] = (*KEYS, *CHOSEN, *LACKING)
"""Every name that is known, ours first; a tool's own line goes before one of any tool."""


def _by_name() -> Mapping[str, tuple[Alias, ...]]:
    found: dict[str, tuple[Alias, ...]] = {}
    for alias in ALIASES:
        for name in alias.names:
            found[name] = (*found.get(name, ()), alias)
    return found


BY_NAME = _by_name()


def alias_of(tool: str, key: str) -> Alias | None:
    """What a key of a tool's file is here: looked up by its full dotted name, then by its parents'
    (`profiler.*`), then by its last part; the tool's own lines first."""
    parts = key.split(".")
    names = [key, *(".".join(parts[:end]) + ".*" for end in range(len(parts) - 1, 0, -1)), parts[-1]]
    for name in names:
        for tools in (tool, ANY):
            for alias in BY_NAME.get(name, ()):
                if tools in alias.tools:
                    return alias
    return None


def counterpart(key: str) -> Alias | None:
    """What a name that somebody wrote in a recipe is here, of whichever tool it comes; None where no tool has
    it, or two mean different things by it."""
    name = key.strip().replace("-", "_")
    found = [alias for alias in ALIASES if name in (other.rpartition(".")[2] for other in alias.names)]
    anybody = [alias for alias in found if ANY in alias.tools] or found
    return anybody[0] if len({alias.ours for alias in anybody}) == 1 else None
