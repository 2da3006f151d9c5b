"""An objective that is a file and nothing else: a preferred answer against another one, relative to the model at the start."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from data_prep.config import Section
from data_prep.encoding import RowEncoding
from data_prep.messages import Conversation, Example, Parsed, Preference
from finetune.models.batch import row_count
from finetune.models.loss import LossInputs, document_cross_entropy
from finetune.objectives import Objective


class PairwiseOptions(Section):
    beta: Annotated[float, Field(gt=0)] = 0.1


class Pairs(RowEncoding):
    documents_per_row = 2

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        if not isinstance(row, Preference):
            return ()
        return tuple(Conversation(row.prompt + answer, len(row.prompt)) for answer in (row.chosen, row.rejected))

    def refusal(self, rows: int) -> str:
        return f"{rows:,} of its rows are no pairs of answers; use format preference"


class Pairwise(Objective):
    kind: ClassVar[str] = "pairwise"
    section: ClassVar[type[Section]] = PairwiseOptions
    encoding = Pairs()
    values_per_document: ClassVar[int] = 1  # the log-probability at the start
    step_values: ClassVar[int] = 2  # the pairs' margins and their number

    def values(self, model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        return -document_cross_entropy(model, hidden, inputs)[:, None]

    def margins(self, model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        ratios = self.values(model, hidden, inputs) - inputs.values
        return self.options.beta * (ratios[::2, 0] - ratios[1::2, 0])

    def step_terms(self, model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        margins = self.margins(model, hidden, inputs)
        return torch.stack([margins.sum(), margins.new_tensor(float(len(margins)))])

    def loss(self, model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        mean = inputs.step_sum[0] / inputs.step_sum[1]
        return -functional.logsigmoid(self.margins(model, hidden, inputs) - mean).sum()

    def weight(self, batch: dict[str, Any]) -> torch.Tensor:
        return row_count(batch, self.encoding.documents_per_row)
