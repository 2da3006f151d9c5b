"""What `finetune check` says of a text that is being written."""

from dataclasses import asdict, dataclass
from typing import Any

from data_prep.errors import DataError
from data_prep.text import printable
from finetune.board.workspace import Workspace
from finetune.errors import FinetuneError, Problem, RecipeError
from finetune.models.bases.local import check_local_base
from finetune.recipe.load import load_recipe
from finetune.recipe.rules.packages import check_packages


@dataclass(frozen=True)
class LocatedProblem:
    """A problem, and where it is; line 0 is nowhere in the text."""

    line: int
    column: int
    path: str
    message: str


def check_text(workspace: Workspace, name: str, text: str) -> dict[str, Any]:
    """A summary of the text as a recipe, and its problems."""
    shown = workspace.shown(workspace.recipe_path(name))
    try:
        loaded = load_recipe(workspace.folder / shown, text=text)
        check_packages(loaded.recipe)
        check_local_base(loaded.recipe)
    except RecipeError as error:
        found = [_located(problem, str(workspace.folder / shown)) for problem in error.problems]
    except (FinetuneError, DataError) as error:
        found = [LocatedProblem(0, 0, "", printable(str(error)))]
    else:
        written = sum(origin != "default" for origin in loaded.origins.values())
        others = len(loaded.origins) - written
        return {"summary": f"valid: {written} values written, {others} defaults", "problems": []}
    count = f"{len(found)} problem{'s' if len(found) != 1 else ''}"
    return {"summary": count, "problems": [asdict(one) for one in found]}


def _located(problem: Problem, file: str) -> LocatedProblem:
    """A problem with its place as numbers, where that is in the text itself."""
    begin, _, column = problem.place.rpartition(":")
    path, _, line = begin.rpartition(":")
    if path == file and line.isdigit() and column.isdigit():
        return LocatedProblem(int(line), int(column), problem.path, printable(problem.message))
    return LocatedProblem(0, 0, problem.path, printable(f"{problem.place}: {problem.message}"))
