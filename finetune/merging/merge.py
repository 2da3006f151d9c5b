"""Base and adapters to full weights: added in float32, rounded once, verified, and in place only when whole.

peft's checked merge (safe_merge) rounds the update to the base's type, and then the sum again: a tenth of the
numbers differ.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckFailed, MergeError
from finetune.merging.inputs import MergeInputs, MergeOptions, MergeResult, read_parts
from finetune.merging.merged_weights import Updates
from finetune.merging.options import refuse_bad_options
from finetune.merging.output import VERIFICATION_FILE, failed_name, refuse_existing, unfinished, write_card
from finetune.merging.rounding.request import RoundingRequest
from finetune.merging.rounding.tokenizer import refuse_other_tokenizer
from finetune.merging.strategies.streaming import merge_streamed
from finetune.merging.undo import write_undo
from finetune.merging.verification.description import hashes_beside
from finetune.merging.verification.left import UpdateLeft
from finetune.models.adapters.fit import HARMLESS
from finetune.models.bases.folder import ADAPTER_WEIGHTS, MASK
from finetune.models.bases.hashes import file_sha256
from finetune.models.bases.shapes import read_stored
from finetune.models.sizes import parse_size
from finetune.models.stored_quantization import INT8, NF4_DOUBLE
from finetune.recipe.paths import LOCK
from finetune.recipe.schema import Recipe
from finetune.recipe.secrets import scrubbed_recipe
from finetune.runs.target import Target

if TYPE_CHECKING:
    from finetune.merging.qlora import BaseChoice
    from finetune.merging.rounding.choice import RoundingChoice
    from finetune.merging.verification.heads import HeadVerification
    from finetune.merging.verification.predictions import Verification
    from finetune.merging.verification.tensors import TensorCheck


@dataclass(frozen=True)
class MergeReport:
    """What was merged, where it lies, and what the checks found."""

    base: str
    adapters: tuple[str, ...]
    output: str
    dtype: str
    bytes: int
    files: int
    parameters: int
    seconds: float
    """In all."""
    check_seconds: float
    """Of them, for the checks after the writing."""
    notes: tuple[str, ...]
    tensors: "TensorCheck | None"
    verification: "Verification | HeadVerification | None"
    described: bool | None
    """Whether config, tokenizer and template were read back as they were trained; None where nobody
    looked."""
    qlora: "BaseChoice | None"
    rounding: "RoundingChoice | None"
    """How weights became 16-bit ones; None where none did, or peft merged."""
    left: UpdateLeft | None
    """How much of the update is in them."""
    undo_bytes: int | None = None
    """Of undo.safetensors; None where the merge is not undoable."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        checked = self.verification.as_dict() if self.verification is not None else None
        return asdict(self) | {"verification": checked}


def merge(
    target: Target,
    output: Path,
    *,
    more: Sequence[Path] = (),
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    check: str = "full",
    qlora_base: str = "auto",
    rounding: str | None = None,
    seed: int | None = None,
    calibration: Recipe | None = None,
    undoable: bool = False,
) -> MergeReport:
    """Merge the target's adapter, and then the adapters in `more`, into its base: `output`, which plain
    transformers loads.

    The weights are stored in `dtype` (float32, bfloat16, float16), each in the base's own type where it is
    None, a classification head then in the one that it was trained in. `check` is full (tensors and
    predictions), tensors or none. `qlora_base` is which base an adapter goes into that was trained on a
    quantised one.
    `rounding` is how weights become 16-bit ones: nearest, stochastic (drawn by `seed`, 0 where it is None),
    calibrated (on rows of the recipe `calibration`, of the run's own where it is None) or auto, as for None:
    by tensors, compared with the nearest as a whole.
    `undoable` writes undo.safetensors, by which unmerge restores the base.
    The folder is written beside its final name and renamed when it is whole and checked; after an error
    nothing is left. Raises MergeError where base and adapter can't be merged, and CheckFailed where the
    merged model is not the base with its adapter: it then lies in OUTPUT.failed, to look at.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    asked = RoundingRequest(rounding, seed, calibration)
    refuse_bad_options(dtype, check, qlora_base, asked)
    options = MergeOptions(parse_size(max_shard_size, "--max-shard-size"), check, qlora_base, asked, undoable)
    refuse_existing(output)
    parts = read_parts(_as_asked(target, qlora_base), more, dtype)
    if calibration is not None:
        refuse_other_tokenizer(calibration, parts)
    if undoable and parts.why_not_streamed is not None:
        raise MergeError(
            f"--undoable can't be honoured: peft itself must merge this adapter ({parts.why_not_streamed})."
        )
    with unfinished(output) as folder:
        outcome = _merge(parts, folder, output, options)
        undo_bytes = write_undo(parts, folder) if undoable and not outcome.failures else None
        report = replace(_report(parts, folder, output, outcome, started), undo_bytes=undo_bytes)
        _write_verification(folder, parts, report, outcome)
        if outcome.failures:
            folder.rename(failed_name(output))
            raise CheckFailed(
                "verification failed: the merged model does not match base + adapter "
                f"({'; '.join(outcome.failures)}). {output} was not created; the files are in "
                f"{failed_name(output)}, measurements in {VERIFICATION_FILE}."
            )
    return report


def _as_asked(target: Target, qlora_base: str) -> Target:
    """The target, its base quantised where the user says so of an adapter of which nothing else says how it
    was trained."""
    unknown = target.quantization is None and target.recipe is None and target.method is None
    said = {"nf4": NF4_DOUBLE, "int8": INT8}.get(qlora_base)
    return replace(target, stored=said) if unknown and said else target


def _merge(parts: MergeInputs, folder: Path, output: Path, options: MergeOptions) -> MergeResult:
    reason = parts.why_not_streamed
    if reason is None:
        updates = Updates(parts.stored, parts.config, parts.adapters)
        if len(parts.tokenizer) <= updates.vocabulary:
            return merge_streamed(parts, updates, folder, output, options)
        reason = "the tokenizer has tokens that nobody trained, for which transformers draws rows"
    from finetune.merging.strategies.peft import merge_through_peft

    return merge_through_peft(parts, reason, folder, output, options)


def _report(
    parts: MergeInputs, folder: Path, output: Path, outcome: MergeResult, started: float
) -> MergeReport:
    written = read_stored(folder)
    assert written is not None  # noqa: S101 - it was just written
    return MergeReport(
        base=parts.base.identity["name"],
        adapters=tuple(str(adapter.folder) for adapter in parts.adapters),
        output=str(output),
        dtype=str(parts.dtype).removeprefix("torch."),
        bytes=written.bytes,
        files=written.files,
        parameters=written.parameters,
        seconds=round(time.perf_counter() - started, 1),
        check_seconds=round(outcome.check_seconds, 1),
        notes=(
            *outcome.notes,
            *parts.head.notes(parts.base.folder, templated=parts.templated),
            *_ignored(parts),
        ),
        tensors=outcome.tensors,
        verification=outcome.verification,
        described=None if outcome.description is None else not outcome.description.failures,
        qlora=outcome.qlora,
        rounding=outcome.rounding,
        left=outcome.left,
    )


def _ignored(parts: MergeInputs) -> list[str]:
    """Keys of an adapter's config that other tools wrote, and nobody needs."""
    found = sorted({key for adapter in parts.adapters for key in HARMLESS if adapter.config.get(key)})
    return (
        [f"ignored in adapter_config.json, where it says nothing of the weights: {', '.join(found)}"]
        if found
        else []
    )


def _write_verification(folder: Path, parts: MergeInputs, report: MergeReport, outcome: MergeResult) -> None:
    """verification.json, which `finetune verify` goes by, and README.md."""
    record = report.as_dict() | {
        "holds": not outcome.failures,
        "failures": outcome.failures,
        "model": scrubbed_recipe(parts.target.model.model_dump(mode="json"), "model"),
        "method": "qlora" if parts.target.quantized else "lora",
        "stored": parts.target.quantization,
        "recipe": scrubbed_recipe(parts.target.recipe.model_dump(mode="json"))
        if parts.target.recipe is not None
        else None,
        "adapter_sha256": [file_sha256(adapter.folder / ADAPTER_WEIGHTS) for adapter in parts.adapters],
        "base_sha256": parts.target.base_sha256,
        "base_mask": parts.target.base_mask,
        "asked_dtype": report.dtype if parts.asked_dtype is not None else None,
        "xxh3_128": outcome.xxh3_128,
        "description": hashes_beside(folder),
    }
    (folder / VERIFICATION_FILE).write_text(json.dumps(record, indent=1) + "\n")
    # The card may be read by anybody: folders of this machine have no place in it.
    names = ["/".join(Path(adapter).parts[-2:]) for adapter in report.adapters]
    base = Path(report.base).name if Path(report.base).is_absolute() else report.base
    facts = {"base": base, "adapter": ", ".join(names), "dtype": report.dtype}
    if parts.stored.mask is not None:
        facts |= {"pruned": f"as its base: {MASK}"}
    for name in parts.head.brought:
        facts |= parts.head.facts(str(parts.asked_dtype or parts.stored.dtype(name)).removeprefix("torch."))
    lock = parts.adapters[0].folder.parent / LOCK
    if lock.is_file():
        facts["recipe.lock.yaml"] = f"SHA-256 {hashlib.sha256(lock.read_bytes()).hexdigest()}"
    write_card(folder, facts, verdicts_of(report), reading=parts.head.reading(templated=parts.templated))


def verdicts_of(report: MergeReport) -> list[str]:
    """What the checks found, a sentence each."""
    found = list(report.notes)
    if report.qlora is not None:
        found += report.qlora.lines()
    if report.rounding is not None:
        found.append(f"rounding: {report.rounding.line()}")
    if report.left is not None:
        found.append(f"update: {report.left.line()}")
    if report.tensors is not None:
        check = report.tensors
        found.append(
            f"tensors: {check.identical} of {check.tensors} are the base's, byte for byte; of the others "
            f"{check.sampled_numbers:,} numbers were recomputed in float64: largest error "
            f"{check.largest_error_ulps:.3f} ulp"
        )
    if report.described:
        found.append(
            "description: plain transformers reads config, tokenizer, chat template and end of turn as they "
            "were trained"
        )
    if report.verification is not None:
        found += report.verification.sentences()
    return found or ["left out (--verify none)"]
