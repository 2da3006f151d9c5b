"""Which base a QLoRA adapter is merged into: the 16-bit one, or the one that it was trained on, dequantised.
Measured.

The adapter learned beside weights in NF4 or int8. The 16-bit base is the better model by itself, and not the
one that was trained on; which merge is closer to quantised base + adapter depends on the adapter, so both are
scored on rows of the run.
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
from finetune.models.stored_quantization import INT8, NF4_DOUBLE

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs

Choice = Literal["16bit", "nf4", "int8"]
DEQUANTIZED: tuple[Choice, ...] = ("nf4", "int8")


@dataclass(frozen=True)
class CandidateLoss:
    """A candidate on the rows: its loss, and how far its predictions are from quantised base +
    adapter."""

    loss: float
    kl: float


@dataclass(frozen=True)
class BaseChoice:
    """Both candidates, and what was taken."""

    rows: int
    trained_loss: float
    """Of quantised base + adapter, as it was trained."""
    scores: dict[str, CandidateLoss]
    taken: Choice
    forced: bool

    def lines(self) -> list[str]:
        """For people."""
        kind = next(name for name in self.scores if name != "16bit")
        trained = f"{'NF4' if kind == 'nf4' else kind} base + adapter has loss {self.trained_loss:.4f}"
        best = f"QLoRA: on {self.rows} rows {trained}; merged into"
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

    `config` is that of the merged model, `quantization` how the base was quantised: one of
    stored_quantization's DEQUANTIZABLE.
    """
    refuse_without_bitsandbytes()
    kind = choice_of(quantization)
    base, verifier, streamed = parts.stored, verifier_of(parts), not fits_in_memory(parts.stored)
    documents: Sequence[Document] = verifier.documents
    if streamed:
        documents = list(map(verifier.shortened, documents[:STREAMED_ROWS]))

    def predictions(weights: Weights) -> list[torch.Tensor]:
        return verifier.predictions(model_of(weights, config, streamed=streamed), documents)

    def score(found: list[torch.Tensor]) -> CandidateLoss:
        return CandidateLoss(*verifier.loss_and_kl(documents, trained, found))

    trained = predictions(MergedWeights(DequantizedWeights(base, quantization), updates, torch.float32))
    scores = {}
    sources: dict[str, Callable[[], Weights]] = {
        "16bit": lambda: base,
        kind: lambda: DequantizedWeights(base, quantization),
    }
    for name, source in sources.items():
        scores[name] = score(predictions(MergedWeights(source(), updates, parts.asked_dtype)))
    closer: Choice = "16bit" if scores["16bit"].kl < scores[kind].kl else kind
    taken: Choice = closer if asked == "auto" else kind if asked == kind else "16bit"
    return BaseChoice(len(documents), score(trained).loss, scores, taken, forced=asked != "auto")


def choice_of(quantization: str) -> Choice:
    """The base that an adapter was trained on, as --qlora-base names it."""
    return "int8" if quantization == INT8 else "nf4"


def refuse_without_bitsandbytes() -> None:
    """Raises MergeError where quantised weights can't be computed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MergeError(
            "NF4 and int8 need bitsandbytes, which is not installed: pip install bitsandbytes, or "
            "--qlora-base 16bit."
        )


class DequantizedWeights:
    """A base's weights, its linear layers but its head rounded to NF4 or int8 and back by bitsandbytes; one
    tensor at a time."""

    def __init__(self, base: StoredWeights, quantization: str):
        """`quantization` is one of stored_quantization's DEQUANTIZABLE."""
        self.base, self.quantization = base, quantization

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
        from bitsandbytes import functional

        whole, doubly = self.base.whole(name), self.quantization == NF4_DOUBLE
        if self.quantization == INT8:  # which bitsandbytes rounds to float16 first
            return functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(whole.half())[:2])
        packed, state = functional.quantize_4bit(whole.float(), quant_type="nf4", compress_statistics=doubly)
        return functional.dequantize_4bit(packed, state)
