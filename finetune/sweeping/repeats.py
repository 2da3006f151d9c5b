"""The best trials again with other seeds, scored on rows that chose nothing: whether the winner is a
finding, or luck of a seed and of the rows that chose it."""

import logging
import math
from collections.abc import Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.config import EvaluationSplit
from data_prep.disk import read_json
from finetune.data import prepare_data, tokenizer_for
from finetune.errors import SweepError
from finetune.evaluation.bootstrap import SEED, interval_of
from finetune.evaluation.evaluation import Evaluation
from finetune.models.bases.locate import tokenizer_folder
from finetune.models.device import choose_precision
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.sweep import RepeatsSection
from finetune.runs.folder import RunFolder, write_json
from finetune.runs.target import resolve_target
from finetune.scoring.metrics import lower_is_better
from finetune.sweeping.at_once import train_at_once
from finetune.sweeping.results import Repeated, TrialRow
from finetune.sweeping.trial import Setting, train_run

if TYPE_CHECKING:
    from finetune.training.company import Member

logger = logging.getLogger(__name__)


def check_rows(setting: Setting) -> None:
    """Raises SweepError where rows that are to judge the winner are rows by which trials are chosen; of those
    that are trained on the data's own check (data.clean.leakage) says it."""
    recipe = setting.loaded.recipe
    tokenizer = tokenizer_for(recipe.model, None, tokenizer_folder(recipe.model))
    chose, judge = (
        {tuple(document.token_ids) for document in prepared.evaluation}
        for prepared in (
            prepare_data(one, tokenizer, allow_code=setting.allow_code)
            for one in (recipe, judging(recipe, setting))
        )
    )
    if both := chose & judge:
        raise SweepError(
            f"{len(both):,} of the {len(judge):,} rows of sweep.repeats.sources are rows of data.evaluation, "
            "by which trials are chosen: a winner has luck with them already. Name other rows."
        )


def judging(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe that measures the objective on the rows that chose nothing."""
    rows = EvaluationSplit(sources=_repeats(setting).sources)
    train = tuple(source.model_copy(update={"evaluation_rows": None}) for source in recipe.data.train)
    data = recipe.data.model_copy(update={"evaluation": rows, "train": train})
    measured = recipe.evaluate.model_copy(update={"metrics": (setting.sweep.objectives[0],)})
    return recipe.model_copy(update={"data": data, "evaluate": measured})


def repeat_best(setting: Setting, best: Sequence[TrialRow]) -> tuple[Repeated, ...]:
    """Train and score the best trials with each seed; what was scored before is not done again."""
    repeats, metric = _repeats(setting), setting.sweep.objectives[0]
    scored = _read(setting)
    samples: dict[int, np.ndarray] = {}
    values: dict[int, dict[int, float]] = {}
    if setting.most > 1:
        _train_all(setting, best[: repeats.best], scored)
    for row in best[: repeats.best]:
        for seed in range(1, repeats.seeds + 1):
            path = setting.folder.trial(row.number, seed)
            if path.name not in scored:
                scored[path.name] = _scored(setting, row, seed)
                write_json(setting.folder.repeats, scored)
            values.setdefault(row.number, {})[seed] = float(scored[path.name]["value"])
        kept = [scored[setting.folder.trial(row.number, seed).name]["samples"] for seed in values[row.number]]
        samples[row.number] = _over_seeds(np.array(kept, dtype=np.float64), row.number)
    sign = 1 if lower_is_better(metric) else -1
    order = sorted(values, key=lambda number: sign * float(np.mean(list(values[number].values()))))
    return tuple(
        Repeated(
            number,
            metric,
            values[number],
            interval_of(_mean(values[number]), samples[number]),
            None
            if behind is None
            else interval_of(
                sign * (_mean(values[behind]) - _mean(values[number])),
                sign * (samples[behind] - samples[number]),
            ),
        )
        for number, behind in zip(order, [*order[1:], None], strict=True)
    )


def _scored(setting: Setting, row: TrialRow, seed: int) -> dict[str, Any]:
    """A trial's recipe with another seed, trained and measured."""
    _train_again(setting, row, seed)
    target = resolve_target(str(setting.folder.trial(row.number, seed)))
    assert target.recipe is not None  # noqa: S101 - a run has one
    recipe = judging(target.recipe, setting)
    precision = choose_precision(recipe.train.precision)
    report = Evaluation(recipe, precision, allow_code=setting.allow_code).of(target)
    score = report.scores[setting.sweep.objectives[0]]
    finite = [float(value) if math.isfinite(value) else None for value in score.samples]
    return {"value": score.value, "rows": score.rows, "seed": recipe.train.seed, "samples": finite}


def _train_all(setting: Setting, rows: Sequence[TrialRow], scored: Container[str]) -> None:
    """Those that aren't scored, several at a time."""
    train_at_once(
        (
            (f"trial {row.number} seed {seed}", partial(_train_again, setting, row, seed))
            for row in rows
            for seed in range(1, _repeats(setting).seeds + 1)
            if setting.folder.trial(row.number, seed).name not in scored
        ),
        setting.most,
    )


def _train_again(setting: Setting, row: TrialRow, seed: int, member: "Member | None" = None) -> None:
    """A trial's recipe with another seed; nothing where it is trained."""
    path = setting.folder.trial(row.number, seed)
    other = setting.recipe_of(row.values).recipe.train.seed + seed
    if not RunFolder(path).finished:
        logger.info(f"trial {row.number} again, with seed {other}")
    train_run(setting, path, row.values, None, member, **{"train.seed": other})


def _over_seeds(samples: np.ndarray, number: int) -> np.ndarray:
    """The mean over seeds on each draw of rows (S seeds x R draws -> R): of seeds as many are drawn, with
    replacement."""
    seeds, draws = samples.shape
    drawn = np.random.default_rng([SEED, number]).integers(0, seeds, (seeds, draws))
    return np.asarray(samples[drawn, np.arange(draws)].mean(axis=0))


def _mean(values: dict[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _read(setting: Setting) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = read_json(setting.folder.repeats)
    except FileNotFoundError:
        return {}
    return found


def _repeats(setting: Setting) -> RepeatsSection:
    assert setting.sweep.repeats is not None  # noqa: S101 - the caller sees to it
    return setting.sweep.repeats
