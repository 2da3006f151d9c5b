"""Is the merged model the base with its adapter? Measured on real rows, in float32 arithmetic.

Three questions, each with its bound:

1. The mathematics. peft merges base and adapter in float32; the logits must be those of base + adapter, unmerged. What is
   left is float32's rounding: 4e-6 of the largest logit on SmolLM2-135M and 2e-6 to 9e-6 on a 5-layer model, adapters from
   faint (mean KL to the base 1e-4) to absurd (7 nats). An adapter scaled by 0.99 is 1e-4 and more away.
2. The file. Each stored 16-bit number must be the float32 merge, rounded once. Another order of additions moves about one
   number in 100,000 across a rounding border; rounding twice moves a tenth of them.
3. The rounding. The stored model's predictions against those of base + adapter: mean KL, and the likeliest token where it
   is not a near-tie. Measured: bf16 2e-5 to 2e-4 nats (3e-3 for the absurd adapter), fp16 1e-6 to 5e-5.

Shapes: T tokens of a row, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune.errors import MergeError

LOGIT_FRACTION = 5e-5
"""Bound on the largest difference of float32 logits, as a share of the largest logit (at least of 1)."""

ROUNDED_OTHERWISE_FRACTION = 1e-4
"""Bound on the share of stored 16-bit numbers that are not the float32 merge, rounded once."""

CLEAR_MARGIN = 0.1
"""Nats between the two likeliest tokens above which the likeliest one counts as clear."""

TOP1_AGREEMENT = 0.95
"""Bound on how often the likeliest token stays the same, where it is clear."""


@dataclass(frozen=True)
class KlBound:
    """How far 16-bit rounding may move predictions: a floor, and a share of how far the adapter moves them, in nats."""

    floor: float
    fraction_of_adapter: float


KL_BOUNDS = {torch.float32: KlBound(1e-6, 0.0), torch.float16: KlBound(1e-4, 1e-3), torch.bfloat16: KlBound(1e-3, 1e-2)}


@dataclass(frozen=True)
class Verification:
    """What was measured, and whether it holds."""

    rows: int
    tokens: int
    texts: str
    """Where the rows come from."""
    dtype: str
    """The type that the merged weights are stored in."""
    largest_logit: float
    adapter_mean_kl: float
    """How far the adapter moves the base's predictions, in nats a token: what the other figures compare with."""
    float32_largest_difference: float
    """Of the logits, merged in float32 against unmerged."""
    rounded_otherwise_fraction: float
    """The share of the stored numbers that are not the float32 merge, rounded once."""
    largest_difference: float
    """Of the logits, the stored model against base + adapter."""
    mean_difference: float
    mean_kl: float
    """From base + adapter to the stored model, in nats a token."""
    top1_agreement: float
    """How often the likeliest token is the same, near-ties included."""
    clear_top1_agreement: float
    """The same where the likeliest token leads by CLEAR_MARGIN."""
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
            f"{'holds' if self.holds else 'FAILS'} on {self.rows} rows, {self.tokens:,} tokens: largest logit difference "
            f"{self.largest_difference:.2e}, mean KL {self.mean_kl:.2e} nats, same likeliest token {self.top1_agreement:.2%}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for verification.json."""
        return {"holds": self.holds, "verdict": self.verdict, **asdict(self), "failures": list(self.failures)}


@dataclass
class Distance:
    """Sums over positions of how far one model's logits are from another's."""

    positions: int = 0
    numbers: int = 0
    largest: float = 0.0
    absolute_sum: float = 0.0
    kl_sum: float = 0.0
    same_top1: int = 0
    clear: int = 0
    same_clear_top1: int = 0
    finite: bool = True

    def add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Take in one row's logits (T x V each)."""
        self.finite = self.finite and bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())
        difference = (expected - found).abs()
        self.positions += expected.shape[0]
        self.numbers += difference.numel()
        self.largest = max(self.largest, float(difference.max()))
        self.absolute_sum += float(difference.double().sum())
        truth, guess = expected.double().log_softmax(-1), found.double().log_softmax(-1)
        self.kl_sum += float((truth.exp() * (truth - guess)).sum())
        same = expected.argmax(-1) == found.argmax(-1)
        best = truth.topk(2, dim=-1).values
        clear = best[:, 0] - best[:, 1] >= CLEAR_MARGIN
        self.same_top1 += int(same.sum())
        self.clear += int(clear.sum())
        self.same_clear_top1 += int((same & clear).sum())

    @property
    def mean_kl(self) -> float:
        """Nats a token; rounding can make it a hair less than 0, which is 0."""
        return max(self.kl_sum / self.positions, 0.0)


def verify(adapted: PeftModel, folder: Path, rows: Sequence[Sequence[int]], *, texts: str, dtype: torch.dtype) -> Verification:
    """Compare `adapted` (base and adapter, unmerged, in float32) with the merged model in `folder`, on rows of token ids.

    `adapted` is merged in place, in float32, and must not be used afterwards. Raises MergeError where the folder doesn't
    load as a plain model.
    """
    device = adapted.device
    with quiet_peft():
        expected = logits_of(adapted, rows)
        with adapted.disable_adapter():
            effect = distance(expected, logits_of(adapted, rows))
        merged = adapted.merge_and_unload()
    mathematics = distance(expected, logits_of(merged, rows))
    rounded_otherwise = fraction_rounded_otherwise(merged, folder)
    # Two models of 4 bytes a parameter don't fit where one does: the first one's storage goes before the second comes.
    merged.to("meta")
    outcome = distance(expected, logits_of(load_plain(folder, torch.float32).to(device), rows))
    largest_logit = max(float(row.abs().max()) for row in expected)
    return Verification(
        rows=len(rows),
        tokens=outcome.positions,
        texts=texts,
        dtype=str(dtype).removeprefix("torch."),
        largest_logit=largest_logit,
        adapter_mean_kl=effect.mean_kl,
        float32_largest_difference=mathematics.largest,
        rounded_otherwise_fraction=rounded_otherwise,
        largest_difference=outcome.largest,
        mean_difference=outcome.absolute_sum / outcome.numbers,
        mean_kl=outcome.mean_kl,
        top1_agreement=outcome.same_top1 / outcome.positions,
        clear_top1_agreement=outcome.same_clear_top1 / outcome.clear if outcome.clear else 1.0,
        failures=tuple(failures_of(effect, mathematics, outcome, rounded_otherwise, largest_logit, dtype)),
    )


def failures_of(
    effect: Distance,
    mathematics: Distance,
    outcome: Distance,
    rounded_otherwise: float,
    largest_logit: float,
    dtype: torch.dtype,
) -> Iterator[str]:
    """Each bound that doesn't hold, with what was measured."""
    if not (outcome.finite and mathematics.finite):
        yield "logits are not finite"
        return
    logit_bound = LOGIT_FRACTION * max(1.0, largest_logit)
    if mathematics.largest > logit_bound:
        yield f"merged in float32, logits differ by up to {mathematics.largest:.2e}; the bound is {logit_bound:.2e}"
    if dtype == torch.float32 and outcome.largest > logit_bound:
        yield f"the stored model's logits differ by up to {outcome.largest:.2e}; the bound is {logit_bound:.2e}"
    if rounded_otherwise > ROUNDED_OTHERWISE_FRACTION:
        yield (
            f"{rounded_otherwise:.2%} of the stored numbers are not the float32 merge, rounded once; "
            f"the bound is {ROUNDED_OTHERWISE_FRACTION:.2%}"
        )
    bound = KL_BOUNDS[dtype]
    kl_bound = bound.floor + bound.fraction_of_adapter * effect.mean_kl
    if outcome.mean_kl > kl_bound:
        remedy = "" if dtype == torch.float32 else " (its numbers are too coarse for this update: merge with --dtype float32)"
        yield f"predictions differ by {outcome.mean_kl:.2e} nats a token (KL); the bound is {kl_bound:.2e}{remedy}"
    if outcome.clear and outcome.same_clear_top1 < TOP1_AGREEMENT * outcome.clear:
        yield f"the likeliest token stays the same in {outcome.same_clear_top1} of {outcome.clear} clear positions"


@torch.no_grad()
def logits_of(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits (T x V) of each row, in float32, on the CPU. All rows go through at once, padded on the right."""
    device, longest = next(model.parameters()).device, max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    logits: torch.Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return [logits[index, : len(row)].float().cpu() for index, row in enumerate(rows)]


def distance(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Distance:
    """How far one model's logits are from another's, over all rows."""
    measured = Distance()
    for truth, guess in zip(expected, found, strict=True):
        measured.add(truth, guess)
    return measured


def load_plain(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A model folder through plain transformers. Raises MergeError where weights are absent from it, or left over."""
    loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    model, info = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise MergeError(
                f"the merged model does not load cleanly: {what.replace('_', ' ')} {sorted(map(str, info[what]))[:3]}."
            )
    torch.nn.Module.eval(model)
    return model


def fraction_rounded_otherwise(merged: torch.nn.Module, folder: Path) -> float:
    """The share of the folder's 16-bit numbers that are not the float32 model's, rounded; a strange tensor counts whole."""
    expected = merged.state_dict()
    differing = total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file, not a dictionary
                stored = file.get_tensor(name)
                total += stored.numel()
                if stored.dtype == torch.float32:
                    continue  # float32 has no rounding to check; the logits' bound is the tighter one
                truth = expected.get(name)
                if truth is None or truth.shape != stored.shape:
                    differing += stored.numel()
                else:
                    differing += int((truth.to(stored.dtype).cpu() != stored).sum())
    return differing / total if total else math.nan


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """peft warns of states that are meant here: layers merged already, an adapter switched off, a head untied."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft\..*")
        yield
