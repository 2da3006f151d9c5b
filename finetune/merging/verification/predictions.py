"""Is the merged model the base with its adapter? Measured on real rows, in float32 arithmetic.

Three questions beside those of check_tensors, each with its bound:

1. The mathematics. The merge in float32, not rounded, must have the logits of base + adapter as peft computes
   them, unmerged. What is left is float32's rounding: 4e-6 of the largest logit on SmolLM2-135M and 2e-6 to
   9e-6 on a 5-layer model, adapters from faint (mean KL to the base 1e-4) to absurd (7 nats). An adapter
   scaled by 0.99 is 1e-4 and more away.
2. The rounding. The stored model's predictions against those of base + adapter: mean KL, and the likeliest
   token where it is not a near-tie. Measured: bf16 2e-5 to 2e-4 nats (3e-3 for the absurd adapter), fp16 1e-6
   to 5e-5.
3. The text. Greedy answers to a few prompts are the same; where a token differs, base + adapter itself was
   near a tie.

A model that doesn't fit in memory is computed layer by layer from the disk: then question 1 is answered by
check_tensors alone, and no text is written.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import text_of
from finetune.errors import MergeError
from finetune.generation.generate import generate_ids
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.verification.distance import Distance, distance, logits_of
from finetune.merging.verification.lazy_model import STREAMED_ROWS, STREAMED_TOKENS, model_of
from finetune.models.architectures.base import EMBEDDING
from finetune.models.kernels.rope import scale_by_document
from finetune.models.safetensors import StoredWeights, Weights

LOGIT_FRACTION = 5e-5
"""Bound on the largest difference of float32 logits, as a share of the largest logit (at least of 1)."""

TOP1_AGREEMENT = 0.95
"""Bound on how often the likeliest token stays the same, where it is clear."""

LOST_FRACTION = 0.5
"""Bound on the mean KL as a share of that of the base alone: a merge that is nearer to the base than to what
was trained has lost the adapter, however little it does."""
MEASURABLE_KL = 2e-6
"""Less than this in nats isn't told from float32's own arithmetic, so no share of it is asked for."""

PARTING_NATS = {torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Where a greedy answer parts from the one before the merge: how far the merged model may prefer its own
token."""

PROMPTS, ANSWER_TOKENS = 3, 24


@dataclass(frozen=True)
class KlBound:
    """How far 16-bit rounding may move predictions: a floor, and a share of how far the adapter moves them,
    in nats."""

    floor: float
    fraction_of_adapter: float


KL_BOUNDS = {
    torch.float32: KlBound(1e-6, 0.0),
    torch.float16: KlBound(1e-4, 1e-3),
    torch.bfloat16: KlBound(1e-3, 1e-2),
}


@dataclass(frozen=True)
class Continuation:
    """A prompt, and what base + adapter and the merged model make of it, greedily."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Verification:
    """What was measured, and whether it holds."""

    rows: int
    tokens: int
    texts: str
    """Where the rows come from."""
    layer_by_layer: bool
    """Whether the models were read from the disk while they computed, because they don't fit in memory."""
    dtype: str
    """The type that the merged weights are stored in."""
    largest_logit: float
    adapter_mean_kl: float | None
    """How far the adapter moves the base's predictions, in nats a token: what the other figures compare
    with."""
    float32_largest_difference: float | None
    """Of the logits, merged in float32 against unmerged; None layer by layer."""
    largest_difference: float
    """Of the logits, the stored model against base + adapter."""
    mean_difference: float
    mean_kl: float
    """From base + adapter to the stored model, in nats a token."""
    top1_agreement: float
    """How often the likeliest token is the same, near-ties included."""
    clear_top1_agreement: float
    """The same where the likeliest token leads by CLEAR_MARGIN."""
    answers: tuple[Continuation, ...]
    failures: tuple[str, ...]
    """The bounds that don't hold, in words."""

    @property
    def holds(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    @property
    def same_answers(self) -> int:
        """How many greedy answers are the same, letter by letter."""
        return sum(answer.before == answer.after for answer in self.answers)

    @property
    def verdict(self) -> str:
        """The outcome in one line, for people."""
        return (
            f"{'holds' if self.holds else 'FAILS'} on {self.rows} rows, {self.tokens:,} tokens: largest "
            f"logit difference {self.largest_difference:.2e}, mean KL {self.mean_kl:.2e} nats, same "
            f"likeliest token {self.top1_agreement:.2%}"
        )

    def sentences(self) -> list[str]:
        """For a card."""
        same = f"text: {self.same_answers} of {len(self.answers)} greedy answers are the same"
        return [f"predictions: {self.verdict}", *([same] if self.answers else [])]

    def lines(self) -> list[tuple[str, str]]:
        """For people: (name, value) a line."""
        exact, effect = self.float32_largest_difference, self.adapter_mean_kl
        found = [
            ("verification", f"holds, on {self.rows} rows, {self.tokens:,} tokens ({self.texts})"),
            (
                "  logits",
                f"largest difference {self.largest_difference:.2e}, mean {self.mean_difference:.2e}"
                + ("" if exact is None else f"; merged in float32 {exact:.2e}"),
            ),
            (
                "  predictions",
                f"mean KL {self.mean_kl:.2e} nats"
                + ("" if effect is None else f", of the base alone {effect:.2e}")
                + f", same likeliest token {self.top1_agreement:.2%}",
            ),
        ]
        text = ("  text", f"{self.same_answers} of {len(self.answers)} greedy answers are the same")
        return [*found, *([text] if self.answers else [])]

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for verification.json."""
        return {"holds": self.holds, "verdict": self.verdict, **asdict(self)}


@dataclass(frozen=True)
class Before:
    """What base + adapter makes of rows of token ids, before the merge."""

    rows: list[list[int]]
    logits: list[torch.Tensor]
    effect: Distance | None
    """From base + adapter to the base alone; None where their vocabularies differ and nothing says what the
    base has there."""
    prompts: list[list[int]]
    answers: list[list[int]]

    def as_measured_of(self, model: PreTrainedModel) -> list[torch.Tensor]:
        """The logits that another model has for the same rows."""
        return logits_of(model, self.rows)

    @property
    def largest_logit(self) -> float:
        """What the differences of logits compare with."""
        return max(float(row.abs().max()) for row in self.logits)


def before_by_peft(
    adapted: PeftModel, tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> Before:
    """The measurements of base + adapter as peft computes them, unmerged."""
    rows = [document.token_ids for document in documents]
    prompts = [
        ids
        for document in documents
        if (ids := document.token_ids[: document.spans[0][0]] if document.spans else [])
    ]
    prompts, plain = prompts[:PROMPTS], cast(PreTrainedModel, adapted)
    with quiet_peft():
        logits = logits_of(adapted, rows)
        with adapted.disable_adapter():
            effect = distance(logits, logits_of(adapted, rows))
        answers = (
            generate_ids(plain, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, batch_size=PROMPTS)
            if prompts
            else []
        )
    return Before(rows, logits, effect, prompts, answers)


def before_from_disk(
    base: Weights, updates: Updates, config: PretrainedConfig, documents: Sequence[Document]
) -> Before:
    """The same, layer by layer from the disk: fewer rows, and no answers."""
    rows = [document.token_ids[:STREAMED_TOKENS] for document in documents[:STREAMED_ROWS]]
    logits = logits_of(model_of(MergedWeights(base, updates, torch.float32), config, streamed=True), rows)
    grown = updates.vocabulary != base.shape(updates.source(f"{EMBEDDING}.weight"))[0]
    effect = None if grown else distance(logits, logits_of(model_of(base, config, streamed=True), rows))
    return Before(rows, logits, effect, [], [])


def verify(
    before: Before,
    exact: Sequence[torch.Tensor] | None,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    texts: str,
    dtype: torch.dtype,
) -> Verification:
    """Compare what was measured before the merge with the merged model in `folder`.

    `exact` are the logits of the merge in float32, not rounded; None where models are read layer by layer.
    Raises MergeError where the folder doesn't load as a plain model.
    """
    if exact is not None:
        mathematics, stored = distance(before.logits, exact), load_plain(folder, torch.float32)
    else:
        mathematics, stored = (
            None,
            model_of(StoredWeights.of_folder(folder), AutoConfig.from_pretrained(folder), streamed=True),
        )
    outcome = distance(before.logits, logits_of(stored, before.rows))
    answers, text_failures = compare_answers(before, stored, tokenizer, PARTING_NATS[dtype])
    return Verification(
        rows=len(before.rows),
        tokens=outcome.positions,
        texts=texts,
        layer_by_layer=exact is None,
        dtype=str(dtype).removeprefix("torch."),
        largest_logit=before.largest_logit,
        adapter_mean_kl=before.effect.mean_kl if before.effect is not None else None,
        float32_largest_difference=None if mathematics is None else mathematics.largest,
        largest_difference=outcome.largest,
        mean_difference=outcome.absolute_sum / outcome.numbers,
        mean_kl=outcome.mean_kl,
        top1_agreement=outcome.same_top1 / outcome.positions,
        clear_top1_agreement=outcome.same_clear_top1 / outcome.clear if outcome.clear else 1.0,
        answers=answers,
        failures=(
            *failures_of(before.effect, mathematics, outcome, before.largest_logit, dtype),
            *text_failures,
        ),
    )


def failures_of(
    effect: Distance | None,
    mathematics: Distance | None,
    outcome: Distance,
    largest_logit: float,
    dtype: torch.dtype,
) -> Iterator[str]:
    """Each bound that doesn't hold, with what was measured."""
    if not outcome.finite or (mathematics is not None and not mathematics.finite):
        yield "logits are not finite"
        return
    logit_bound = LOGIT_FRACTION * max(1.0, largest_logit)
    if mathematics is not None and mathematics.largest > logit_bound:
        yield (
            f"merged in float32, logits differ by up to {mathematics.largest:.2e}; the bound is "
            f"{logit_bound:.2e}"
        )
    if dtype == torch.float32 and outcome.largest > logit_bound:
        yield (
            f"the stored model's logits differ by up to {outcome.largest:.2e}; the bound is {logit_bound:.2e}"
        )
    bound = KL_BOUNDS[dtype]
    kl_bound = max(bound.floor, bound.fraction_of_adapter * (effect.mean_kl if effect is not None else 0.0))
    if effect is not None:
        kl_bound = min(kl_bound, max(LOST_FRACTION * effect.mean_kl, MEASURABLE_KL))
    if outcome.mean_kl > kl_bound:
        remedy = (
            ""
            if dtype == torch.float32
            else " (its numbers are too coarse for this update as it was rounded: merge with --dtype "
            "float32, or, where that was not tried, --rounding auto)"
        )
        if effect is not None:
            remedy = f"; the base alone differs by {effect.mean_kl:.2e}{remedy}"
        yield (
            f"predictions differ by {outcome.mean_kl:.2e} nats a token (KL); the bound is "
            f"{kl_bound:.2e}{remedy}"
        )
    if outcome.clear and outcome.same_clear_top1 < TOP1_AGREEMENT * outcome.clear:
        yield (
            f"the likeliest token stays the same in {outcome.same_clear_top1} of {outcome.clear} clear "
            "positions"
        )


def compare_answers(
    before: Before, stored: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, bound: float
) -> tuple[tuple[Continuation, ...], list[str]]:
    """The merged model's own greedy answers beside those before; and where they part by more nats than the
    bound."""
    if not before.prompts:
        return (), []
    after = generate_ids(stored, tokenizer, before.prompts, max_new_tokens=ANSWER_TOKENS, batch_size=PROMPTS)
    answers, failures = [], []
    for prompt, mine, its in zip(before.prompts, before.answers, after, strict=True):
        texts = [text_of(ids, tokenizer) for ids in (prompt, mine, its)]
        answers.append(Continuation(*texts))
        parted = next(
            (place for place, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1]), None
        )
        if parted is None:
            continue
        # How far the merged model prefers its own token to the other's: near a tie either may come.
        (logits,) = logits_of(stored, [prompt + mine[:parted]])
        own = logits[-1].log_softmax(-1)
        margin = float(own[its[parted]] - own[mine[parted]])
        if margin > bound:
            failures.append(
                f"the greedy answer to {texts[0][-60:]!r} is {texts[2]!r}, and was {texts[1]!r} before the "
                f"merge: they part at token {parted + 1}, by {margin:.2f} nats"
            )
    return tuple(answers), failures


def load_plain(folder: Path, dtype: torch.dtype, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """A model folder through plain transformers. Raises MergeError where weights are absent from it, or left
    over."""
    own: Any = GenerationConfig()  # the folder's may be one that transformers refuses
    loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=False,
        generation_config=own,
    )
    model, info = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise MergeError(
                f"the merged model does not load cleanly: {what.replace('_', ' ')} "
                f"{sorted(map(str, info[what]))[:3]}."
            )
    scale_by_document(model)
    torch.nn.Module.eval(model)
    return model


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """peft warns of states that are meant here: layers merged already, an adapter switched off, a head
    untied."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft\..*")
        yield
