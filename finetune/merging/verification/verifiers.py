"""What is compared of a merged model with base + adapter: its predictions of tokens, or a classification
head's outputs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from finetune.merging.merged_weights import MergedWeights
from finetune.merging.verification.distance import distance, logits_of, loss_of
from finetune.merging.verification.head_outputs import mean_kl, mean_loss, outputs_of, prompts_of
from finetune.merging.verification.heads import HeadBefore, HeadVerification, head_before, verify_head
from finetune.merging.verification.lazy_model import STREAMED_ROWS, STREAMED_TOKENS, model_of
from finetune.merging.verification.predictions import (
    Before,
    Verification,
    before_by_peft,
    before_from_disk,
    quiet_peft,
    verify,
)
from finetune.merging.verification.rows import last_part

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs


class Verifier(ABC):
    """Measures models on the rows of a merge."""

    def __init__(self, parts: "MergeInputs"):
        self.parts = parts
        self.documents, self.texts = parts.documents

    @abstractmethod
    def before(self, adapted: PeftModel) -> Any:
        """What base + adapter, unmerged, makes of the rows; its `as_measured_of` measures another model
        alike."""

    @abstractmethod
    def before_from_disk(self, wide: MergedWeights, config: PretrainedConfig) -> Any:
        """The same, layer by layer from the disk, on fewer rows; `wide` is the merge in float32."""

    @abstractmethod
    def verify(
        self, before: Any, exact: Any, folder: Path, dtype: torch.dtype
    ) -> Verification | HeadVerification:
        """Compare what was measured before with the merged model in `folder`.

        `exact` is what the merge in float32 gives, None where models are read layer by layer; `dtype` the
        coarsest stored type.
        """

    @abstractmethod
    def shortened(self, document: Document) -> Document:
        """A document for a model that is read from the disk."""

    @abstractmethod
    def predictions(self, model: torch.nn.Module, documents: Sequence[Document]) -> list[torch.Tensor]:
        """What a model makes of documents."""

    @abstractmethod
    def loss_and_kl(
        self, documents: Sequence[Document], trained: list[torch.Tensor], found: list[torch.Tensor]
    ) -> tuple[float, float]:
        """The loss of predictions, and their mean KL divergence from those of the model as it was trained."""


class TokenVerifier(Verifier):
    """Of models that predict tokens: logits and greedy answers."""

    def before(self, adapted: PeftModel) -> Before:  # noqa: D102 - see Verifier
        return before_by_peft(adapted, self.parts.tokenizer, self.documents)

    def before_from_disk(self, wide: MergedWeights, config: PretrainedConfig) -> Before:  # noqa: D102
        return before_from_disk(wide.base, wide.updates, config, self.documents)

    def verify(self, before: Before, exact: Any, folder: Path, dtype: torch.dtype) -> Verification:  # noqa: D102
        return verify(before, exact, folder, self.parts.tokenizer, texts=self.texts, dtype=dtype)

    def shortened(self, document: Document) -> Document:  # noqa: D102
        return document.part(0, STREAMED_TOKENS)

    def predictions(self, model: Any, documents: Sequence[Document]) -> list[torch.Tensor]:  # noqa: D102
        return logits_of(model, [document.token_ids for document in documents])

    def loss_and_kl(  # noqa: D102
        self, documents: Sequence[Document], trained: list[torch.Tensor], found: list[torch.Tensor]
    ) -> tuple[float, float]:
        return loss_of(documents, found), distance(trained, found).mean_kl


class HeadVerifier(Verifier):
    """Of classifiers: the outputs of their heads, which read the ends of rows."""

    def __init__(self, parts: "MergeInputs", head: HeadSection):
        super().__init__(parts)
        self.head, self.pad_token_id = head, int(parts.config["pad_token_id"])

    def before(self, adapted: PeftModel) -> HeadBefore:  # noqa: D102 - see Verifier
        with quiet_peft():
            return head_before(adapted, self.documents, self.pad_token_id)

    def before_from_disk(self, wide: MergedWeights, config: PretrainedConfig) -> HeadBefore:  # noqa: D102
        documents = list(map(self.shortened, self.documents[:STREAMED_ROWS]))
        return head_before(model_of(wide, config, streamed=True), documents, self.pad_token_id)

    def verify(self, before: HeadBefore, exact: Any, folder: Path, dtype: torch.dtype) -> HeadVerification:  # noqa: D102
        return verify_head(before, exact, folder, self.head, texts=self.texts, dtype=dtype)

    def shortened(self, document: Document) -> Document:  # noqa: D102
        return last_part(document, STREAMED_TOKENS)

    def predictions(self, model: torch.nn.Module, documents: Sequence[Document]) -> list[torch.Tensor]:  # noqa: D102
        return [outputs_of(model, prompts_of(documents), self.pad_token_id)]

    def loss_and_kl(  # noqa: D102
        self, documents: Sequence[Document], trained: list[torch.Tensor], found: list[torch.Tensor]
    ) -> tuple[float, float]:
        return mean_loss(documents, found[0], self.head), mean_kl(trained[0], found[0], self.head)


def verifier_of(parts: "MergeInputs") -> Verifier:
    """For the head that the merged model gets."""
    head = parts.head.section
    return TokenVerifier(parts) if head is None else HeadVerifier(parts, head)
