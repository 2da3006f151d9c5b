"""The recipe's metrics of the model in training: on some rows at each evaluation, and on all of them at the
end.

Processes that each hold the whole model share the rows. Where each holds a share of it, all go through all
rows, because every layer needs all of them, and share what needs no model. What they found travels as text,
so the figures are one process's, but for the rounding of batches that are composed otherwise, and for answers
that are drawn (samples_per_prompt).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from finetune.engines.group import Group
from finetune.engines.sharded import evaluable
from finetune.evaluation.dataset import EvaluationSet, read_rows
from finetune.evaluation.report import Report, measured_of, names_of, report_of, with_programs
from finetune.recipe.schema import Recipe
from finetune.scoring.measured import LossSum, Measured, Prediction, Verdict
from finetune.training.inputs import Inputs
from finetune.training.trainer import ExactTrainer

PARTS = ("losses", "bytes", "answers", "rewards")
"""What is measured of each row by the model."""


class TaskMetrics:
    """Measures the recipe's metrics. Raises FinetuneError, before anything is trained, where rows don't fit
    them."""

    def __init__(self, recipe: Recipe, inputs: Inputs, trainer: ExactTrainer, group: Group):
        self.recipe, self.inputs, self.trainer, self.group = recipe, inputs, trainer, group
        section = recipe.evaluate
        positions = int(trainer.model.config.max_position_embeddings)
        self.rows = read_rows(
            recipe, inputs.data, inputs.tokenizer, positions=positions, most=section.max_rows
        )
        self.names = names_of(recipe, self.rows)
        # The trainer measures these by itself, on all rows.
        by_trainer = {"loss", "perplexity", *inputs.objective.logged}
        self.names_in_training = tuple(name for name in self.names if name not in by_trainer)
        self.some = (
            self.rows.share(slice(section.rows_in_training)) if section.rows_in_training is not None else None
        )
        if self.some is not None:
            trainer.task_metrics = self.in_training

    def in_training(self) -> dict[str, float]:
        """On the first rows."""
        assert self.some is not None  # noqa: S101 - it is only called where there are some
        report = self._report(self.some, self.names_in_training, intervals=False)
        return {str(name): value for name, value in report.values.items()}

    def at_end(self) -> Report:
        """On all rows, with intervals."""
        return self._report(self.rows, self.names, intervals=True)

    def _report(self, rows: EvaluationSet, names: Sequence[str], *, intervals: bool) -> Report:
        rank, size, shared = self.group.rank, self.group.world_size, self.trainer.cut_up
        mine = rows.share(slice(rank, None, size))
        with evaluable(self.trainer) as model:
            asked = rows if shared else mine
            measured, seconds = measured_of(model, self.inputs.tokenizer, self.recipe, asked, names)
        if shared:
            measured = replace(
                measured,
                **{part: getattr(measured, part)[rank::size] for part in PARTS},
            )
        measured, seconds = with_programs(measured, names, self.recipe.evaluate, seconds)
        if size > 1:
            parts = [json.loads(text) for text in self.group.texts_of_all(json.dumps(_plain(measured)))]
            measured = _together(parts, rows, measured)
        return report_of(measured, names, notes=rows.notes, seconds=seconds, intervals=intervals)


def _plain(measured: Measured) -> dict[str, Any]:
    return {
        "losses": [asdict(loss) for loss in measured.losses],
        "bytes": measured.bytes,
        "rewards": measured.rewards,
        "texts": [answer.texts for answer in measured.answers],
        "likelihoods": [answer.likelihoods for answer in measured.answers],
        "cuts": [answer.cuts for answer in measured.answers],
        "programs": [[asdict(verdict) for verdict in verdicts] for verdicts in measured.programs],
    }


def _together(parts: Sequence[dict[str, Any]], rows: EvaluationSet, mine: Measured) -> Measured:
    """What the processes measured, in the order of the rows."""
    said = zip(
        rows.questions, *(_in_turn(parts, name) for name in ("texts", "likelihoods", "cuts")), strict=True
    )
    answers = [Prediction(question, *map(tuple, values)) for question, *values in said]
    return replace(
        mine,
        losses=[LossSum(**loss) for loss in _in_turn(parts, "losses")],
        places=rows.places,
        bytes=_in_turn(parts, "bytes"),
        answers=answers,
        rewards=[tuple(pair) for pair in _in_turn(parts, "rewards")],
        programs=[
            tuple(Verdict(**verdict) for verdict in verdicts) for verdicts in _in_turn(parts, "programs")
        ],
    )


def _in_turn(parts: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Rows that were dealt out one by one."""
    count = sum(len(part[name]) for part in parts)
    return [parts[index % len(parts)][name][index // len(parts)] for index in range(count)]
