"""Convert another tool's file into a recipe: recognise the tool, carry each key, put together, check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from finetune import objectives
from finetune.conversion.base import Tool
from finetune.conversion.draft import Draft, Fate, Line
from finetune.conversion.finish import finish
from finetune.conversion.given import ConvertError, Given, GivenKey
from finetune.conversion.reading import interpolated, read, refuse_variables
from finetune.conversion.shell import TOOL as COMMAND
from finetune.conversion.shell import VERB
from finetune.conversion.tools import TOOLS
from finetune.conversion.values import HOWS
from finetune.conversion.writing import recipe_text
from finetune.recipe.aliases import Alias, alias_of
from finetune.recipe.load import problems_in
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Conversion:
    """A recipe made from another tool's file, and what became of each of its keys."""

    tool: str
    """The tool that the file is of, as in --from."""
    recipe: str
    """The recipe, as YAML."""
    carried: tuple[Line, ...]
    """Keys that are the recipe's, with the same result."""
    otherwise: tuple[Line, ...]
    """Keys that are carried in another form, or that the toolkit sees to by itself."""
    dropped: tuple[Line, ...]
    """Keys that are not carried, and why."""
    absent: tuple[str, ...] = ()
    """Files and folders that the recipe names and that are not on this machine."""

    @classmethod
    def of(cls, tool: str, recipe: str, lines: Sequence[Line], absent: Sequence[str] = ()) -> "Conversion":
        """One whose lists are these lines by their fate."""
        fates: tuple[Fate, ...] = ("carried", "otherwise", "dropped")
        carried, otherwise, dropped = (tuple(line for line in lines if line.fate == fate) for fate in fates)
        return cls(tool, recipe, carried, otherwise, dropped, tuple(absent))

    @property
    def complete(self) -> bool:
        """Whether nothing is lost that changes the result."""
        return not any(line.changes for line in (*self.otherwise, *self.dropped))


def convert_file(
    file: Path, tool: str | None = None, *, folder: Path | None = None, processes: int = 1
) -> Conversion:
    """The recipe for a file of another tool; relative paths in it start at `folder` (else the working one).

    `tool` is asked for where the file could be of two; "trl orpo" says the trainer as well. `processes` is
    how many the run had: files don't say, scripts may, and the global batch is micro batch x accumulation x
    processes.

    Raises ConvertError for a file that can't be read or whose training can't be had here, OSError where
    there is none.
    """
    if processes < 1:
        raise ConvertError(f"processes is {processes}; expected a whole number from 1.")
    given = read(file, str(file))
    tool, _, verb = (tool or "").strip().partition(" ")
    chosen = _chosen(given, tool or None)
    if verb:
        _trainer(given, chosen, verb)
    given.entries.pop(COMMAND, None)
    if chosen.interpolates:
        interpolated(given)
    if chosen.prepare is not None:
        chosen.prepare(given)
    given.add_defaults(chosen.defaults)
    draft = Draft(given, chosen.title, processes if processes > 1 else given.processes())
    for entry in given.entries.values():
        alias = _alias(entry, chosen)
        if alias is None or alias.how not in ("chosen", "spare"):  # whose values are never looked at
            refuse_variables(entry)
    chosen.convert(given, draft)
    for entry in sorted(given.left(), key=lambda entry: entry.written):  # what is written goes over defaults
        _carry(entry, chosen, draft)
    finish(draft)
    return _checked(given, chosen, draft, folder or Path.cwd())


def _alias(entry: GivenKey, tool: Tool) -> Alias | None:
    names = (tool.name, *tool.covers)
    return next((found for name in names if (found := alias_of(name, entry.key)) is not None), None)


def _carry(entry: GivenKey, tool: Tool, draft: Draft) -> None:
    draft.given.take(entry.key)
    alias = _alias(entry, tool)
    if alias is None:
        if entry.off:
            draft.carried(entry, "", "off there; the toolkit has none")
        else:
            draft.drop(entry, f"not a key of {tool.title} that is known here")
        return
    HOWS[alias.how](entry, alias, draft)


def _trainer(given: Given, tool: Tool, verb: str) -> None:
    """The trainer that --from names behind the tool."""
    if verb not in tool.verbs:
        expected = f"one of {', '.join(tool.verbs)}" if tool.verbs else "nothing"
        raise ConvertError(f'--from "{tool.name} {verb}": expected {expected} behind {tool.name}')
    given.environment = {**given.environment, VERB: verb}


def _chosen(given: Given, name: str | None) -> Tool:
    """The tool that was named, or the one whose keys the file has."""
    by_name = {tool.name: tool for tool in TOOLS}
    name = given.environment.get(COMMAND, name) if name is None else name
    found = {tool.name: marks for tool in TOOLS if (marks := tool.marks_in(given))}
    names = {"swift": "ms-swift", "handbook": "alignment-handbook", "mlx-lm": "mlx_lm"}
    if name is not None:
        name = names.get(name, name)
        if name not in by_name:
            close = get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConvertError(f"--from {name}: expected one of {', '.join(by_name)}{hint}")
        foreign = [tool for tool in found if tool != name and tool not in by_name[name].covers]
        if name not in found and foreign:
            entry = found[foreign[0]][0]
            raise entry.refused(
                f"a key of {by_name[foreign[0]].title}, and --from says {by_name[name].title}"
            )
        return by_name[name]
    if "model.base" in given and given.under("data.train"):
        raise given.refused(
            "this is a recipe already; --to axolotl, llamafactory or trl writes it as another tool's file"
        )
    if "compute_environment" in given or "zero_optimization.stage" in given:
        raise given.refused(
            "this says how processes are started or sharded, and nothing of a training; finetune train "
            "--launch takes an accelerate file"
        )
    if not found:
        raise given.refused(
            f"no tool is known by these keys ({', '.join(list(given.entries)[:6])}); name it: --from "
            f"{' | '.join(by_name)}"
        )
    covered = {other for tool in found for other in by_name[tool].covers}
    left = [tool for tool in found if tool not in covered]
    best = max(len(found[tool]) for tool in left)
    first = [tool for tool in left if len(found[tool]) == best]
    if len(left) > 1:
        said = "; ".join(f"{tool} by {found[tool][0].key} on line {found[tool][0].line}" for tool in left)
        if len(first) == 1 and best >= 3 * max(len(found[tool]) for tool in left if tool != first[0]):
            return by_name[first[0]]
        raise given.refused(
            f"keys of {len(left)} tools are mixed, {said}; name the one it is: --from {left[0]}"
        )
    return by_name[left[0]]


def _checked(given: Given, tool: Tool, draft: Draft, folder: Path) -> Conversion:
    """The conversion, once the recipe has passed the check; a value that it refuses is named by their key."""
    if "model.base" not in draft.values:
        raise given.refused(f"no base model is named in this file of {tool.title}")
    if not any(path.startswith("data.train.") for path in draft.values):
        raise given.refused(f"no data set is named in this file of {tool.title}")
    _leave_out_defaults(draft)
    text = recipe_text(draft.values, f"{given.file.name} of {tool.title}", folder)
    problems, absent = problems_in(text, folder)
    if problems:
        first = problems[0]
        key = _source_of(draft.values, first.path)
        entry = given.entries.get(key)
        if entry is not None and entry.written:
            raise entry.refused(first.message)
        raise given.refused(f"{first.path} (from {key or 'the file'}): {first.message}")
    return Conversion.of(
        tool.name, text, draft.lines, [f"{problem.path}: {problem.message}" for problem in absent]
    )


def _leave_out_defaults(draft: Draft) -> None:
    """Defaults of the tool that are ours too need no line."""
    for path, written in list(draft.values.items()):
        parts = path.split(".")
        if written.asked or len(parts) != 2:
            continue
        field = _fields(parts[0], draft).get(parts[1])
        if field is not None and field.get_default(call_default_factory=True) == written.value:
            del draft.values[path]


def _fields(section: str, draft: Draft) -> Mapping[str, Any]:
    """The keys of a section; of objective, those of its kind."""
    if section == "objective":
        kind = draft.value("objective.kind")
        return next((found.section.model_fields for found in objectives.OBJECTIVES if found.kind == kind), {})
    return getattr(Recipe.model_fields[section].annotation, "model_fields", {})


def _source_of(values: Mapping[str, Any], path: str) -> str:
    """The key that the value at a path, or above or below it, came from."""
    parent = path.rpartition(".")[0]
    near = (
        [place for place in values if place == path]
        or [place for place in values if path.startswith(f"{place}.") or place.startswith(f"{path}.")]
        or [place for place in values if parent.count(".") and place.startswith(f"{parent}.")]
    )
    return str(values[near[0]].comment).split(":")[0].split(",")[0] if near else ""
