"""What a quantised folder predicts in transformers, beside the model in 16 bit: both in float32
arithmetic."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from finetune.exporting.inputs import ExportInputs
from finetune.merging.verification.distance import distance, logits_of, loss_of
from finetune.merging.verification.lazy_model import model_of
from finetune.merging.verification.predictions import load_plain


@dataclass(frozen=True)
class PredictionCheck:
    """Both models on the same rows."""

    rows: int
    tokens: int
    """Places at which predictions were compared."""
    texts: str
    """Where the rows come from."""
    unquantized_loss: float
    """Nats a supervised token; of built-in texts the second half is."""
    loss: float
    mean_kl: float
    """KL(unquantised || quantised), in nats a token."""
    same_likeliest: float
    """The share of places at which both hold the same token for the likeliest."""
    failures: tuple[str, ...]

    def lines(self) -> list[tuple[str, str]]:
        """For a person."""
        return [
            ("transformers", f"loads the folder; {self.rows} rows, {self.tokens:,} tokens ({self.texts})"),
            (
                "predictions",
                f"loss {self.loss:.4f}, unquantised {self.unquantized_loss:.4f}; mean KL {self.mean_kl:.2e} "
                f"nats, same likeliest token {self.same_likeliest:.1%}",
            ),
        ]


def check_predictions(
    inputs: ExportInputs,
    folder: Path,
    in_float32: Callable[[PreTrainedModel], None],
    max_kl: float | None,
) -> PredictionCheck:
    """Load a folder by plain transformers, and compare its predictions with those of what was exported.

    Raises MergeError where it doesn't load.
    """
    documents, texts = inputs.parts.documents
    rows = [document.token_ids for document in documents]
    # One model after the other: both need not fit.
    before = logits_of(model_of(inputs.weights(None), inputs.config.expected()), rows)
    with contextlib.redirect_stderr(io.StringIO()):  # bars of compressed-tensors that no setting keeps off
        model = load_plain(folder, torch.float32)
        in_float32(model)
        after = logits_of(model, rows)
    found = distance(before, after)
    failures = [] if found.finite else ["logits are not finite"]
    if max_kl is not None and not found.mean_kl <= max_kl:
        failures.append(f"the mean KL is {found.mean_kl:.2e} nats a token; --max-kl allows {max_kl:g}")
    return PredictionCheck(
        rows=len(rows),
        tokens=found.positions,
        texts=texts,
        unquantized_loss=loss_of(documents, before),
        loss=loss_of(documents, after),
        mean_kl=found.mean_kl,
        same_likeliest=found.same_top1 / found.positions,
        failures=tuple(failures),
    )
