"""Several adapters of one base to one adapter.

cat gives the weighted sum of the updates, svd as far as its rank reaches; linear adds A's and B's apart, a
rough approximation; ties: Yadav et al. 2023, arXiv:2306.01708; slerp and dare: see combine_products.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from finetune.data import tokenizer_for
from finetune.errors import MergeError
from finetune.generation.loading import unchanged_base
from finetune.merging.adapter import Adapter
from finetune.merging.combine_by_peft import PeftCombination
from finetune.merging.combine_products import ProductCombination
from finetune.merging.heads import score_name
from finetune.merging.merged_weights import Updates
from finetune.merging.output import refuse_existing, unfinished
from finetune.merging.targets import choose_target, refuse_other_base
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_adapter_config
from finetune.models.bases.locate import Base
from finetune.models.description import write_description
from finetune.models.description_check import differences
from finetune.models.safetensors import StoredWeights
from finetune.runs.folder import ADAPTER_NOTES
from finetune.runs.target import Target

BY_PEFT, OF_PRODUCTS = ("cat", "linear", "ties"), ("svd", "slerp", "dare")
METHODS = (*BY_PEFT, *OF_PRODUCTS)
SPARSE = ("ties", "dare")
"""Methods that keep a share of the numbers."""
BEYOND_COMBINING = (
    "modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "layers_to_transform",
    "exclude_modules",
)  # fmt: skip
"""What peft takes from the first adapter, or leaves out."""
WHOLE = ("weight", "bias")
"""Parts of an adapter that are no low-rank update; peft saves an embedding whole where it is adapted, or
grew."""
CAT_BOUND = 1e-4
SUM_SLACK = 1e-6


@dataclass(frozen=True)
class Combination:
    """What was combined, and how far its update is from the weighted sum of the parts' updates."""

    output: str
    method: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    rank: int
    """The largest of a layer."""
    distance: float
    """Relative L2, over all modules."""
    residual: float | None
    """What the SVD leaves of the combined update, relative L2; None where there is none."""
    changes_nothing: bool
    """Whether its update is 0 everywhere."""
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Part or combination -> metric -> its value with its 95 % interval, where a recipe was named to score
    them on."""


@dataclass(frozen=True)
class HowCombined:
    """What is asked for, but for the adapters."""

    method: str
    weights: tuple[float, ...]
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    @property
    def words(self) -> str:
        """For a card."""
        said = {"rank": self.rank, "density": self.density, "seed": self.seed}
        return ", ".join(
            [self.method, *(f"{key} {value:g}" for key, value in said.items() if value is not None)]
        )


def combine(
    targets: Sequence[str],
    output: Path,
    *,
    method: str,
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
) -> Combination:
    """Write one adapter that stands for several: their mean where no weights are given.

    Raises MergeError where they can't be combined so.
    """
    output = Path(os.path.abspath(output.expanduser()))
    refuse_existing(output)
    if weights is None:
        weights = [1 / len(targets)] * len(targets)
    how = HowCombined(method, tuple(weights), rank, density, 0 if method == "dare" and seed is None else seed)
    _refuse_bad_options(targets, how)
    parts = [choose_target(text, base) for text in targets]
    folders = [part.adapter for part in parts if part.adapter is not None]
    _refuse_unlike(parts, folders)
    found = unchanged_base(parts[0])
    config = load_config(found, parts[0].model.rope_scaling)
    combined = _combined(found, config, folders, how)
    distance, changes_nothing = combined.distance()
    if method == "cat" and distance > CAT_BOUND:
        raise MergeError(
            f"the combination is {distance:.1e} from the weighted sum, and cat must be exact: it was not "
            "written."
        )
    residual = combined.residual if isinstance(combined, ProductCombination) else None
    with unfinished(output) as folder:
        combined.write(folder)
        _describe(folder, parts[0], targets, how, distance, residual)
        tokenizer = tokenizer_for(parts[0].model, folders[0], found.folder)
        write_description(folder, tokenizer, [folders[0], found.folder])
        wrong = [*combined.read_otherwise(folder), *differences(folder, tokenizer, None)]
        if wrong:
            raise MergeError(
                f"what was written is not the combination: {'; '.join(wrong[:3])}. Nothing stands in "
                f"{output}."
            )
    return Combination(
        output=str(output),
        method=method,
        parts=tuple(targets),
        weights=how.weights,
        rank=combined.rank,
        distance=distance,
        residual=residual,
        changes_nothing=changes_nothing,
    )


def _combined(
    base: Base, config: PretrainedConfig, folders: Sequence[Path], how: HowCombined
) -> PeftCombination | ProductCombination:
    stored = StoredWeights.of_folder(base.folder)
    # Refuses what doesn't fit, and numbers that aren't finite.
    updates = [Updates(stored, config.to_dict(), [Adapter(folder)]) for folder in folders]
    for update in (one for part in updates for one in part.by_name.values()):
        update.ready()
    if how.method in BY_PEFT:
        return PeftCombination(config, folders, how.method, how.weights, how.density)
    return ProductCombination(
        base, config, updates, how.method, how.weights, rank=how.rank, density=how.density, seed=how.seed or 0
    )


def _refuse_bad_options(targets: Sequence[str], how: HowCombined) -> None:
    method, weights = how.method, how.weights
    if method not in METHODS:
        raise MergeError(f"--method is {method!r}; expected one of {', '.join(METHODS)}.")
    if len(targets) < 2 or len(weights) != len(targets):
        raise MergeError(
            f"got {len(targets)} adapters and {len(weights)} weights; expected two or more, and a weight for "
            "each."
        )
    if not all(map(math.isfinite, weights)):
        raise MergeError(f"--weights are {', '.join(map(str, weights))}; expected finite numbers.")
    if how.rank is not None and method not in OF_PRODUCTS:
        raise MergeError(
            f"--rank is for --method svd, slerp and dare; with {method} the parts' ranks decide."
        )
    if how.rank is not None and how.rank < 1:
        raise MergeError(f"--rank is {how.rank}; expected a whole number from 1.")
    if (how.density is None) == (method in SPARSE):
        raise MergeError(
            "--density (the share of numbers that is kept, such as 0.5) belongs to --method ties and dare, "
            f"and {method} {'needs' if method in SPARSE else 'has none of'} it."
        )
    if how.density is not None and not 0 < how.density <= 1:
        raise MergeError(f"--density is {how.density:g}; expected a share above 0, up to 1, such as 0.5.")
    if how.seed is not None and method != "dare":
        raise MergeError(f"--seed is for --method dare; {method} draws nothing.")
    if how.seed is not None and how.seed < 0:
        raise MergeError(f"--seed is {how.seed}; expected a whole number from 0.")
    if method == "slerp" and (len(weights) != 2 or min(weights) < 0 or abs(sum(weights) - 1) > SUM_SLACK):
        raise MergeError(
            f"--weights are {', '.join(f'{weight:g}' for weight in weights)}; slerp goes from one adapter to "
            "another: expected two, from 0, whose sum is 1, such as 0.5,0.5."
        )


def _refuse_unlike(parts: Sequence[Target], folders: Sequence[Path]) -> None:
    """Raises MergeError where the adapters have different bases, or hold more than low-rank updates."""
    first = parts[0]
    for part, folder in zip(parts, folders, strict=True):
        refuse_other_base(part, first)
        adapter = Adapter(folder)
        config = adapter.config
        if part.model.classifies or score_name(adapter.weights.names()) is not None:
            raise MergeError(
                f"the adapter in {folder} has a classification head, which belongs to its own update alone: "
                "heads can't be combined. Merge it by itself."
            )
        beyond = [key for key in BEYOND_COMBINING if config.get(key)] + (
            ["bias"] if config["bias"] != "none" else []
        )
        whole = sorted(
            f"{module}.{part}" for module, held in adapter.parts().items() for part in held if part in WHOLE
        )
        reason = f"it uses {', '.join(beyond)}" if beyond else adapter.why_not_streamed()
        reason = f"it holds {whole[0]} whole" if reason is None and whole else reason
        if reason is not None:
            raise MergeError(
                f"the adapter in {folder}: {reason}, which a combination would leave out. Merge it by itself."
            )


def _describe(
    folder: Path,
    first: Target,
    targets: Sequence[str],
    how: HowCombined,
    distance: float,
    residual: float | None,
) -> None:
    path = folder / "adapter_config.json"
    assert first.adapter is not None  # noqa: S101 - choose_target refuses others
    own = read_adapter_config(first.adapter)
    config = json.loads(path.read_text()) | {
        name: own.get(name) for name in ("base_model_name_or_path", "revision")
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
    if (first.adapter / ADAPTER_NOTES).is_file():
        shutil.copyfile(first.adapter / ADAPTER_NOTES, folder / ADAPTER_NOTES)
    parts = [f"- {target}, weight {weight:g}" for target, weight in zip(targets, how.weights, strict=True)]
    by = "peft's add_weighted_adapter, " if how.method in BY_PEFT else ""
    left = "" if residual is None else f" Its SVD leaves {residual:.2e} of what was combined."
    lines = [
        "---",
        "library_name: peft",
        "tags: [lora, combined]",
        "---",
        "",
        "# A combination of adapters",
        "",
        f"By {by}{how.words}, of",
        "",
    ]
    lines += [
        *parts,
        "",
        f"Its update is {distance:.2e} (relative L2) from the weighted sum of theirs.{left}",
    ]
    if first.base_mask is not None:
        lines += ["", "Its base is pruned, and the mask applies to the update, too: plain peft knows none."]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
