"""Base and adapter to full weights: LoRA's update is computed and added in float32, and rounded once to the stored type.

peft's checked merge (safe_merge) rounds the update to the base's type, and then the sum again: a tenth of the numbers differ.
"""

import json
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.render import end_of_turn_ids
from finetune.errors import CheckFailed, MergeError, ModelError
from finetune.evaluate.data import tokenizer_for
from finetune.evaluate.loading import load_adapted
from finetune.merge.texts import verification_rows
from finetune.merge.verify import Verification, quiet_peft, verify
from finetune.model.adapter import ADAPTER_WEIGHTS, read_adapter_config
from finetune.model.checkpoint import Base, resolve_base
from finetune.model.inspect import Stored, read_header, read_stored
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target, resolve_target

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMED_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
SHARD_SIZE = re.compile(r"\d+(\.\d+)?\s*(KB|MB|GB|TB|KIB|MIB|GIB|TIB)", re.IGNORECASE)
VERIFICATION_FILE = "verification.json"
SPARE_DISK_FRACTION = 0.05
"""Room beyond the weights' own size: tokenizer, added tokens, a head of its own."""


@dataclass(frozen=True)
class MergeReport:
    """What was merged, where it lies, and what the check found."""

    base: str
    adapter: str
    output: str
    dtype: str
    bytes: int
    files: int
    parameters: int
    seconds: float
    notes: tuple[str, ...]
    verification: Verification | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        checked = self.verification.as_dict() if self.verification is not None else None
        return asdict(self) | {"notes": list(self.notes), "verification": checked}


def choose_target(text: str, base: Path | None) -> Target:
    """What RUN_OR_ADAPTER names, on the base that `base` names where it is given.

    Raises MergeError for something without an adapter, and ModelError or CheckpointError as resolve_target does.
    """
    folder = Path(text).expanduser()
    if base is not None and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        # The adapter's own note of its base need not be right, or there, when the user names one.
        model = ModelSection(base=str(base.expanduser().resolve()))
        try:
            target = resolve_target(text)
        except ModelError:
            target = Target(model, folder.resolve(), None, f"the adapter in {folder}")
    else:
        target = resolve_target(text)
    if target.adapter is None:
        raise MergeError(f"{target.description} has no adapter: it is whole weights already, so there is nothing to merge.")
    if base is None:
        return target
    model = target.model.model_copy(update={"base": str(base.expanduser().resolve()), "revision": None})
    return Target(model, target.adapter, target.recipe, target.description, method=target.method)


def merge(
    target: Target, output: Path, *, dtype: str | None = None, max_shard_size: str = "5GB", check: bool = True
) -> MergeReport:
    """Merge the target's adapter into its base and write `output`, a folder that plain transformers loads.

    The weights are stored in `dtype` (float32, bfloat16, float16), the base's own type where it is None.
    The folder is written beside its final name and renamed when it is whole and checked; after an error nothing is left.
    Raises MergeError where base and adapter can't be merged, and CheckFailed where the merged model is not the base with
    its adapter: it then lies in OUTPUT.failed, to look at.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    failed = output.with_name(f"{output.name}.failed")
    _refuse_bad_arguments(output, failed, max_shard_size, dtype)
    if target.adapter is None:
        raise MergeError(f"{target.description} has no adapter to merge.")
    _check_kind(target.adapter)
    base = resolve_base(target.model)
    _check_same_base(base, target)
    stored = _check_stored(base.folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(stored, output, widened=dtype == "float32" and "F32" not in stored.dtypes)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        loaded = DTYPES[next(iter(stored.dtypes))]
        kind = NAMED_DTYPES[dtype] if dtype is not None else loaded
        tokenizer = tokenizer_for(target.model, target.adapter, base.folder)
        model = _load(base, target, target.adapter, tokenizer, loaded)
        _write(merge_in_float32(model, kind), base, target, tokenizer, partial, max_shard_size)
        del model
        verification = _verify(base, target, target.adapter, tokenizer, kind, partial) if check else None
        if verification is not None and not verification.holds:
            os.replace(partial, failed)
            raise CheckFailed(
                f"the merged model is not the base with its adapter: {'; '.join(verification.failures)}. "
                f"Nothing stands in {output}; what was written is in {failed}, its figures in {VERIFICATION_FILE}."
            )
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    written = read_stored(output)
    assert written is not None  # noqa: S101 - it was just written
    return MergeReport(
        base=base.identity["name"],
        adapter=str(target.adapter),
        output=str(output),
        dtype=str(kind).removeprefix("torch."),
        bytes=written.bytes,
        files=written.files,
        parameters=written.parameters,
        seconds=round(time.perf_counter() - started, 1),
        notes=tuple(_notes(target, kind)),
        verification=verification,
    )


def _refuse_bad_arguments(output: Path, failed: Path, max_shard_size: str, dtype: str | None) -> None:
    if dtype is not None and dtype not in NAMED_DTYPES:
        raise MergeError(f"--dtype is {dtype!r}; expected one of {', '.join(NAMED_DTYPES)}.")
    for path in (output, failed):
        if path.exists() or path.is_symlink():
            raise MergeError(
                f"{path} exists already, and a merge never writes over anything: remove it, or name another output."
            )
    if SHARD_SIZE.fullmatch(max_shard_size.strip()) is None:
        raise MergeError(f"--max-shard-size is {max_shard_size!r}; expected a number and a unit, such as 5GB or 500MB.")


def _check_kind(adapter: Path) -> None:
    kind = read_adapter_config(adapter).get("peft_type")
    if kind != "LORA":
        raise MergeError(f"{adapter} is an adapter of type {kind}; only LoRA (and rsLoRA, DoRA, QLoRA) can be merged.")


def _check_same_base(base: Base, target: Target) -> None:
    """Raises MergeError where the base's folder no longer holds what the run was trained on."""
    if target.base_sha256 is not None and base.fingerprint().get("sha256") != target.base_sha256:
        raise MergeError(
            f"the base in {base.folder} is not what {target.description} was trained on: its SHA-256 differs from the lock's. "
            "Put the base back, or name the one that you mean with --base."
        )


def _check_stored(folder: Path) -> Stored:
    stored = read_stored(folder)
    if stored is None:
        raise MergeError(f"{folder} holds no .safetensors file, so there is nothing to merge into.")
    kind = next(iter(stored.dtypes))
    if kind not in DTYPES or "quantization_config" in json.loads((folder / "config.json").read_text()):
        raise MergeError(
            f"{folder} is stored quantised ({kind}): merge into the unquantised base that it was made of, with --base."
        )
    return stored


def _check_disk(stored: Stored, output: Path, *, widened: bool) -> None:
    # Twice as much where a 16-bit base is merged into float32.
    needed = math.ceil(stored.bytes * (2 if widened else 1) * (1 + SPARE_DISK_FRACTION))
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise MergeError(
            f"{output.parent} has {free / 1e9:,.1f} GB free, and the merged model needs about {needed / 1e9:,.1f} GB: "
            "make room, or name an output on another disk."
        )


def _load(base: Base, target: Target, adapter: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> PeftModel:
    """Base and adapter, unmerged. Raises MergeError where the two don't belong together."""
    try:
        with quiet_peft():  # what it warns of, _check_complete refuses
            model = load_adapted(base, target.model, adapter, vocabulary=len(tokenizer), dtype=dtype)
    except ModelError as error:
        if not isinstance(error.__cause__, RuntimeError | ValueError | KeyError):
            raise
        raise MergeError(
            f"the adapter in {adapter} does not fit the base {base.identity['name']}: {_first_mismatch(str(error))}. "
            "It belongs to another base, or to one with another vocabulary; name the right one with --base."
        ) from error
    assert isinstance(model, PeftModel)  # noqa: S101 - an adapter was given
    _check_complete(model, adapter, base)
    return model


def _first_mismatch(text: str) -> str:
    """The first line of torch's list of mismatches, without peft's inner names."""
    lines = [line.strip() for line in text.splitlines() if "size mismatch" in line] or [text.splitlines()[0]]
    return lines[0].replace("base_model.model.", "").replace(".default", "").rstrip(".")


def _check_complete(model: PeftModel, adapter: Path, base: Base) -> None:
    """Raises MergeError unless each LoRA weight of the file found its module, and each module its weight."""
    stored = {_plain(name) for name in read_header(adapter / ADAPTER_WEIGHTS)}
    wanted = {_plain(name) for name in get_peft_model_state_dict(model, save_embedding_layers=False)}
    absent, left_over = sorted(wanted - stored), sorted(name for name in stored - wanted if "lora_" in name)
    for names, what in ((absent, "has no weights for"), (left_over, "has weights beyond the base's modules, such as")):
        if names:
            raise MergeError(
                f"the adapter in {adapter} does not fit the base {base.identity['name']}: it {what} {names[0]} "
                f"({len(names)} in all). It belongs to a base with another number of layers; name the right one with --base."
            )


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".weight")


def _write(
    model: PreTrainedModel,
    base: Base,
    target: Target,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    max_shard_size: str,
) -> None:
    # transformers refuses to save some generation configs that it reads; the base's own file is written below instead.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size=max_shard_size.strip().upper().replace("IB", "iB"))
    tokenizer.save_pretrained(folder)
    if (base.folder / "tokenizer.model").is_file() and not target.model.new_tokens:
        shutil.copyfile(base.folder / "tokenizer.model", folder / "tokenizer.model")
    _write_generation_config(base.folder, tokenizer, folder)


def merge_in_float32(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The plain model with the adapter's update in it, in `dtype`; one matrix at a time is widened to float32.

    Raises MergeError where a merged weight is not finite in `dtype`.
    """
    _untie_if_one_side_is_adapted(model)
    checked: set[int] = set()
    with quiet_peft():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                inner: Any = module.get_base_layer()
                inner.float()
                module.merge()
                inner.to(dtype)
                _refuse_not_finite(_plain(name), inner.weight)
                checked.add(id(inner.weight))
        merged: PreTrainedModel = model.merge_and_unload()
    torch.nn.Module.to(merged, dtype)  # transformers' own `to` only adds checks for quantised models
    for name, parameter in merged.named_parameters():
        if id(parameter) not in checked:
            _refuse_not_finite(name, parameter)
    merged.config.dtype = dtype
    return merged


def _refuse_not_finite(name: str, weight: torch.Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise MergeError(
            f"the merged weight of {name} is not finite in {weight.dtype}: the adapter (or the base) is damaged, "
            "or the update is too large for that type."
        )


def _untie_if_one_side_is_adapted(model: PeftModel) -> None:
    """A tied head shares its weight with the embedding: an update meant for one of the two must not reach the other."""
    plain: Any = model.get_base_model()
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    if head is None or not (isinstance(embedding, LoraLayer) or isinstance(head, LoraLayer)):
        return
    inner: Any = head.get_base_layer() if isinstance(head, LoraLayer) else head
    other: Any = embedding.get_base_layer() if isinstance(embedding, LoraLayer) else embedding
    if inner.weight is other.weight:
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
        plain.config.tie_word_embeddings = False


def _write_generation_config(base_folder: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The base's generation_config.json; the end of turn that the template writes ends an answer too."""
    path = base_folder / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    own = config.get("eos_token_id")
    ids = [] if own is None else own if isinstance(own, list) else [own]
    ends = sorted({*ids, *end_of_turn_ids(tokenizer)})
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    config.setdefault("pad_token_id", tokenizer.pad_token_id)
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _verify(
    base: Base,
    target: Target,
    adapter: Path,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    folder: Path,
) -> Verification:
    rows, texts = verification_rows(target.recipe, tokenizer)
    model = _load(base, target, adapter, tokenizer, torch.float32)
    # A model with a tied head of which one side is adapted is no longer tied once merged.
    _untie_if_one_side_is_adapted(model)
    verification = verify(model.to(_device(model)), folder, rows, texts=texts, dtype=dtype)
    (folder / VERIFICATION_FILE).write_text(json.dumps(verification.as_dict(), indent=2) + "\n")
    return verification


def _device(model: PeftModel) -> torch.device:
    """CUDA where the model fits into what is free there in float32, else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if free > 5 * sum(parameter.numel() for parameter in model.parameters()):
            return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _notes(target: Target, dtype: torch.dtype) -> list[str]:
    if not target.quantized:
        return []
    name = str(dtype).removeprefix("torch.")
    return [
        f"the adapter was trained on the base in 4-bit NF4 and is merged into the base as stored ({name}); "
        "the verification compares with that base, so answers can differ a little from those during training"
    ]
