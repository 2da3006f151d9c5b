"""Rules for the sweep section: a space whose every value the recipe may have, objectives that it measures, a
search that its budget bounds."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import ValidationError

from finetune.objectives import kind_of
from finetune.recipe.given import Given, RuleProblem
from finetune.recipe.reading.explain import mistakes_of, not_among, show
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.sweep import DISTRIBUTIONS, PrunerSection, SweepSection
from finetune.scoring import metrics

FIXED = ("sweep", "output", "tracking", "extends")
"""Sections that a sweep itself decides, or that change nothing of what is learned."""
GRID = 100
"""How many combinations a grid may have where sweep.trials doesn't say."""
MOST_COUNTED = 1_000_000
"""A grid is counted up to here."""
OF_METHODS: Mapping[str, tuple[str, ...]] = {
    "reduction_factor": ("halving", "hyperband"),
    "patience_evaluations": ("median",),
}
"""Keys of the pruner -> the methods that read them."""


def sweep_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """All that is wrong with the sweep section."""
    sweep = recipe.sweep
    if sweep is None:
        return
    wrong = [*_forms(sweep), *_dependences(sweep)]
    yield from wrong
    yield from _values(recipe, sweep, given, {path for path, _ in wrong})
    yield from _objectives(recipe, sweep)
    if not wrong:
        yield from _budget(sweep)
        yield from _sampler(sweep)
    yield from _pruner(recipe, sweep, given)
    yield from _repeats(recipe, sweep)


def path_of(key: str, *below: str) -> str:
    """Where a key of the space stands in the recipe."""
    return ".".join(("sweep", "space", key, *below))


def with_values(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with others at dotted paths. Raises LookupError for a path that can't exist."""
    for key, value in changes.items():
        values = _with(values, key.split("."), value)
    return values


def _with(found: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(found, list):
        if not first.isdecimal() or int(first) >= len(found):
            raise LookupError(f"expected an index from 0 to {len(found) - 1}, got {first}")
        return [_with(item, rest, value) if index == int(first) else item for index, item in enumerate(found)]
    if found is not None and not isinstance(found, dict):
        raise LookupError(f"{show(found)} has no key {first}")
    values = dict(found or {})
    values[first] = _with(values.get(first), rest, value)
    return values


def _forms(sweep: SweepSection) -> RuleProblem:
    """Each entry is one distribution, with the keys that this one has, and can be drawn from."""
    for key, entry in sweep.space.items():
        given = entry.given
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            yield path_of(key), f"expected one of {', '.join(DISTRIBUTIONS)}, got {got}"
            continue
        kind = given[0]
        if kind != "choice":
            low, high = entry.extremes()
            if low >= high:
                yield (
                    path_of(key, kind),
                    f"got [{low:g}, {high:g}], expected [LOW, HIGH], the lower one first",
                )
            elif kind == "log_uniform" and low <= 0:
                yield (
                    path_of(key, kind),
                    f"got {low:g}, whose logarithm there is none of; expected more than 0",
                )
        elif any(value in (entry.choice or ())[:index] for index, value in enumerate(entry.choice or ())):
            yield path_of(key, kind), "a value stands there twice"
        if entry.step is not None and kind != "int_uniform":
            yield path_of(key, "step"), "only int_uniform has it; remove this"
        continuous = kind in ("uniform", "log_uniform")
        if entry.points is not None and not (continuous and sweep.sampler == "grid"):
            yield (
                path_of(key, "points"),
                "only uniform and log_uniform under sampler grid have it; remove this",
            )
        if continuous and sweep.sampler == "grid" and entry.points is None:
            yield path_of(key), f"a grid takes single values: set points, or write choice in place of {kind}"


def _dependences(sweep: SweepSection) -> RuleProblem:
    """Keys that are none in another, and conditions that a trial can fulfil."""
    for key, entry in sweep.space.items():
        for other in sweep.space:
            if other.startswith(f"{key}."):
                yield path_of(other), f"{key}, which holds it, is varied too; keep one of them"
        for other, wanted in entry.conditions().items():
            if other not in sweep.space:
                yield path_of(key, "when", other), not_among(other, list(sweep.space))
                continue
            there = sweep.space[other]
            absent = [value for value in wanted if there.choice is not None and value not in there.choice]
            if absent:
                yield path_of(key, "when", other), f"{show(absent[0])} is none of its values"
    try:
        sweep.in_order()
    except ValueError as error:
        if all(other in sweep.space for other in sweep.space[str(error)].conditions()):
            yield path_of(str(error), "when"), "the conditions go in a circle"


def _values(recipe: Recipe, sweep: SweepSection, given: Given, wrong: set[str]) -> RuleProblem:
    """Each key is one of a recipe's, and may have its values, beside what the recipe says; but for those
    below which something is wrong already."""
    from finetune.recipe.rules import problems_of

    plain = {**recipe.model_dump(mode="json"), "sweep": None}
    known = set(problems_of(Recipe.model_validate(plain), given))
    for key, entry in sweep.space.items():
        if key.split(".")[0] in FIXED:
            yield (
                path_of(key),
                f"a sweep can't vary {key.split('.')[0]}; it can vary what is trained, and how",
            )
            continue
        depends = {key, *entry.conditions()}
        if any(path.startswith(path_of(one)) for path in wrong for one in depends):
            continue
        for value in entry.extremes():
            said = _said(plain, _conditions(sweep, key) | {key: value}, given, known)
            if said is not None:
                path, message = said
                where = "" if path == key else f"{path}: "
                yield path_of(key, *entry.given), f"{where}{message}"
                break


def _conditions(sweep: SweepSection, key: str) -> dict[str, Any]:
    """Values of other keys with which a key is varied: the first that do."""
    found: dict[str, Any] = {}
    for other, wanted in sweep.space[key].conditions().items():
        found |= _conditions(sweep, other) | {other: wanted[0]}
    return found


def _said(
    plain: dict[str, Any], changes: dict[str, Any], given: Given, known: set[tuple[str, str]]
) -> tuple[str, str] | None:
    """The first that schema or rules have against the recipe with these values; None where there is
    nothing."""
    try:
        values = with_values(plain, changes)
    except LookupError as error:
        return list(changes)[-1], str(error.args[0])
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError:
        return next(mistakes_of(Recipe, values, ()))
    from finetune.recipe.rules import problems_of

    return next((said for said in problems_of(recipe, given | set(changes)) if said not in known), None)


def _objectives(recipe: Recipe, sweep: SweepSection) -> RuleProblem:
    """Each is measured of the result, and at each evaluation where trials are stopped by it."""
    if not recipe.data.evaluates:
        yield (
            "sweep.objectives",
            "trials are judged on evaluation rows, and there are none: set data.evaluation",
        )
        return
    found = kind_of(recipe)
    for index, name in enumerate(sweep.objectives):
        path = f"sweep.objectives.{index}"
        if not metrics.known([name]):
            yield path, not_among(name, [metric.name for metric in metrics.METRICS])
        elif name in sweep.objectives[:index]:
            yield path, f"{name} is named twice"
        elif found is None or name == "loss" or (name == "perplexity" and found.has_perplexity):
            continue
        elif name not in found.logged and name not in recipe.evaluate.metrics:
            yield path, f"{name} is not measured: add it to evaluate.metrics"
        elif sweep.pruner and name not in found.logged and recipe.evaluate.rows_in_training is None:
            yield (
                path,
                f"{name} is measured at the end only, and the pruner looks before: set "
                "evaluate.rows_in_training",
            )


def _budget(sweep: SweepSection) -> RuleProblem:
    if sweep.sampler != "grid":
        if sweep.trials is None and sweep.hours is None:
            yield (
                "sweep",
                f"when does it end? set trials or hours (sampler {sweep.sampler} has no end of its own)",
            )
        return
    most = sweep.trials or GRID
    count = sum(1 for _ in islice(sweep.grid(), MOST_COUNTED))
    if count > most:
        counted = f"{count:,}" if count < MOST_COUNTED else f"{count:,} or more"
        bound = (
            f"sweep.trials is {most:,}" if sweep.trials else f"without sweep.trials at most {most} are taken"
        )
        yield (
            "sweep.space",
            f"the grid has {counted} combinations, and {bound}: set trials to that, or take values out",
        )


def _sampler(sweep: SweepSection) -> RuleProblem:
    if sweep.sampler != "cma-es":
        return
    numbers = [key for key, entry in sweep.space.items() if entry.choice is None and entry.when is None]
    if len(numbers) < 2 or len(numbers) < len(sweep.space):
        yield (
            "sweep.sampler",
            "cma-es searches two numbers or more, without choice and when; tpe searches all",
        )
    elif len(sweep.objectives) > 1:
        yield "sweep.sampler", "cma-es has one objective; tpe searches for several"


def _pruner(recipe: Recipe, sweep: SweepSection, given: Given) -> RuleProblem:
    if sweep.pruner is None:
        return
    if len(sweep.objectives) > 1:
        yield (
            "sweep.pruner",
            "of several objectives none says which trial falls behind; keep one, or remove this",
        )
    if recipe.train.evaluate_every is None or recipe.train.evaluate_every == "never":
        yield "sweep.pruner", 'trials are stopped at evaluations: set train.evaluate_every ("10%")'
    for key, methods in OF_METHODS.items():
        default = PrunerSection.model_fields[key].default
        if getattr(sweep.pruner, key) != default and sweep.pruner.method not in methods:
            yield f"sweep.pruner.{key}", f"only {' and '.join(methods)} have it; remove this"


def _repeats(recipe: Recipe, sweep: SweepSection) -> RuleProblem:
    if sweep.repeats is None:
        return
    if len(sweep.objectives) > 1:
        yield "sweep.repeats", "of several objectives there is no best trial; keep one, or remove this"
    for index, source in enumerate(sweep.repeats.sources):
        for name, did, others in (
            ("data.train", "trained", recipe.data.train),
            ("data.evaluation", "chose", recipe.data.held_out),
        ):
            if source in others:
                yield (
                    f"sweep.repeats.sources.{index}",
                    f"these are rows of {name}, which {did}; name others",
                )


RULES = (sweep_fits,)
