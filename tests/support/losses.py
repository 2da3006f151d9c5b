"""Models with a loss in their forward, as training builds them."""

from functools import partial
from typing import Any

from data_prep.config import HeadSection
from finetune.models.classify import head_loss
from finetune.models.loss import install_loss, supervised_loss


def install_supervised_loss(model: Any, label_smoothing: float = 0.0) -> None:
    """The cross-entropy over supervised tokens."""
    install_loss(model, partial(supervised_loss, label_smoothing=label_smoothing))


def install_head_loss(model: Any, head: HeadSection, label_smoothing: float = 0.0) -> None:
    """A classification head's."""
    install_loss(model, partial(head_loss, problem=head.problem, label_smoothing=label_smoothing))
