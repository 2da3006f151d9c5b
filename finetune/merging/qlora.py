"""Which base a QLoRA adapter is merged into: the 16-bit one, or the one that it was trained on, dequantised.
Measured.

The adapter learned beside weights in NF4. The 16-bit base is the better model by itself, and not the one that
was trained on; which merge is closer to NF4 base + adapter depends on the adapter, so both are scored on rows
of the run.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PretrainedConfig

from data_prep.table.documents import Document
from finetune.errors import MergeError
from finetune.merging.heads import SCORE_WEIGHT
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.verification.lazy_model import STREAMED_ROWS, fits_in_memory, model_of
from finetune.merging.verification.verifiers import verifier_of
from finetune.models.architectures.base import EMBEDDING, LM_HEAD, last_part
from finetune.models.safetensors import StoredWeights, Weights, ranges
from finetune.models.stored_quantization import NF4_DOUBLE

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs

Choice = Literal["16bit", "nf4"]


@dataclass(frozen=True)
class CandidateLoss:
    """A candidate on the rows: its loss, and how far its predictions are from NF4 base + adapter."""

    loss: float
    kl: float


@dataclass(frozen=True)
class BaseChoice:
    """Both candidates, and what was taken."""

    rows: int
    trained_loss: float
    """Of NF4 base + adapter, as it was trained."""
    scores: dict[str, CandidateLoss]
    taken: Choice
    forced: bool

    def lines(self) -> list[str]:
        """For people."""
        best = f"QLoRA: on {self.rows} rows NF4 base + adapter has loss {self.trained_loss:.4f}; merged into"
        scored = [f"{name} {score.loss:.4f}, KL {score.kl:.2e} nats" for name, score in self.scores.items()]
        return [
            f"{best} {'; '.join(scored)}. Taken: "
            f"{self.taken}{' (as asked)' if self.forced else ', the closer one'}."
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def choose_base(
    parts: "MergeInputs", updates: Updates, config: PretrainedConfig, *, asked: str, quantization: str
) -> BaseChoice:
    """Score both bases and take the closer one by KL, or the one that is asked for. Raises MergeError without
    bitsandbytes.

    `config` is that of the merged model, `quantization` how the base was in NF4: nf4 or nf4-double.
    """
    refuse_without_bitsandbytes()
    base, verifier, streamed = parts.stored, verifier_of(parts), not fits_in_memory(parts.stored)
    documents: Sequence[Document] = verifier.documents
    if streamed:
        documents = list(map(verifier.shortened, documents[:STREAMED_ROWS]))

    def predictions(weights: Weights) -> list[torch.Tensor]:
        return verifier.predictions(model_of(weights, config, streamed=streamed), documents)

    def score(found: list[torch.Tensor]) -> CandidateLoss:
        return CandidateLoss(*verifier.loss_and_kl(documents, trained, found))

    trained = predictions(MergedWeights(Nf4Weights(base, quantization), updates, torch.float32))
    scores = {}
    sources: dict[str, Callable[[], Weights]] = {
        "16bit": lambda: base,
        "nf4": lambda: Nf4Weights(base, quantization),
    }
    for name, source in sources.items():
        scores[name] = score(predictions(MergedWeights(source(), updates, parts.asked_dtype)))
    closer: Choice = "16bit" if scores["16bit"].kl < scores["nf4"].kl else "nf4"
    taken: Choice = closer if asked == "auto" else "nf4" if asked == "nf4" else "16bit"
    return BaseChoice(len(documents), score(trained).loss, scores, taken, forced=asked != "auto")


def refuse_without_bitsandbytes() -> None:
    """Raises MergeError where NF4 can't be computed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MergeError(
            "NF4 needs bitsandbytes, which is not installed: pip install bitsandbytes, or --qlora-base 16bit."
        )


class Nf4Weights:
    """A base's weights, its linear layers but its head rounded to NF4 and back by bitsandbytes; one tensor at
    a time."""

    def __init__(self, base: StoredWeights, quantization: str):
        """`quantization` is nf4 or nf4-double."""
        self.base, self.doubly = base, quantization == NF4_DOUBLE

    def names(self) -> Sequence[str]:
        """The base's tensors."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type in the base."""
        return self.base.dtype(name)

    def is_rounded(self, name: str) -> bool:
        """Whether transformers quantises this tensor: those of linear layers, the head aside."""
        outer = (f"{EMBEDDING}.weight", f"{last_part(EMBEDDING)}.weight", f"{LM_HEAD}.weight", SCORE_WEIGHT)
        return len(self.shape(name)) == 2 and name not in outer

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor, in float32 where it was rounded: absmax is quantised over the whole
        tensor."""
        if not self.is_rounded(name):
            yield from self.base.blocks(name)
            return
        whole = self._rounded(name)
        for first, last in ranges(whole.shape):
            yield first, whole[first:last].clone()

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor."""
        return self._rounded(name)[first:last] if self.is_rounded(name) else self.base.rows(name, first, last)

    def _rounded(self, name: str) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(
            self.base.whole(name).float(), quant_type="nf4", compress_statistics=self.doubly
        )
        return dequantize_4bit(packed, state)
