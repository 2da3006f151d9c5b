"""How far a student's next-token distribution is from a teacher's, at supervised positions only.

With P the teacher's distribution and Q the student's, each of logits divided by a temperature T, and M = beta
P + (1 - beta) Q: the forward divergence KL(P||Q) (Hinton et al. 2015, arXiv:1503.02531), the reverse KL(Q||P)
(Gu et al. 2023, arXiv:2306.08543), and the generalised Jensen-Shannon divergence beta KL(P||M) + (1 - beta)
KL(Q||M) (Agarwal et al. 2023, arXiv:2306.13649). None is multiplied by T^2. A chunk's logits of both models
are in memory, and the gradient is made where the student's are (models/head_loss.py).

Where the teacher is known by its k likeliest tokens alone, the others are one class: the forward divergence
between P and Q as they are on these k + 1 classes is at most that on the vocabulary (the data-processing
inequality), and equal to it for k = V.

Shapes: N supervised positions, n of a chunk, D and D' the models' widths, V vocabulary, k tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from finetune.errors import ModelError
from finetune.models.head_loss import losses_to_gradient
from finetune.models.logits import Head, head_of, widened
from finetune.models.loss import LossInputs, loss_in_one_pass

Kind = Literal["forward_kl", "reverse_kl", "jsd"]

BLOCK_NUMBERS = 1 << 19
"""Of a block of logits on the CPU: 2 MB in float32."""


@dataclass
class Divergence:
    """A criterion of models/head_loss.py: the divergence, and beside it the cross-entropy of the labels.

    Logits are compared over the vocabulary that both models have rows for; what fills up the wider one's is
    left out.
    """

    teacher_states: torch.Tensor
    """The teacher's hidden states (N x D')."""
    teacher_head: Head
    """Its logits (n x V) of these."""
    labels: torch.Tensor
    """The tokens that come next (N)."""
    kind: Kind = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    supervised_weight: float = 0.0
    """Of the cross-entropy; the divergence has the rest."""
    parts: list[torch.Tensor] = field(default_factory=list)
    """Of each chunk: the divergence, the student's cross-entropy and the teacher's (3 x n)."""

    def __call__(self, logits: torch.Tensor, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses (n), and the gradients of the student's logits (n x V)."""
        with torch.no_grad():
            teacher = widened(self.teacher_head(self.teacher_states[here]))

        def compute(block: slice, student: torch.Tensor) -> tuple[torch.Tensor, ...]:
            labels, common = self.labels[here][block], min(student.shape[1], teacher.shape[1])
            log_p = teacher[block, :common].log_softmax(-1)
            teacher_loss = -log_p.gather(1, labels[:, None])[:, 0]
            if self.temperature != 1:
                log_p = (teacher[block, :common] / self.temperature).log_softmax(-1)
            log_q = (student[:, :common] / self.temperature).log_softmax(-1)
            divergence, found = divergence_to_gradient(log_p, log_q, self.kind, self.beta)
            loss = _supervised(student, labels, found, self.supervised_weight, self.temperature)
            return divergence, loss, teacher_loss

        parts, gradient = _in_blocks(widened(logits), compute)
        self.parts.append(parts)
        return torch.lerp(parts[0], parts[1], self.supervised_weight), gradient

    def sums(self, weights: torch.Tensor | None) -> torch.Tensor:
        """The sums of the parts over the positions, each by its weight (N; None for 1), and what each is
        divided by (3 x 2)."""
        return _sums(self.parts, 3, weights)


@dataclass(frozen=True)
class Likeliest:
    """What is known of a teacher at N positions, at one temperature."""

    tokens: torch.Tensor
    """Its likeliest tokens (N x k)."""
    log_p: torch.Tensor
    """ln of their probabilities, and of that of all others together (N x (k + 1))."""
    label_log_p: torch.Tensor
    """ln of the next token's probability at temperature 1 (N)."""
    vocabulary: int
    """Over how many tokens its distribution is: the first ones."""

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor, count: int, temperature: float) -> "Likeliest":
        """Those of logits (N x V), of which k = `count` are kept."""
        wide = widened(logits)
        log_p = (wide / temperature).log_softmax(-1)
        kept, tokens = log_p.topk(count, dim=-1)
        rest = log_p.scatter(1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        label_log_p = wide.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return cls(tokens, torch.cat([kept, rest], dim=1), label_log_p, logits.shape[1])

    @classmethod
    def of_nothing(cls, count: int, vocabulary: int, positions: int) -> "Likeliest":
        """A teacher that prefers no token, for a rehearsal that learns nothing."""
        tokens = torch.arange(count).expand(positions, count)
        log_p = torch.tensor([1 / vocabulary] * count + [1 - count / vocabulary]).log()
        return cls(tokens, log_p.expand(positions, count + 1), torch.zeros(positions), vocabulary)

    def at(self, here: slice) -> "Likeliest":
        """At some of the positions."""
        return Likeliest(self.tokens[here], self.log_p[here], self.label_log_p[here], self.vocabulary)


@dataclass
class LikeliestDivergence:
    """A criterion of models/head_loss.py: the forward divergence over the teacher's likeliest tokens and all
    others as one, and beside it the cross-entropy of the labels."""

    teacher: Likeliest
    labels: torch.Tensor
    """The tokens that come next (N)."""
    temperature: float = 1.0
    supervised_weight: float = 0.0
    """Of the cross-entropy; the divergence has the rest."""
    parts: list[torch.Tensor] = field(default_factory=list)
    """Of each chunk: the divergence, the student's cross-entropy, the teacher's, and the probability that its
    likeliest tokens hold (4 x n)."""

    def __call__(self, logits: torch.Tensor, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses (n), and the gradients of the student's logits (n x V)."""
        whole = self.teacher.at(here)

        def compute(block: slice, student: torch.Tensor) -> tuple[torch.Tensor, ...]:
            labels, teacher = self.labels[here][block], whole.at(block)
            log_q = (student[:, : teacher.vocabulary] / self.temperature).log_softmax(-1)
            divergence, found = likeliest_to_gradient(teacher, log_q)
            loss = _supervised(student, labels, found, self.supervised_weight, self.temperature)
            return divergence, loss, -teacher.label_log_p, -torch.expm1(teacher.log_p[:, -1])

        parts, gradient = _in_blocks(widened(logits), compute)
        self.parts.append(parts)
        return torch.lerp(parts[0], parts[1], self.supervised_weight), gradient

    def sums(self, weights: torch.Tensor | None) -> torch.Tensor:
        """As Divergence.sums, of four parts (4 x 2)."""
        return _sums(self.parts, 4, weights)


def _in_blocks(
    student: torch.Tensor, compute: Callable[[slice, torch.Tensor], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `compute` gives of a block of logits (b x V), in whose memory it leaves their gradients, for all
    of them (n x V): the parts (K x n), and the gradients.

    On the CPU a block is a few positions, whose many intermediate numbers stay in its cache; elsewhere all.
    """
    rows = len(student) or 1
    if student.device.type == "cpu":
        rows = max(1, BLOCK_NUMBERS // student.shape[1])
    found = list[torch.Tensor]()
    for start in range(0, max(len(student), 1), rows):
        block = slice(start, start + rows)
        parts = compute(block, student[block])
        found.append(torch.stack([part.to(student) for part in parts]))
    return torch.cat(found, dim=1), student


def _supervised(
    student: torch.Tensor, labels: torch.Tensor, found: torch.Tensor, weight: float, temperature: float
) -> torch.Tensor:
    """The cross-entropy (b) of logits (b x V). In their place it leaves the gradient: that of the divergence
    by the logits of Q (b x at most V), beside that of the cross-entropy by its weight."""
    found.mul_((1 - weight) / temperature)
    if weight:
        loss, gradient = losses_to_gradient(student, labels, 0.0)
        gradient.mul_(weight)
        student.copy_(gradient)
        student[:, : found.shape[1]] += found
        return loss
    loss = student.logsumexp(-1) - student.gather(1, labels[:, None])[:, 0]
    student[:, : found.shape[1]] = found
    student[:, found.shape[1] :] = 0
    return loss


def _sums(parts: Sequence[torch.Tensor], count: int, weights: torch.Tensor | None) -> torch.Tensor:
    if not parts:
        return torch.zeros(count, 2)
    found = torch.cat(list(parts), dim=1)
    factors = torch.ones_like(found[0]) if weights is None else weights.to(found)
    return torch.stack([found @ factors, factors.sum().expand(count)], dim=1)


class Teacher(Protocol):
    """What a student follows."""

    @property
    def head(self) -> Head:
        """Logits of hidden states."""

    def states(self, read: Mapping[str, Any]) -> torch.Tensor:
        """Its hidden states (B x T x D') of what the student's decoder was called with, without a
        gradient."""


def distillation_loss(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, teacher: Teacher, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of Divergence's losses at hidden states (B x T x D), each by its position's weight; the sums of
    its parts. `options` are Divergence's. Raises ModelError for a head that an adapter stands around."""
    criterion = Divergence(
        inputs.at_supervised(teacher.states(inputs.read)),
        teacher.head,
        inputs.at_supervised(inputs.labels),
        **options,
    )
    return _loss(model, hidden, inputs, criterion)


def stored_distillation_loss(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, teacher: Likeliest, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of LikeliestDivergence's losses."""
    return _loss(
        model,
        hidden,
        inputs,
        LikeliestDivergence(teacher, inputs.at_supervised(inputs.labels), **options),
    )


def _loss(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, criterion: Divergence | LikeliestDivergence
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = None if inputs.weights is None else inputs.at_supervised(inputs.weights)
    loss = loss_in_one_pass(inputs.at_supervised(hidden), weights, head_of(model), criterion)
    if loss is None:
        raise ModelError(
            "objective distill computes with the head's own weight, and an adapter stands around it here: "
            "leave lm_head out of adapter.target_modules."
        )
    return loss, criterion.sums(weights)


def divergence_to_gradient(
    log_p: torch.Tensor, log_q: torch.Tensor, kind: Kind, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergences (n) of log-probabilities of teacher and student (n x V), and their gradients with
    respect to the logits of Q."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        # A token that the teacher rules out (log 0) takes no part.
        return _expected(p, log_p - log_q), q - p
    if kind == "reverse_kl":
        ratio = log_q - log_p
        divergence = _expected(q, ratio)
        return divergence, q * (ratio - divergence[:, None])
    # By logarithms: of a token that is 0 in both, the logarithm of the sum would be none.
    mixed = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_p, of_q = _expected(p, log_p - mixed), _expected(q, log_q - mixed)
    # dL/dq_i = (1 - beta) log(q_i / m_i), whose mean under Q goes with the softmax.
    return beta * of_p + (1 - beta) * of_q, (1 - beta) * q * (log_q - mixed - of_q[:, None])


def likeliest_to_gradient(teacher: Likeliest, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward divergences (n) from a teacher's likeliest tokens and all others as one class, of the
    student's log-probabilities (n x V), and their gradients with respect to the logits of Q."""
    tokens, log_p = teacher.tokens.to(log_q.device), teacher.log_p.to(log_q)
    kept = log_q.gather(1, tokens)
    # By logarithms: one minus the sum of the kept ones would be rounding where they hold nearly all.
    rest = log_q.scatter(1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    p, apart = log_p.exp(), log_p - torch.cat([kept, rest], dim=1)
    # Of a token among the others: q_i - p_rest q_i / q_rest.
    gradient = log_q.exp() - (log_q - rest + log_p[:, -1:]).exp()
    gradient.scatter_(1, tokens, kept.exp() - p[:, :-1])
    return _expected(p, apart), gradient


def _expected(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.where(probabilities > 0, probabilities * values, 0.0).sum(-1)
