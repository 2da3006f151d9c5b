"""The rows that a rounding is calibrated on, and the tensors that come of it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn
from transformers import PretrainedConfig

from data_prep.errors import DataError
from finetune.errors import MergeError
from finetune.merging.merged_weights import MergedWeights
from finetune.merging.rounding.base import Rounding
from finetune.merging.rounding.calibrated import Inputs, RoundedBefore, walk, with_feedback
from finetune.merging.rounding.cost import ROWS, calibration_bytes
from finetune.merging.rounding.stochastic import bits
from finetune.merging.verification.lazy_model import model_of
from finetune.merging.verification.rows import calibration_rows
from finetune.models.bases.shapes import stored_name

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs
    from finetune.merging.rounding.request import RoundingRequest

logger = logging.getLogger(__name__)

FEWEST_ROWS = 10
"""Eight for the second moments, and two to choose by."""


@dataclass
class Calibration:
    """Rows and the model that they go through; none where there is nothing to calibrate on."""

    exact: MergedWeights
    config: PretrainedConfig
    rows: Sequence[Sequence[int]] = ()
    why_not: str = ""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def rounded(
        self, names: Sequence[str], small: Collection[str], seed: int, others: Sequence[Rounding] = ()
    ) -> dict[str, Rounding]:
        """Tensor -> rounding, for the decoder's linear layers among `names`: with feedback, stochastically
        by `seed` those whose update is `small`. Where there are `others`, a tensor whose update isn't gets
        the one of all that keeps the output of the held-out rows closest.

        Raises MergeError where what a layer reads is not finite."""
        if not self.rows:
            return {}
        logger.info(f"calibrating the rounding on {len(self.rows)} rows")
        wide = MergedWeights(self.exact.base, self.exact.updates, torch.float32)
        wanted, found, kept = set(names), dict[str, Rounding](), dict[str, torch.Tensor]()

        def take(path: str, layer: nn.Linear, inputs: Inputs) -> None:
            name = stored_name(self.exact.names(), f"{path}.weight")
            if name is None or name not in wanted or not len(inputs[0]):
                return
            weight, dtype, (fit, score) = layer.weight.detach(), self.exact.dtype(name), inputs
            moments = fit.T @ fit
            if not bool(torch.isfinite(moments.diagonal().mean())):
                raise MergeError(
                    f"the rounding can't be calibrated: what {path} reads of the rows is not finite. A "
                    "number of the base is NaN or infinity, or the update is too large for any type."
                )
            drawn = bits(seed, name, 0, *weight.shape) if name in small else None
            rounded = with_feedback(weight, moments, dtype, drawn)
            if name in small or not others:
                kept[name] = rounded
                return

            def error(tensor: torch.Tensor) -> float:
                return float((score @ (tensor.float() - weight).T).square().sum())

            mine = error(rounded)
            rivals = {each: error(each.rounded(name, weight, 0, dtype)) for each in others}
            best = min(rivals, key=lambda each: rivals[each])
            if rivals[best] < mine:
                found[name] = best
            else:
                kept[name] = rounded

        walk(model_of(wide, self.config), self.rows, take)
        return found | dict.fromkeys(kept, RoundedBefore(kept))


def calibration_of(
    parts: "MergeInputs",
    exact: MergedWeights,
    config: PretrainedConfig,
    asked: "RoundingRequest",
    *,
    computes: bool,
) -> Calibration:
    """Rows and model, or why there are none. Raises MergeError where they were asked for and can't be
    had."""
    found = Calibration(exact, config)
    insists = asked.method == "calibrated" or asked.calibration is not None
    if not insists and not computes:
        found.why_not = "by the updates' sizes, for which no model is computed (--verify)"
        return found
    rows, problem = _rows(parts, asked)
    if not problem and len(rows) < FEWEST_ROWS:
        problem = f"{len(rows)} rows to calibrate on, of at least {FEWEST_ROWS}"
    needed = calibration_bytes([exact.shape(name) for name in exact.names()])
    if not problem and needed > (free := psutil.virtual_memory().available):
        problem = f"calibration needs about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} are free"
    if not problem:
        found.rows = rows
    elif insists:
        raise MergeError(
            f"the rounding can't be calibrated: {problem}. Name a recipe with rows of the model's task "
            "(--calibration RECIPE), or take --rounding stochastic or nearest."
        )
    else:
        found.why_not = f"by the updates' sizes: {problem}"
    return found


def _rows(parts: "MergeInputs", asked: "RoundingRequest") -> tuple[list[list[int]], str]:
    recipe = asked.calibration or parts.target.recipe
    if recipe is None:
        return [], "no recipe says what the model was trained on"
    try:
        documents = calibration_rows(recipe, parts.tokenizer, ROWS, classifies=parts.head.classifies)
    except DataError as error:
        return [], f"the rows can't be read ({str(error).splitlines()[0]})"
    return [document.token_ids for document in documents], ""
