"""MODEL_OR_RUN: what a user may name where a model is wanted, on the base that belongs to it or on another.

A name is, in this order: a run, a checkpoint of a run, an adapter, a model (each a folder), or a repository
of the hub that is one of the last two. Loads no torch.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.config import PREPARATION, HeadSection
from finetune.errors import CheckpointError, FinetuneError, ModelError
from finetune.models.bases.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    is_adapter,
    read_adapter_config,
    read_config,
    read_header,
    read_json,
    weight_files,
)
from finetune.models.bases.hub import adapter_snapshot, description_of, is_hub_id
from finetune.models.stored_quantization import DEQUANTIZABLE, NF4_DOUBLE, stored_quantization
from finetune.recipe.heads import head_of_config
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import GgufBase, ModelSection
from finetune.runs.checkpoint import MARKER, PREFIX, complete_checkpoints, verify_checkpoint
from finetune.runs.commands import shell_command
from finetune.runs.folder import ADAPTER_NOTES, RunFolder, is_run

NAMED_NF4 = re.compile(r"bnb-4bit", re.IGNORECASE)
"""How repositories of bases in bitsandbytes' 4 bit call themselves."""


@dataclass(frozen=True)
class Target:
    """A base, and the adapter that belongs on it where there is one."""

    model: ModelSection
    adapter: Path | None
    recipe: Recipe | None
    """The recipe of the run that it comes from."""
    description: str
    base_sha256: str | None = None
    """The fingerprint that a base's folder had when the run was started."""
    base_mask: str | None = None
    """The SHA-256 of the mask that the adapter was trained with; None where its base was not pruned."""
    method: str | None = None
    """adapter.method, where the recipe is not known."""
    loaded: str | None = None
    """How the base was quantised while it loaded, where the recipe is not known."""
    run: Path | None = None
    """The run folder that it comes from."""
    named_in: str = "MODEL_OR_RUN"
    """Where the name of the base is written, for messages."""
    stored: str | None = None
    """How the base that the adapter was trained on is stored quantised; None where it isn't, or nothing says
    so."""
    tokenizer: ModelSection | None = None
    """Whose tokenizer belongs to weights that were saved without one."""
    preparation: int = PREPARATION
    """The version of the way from rows to tokens that the run was trained with."""
    trained_from: "Target | None" = None
    """Of a model whose weights were all trained: its base."""

    @property
    def quantization(self) -> str | None:
        """How the base was quantised that the adapter was trained on; None where it was not."""
        own = self.loaded if self.recipe is None else self.recipe.adapter.base_quantization
        # Earlier versions had one way to quantise, and their notes say the method alone.
        return self.stored or own or (NF4_DOUBLE if self.method == "qlora" else None)

    @property
    def quantized(self) -> bool:
        """Whether the adapter was trained on a base in NF4 or int8, to which any base can be rounded, and
        answers on one."""
        return self.quantization in DEQUANTIZABLE


def resolve_target(text: str, base: str | Path | None = None) -> Target:
    """What a name stands for, its adapter on the base that `base` names where it is given: a folder, a hub id
    or a GGUF file.

    Raises CheckpointError for a run without a result and a checkpoint that isn't whole; ModelError for a name
    that is nothing, and for a `base` beside a model that has no adapter.
    """
    found = on_base(text, base)
    if base is not None and found.adapter is None:
        raise ModelError(f"--base is for adapters, and {found.description} is a whole model: leave it out.")
    return found


def on_base(text: str, base: str | Path | None) -> Target:
    """The same, but for a model that has no adapter: it is what it is, whatever `base` names."""
    path = Path(text).expanduser()
    other = None if base is None else base_section(str(base))
    found = _folder_target(path, text, other) if path.exists() else _hub_target(text, other)
    if other is None or found.adapter is None:
        return found
    model = found.model.model_copy(update={"base": other.base, "revision": None})
    return replace(found, model=model, base_sha256=None, named_in="--base")


def base_section(text: str) -> ModelSection:
    """The base that --base names. Raises ModelError for a text that can't be one."""
    path = Path(text).expanduser()
    if path.is_dir():
        return ModelSection(base=str(path.resolve()))
    if path.is_file():
        return ModelSection(base=GgufBase(gguf=str(path.resolve())))
    if is_hub_id(text):
        return ModelSection(base=text)
    raise ModelError(
        f"--base: there is no folder {text}; expected a model folder, a hub id (owner/name) or a GGUF file."
    )


def _folder_target(path: Path, text: str, base: ModelSection | None) -> Target:
    here = path.resolve()
    if is_run(here):
        return _run_target(RunFolder(here))
    if is_run(here.parent) and here.name in ("adapter", "model"):
        return _run_target(RunFolder(here.parent))
    if here.name.startswith(PREFIX) and here.parent.name == "checkpoints" and is_run(here.parent.parent):
        return _checkpoint_target(RunFolder(here.parent.parent), here)
    if (here / MARKER).is_file():
        raise CheckpointError(
            f"{path} is a training checkpoint outside its run: what belongs to it (tokenizer, template, RoPE "
            "scaling, how the base was loaded) is in the run's lock. Name it inside its run folder, "
            "RUN/checkpoints/checkpoint-STEP."
        )
    if is_adapter(here):
        return _adapter_target(here, base)
    if (here / CONFIG).is_file():
        return Target(ModelSection(base=str(here), head=_head_of(here)), None, None, f"the model in {path}")
    raise ModelError(
        f"{text} is not a model or a run: expected a run folder (recipe.lock.yaml), a checkpoint of a run, "
        f"an adapter folder ({ADAPTER_CONFIG}), a model folder ({CONFIG}) or a hub id "
        f"(owner/name){_inside(here)}."
    )


def _inside(folder: Path) -> str:
    """What a folder holds that could be meant."""
    if not folder.is_dir():
        return ", and this is a file"
    kinds = {
        "runs": sorted(path.name for path in folder.iterdir() if is_run(path)),
        "checkpoints": [path.name for path in complete_checkpoints(folder)],
        "adapters": sorted(path.name for path in folder.iterdir() if is_adapter(path)),
    }
    kind, found = next(((kind, found) for kind, found in kinds.items() if found), ("", []))
    return f". It holds the {kind} {', '.join(found[-5:])}: name one" if found else ""


def _hub_target(text: str, base: ModelSection | None) -> Target:
    if not is_hub_id(text) or text.startswith((".", "~", "/")):
        raise ModelError(
            f"{text} is not a model or a run: there is nothing at {Path(text).expanduser().absolute()}; "
            "expected a run folder, an adapter folder, a model folder or a hub id (owner/name)."
            f"{_near(Path(text).expanduser())}"
        )
    try:
        folder, adapter = description_of(text, named_in="MODEL_OR_RUN")
    except ModelError as error:
        raise ModelError(
            f"{text} is no folder here ({Path(text).absolute()}).{_near(Path(text))} As a hub id: "
            f"{str(error).removeprefix('MODEL_OR_RUN: ')}"
        ) from None
    if adapter:
        return _adapter_target(
            adapter_snapshot(text, folder.name, named_in=text), base, f"the adapter {text} of the hub"
        )
    head = _head_of(folder) if (folder / CONFIG).is_file() else None
    model = ModelSection(base=text, revision=folder.name, head=head)
    return Target(model, None, None, f"{text} from the hub", named_in="MODEL_OR_RUN")


def _near(path: Path) -> str:
    """What is there with a name like this one."""
    try:
        names = [found.name for found in path.parent.iterdir()]
    except OSError:
        return ""
    close = get_close_matches(path.name, names, n=3)
    return f" Did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""


def _head_of(folder: Path) -> HeadSection | None:
    """The classification head of a model folder. Raises ModelError where its config.json is damaged."""
    return head_of_config(read_config(folder), folder / CONFIG)


def _run_target(run: RunFolder) -> Target:
    lock: Lock = read_lock(run.lock_path)
    if run.model.is_dir():
        return _all_weights(run, lock, run.model, f"run {run.name} (all weights)", run=run.path)
    if not run.adapter.is_dir():
        saved = [path.name for path in complete_checkpoints(run.checkpoints)]
        also = f", or name a checkpoint, {run.checkpoints / saved[-1]}" if saved else ""
        raise CheckpointError(f"{run.path} has no result yet: finish it with `{_resume(run)}`{also}.")
    return _of_run(run, lock, run.adapter, f"run {run.name}", run=run.path)


def _resume(run: RunFolder) -> str:
    return shell_command("train", "--resume", run.path)


def _of_run(folder: RunFolder, lock: Lock, adapter: Path | None, description: str, **more: Any) -> Target:
    """The base of a run, with its adapter; without, the base alone."""
    return Target(
        _pinned(lock.recipe.model, lock.base),
        adapter,
        None if adapter is None else lock.recipe,
        description,
        _folder_sha256(lock.base),
        lock.base.get("mask"),
        named_in=f"the lock of run {folder.name}",
        stored=lock.base.get("quantization"),
        preparation=lock.rules.preparation,
        **more,
    )


def _all_weights(folder: RunFolder, lock: Lock, weights: Path, description: str, **more: Any) -> Target:
    """Weights of a run that trained all of them, which their config.json describes by itself."""
    then = lock.recipe.model
    model = ModelSection(
        base=str(weights), date_string=then.date_string, allow_untested=then.allow_untested, head=then.head
    )
    origin = _of_run(folder, lock, None, f"the base of {description}")
    preparation = lock.rules.preparation
    return Target(model, None, lock.recipe, description, preparation=preparation, trained_from=origin, **more)


def _checkpoint_target(run: RunFolder, checkpoint: Path) -> Target:
    """The run at that step: tokenizer, template, RoPE scaling, quantisation, new tokens, date and head are
    its lock's."""
    lock = read_lock(run.lock_path)
    saved = [path.name for path in complete_checkpoints(run.checkpoints)]
    if checkpoint.name not in saved:
        others = f"its whole checkpoints: {', '.join(saved)}" if saved else "the run has no whole checkpoint"
        raise CheckpointError(
            f"{checkpoint} is not a whole checkpoint: the run was stopped while it was written; {others}."
        )
    description = f"run {run.name} at step {checkpoint.name.removeprefix(PREFIX)}"
    full = lock.recipe.adapter.method == "full"
    if not (weight_files(checkpoint) if full else (checkpoint / ADAPTER_WEIGHTS).is_file()) or _is_cut_up(
        checkpoint
    ):
        raise CheckpointError(
            f"{checkpoint} holds the weights cut up, as {lock.device.get('engine', 'its engine')} saves "
            f"them, and is no model: resume the run (`{_resume(run)}`), whose result is written whole, and "
            "name the run."
        )
    read = [path.name for path in (weight_files(checkpoint) if full else [checkpoint / ADAPTER_WEIGHTS])]
    verify_checkpoint(checkpoint, only=(*read, CONFIG, ADAPTER_CONFIG))
    if full:
        return _all_weights(
            run, lock, checkpoint, description, tokenizer=_pinned(lock.recipe.model, lock.base)
        )
    return _of_run(run, lock, checkpoint, description)


def _is_cut_up(checkpoint: Path) -> bool:
    """Whether a file of weights holds places of tensors whose content an engine keeps elsewhere."""
    files = weight_files(checkpoint) or [checkpoint / ADAPTER_WEIGHTS]
    return not any(0 not in tensor["shape"] for path in files for tensor in read_header(path).values())


def base_of(target: Target) -> Target:
    """What a target was trained from: its base without the adapter, or the base of a run that trained all
    weights.

    Raises ModelError for a model of which nothing says what it was made from.
    """
    if target.adapter is not None:
        return replace(target, adapter=None, description=f"the base of {target.description}", run=None)
    if target.trained_from is not None:
        return target.trained_from
    raise ModelError(
        f"{target.description} is a whole model, and nothing says what it was made from: name its base "
        "itself, a folder or a hub id."
    )


def compared_with(target: Target, text: str) -> Target:
    """What a target is compared with: `base` is what it was trained from, anything else a model or a run.

    Raises the errors of base_of and resolve_target.
    """
    return base_of(target) if text == "base" else resolve_target(text)


def _pinned(model: ModelSection, base: dict[str, str]) -> ModelSection:
    """The base at the commit that was trained on, wherever the hub's branch has moved since."""
    return model.model_copy(update={"revision": base["commit"]}) if base.get("kind") == "hub" else model


def _folder_sha256(base: dict[str, str]) -> str | None:
    return base.get("sha256") if base.get("kind") == "folder" else None


def _adapter_target(adapter: Path, base: ModelSection | None, description: str | None = None) -> Target:
    """An adapter folder, on `base` where one is given: its own note of it need then not be right, or
    there."""
    path, description = adapter / ADAPTER_CONFIG, description or f"the adapter in {adapter}"
    config = read_adapter_config(adapter)
    if (adapter / ADAPTER_NOTES).is_file():
        return _noted_target(adapter, description)
    named = config.get("base_model_name_or_path")
    by_name = NF4_DOUBLE if isinstance(named, str) and NAMED_NF4.search(named) else None
    if base is not None:
        return Target(base, adapter, None, description, stored=by_name)
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{path} names no base model: write its folder or hub id into base_model_name_or_path, or name "
            "it with --base."
        )
    local = Path(named).expanduser()
    if not local.is_dir() and not is_hub_id(named):
        raise ModelError(
            f"{path} names the base {named} (base_model_name_or_path), and there is no such folder on this "
            "machine: name the base with --base."
        )
    revision = config.get("revision")
    if local.is_dir():
        model = ModelSection(base=str(local.resolve()))
        by_name = stored_quantization(read_config(local)) if (local / CONFIG).is_file() else by_name
    else:
        model = ModelSection(base=named, revision=revision if isinstance(revision, str) else None)
    return Target(
        model, adapter, None, description, named_in=f"{path}, base_model_name_or_path", stored=by_name
    )


def _noted_target(adapter: Path, description: str) -> Target:
    """An adapter that this toolkit trained, wherever its folder lies now."""
    path = adapter / ADAPTER_NOTES
    try:
        notes = read_json(path)
        model, base = ModelSection.model_validate(notes["model"]), dict(notes["base"])
        method, loaded = str(notes["method"]), notes.get("quantization")
        if loaded not in (None, *DEQUANTIZABLE):
            raise ValueError(loaded)
    except (FinetuneError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged ({type(error).__name__}); remove it to go by adapter_config.json alone."
        ) from error
    return Target(
        _pinned(model, base),
        adapter,
        None,
        description,
        _folder_sha256(base),
        base.get("mask"),
        method,
        loaded,
        named_in=str(path),
        stored=base.get("quantization"),
    )


def own_recipe(target: Target) -> Recipe:
    """The recipe of a model's run. Raises FinetuneError where it has none, or no evaluation rows are in
    it."""
    if target.recipe is None:
        raise FinetuneError(
            f"{target.description} has no recipe of its own: name one (finetune evaluate MODEL_OR_RUN "
            "RECIPE)."
        )
    return with_rows(target.recipe, target.description)


def with_rows(recipe: Recipe, name: str | Path) -> Recipe:
    """The recipe. Raises FinetuneError where it has no evaluation rows."""
    if not recipe.data.evaluates:
        raise FinetuneError(
            f"{name} has no data.evaluation, so there is nothing to score on: add a "
            "fraction, rows or sources."
        )
    return recipe
