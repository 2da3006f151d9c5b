"""What a run is made of, and whether it still is."""

import datetime
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_prep.table.cache_key import template_sha256, tokenizer_sha256
from finetune.engines import registry
from finetune.engines.base import Engine
from finetune.engines.group import Group, this_group
from finetune.engines.registry import current
from finetune.engines.single import SINGLE
from finetune.errors import CheckpointError, LaunchError
from finetune.models.device import Precision, choose_device, processor_model, processor_name
from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.training.checkpoints.store import is_foreign
from finetune.training.inputs import Inputs
from finetune.training.trainer import ExactTrainer

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
)
"""Whose versions are written into a lock, beside those of the engines."""
TOGETHER = "together"
"""Fact of a lock's device: other runs were computed in the same passes."""


IDENTITY = ("base", "tokenizer_sha256", "template_sha256", "data", "teacher", "reference", "rewards")
"""Of a lock: what decides a run's outcome beside its recipe, and must not change."""


def make_lock(
    recipe: Recipe, inputs: Inputs, command: str, tracker_id: str, origins: dict[str, str] | None = None
) -> Lock:
    """The identity of everything that a run is made of."""
    asking = inputs.asking
    return Lock(
        recipe=recipe,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        base=inputs.base.fingerprint(),
        tokenizer_sha256=tokenizer_sha256(inputs.tokenizer),
        template_sha256=template_sha256(inputs.tokenizer),
        data=inputs.data.digests,
        teacher=dict(inputs.teacher),
        reference=dict(inputs.reference),
        rewards={} if asking is None or asking.rewards is None else asking.rewards.identity,
        versions=versions(),
        device=device_facts(inputs.precision) | ({} if inputs.member is None else {TOGETHER: True}),
        git=git_state(Path.cwd()),
        rules=inputs.rules,
        tracker_id=tracker_id,
        origins=origins or {},
    )


def versions() -> dict[str, str]:
    """Versions of Python, this toolkit and the packages that decide what a run computes."""
    found = {"python": platform.python_version(), "finetune": _version("llama-finetune")}
    engines = dict.fromkeys(package.name for engine in registry.ENGINES for package in engine.packages)
    return found | {name: version for name in (*PACKAGES, *engines) if (version := _version(name))}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def device_facts(precision: Precision) -> dict[str, Any]:
    """Where a run computes: device, precision, threads, processes."""
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "type": device.type,
        "name": name,
        **({"model": processor_model()} if device.type == "cpu" else {}),
        "precision": precision.name,
        "threads": torch.get_num_threads(),
        "processes": this_group().world_size,
        "engine": current().name,
    }


def git_state(folder: Path) -> dict[str, str]:
    """Commit and cleanness of the repository that a folder is in; empty outside one, and where git is not
    installed."""
    found = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=10
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return {}
        if done.returncode:
            return {}
        found.append(done.stdout.strip())
    commit, changes = found
    return {
        "commit": commit,
        "state": f"{len(changes.splitlines())} files differ from the commit" if changes else "clean",
    }


def refuse_changes(then: Lock, now: Lock) -> None:
    """Raises CheckpointError where something that decides the run's outcome changed since it was started."""
    for what in IDENTITY:
        before, after = getattr(then, what), getattr(now, what)
        if (
            what == "base" and before.keys() < after.keys()
        ):  # a lock of before it was recorded how a base is stored
            after = {name: after[name] for name in before}
        if before != after:
            raise CheckpointError(
                f"{what} changed since this run was started: {_differences(before, after)}. "
                "Put back what was there, or start a new run."
            )
    before, after = then.device.get("precision"), now.device.get("precision")
    if before != after:
        raise CheckpointError(
            f"the precision changed since this run was started: then {before}, now {after}. Go on where it "
            "was started (train.precision auto takes what the device has), or start a new run with "
            f"train.precision: {before}."
        )


def _differences(before: dict[str, str] | str, after: dict[str, str] | str) -> str:
    """What was there and what is there, without what stayed."""
    if isinstance(before, str) or isinstance(after, str):
        return f"then {before}, now {after}"
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return "; ".join(
        f"{name} then {before.get(name, 'absent')}, now {after.get(name, 'absent')}" for name in names
    )


def refuse_another_engine_than(then: Lock, now: Lock) -> None:
    """Raises CheckpointError where the checkpoints are those of an engine that this one doesn't read."""
    own = SINGLE.name
    before, after = (
        (lock.device.get("engine", own), lock.device.get("processes", 1)) for lock in (then, now)
    )
    saved, loads = registry.named(before[0]), registry.named(after[0])
    if before == after or (saved is not None and loads is not None and loads.resumes(saved)):
        return
    raise CheckpointError(
        f"this run was started with {before[0]} and {before[1]} processes, and its checkpoints are "
        f"{before[0]}'s; this is {after[0]} with {after[1]}. Resume with --launch {before[0]} --processes "
        f"{before[1]}."
    )


def refuse_foreign_pickles(checkpoint: Path, engine: Engine, group: Group) -> None:
    """Raises CheckpointError where DeepSpeed would load pickles that this user didn't write: they can run
    code.

    The main process's word counts: the key lies on its machine.
    """
    if engine.checkpoints_hold_pickles and group.any(group.is_main and is_foreign(checkpoint)):
        raise CheckpointError(
            f"{checkpoint} was written by another user, or on another machine: its signature is not made "
            "with your key. DeepSpeed's checkpoints hold pickles, which can run any code. Give "
            "--trust-checkpoint if you know who wrote it."
        )


def other_device(then: Lock, now: Lock) -> list[tuple[str, object, object]]:
    """What of the device rounds otherwise: its name, then and now. An earlier version's lock, which doesn't
    say a processor's model, is no other model's."""
    pairs = [
        (name, then.device.get(name), now.device.get(name))
        for name in ("type", "name", "model", "threads")
        if name in then.device or name != "model"
    ]
    return [(name, before, after) for name, before, after in pairs if before != after]


def inexact_because(then: Lock, now: Lock) -> list[str]:
    """What differs from when the run was started and changes its rounding: packages, kind of device, number
    of threads."""
    names = sorted(then.versions.keys() | now.versions.keys())
    pairs: list[tuple[str, object, object]] = []
    pairs += [(name, then.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in names]
    pairs += [(f"device {name}", before, after) for name, before, after in other_device(then, now)]
    pairs.append(("trained with others", *(lock.device.get(TOGETHER, False) for lock in (then, now))))
    return [f"{name}: then {before}, now {after}" for name, before, after in pairs if before != after]


def refuse_differences(group: Group, lock: Lock) -> None:
    """Raises LaunchError, in each process, where the processes don't train the same: recipe, base, data,
    versions."""
    parts: dict[str, Any] = {"recipe": lock.recipe.model_dump(mode="json")}
    parts |= {name: getattr(lock, name) for name in (*IDENTITY, "versions")}
    found = {
        name: group.those_that_differ(json.dumps(value, sort_keys=True)) for name, value in parts.items()
    }
    differing = {name: ranks for name, ranks in found.items() if ranks}
    if differing:
        ranks = sorted({rank for part in differing.values() for rank in part})
        mine = {name: parts[name] for name in differing if name == "versions"}
        raise LaunchError(
            f"processes {', '.join(map(str, ranks))} differ from process 0 in their "
            f"{' and '.join(differing)}. Give each machine the same files and "
            f"packages.{f' Here: {mine}' if mine else ''}"
        )


def refuse_other_engine(trainer: ExactTrainer, group: Group) -> None:
    """Raises LaunchError unless launcher, transformers, accelerate and torch agree on the engine and the
    number of processes.

    Each of them falls back to less by itself, and silently: the run would train something else.
    """
    counts = {
        "WORLD_SIZE": group.world_size,
        "transformers": trainer.args.world_size,
        "accelerate": trainer.accelerator.num_processes,
        "torch": distributed.get_world_size() if distributed.is_initialized() else 1,
    }
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise LaunchError(
            f"the number of processes is not agreed on: {found}. Start with finetune train --launch."
        )
    asked, got = trainer.engine, trainer.accelerator.distributed_type.value
    if got not in asked.kinds:
        raise LaunchError(
            f"the launcher asks for {asked.name}, and accelerate runs {got}: nothing was trained."
        )
