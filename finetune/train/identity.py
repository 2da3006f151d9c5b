"""What a run is made of, and whether it still is."""

import datetime

from data_prep.identity import tokenizer_sha256
from finetune.errors import CheckpointError
from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.train import build
from finetune.train.build import Inputs


def make_lock(recipe: Recipe, inputs: Inputs, command: str, tracker_id: str) -> Lock:
    """The identity of everything that a run is made of."""
    return Lock(
        recipe=recipe,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        base=inputs.base.fingerprint(),
        tokenizer_sha256=tokenizer_sha256(inputs.tokenizer),
        template_sha256=build.template_sha256(inputs.tokenizer),
        data=inputs.data.digests,
        versions=build.versions(),
        device=build.device_facts(inputs.precision),
        tracker_id=tracker_id,
    )


def refuse_changes(then: Lock, now: Lock) -> None:
    """Raises CheckpointError where something that decides the run's outcome changed since it was started."""
    for what in ("base", "tokenizer_sha256", "template_sha256", "data"):
        before, after = getattr(then, what), getattr(now, what)
        if before != after:
            raise CheckpointError(
                f"{what} changed since this run was started: then {before}, now {after}. "
                "Put back what was there, or start a new run."
            )
    before, after = then.device.get("precision"), now.device.get("precision")
    if before != after:
        raise CheckpointError(
            f"the precision changed since this run was started: then {before}, now {after}. Go on where it was started "
            f"(train.precision auto takes what the device has), or start a new run with train.precision: {before}."
        )


def inexact_because(then: Lock, now: Lock) -> list[str]:
    """What differs from when the run was started and changes its rounding: packages, kind of device, number of threads."""
    names = sorted(then.versions.keys() | now.versions.keys())
    pairs: list[tuple[str, object, object]] = []
    pairs += [(name, then.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in names]
    pairs += [(f"device {name}", then.device.get(name), now.device.get(name)) for name in ("type", "name", "threads")]
    return [f"{name}: then {before}, now {after}" for name, before, after in pairs if before != after]
