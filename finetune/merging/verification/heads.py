"""Is the merged model with a classification head the base with its adapter? Measured on real rows, in float32
arithmetic.

The questions of finetune.merging.verification.predictions, for outputs in place of logits, each with its
bound:

1. The mathematics. The merge in float32, not rounded, must have the outputs of base + adapter as peft
   computes them, unmerged. The bound is the one of logits. Measured on SmolLM2-135M, heads after 4 and 60
   steps and adapters 0.1 to 20 times as large: 2e-6 to 6e-6 of the largest output.
2. The rounding. The stored model's outputs against those of base + adapter. What a 16-bit type loses depends
   on the update more than on the model: bf16 has 8 bits, and swallows an update that is finer. After 60 steps
   (an update of 3e-3 of the weights) bf16 was 0.067 of the largest output away, larger adapters 0.03; after 4
   steps (8e-4, of which bf16 kept 44 %) it was 0.53 away, with 7 of 16 labels changed. The bound lies between
   them; fp16, with 3 bits more, has an eighth of it (measured: 0.002 to 0.006).
3. The labels. They are the same wherever the margin was clear: larger than the bound on an output. A row
   nearer to a tie may go either way.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from finetune.merging.verification.head_outputs import decisions_of, outputs_of, prompts_of
from finetune.merging.verification.lazy_model import model_of
from finetune.merging.verification.predictions import LOGIT_FRACTION, load_plain
from finetune.models.safetensors import StoredWeights

ROUNDED_FRACTION = {torch.float16: 0.025, torch.bfloat16: 0.2}
"""Bound on the largest difference of the stored model's outputs, as a share of the largest output."""


@dataclass(frozen=True)
class HeadVerification:
    """What was measured, and whether it holds."""

    rows: int
    outputs: int
    """For each row."""
    problem: str
    texts: str
    """Where the rows come from."""
    layer_by_layer: bool
    """Whether the models were read from the disk while they computed, because they don't fit in memory."""
    dtype: str
    """The type that the merged weights are stored in."""
    largest_output: float
    float32_largest_difference: float | None
    """Of the outputs, merged in float32 against unmerged; None layer by layer."""
    largest_difference: float
    """Of the outputs, the stored model against base + adapter."""
    mean_difference: float
    bound: float
    """On the largest difference."""
    decisions: int
    """Rows with one label, or rows times labels where each has its yes or no; 0 where the head gives a
    number."""
    same_decisions: int
    clear: int
    """Decisions with a margin above the bound."""
    same_clear: int
    end_in_padding: int
    """Rows whose last token is the padding token: plain transformers reads such a row before it, and the
    training did not."""
    failures: tuple[str, ...]
    """The bounds that don't hold, in words."""

    @property
    def holds(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """The outcome in one line, for people."""
        return (
            f"{'holds' if self.holds else 'FAILS'} on {self.rows} rows of {self.outputs} "
            f"output{'s' * (self.outputs != 1)}: largest difference {self.largest_difference:.2e} (largest "
            f"output {self.largest_output:.2e}){self._agreement}"
        )

    @property
    def _agreement(self) -> str:
        same, clear = f"{self.same_decisions} of {self.decisions}", f"{self.same_clear} of {self.clear}"
        return f", same label in {same}, and in {clear} that were clear" if self.decisions else ""

    def sentences(self) -> list[str]:
        """For a card."""
        return [f"outputs: {self.verdict}", *self._warnings()]

    def lines(self) -> list[tuple[str, str]]:
        """For people: (name, value) a line."""
        exact = self.float32_largest_difference
        return [
            ("verification", f"holds, on {self.rows} rows ({self.texts})"),
            (
                "  outputs",
                f"largest difference {self.largest_difference:.2e}, mean {self.mean_difference:.2e}, of "
                "outputs up to "
                f"{self.largest_output:.2e}" + ("" if exact is None else f"; merged in float32 {exact:.2e}"),
            ),
            *([("  labels", self._agreement.removeprefix(", "))] if self.decisions else []),
            *(("note", warning) for warning in self._warnings()),
        ]

    def _warnings(self) -> list[str]:
        if not self.end_in_padding:
            return []
        return [
            f"{self.end_in_padding} of {self.rows} rows end in the padding token, which plain transformers "
            "skips and the training did not: name another model.pad_token, or read the last token yourself"
        ]

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for verification.json."""
        return {"holds": self.holds, "verdict": self.verdict, **asdict(self)}


@dataclass(frozen=True)
class HeadBefore:
    """What base + adapter makes of rows, before the merge."""

    prompts: list[list[int]]
    pad_token_id: int
    outputs: torch.Tensor

    def as_measured_of(self, model: torch.nn.Module) -> torch.Tensor:
        """The outputs that another model has for the same rows."""
        return outputs_of(model, self.prompts, self.pad_token_id)


def head_before(model: torch.nn.Module, documents: Sequence[Document], pad_token_id: int) -> HeadBefore:
    """The measurement of base + adapter, unmerged."""
    prompts = prompts_of(documents)
    return HeadBefore(prompts, pad_token_id, outputs_of(model, prompts, pad_token_id))


def verify_head(
    before: HeadBefore,
    exact: torch.Tensor | None,
    folder: Path,
    head: HeadSection,
    *,
    texts: str,
    dtype: torch.dtype,
) -> HeadVerification:
    """Compare what was measured before the merge with the merged model in `folder`.

    `exact` are the outputs of the merge in float32, not rounded; None where models are read layer by layer.
    Raises MergeError where the folder doesn't load as a plain model.
    """
    if exact is not None:
        stored = load_plain(folder, torch.float32, AutoModelForSequenceClassification)
    else:
        stored = model_of(StoredWeights.of_folder(folder), AutoConfig.from_pretrained(folder), streamed=True)
    outputs, largest = before.as_measured_of(stored), float(before.outputs.abs().max())
    difference = (before.outputs - outputs).abs()
    mathematics = None if exact is None else float((before.outputs - exact).abs().max())
    wide_bound = LOGIT_FRACTION * max(1.0, largest)
    bound = max(ROUNDED_FRACTION.get(dtype, 0.0) * largest, wide_bound)
    decided, margin = decisions_of(before.outputs, head)
    same, clear = decided == decisions_of(outputs, head)[0], margin > bound
    measured = HeadVerification(
        rows=len(before.prompts),
        outputs=head.outputs,
        problem=head.problem,
        texts=texts,
        layer_by_layer=exact is None,
        dtype=str(dtype).removeprefix("torch."),
        largest_output=largest,
        float32_largest_difference=mathematics,
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        bound=bound,
        decisions=len(decided),
        same_decisions=int(same.sum()),
        clear=int(clear.sum()),
        same_clear=int((same & clear).sum()),
        end_in_padding=sum(prompt[-1] == before.pad_token_id for prompt in before.prompts),
        failures=(),
    )
    return replace(measured, failures=tuple(_failures_of(measured, wide_bound)))


def _failures_of(found: HeadVerification, wide_bound: float) -> Iterator[str]:
    """Each bound that doesn't hold, with what was measured."""
    exact, stored = found.float32_largest_difference, found.largest_difference
    if not all(map(math.isfinite, (found.largest_output, stored, 0.0 if exact is None else exact))):
        yield "outputs are not finite"
        return
    if exact is not None and exact > wide_bound:
        yield f"merged in float32, outputs differ by up to {exact:.2e}; the bound is {wide_bound:.2e}"
    # float16 has finer steps than bfloat16.
    finer = {"bfloat16": "float16 or float32", "float16": "float32"}.get(found.dtype)
    remedy = (
        f" ({found.dtype} is too coarse for so small an update: merge with --dtype {finer})" if finer else ""
    )
    if stored > found.bound:
        yield (
            f"the stored model's outputs differ by up to {stored:.2e}; the bound is {found.bound:.2e}{remedy}"
        )
    if found.same_clear < found.clear:
        yield f"the label stays the same in {found.same_clear} of the {found.clear} that were clear"
