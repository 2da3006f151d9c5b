"""Run a lock again, and say whether what comes out is the same."""

import math
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune.errors import CheckFailed, CheckpointError
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.bases.written import refuse_changed
from finetune.recipe.lock import START_HASH, Lock, read_lock
from finetune.runs.folder import RunFolder
from finetune.runs.plot import read_metrics
from finetune.training import run as training
from finetune.training.provenance import TOGETHER, other_device

DESPITE = ("base", "data", "versions", "code")


@dataclass(frozen=True)
class Reproduction:
    """The new run beside the old one."""

    old: str
    new: str
    same_weights: bool
    """Bit for bit."""
    weights_distance: float
    """Relative L2 of what was trained."""
    loss_distance: float
    """The largest relative difference of a step's loss."""
    differs: tuple[str, ...]
    """What was not the same when it was run again."""
    same_start: bool = True
    """Whether an adapter whose start the rows decide started alike."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        found = [f"old  {self.old}", f"new  {self.new}", *(f"not the same: {what}" for what in self.differs)]
        if not self.same_start:
            found.append(
                "its adapter started elsewhere: what adapter.init computes of the rows came out otherwise"
            )
        if self.same_weights and self.loss_distance == 0:
            return [*found, "reproduced bit for bit: every step's loss and every trained weight"]
        return [
            *found,
            f"weights differ by {self.weights_distance:.2e} (relative L2), a step's loss by "
            f"{self.loss_distance:.2e}",
        ]

    def refuse_unlike(self) -> None:
        """Raises CheckFailed where everything was the same and the result isn't."""
        if not self.differs and not (self.same_weights and self.loss_distance == 0):
            raise CheckFailed(
                f"{self.new} is not {self.old}, though base, data, packages, code and machine are the same: "
                f"weights differ by {self.weights_distance:.2e}, a step's loss by {self.loss_distance:.2e}."
            )


def reproduce(
    source: RunFolder,
    lock: Lock,
    *,
    despite: frozenset[str],
    folder: Path | None,
    allow_code: frozenset[str] = frozenset(),
) -> Reproduction:
    """Train the lock's recipe again in a new run folder.

    Raises CheckpointError where the run is not finished, was trained by several processes, or something is
    not what it was that `despite` doesn't name.
    """
    strange = despite - set(DESPITE)
    if strange:
        raise CheckpointError(
            f"--despite: got {', '.join(sorted(strange))}; expected some of {', '.join(DESPITE)}."
        )
    if not source.finished:
        raise CheckpointError(f"{source.path} is not finished, so there is no result to compare with.")
    if lock.device.get("processes", 1) != 1:
        engine, count = lock.device.get("engine"), lock.device["processes"]
        raise CheckpointError(
            f"{source.path} was trained by {count} processes; run its recipe again with --launch {engine} "
            f"--processes {count}."
        )
    old = results_of(source)  # before hours are spent on the new one
    differs: list[str] = []

    def accept(now: Lock) -> None:
        differs.extend(differences(lock, now))
        refused = [
            what for what in differs if what.split(":")[0] not in despite and what.split(":")[0] in DESPITE
        ]
        if refused:
            words = " ".join(f"--despite {what}" for what in sorted({line.split(":")[0] for line in refused}))
            raise CheckpointError(
                f"this would not be the same run: {'; '.join(refused)}. Put back what was there, or continue "
                f"with {words}."
            )

    output = lock.recipe.output.model_copy(update={"folder": str((folder or source.path.parent).resolve())})
    recipe = lock.recipe.model_copy(update={"output": output})
    command = shlex.join(["finetune", "runs", "reproduce", str(source.path)])
    name = source.name.rsplit("-", 1)[0]
    trained = training.start(
        recipe,
        name=name,
        command=command,
        origins=lock.origins,
        accept=accept,
        allow_code=allow_code,
        rules=lock.rules,
    )
    new = trained.folder
    if trained.summary["status"] == "stopped":
        raise KeyboardInterrupt
    found = compare_results(source, new, old, results_of(new), tuple(differs))
    return replace(found, same_start=started_alike(lock, read_lock(new.lock_path)))


def started_alike(then: Lock, now: Lock) -> bool:
    """Whether two runs' adapters started alike, as far as both locks say; an earlier version's doesn't."""
    return len({held.final[START_HASH] for held in (then, now) if START_HASH in held.final}) < 2


def differences(then: Lock, now: Lock) -> list[str]:
    """What is not what it was, each with one of DESPITE, or `device`, before a colon."""
    found = []
    for what, before, after in (
        ("base", then.base, now.base),
        ("data", then.data, now.data),
        ("base", then.teacher, now.teacher),
        ("base", then.reference, now.reference),
        ("base", then.rewards, now.rewards),
        ("base", then.tokenizer_sha256, now.tokenizer_sha256),
        ("base", then.template_sha256, now.template_sha256),
    ):
        if before != after:
            found.append(f"{what}: then {before}, now {after}")
    names = sorted({**then.versions, **now.versions})
    changed = [name for name in names if then.versions.get(name) != now.versions.get(name)]
    for name in changed:
        kind = "code" if name == "finetune" else "versions"
        found.append(
            f"{kind}: {name} was {then.versions.get(name, 'absent')}, and is "
            f"{now.versions.get(name, 'absent')}"
        )
    commits = [lock.git.get("commit") for lock in (then, now)]
    if None not in commits and commits[0] != commits[1]:
        found.append(f"code: the commit was {commits[0]}, and is {commits[1]}")
    if then.device.get("type") == "cuda" and not then.recipe.train.deterministic:
        found.append("device: a GPU's sums had no fixed order; train.deterministic: true gives them one")
    if then.device.get(TOGETHER):
        found.append("device: other runs were trained in the same passes, which orders sums otherwise")
    if then.device.get("type") == "cpu" and "model" not in then.device:
        found.append(
            f"device: an earlier version's lock doesn't say which model of {then.device.get('name')} it was"
        )
    pairs = other_device(then, now)
    precisions = then.device.get("precision"), now.device.get("precision")
    if precisions[0] != precisions[1]:
        pairs.append(("precision", *precisions))
    return [*found, *(f"device: {name} was {before}, and is {after}" for name, before, after in pairs)]


Results = tuple[dict[str, torch.Tensor], list[float]]


def results_of(run: RunFolder) -> Results:
    """What was trained, and each step's loss. Raises CheckpointError where a file is absent or damaged,
    ModelError where the adapter is not what the run wrote."""
    refuse_changed(run.adapter)
    adapter = run.adapter / ADAPTER_WEIGHTS
    path = adapter if adapter.is_file() else run.model / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}. There is nothing to compare with.") from None
    return weights, [line["train/loss"] for line in read_metrics(run) if line.get("train/loss") is not None]


def compare_results(
    old: RunFolder, new: RunFolder, first: Results, second: Results, differs: tuple[str, ...]
) -> Reproduction:
    """Trained weights and losses of two finished runs; infinitely far apart where they are of another size or
    number."""
    (weights, losses), (others, other_losses) = first, second
    alike = weights.keys() == others.keys() and all(
        weights[name].shape == others[name].shape for name in weights
    )
    distance = loss_distance = math.inf
    if alike:
        flat = [
            torch.cat([held[name].double().flatten() for name in sorted(held)]) for held in (weights, others)
        ]
        distance = float((flat[0] - flat[1]).norm() / flat[0].norm())
    if len(losses) == len(other_losses):
        pairs = zip(losses, other_losses, strict=True)
        loss_distance = max((abs(a - b) / abs(a) if a else float(a != b) for a, b in pairs), default=0.0)
    same = alike and all(torch.equal(weights[name], others[name]) for name in weights)
    return Reproduction(str(old.path), str(new.path), same, distance, loss_distance, differs)
