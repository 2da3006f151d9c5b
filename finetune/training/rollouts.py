"""What drawn answers are worth, and the micro-batches that they become.

Shapes: N learned tokens of a micro-batch.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerFast

from data_prep.disk import read_regular, write_private
from data_prep.table.documents import Document
from finetune.errors import CheckpointError
from finetune.evaluation.rewards import Rewards
from finetune.generation.sampler import Sample
from finetune.models.device import widest_type
from finetune.models.policy import advantages_of
from finetune.objectives.grpo import Grpo
from finetune.scoring.measured import Question
from finetune.training.batches import collate
from finetune.training.drawing import Drawing
from finetune.training.reference import Reference
from finetune.training.scored import Scored

if TYPE_CHECKING:
    from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

EVALUATION = "evaluation"
MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Drawn:
    """An answer to be learned from."""

    token_ids: list[int]
    """Its prompt, and behind it the answer."""
    first: int
    """Where the answer begins; behind the last token for one that teaches nothing."""
    place: str
    logprobs: list[float]
    """The sampler's, of the answer's tokens."""
    advantage: float

    @property
    def document(self) -> Document:
        """As the model reads it."""
        end = len(self.token_ids)
        return Document(self.token_ids, ((self.first, end, 1.0),) if self.first < end else (), self.place)


Groups = list[list[Drawn]]
"""The answers that a micro-batch learns from: to each prompt so many."""


class Rollouts(Drawing):
    """What a step's prompts become of an objective that has rewards."""

    def __init__(
        self,
        trainer: "ExactTrainer",
        tokenizer: PreTrainedTokenizerFast,
        rewards: Rewards,
        evaluation: Sequence[Question],
        reference: Reference | None,
    ):
        """`reference` is what the divergence is measured from, where it has a weight."""
        assert isinstance(trainer.objective, Grpo)  # noqa: S101 - build makes it for this objective
        self.objective, self.options = trainer.objective, trainer.objective.options
        self.rewards, self.evaluation, self.reference = rewards, evaluation, reference
        weights = [section.weight for section in rewards.table.values()]
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.micro_batches: list[Groups] = []
        """What the present answers are cut into, for steps that learn from them again."""
        self.names = (
            "reward", "reward_deviation", *(f"rewards/{name}" for name in rewards.table), "answer_tokens",
            "truncated", "groups_without_signal", *(("groups_resampled",) if self.options.resample else ()),
            *(f"reward_errors/{name}" for name in rewards.counted),
        )  # fmt: skip
        super().__init__(trainer, tokenizer, self.options)
        self.steps = self.steps_without_signal = 0

    def answered(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of a step, of the prompts of each."""
        step = int(asked[0]["step"])
        if (step - 1) % self.options.epochs_per_sample == 0:
            self.micro_batches = self._drawn(asked, step)
        batches = [self._batch(groups, step) for groups in self.micro_batches]
        if self.reference is not None:
            with self.reference.in_place(self.trainer) as model:
                asking = [([index], batch) for index, batch in enumerate(batches)]
                for (index,), found in self.trainer.computed("values", asking, model):
                    batches[index]["position_values"][:, 1] = found[:, 0]
        return batches

    def _drawn(self, asked: Sequence[dict[str, Any]], step: int) -> list[Groups]:
        """Answers to the rows of each micro-batch."""
        questions = [self.feed.questions[row] for one in asked for row in one["rows"]]
        before = [count for one in asked for count in one["asked_before"]]
        drawn = self._answers(questions, self.options.group_size, step, asked_before=before)
        self._count(drawn)
        self._resample(drawn, before, step)
        self.first_prompt = drawn.shown(self.rewards.table)
        learns = drawn.has_signal
        self._add({"groups_without_signal": (float((~learns).sum()), len(questions))})
        found = advantages_of(
            drawn.totals,
            self.objective.scale,
            leave_one_out=self.options.loss == "rloo",
            deviation=self._deviation(drawn.totals),
        )
        groups = iter(
            [
                self._drawn_of(question, own, row) if learned else []
                for question, own, row, learned in zip(
                    questions, drawn.samples, found.tolist(), learns.tolist(), strict=True
                )
            ]
        )
        made = [[group for _ in one["rows"] if (group := next(groups))] for one in asked]
        self._tell(step, any(made))
        return made

    def _answers(
        self, questions: Sequence[Question], count: int, *moment: object, asked_before: Sequence[int] = ()
    ) -> Scored:
        """So many answers to each question, with their rewards."""
        samples = self.samples(questions, count, *moment, asked_before=asked_before)
        answers, found = self.rewards.of_samples(questions, samples, self.tokenizer)
        errors = self.rewards.errors
        self._add({
            f"reward_errors/{name}": (float(errors.pop(name, 0)), len(answers))
            for name in self.rewards.counted
        })  # fmt: skip
        return Scored(list(questions), samples, answers, found, self.weights, count)

    def _resample(self, drawn: Scored, before: Sequence[int], step: int) -> None:
        """Answer the prompts whose groups have no signal anew, in as many rounds as are allowed and a process
        needs: where weights are cut up, all must draw together.

        What is drawn follows from the seed, the step, the round and the prompt, whoever else is asked again.
        """
        if not self.options.resample:
            return
        again = 0
        for turn in range(1, self.options.resample + 1):
            lacking = (~drawn.has_signal).nonzero()[:, 0].tolist()
            if not self.trainer.group.any(bool(lacking)):
                break
            questions, earlier = ([own[place] for place in lacking] for own in (drawn.questions, before))
            size = self.options.group_size
            drawn.put(lacking, self._answers(questions, size, step, turn, asked_before=earlier))
            again += len(lacking)
        self._add({"groups_resampled": (again, len(drawn.questions))})

    def _deviation(self, totals: torch.Tensor) -> float:
        """That of the rewards of the complete step, over all processes; all of them must ask."""
        whole = self.trainer.reduced(torch.tensor([float(totals.sum()), float(totals.numel())]).double())
        mean, count = float(whole[0] / whole[1]), float(whole[1])
        squares = self.trainer.reduced(((totals - mean) ** 2).sum().reshape(1).double())
        return float((squares[0] / max(count - 1, 1)) ** 0.5)

    def _drawn_of(
        self, question: Question, samples: Sequence[Sample], advantages: Sequence[float]
    ) -> list[Drawn]:
        prompt = list(question.prompt_ids)
        group = []
        for number, (one, advantage) in enumerate(zip(samples, advantages, strict=True), start=1):
            left_out = self.options.mask_truncated and one.cut is not None
            group.append(
                Drawn(
                    prompt if left_out else prompt + one.ids,
                    len(prompt),
                    f"{question.place}, answer {number}",
                    [] if left_out else one.logprobs,
                    advantage,
                )
            )
        return group if any(one.logprobs for one in group) else []

    def _batch(self, groups: Groups, step: int) -> dict[str, Any]:
        """The groups as the model takes them, with the numbers of each learned token: the sampler's
        log-probability, the reference's, and the advantage (N x 3)."""
        drawn = [one for group in groups for one in group]
        batch = collate([one.document for one in drawn] or self.feed.fillers, self.feed.batching, step=step)
        columns = [(logprob, 0.0, one.advantage) for one in drawn for logprob in one.logprobs]
        batch["position_values"] = torch.tensor(columns, dtype=widest_type()).reshape(-1, 3)
        return batch

    # --- What is known of them

    def _count(self, drawn: Scored) -> None:
        """What answers are worth, as the model gives them: those that are drawn for want of a signal are left
        out, which would favour prompts that are answered well at times."""
        flat = [one for own in drawn.samples for one in own]
        columns = {
            "reward": drawn.totals,
            "reward_deviation": drawn.totals.std(dim=1) if drawn.totals.shape[1] > 1 else torch.empty(0),
            **{
                f"rewards/{name}": own
                for name, own in zip(self.rewards.table, drawn.values.unbind(2), strict=True)
            },
        }
        self._add({name: (float(own.sum()), own.numel()) for name, own in columns.items()})
        self._add({
            "answer_tokens": (sum(len(one.ids) for one in flat), len(flat)),
            "truncated": (sum(one.cut is not None for one in flat), len(flat)),
        })  # fmt: skip

    def _add(self, counted: Mapping[str, tuple[float, float]]) -> None:
        """Sums, and of how many, by their names."""
        for name, pair in counted.items():
            self.sums[self.names.index(name)] += torch.tensor(pair, dtype=torch.float64)

    def _tell(self, step: int, learns: bool) -> None:
        """Say once in a row that nothing is learned."""
        self.steps += 1
        if self.trainer.group.any(learns):
            return
        self.steps_without_signal += 1
        if self.steps_without_signal == 1:
            logger.warning(
                f"step {step} learns nothing: the answers to each of its prompts have the same reward. Such "
                "steps are counted, and not said again"
            )

    def verdict(self) -> str | None:
        """What is to be said at the end of steps that learned nothing; None where all learned."""
        if not self.steps_without_signal:
            return None
        if self.steps_without_signal < self.steps:
            return (
                f"{self.steps_without_signal:,} of {self.steps:,} times that prompts were answered nothing "
                "was learned: the answers to each prompt had the same reward"
            )
        return (
            "nothing was learned: whenever prompts were answered, all answers to one had the same reward. "
            "A reward that tells no answer from another teaches nothing; look at objective.rewards, and "
            "whether the model ever answers right (metrics.jsonl has the mean of each reward)"
        )

    # --- Evaluation

    def evaluation_means(self) -> tuple[float, dict[str, float]]:
        """Minus the mean reward of an answer to each evaluation prompt, drawn from the same seed each time;
        and the mean of each reward."""
        group = self.trainer.group
        mine = self.evaluation[group.rank :: group.world_size]
        kept, self.sums = self.sums, self._nothing()
        self._count(self._answers(mine, 1, EVALUATION))
        found = self.means()
        self.sums = kept
        return -found["reward"], found

    # --- Checkpoints

    def save(self, checkpoint: Path, step: int) -> None:
        """Keep this process's answers, where a later step learns from them too."""
        if step % self.options.epochs_per_sample:
            kept = [[[asdict(one) for one in group] for group in groups] for groups in self.micro_batches]
            write_private(checkpoint / self._file(), json.dumps(kept))

    def load(self, checkpoint: Path, step: int) -> None:
        """Take the answers up again. Raises CheckpointError where they aren't there."""
        if not step % self.options.epochs_per_sample:
            return
        path = checkpoint / self._file()
        try:
            kept = json.loads(read_regular(path, MOST_BYTES))
            self.micro_batches = [[[Drawn(**one) for one in group] for group in groups] for groups in kept]
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} can't be read, and the next step learns from the answers that it holds: {error}. "
                "Resume with as many processes as the run had, or from an earlier checkpoint."
            ) from error

    def _file(self) -> str:
        return f"answers_{self.trainer.group.rank}.json"
