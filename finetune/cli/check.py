"""finetune check: is this recipe right, and what does it mean?"""

from collections.abc import Collection
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.common import (
    AllowCodeOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    allowed_code,
    out,
    print_json,
)

if TYPE_CHECKING:
    from finetune.recipe.load import LoadedRecipe


class ServedBy(StrEnum):
    """Programs that a recipe's result is checked for."""

    VLLM = "vllm"


WIDEST_VALUE = 72  # columns; an origin after a longer line isn't aligned with the others


def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    json_output: JsonOption = False,
    launch: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Also whether it can be trained so.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="With --launch: how many.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also do what needs the model or the data; slower.")
    ] = False,
    serve_with: Annotated[
        ServedBy | None, typer.Option("--for", help="Also whether this program can serve what it trains.")
    ] = None,
    allow_code: AllowCodeOption = None,
) -> None:
    """Check a recipe, and show each value's origin.

    Static unless --deep: no torch, no network.
    """
    from finetune.models.bases.local import check_local_base
    from finetune.recipe.load import idle_defaults, load_recipe
    from finetune.recipe.rules.packages import check_packages

    loaded = load_recipe(recipe, overrides or [])
    check_packages(loaded.recipe)
    if launch is not None:
        from finetune.engines.launch.check import check_launch, plan_launch

        check_launch(plan_launch(launch, processes=processes), loaded.recipe)
    check_local_base(loaded.recipe)
    served = []
    if serve_with is ServedBy.VLLM:
        from finetune.exporting.for_vllm import check_for_vllm

        served = check_for_vllm(loaded)
    found = served + (_deep(loaded, allowed_code(allow_code)) if deep else [])
    if json_output:
        parts = ({"serving": served} if served else {}) | ({"deep": found[len(served) :]} if deep else {})
        print_json({"recipe": loaded.recipe.model_dump(mode="json"), "origins": loaded.origins} | parts)
        return
    lines = resolved_lines(
        loaded.recipe.model_dump(mode="json"), loaded.origins, idle_defaults(loaded.recipe)
    )
    width = max(len(text) for text, _ in lines if len(text) <= WIDEST_VALUE)
    for text, origin in lines:
        out(f"{text:<{width}}  " if origin else text, pale=f"# {origin}" if origin else "")
    for line in found:
        out(f"# {line}")
    written = sum(origin != "default" for origin in loaded.origins.values())
    out(f"# ok: {recipe} is valid; {written} values written, {len(loaded.origins) - written} defaults")


def _deep(loaded: "LoadedRecipe", allow_code: frozenset[str]) -> list[str]:
    from finetune.training.build import deep_check

    with loaded.placing():
        return deep_check(loaded.recipe, allow_code=allow_code)


def resolved_lines(
    value: dict[str, Any], origins: dict[str, str], idle: Collection[str], path: str = "", indent: str = ""
) -> list[tuple[str, str]]:
    """A resolved recipe as lines of YAML, each with its origin ("" for the line of a section).

    The `idle` defaults are comments: a recipe that has them written is refused.
    """
    lines: list[tuple[str, str]] = []
    for key, below in value.items():
        here = f"{path}.{key}" if path else key
        if here in origins:
            comment, why = ("# ", ", without effect here") if here in idle else ("", "")
            lines.append((f"{indent}{comment}{yaml_value(key)}: {yaml_value(below)}", origins[here] + why))
            continue
        lines.append((f"{indent}{key}:", ""))
        if isinstance(below, dict):
            lines += resolved_lines(below, origins, idle, here, indent + "  ")
            continue
        for index, item in enumerate(below):
            inner = resolved_lines(item, origins, idle, f"{here}.{index}", indent + "    ")
            (first, origin), *rest = inner
            lines += [(f"{indent}  - {first.strip()}", origin), *rest]
    return lines


def yaml_value(value: Any) -> str:
    """A scalar, or a list of scalars, in YAML 1.2 on one line, every character printable."""
    if value == {}:
        return "{}"
    if isinstance(value, list):
        return f"[{', '.join(yaml_value(item) for item in value)}]"
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _is_plain(text: str) -> bool:
    """Whether YAML reads the unquoted text as this very text, in a list too."""
    from finetune.recipe.reading.yaml_tree import plain_scalar

    safe = all(character.isalnum() or character in "_/.-+=~ " for character in text) and text.isascii()
    if not safe or text != text.strip() or text.startswith(("-", "=", "~")):
        return False
    try:
        return plain_scalar(text) == text
    except ValueError:
        return False


def _quoted(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}

    def escape(character: str) -> str:
        if character in escapes:
            return escapes[character]
        return character if character.isprintable() else f"\\U{ord(character):08X}"

    return f'"{"".join(escape(character) for character in text)}"'
