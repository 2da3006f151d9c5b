"""finetune verify: is a merged folder still what was written, and still base + adapter?"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.disk import read_json
from finetune.errors import CheckpointError, MergeError, ModelError
from finetune.merging.inputs import MergeOptions, read_parts
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.output import VERIFICATION_FILE
from finetune.merging.qlora import DequantizedWeights
from finetune.merging.rounding.base import NEAREST, ByTensor, Rounding
from finetune.merging.rounding.calibrated import RoundedBefore
from finetune.merging.rounding.stochastic import Stochastic
from finetune.merging.strategies.streaming import verify_streamed
from finetune.merging.verification.description import DescriptionCheck, check_beside, hashes_beside
from finetune.merging.verification.tensors import TensorCheck, check_tensors
from finetune.models.device import choose_threads
from finetune.models.safetensors import StoredWeights, Weights, hashes_of
from finetune.models.stored_quantization import NF4_DOUBLE
from finetune.recipe.reading.old_names import current_values
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target

if TYPE_CHECKING:
    from finetune.merging.verification.heads import HeadVerification
    from finetune.merging.verification.predictions import Verification

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Again:
    """What a merged folder was found to be."""

    folder: str
    tensors: int
    """Whose hash is that of the merge."""
    changed: tuple[str, ...]
    """Tensors, and files beside them, that are not what was written."""
    left_out: str | None
    """Why base + adapter was not looked at again."""
    check: TensorCheck | None = None
    verification: "Verification | HeadVerification | None" = None
    description: DescriptionCheck | None = None

    @property
    def failures(self) -> list[str]:
        """What doesn't hold, in words."""
        found = [f"{name} is not what was written" for name in self.changed]
        checks = (self.check, self.verification, self.description)
        return found + [failure for check in checks if check is not None for failure in check.failures]


def verify_again(folder: Path, *, seed: int) -> Again:
    """Hash each tensor, and repeat the checks of the merge with a sample of its own, where base and adapters
    are still there.

    Raises MergeError where the folder was not merged by this toolkit, or a file of it is truncated.
    """
    record = read_record(folder)
    written = StoredWeights.of_folder(folder)
    logger.info(f"hashing {len(written.tensors)} tensors")
    found = hashes_of(written, choose_threads())
    written.close()
    expected: dict[str, str] = record["xxh3_128"]
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    same = len(found) - sum(name in found for name in changed)
    now, earlier = hashes_beside(folder), record["description"] is None
    files = now if earlier else record["description"]
    if earlier:
        logger.info(
            "an earlier version merged this: it is checked for transformers 5 alone; merge again for "
            "transformers 4"
        )
    changed += sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
    try:
        target, adapters = _target_of(record)
        parts = read_parts(target, adapters[1:], record["asked_dtype"])
    except (ModelError, MergeError, CheckpointError) as error:
        return Again(str(folder), same, tuple(changed), str(error))
    if parts.why_not_streamed is not None or any("merged by peft" in note for note in record["notes"]):
        return Again(str(folder), same, tuple(changed), "it was merged by peft, whole in memory")
    updates = Updates(parts.stored, parts.config, parts.adapters)
    comparison = record["qlora"]
    base: Weights = (
        DequantizedWeights(parts.stored, parts.target.quantization or NF4_DOUBLE)
        if comparison and comparison["taken"] != "16bit"
        else parts.stored
    )
    merged = MergedWeights(base, updates, parts.asked_dtype, _rounding_of(record["rounding"]))
    check = check_tensors(folder, merged, None, seed=seed, workers=choose_threads())
    config = parts.merged_config(
        vocabulary=updates.vocabulary, tied=updates.stays_tied if updates.predicts else None
    )
    description = check_beside(parts, folder, config, for_version_4=not earlier)
    # A model that is not described right need not even load.
    verification = (
        None
        if description.failures
        else verify_streamed(parts, merged, folder, config.expected(), MergeOptions(0, "full", "auto"))
    )
    return Again(str(folder), same, tuple(changed), None, check, verification, description)


def _rounding_of(record: dict[str, Any] | None) -> Rounding:
    """How tensors were rounded; earlier versions took the nearest. Raises MergeError where the record is
    damaged."""
    if record is None:
        return NEAREST
    try:
        known: dict[str, Rounding] = {
            "stochastic": Stochastic(int(record["seed"] or 0)),
            "calibrated": RoundedBefore({}),
            "nearest": NEAREST,
        }
        return ByTensor({name: known[kind] for name, kind in record["tensors"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MergeError(
            f"{VERIFICATION_FILE} is damaged (rounding: {type(error).__name__}: {error}): merge again."
        ) from None


def read_record(folder: Path) -> dict[str, Any]:
    """A merged folder's verification.json. Raises MergeError where there is none, or it is damaged."""
    path = folder / VERIFICATION_FILE
    try:
        record = read_json(path)
        found = {name: record[name] for name in RECORDED}
        for name, kind in (("xxh3_128", dict), ("adapters", list), ("adapter_sha256", list), ("notes", list)):
            if not isinstance(found[name], kind):
                raise TypeError(f"{name} is a {type(found[name]).__name__}")
        return found | {
            key: record.get(key) for key in ("stored", "description", "rounding", "base_mask")
        }  # which merges of earlier versions lack
    except FileNotFoundError:
        raise MergeError(
            f"{folder} holds no {VERIFICATION_FILE}: expected a folder that finetune merge wrote."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise MergeError(f"{path} is damaged ({type(error).__name__}: {error}): merge again.") from None


RECORDED = (
    "xxh3_128",
    "model",
    "method",
    "recipe",
    "adapters",
    "adapter_sha256",
    "asked_dtype",
    "qlora",
    "notes",
    "base_sha256",
)


def _target_of(record: dict[str, Any]) -> tuple[Target, list[Path]]:
    """Base and adapters as they were named. Raises MergeError where they are gone, or have changed."""
    from finetune.models.bases.folder import ADAPTER_WEIGHTS
    from finetune.models.bases.hashes import file_sha256

    try:
        adapters = [Path(text) for text in record["adapters"]]
        recipe = (
            Recipe.model_validate(current_values(record["recipe"])) if record["recipe"] is not None else None
        )
        model = ModelSection.model_validate(record["model"])
    except (TypeError, ValueError) as error:
        raise MergeError(
            f"{VERIFICATION_FILE} does not say what was merged ({type(error).__name__})"
        ) from None
    for adapter, expected in zip(adapters, record["adapter_sha256"], strict=True):
        path = adapter / ADAPTER_WEIGHTS
        if not path.is_file():
            raise MergeError(f"the adapter is not in {adapter} any more")
        if file_sha256(path) != expected:
            raise MergeError(f"the adapter in {adapter} is not the one that was merged")
    facts = {name: record[name] for name in ("base_sha256", "base_mask", "method", "stored")}
    return Target(model, adapters[0], recipe, "the merged run", named_in=VERIFICATION_FILE, **facts), adapters
