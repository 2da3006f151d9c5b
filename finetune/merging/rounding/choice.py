"""Which rounding each tensor of a merge gets, and which merge as a whole is written: measured where it can
be."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig

from finetune.errors import MergeError
from finetune.merging.merged_weights import MergedWeights
from finetune.merging.rounding.base import NEAREST, ByTensor, Rounding
from finetune.merging.rounding.stochastic import Stochastic
from finetune.models.safetensors import Weights

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs
    from finetune.merging.rounding.calibration import Calibration
    from finetune.merging.rounding.request import RoundingRequest


DRAWN_ULPS, DRAWN_ULPS_WITH_FEEDBACK = 1.4, 0.3
"""The median |update|, in units in the last place of its weights, below which a tensor is rounded
stochastically: to the nearest, most of its numbers would hardly move, and what each layer loses of the update
leans the same way in all of them. Feedback brings back a part of that. docs/merging.md has what was measured
on both sides of each."""
SAMPLED_ROWS = 8
"""Of a tensor, for that median."""


@dataclass(frozen=True)
class RoundingChoice:
    """What was asked, what was written, and why."""

    asked: str
    written: str
    """The rounding; auto where tensors have different ones."""
    seed: int | None
    """Of what was drawn; None where nothing was."""
    calibration_rows: int
    kl: dict[str, float] = field(default_factory=dict)
    """Mean KL (nats) to the unrounded merge, of the rounding chosen by tensors and of one for all of
    them; empty where they were not compared as a whole."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Tensor -> its rounding."""
    note: str = ""

    def line(self) -> str:
        """For people."""
        counts = Counter(self.tensors.values())
        how = ", ".join(f"{count} tensors {name}" for name, count in sorted(counts.items()))
        found = f"{self.written}{f' ({how})' if how and self.asked == 'auto' else ''}"
        found += f", seed {self.seed}" if self.seed is not None else ""
        found += f", calibrated on {self.calibration_rows} rows" if self.calibration_rows else ""
        if self.kl:
            found += "; KL " + ", ".join(f"{name} {value:.1e}" for name, value in self.kl.items())
        return found + (f"; {self.note}" if self.note else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def choose_rounding(
    parts: "MergeInputs",
    exact: MergedWeights,
    config: PretrainedConfig,
    asked: "RoundingRequest",
    *,
    computes: bool,
) -> tuple[Rounding, RoundingChoice | None]:
    """The rounding of a merge; None beside it where no tensor is rounded to 16 bits. `exact` is the merge as
    it would be rounded to the nearest. Auto is measured on the model where it may compute it (`computes`),
    else by the updates' sizes.

    Raises MergeError where rows are needed and there are none, or too few, and where the memory is too small
    for a calibration.
    """
    names = [name for name in exact.names() if exact.rounds(name)]
    if not names:
        asked.refuse_without_rounding("weights that are stored in float32")
        return NEAREST, None
    stochastic = Stochastic(asked.seed or 0)
    match asked.method:
        case "nearest":
            return NEAREST, RoundingChoice("nearest", "nearest", None, 0)
        case "stochastic":
            by_tensor = ByTensor(dict.fromkeys(names, stochastic))
            return by_tensor, RoundingChoice(
                "stochastic", "stochastic", stochastic.seed, 0, tensors=by_tensor.names()
            )
    from finetune.merging.rounding.calibration import calibration_of

    calibration = calibration_of(parts, exact, config, asked, computes=computes)
    sizes = {name: update_ulps(exact, name) for name in names}
    small = {name for name, size in sizes.items() if size < DRAWN_ULPS_WITH_FEEDBACK}
    if asked.method == "calibrated":
        by_tensor = ByTensor(calibration.rounded(names, small, stochastic.seed))
        if not by_tensor.of:
            raise MergeError(
                "--rounding calibrated: the adapter changes no linear layer of the decoder that is stored in "
                "16 bits. Take another rounding."
            )
        seed = stochastic.seed if small & by_tensor.of.keys() else None
        rows = len(calibration.rows)
        return by_tensor, RoundingChoice("calibrated", "calibrated", seed, rows, tensors=by_tensor.names())
    found: dict[str, Rounding] = {name: stochastic for name, size in sizes.items() if size < DRAWN_ULPS}
    found |= calibration.rounded(names, small, stochastic.seed, [NEAREST, stochastic])
    mine = ByTensor(found)
    if not computes:
        why = "; ".join(
            filter(None, (calibration.why_not, "not compared with the nearest as a whole (--verify)"))
        )
        return mine, _choice_by_tensors(mine, names, stochastic.seed, calibration, {}, why)
    # One rounding for all of them may be closer as a whole, on the merge's own texts: errors that are small
    # in each layer's output may lean the same way in all.
    candidates = {"nearest": ByTensor({}), "stochastic": ByTensor(dict.fromkeys(names, stochastic))}
    if any(mine.of.get(name) is not stochastic for name in names):
        candidates["by tensors"] = mine
    kl = distances(parts, exact, config, candidates)
    closest = candidates[min(kl, key=lambda name: kl[name])]
    return closest, _choice_by_tensors(closest, names, stochastic.seed, calibration, kl, calibration.why_not)


def _choice_by_tensors(
    written: ByTensor,
    names: list[str],
    seed: int,
    calibration: "Calibration",
    kl: dict[str, float],
    note: str,
) -> RoundingChoice:
    """What is recorded of auto."""
    tensors = {name: written.of.get(name, NEAREST).name for name in names}
    kinds = set(tensors.values())
    return RoundingChoice(
        "auto",
        next(iter(kinds)) if len(kinds) == 1 else "auto",
        seed if {"stochastic", "calibrated"} & kinds else None,
        len(calibration.rows) if "calibrated" in kinds else 0,
        kl,
        {name: kind for name, kind in tensors.items() if kind != "nearest"},
        note,
    )


def distances(
    parts: "MergeInputs", exact: MergedWeights, config: PretrainedConfig, roundings: Mapping[str, Rounding]
) -> dict[str, float]:
    """The mean KL of each rounding's merge to the one in float32, on the merge's texts."""
    from finetune.merging.verification.lazy_model import STREAMED_ROWS, fits_in_memory, model_of
    from finetune.merging.verification.verifiers import verifier_of

    verifier, streamed = verifier_of(parts), not fits_in_memory(exact)
    documents = verifier.documents
    if streamed:
        documents = list(map(verifier.shortened, documents[:STREAMED_ROWS]))

    def predictions(weights: Weights) -> list[torch.Tensor]:
        return verifier.predictions(model_of(weights, config, streamed=streamed), documents)

    trained = predictions(MergedWeights(exact.base, exact.updates, torch.float32))
    return {
        name: verifier.loss_and_kl(documents, trained, predictions(exact.rounded_by(rounding)))[1]
        for name, rounding in roundings.items()
    }


def update_ulps(exact: MergedWeights, name: str) -> float:
    """The median |update| of the numbers that have one in a tensor's first rows, in units in the last place
    of the base's; infinite where none has."""
    source = exact.updates.source(name)
    rows = min(
        SAMPLED_ROWS, *(shape[0] if shape else 1 for shape in (exact.shape(name), exact.base.shape(source)))
    )
    update = exact.update(name)
    assert update is not None  # noqa: S101 - asked of changed tensors alone
    base = exact.base.rows(source, 0, rows).float()
    changed = update.ready()(base.clone(), 0)
    facts = torch.finfo(exact.dtype(name))
    _, exponent = torch.frexp(base.abs().clamp_min(facts.tiny))
    units = (changed - base).abs() / (facts.eps * torch.exp2((exponent - 1).float()))
    moved = units[units > 0]
    return float(moved.median()) if moved.numel() else float("inf")
