"""The processes that train several recipes of one base together: how they are started, what they share out,
and what they tell of the runs. Loads no torch by itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.temporary import temporary_folder
from finetune import environment
from finetune.engines.base import Engine
from finetune.engines.registry import beside_frozen, current, of_several
from finetune.errors import LaunchError, LaunchFailed, TrainingError
from finetune.recipe.schema import Recipe

if TYPE_CHECKING:
    from finetune.engines.launch.processes import Launch

ASKED, OUTCOMES = "asked.json", "outcomes.json"
"""Files between a launch and its processes."""


@dataclass
class Outcome:
    """What became of one of the runs."""

    name: str
    folder: Path | None = None
    """The run's; None where it could not start."""
    status: str = "failed"
    """finished, stopped or failed."""
    error: Exception | None = None


def planned(launch: str, processes: int | None, recipes: Sequence[Recipe]) -> "Launch":
    """How the processes are started. Raises LaunchError where the recipes can't be trained so."""
    from finetune.engines.launch.check import check_launch, plan_launch, refuse_more_than_devices

    plan = plan_launch(launch, processes=processes)
    environment.settle_training(plan.nodes)
    engine = plan.config.engine
    if plan.nodes > 1:
        raise LaunchError(
            "train-many starts processes on one machine; for several, start it on each with torchrun."
        )
    _refuse(engine, plan.config.settings, recipes)
    for recipe in recipes:
        check_launch(plan, recipe, beside_frozen(engine))
    refuse_more_than_devices(plan)
    engine.prepare_launch()
    return plan


def refuse_here(recipes: Sequence[Recipe]) -> None:
    """Raises LaunchError where the engine of this process can't train the recipes together."""
    from finetune.engines.launch.configs import config_of_environment

    config = config_of_environment()
    _refuse(current(), {} if config is None else config.settings, recipes)


def _refuse(engine: Engine, settings: Mapping[str, Any], recipes: Sequence[Recipe]) -> None:
    from finetune.engines.launch.check import refuse_method

    own = beside_frozen(engine)
    if own.takes_over:
        can = names_of_engines()
        raise LaunchError(
            f"train-many in several processes is {can}, and this is {engine.name}, which cuts up the "
            f"adapters with the base that they share. Take --launch {can}."
        )
    if own is engine:
        return
    problem = engine.frozen_problem(settings)
    if problem is not None:
        raise LaunchError(f"train-many with {engine.name}: {problem}.")
    for recipe in recipes:
        refuse_method(engine, recipe, engine.name)


def names_of_engines() -> str:
    """The engines by which adapters are trained together."""
    return " or ".join(engine.name for engine in of_several() if not beside_frozen(engine).takes_over)


def launched(plan: "Launch", asked: Mapping[str, Any]) -> list[Outcome]:
    """Train in processes of their own, which read in a folder what was asked for (`asked_in`), and of which
    the main one leaves there what became of the runs."""
    from finetune.engines.launch.processes import import_torch_quietly, run_processes

    import_torch_quietly()
    with temporary_folder("finetune-launch-") as folder:
        (folder / ASKED).write_text(json.dumps(asked))
        failure = run_processes(plan, ["train-many", "--asked", str(folder)], None)
        if failure is not None:
            raise failure.ending or LaunchFailed(failure.text(None), failure.exit_code)
        return [_as_outcome(found) for found in json.loads((folder / OUTCOMES).read_text())]


def asked_in(folder: Path) -> dict[str, Any]:
    """What a launch asked its processes for."""
    found: dict[str, Any] = json.loads((folder / ASKED).read_text())
    return found


def tell_outcomes(outcomes: Sequence[Outcome], folder: Path) -> None:
    """For the process that started this one."""
    (folder / OUTCOMES).write_text(json.dumps([as_json(outcome) for outcome in outcomes]))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What is said of an outcome."""
    error = None if outcome.error is None else str(outcome.error)
    folder = None if outcome.folder is None else str(outcome.folder)
    return {"name": outcome.name, "run": folder, "status": outcome.status, "error": error}


def _as_outcome(found: Mapping[str, Any]) -> Outcome:
    return Outcome(
        found["name"],
        None if found["run"] is None else Path(found["run"]),
        found["status"],
        None if found["error"] is None else TrainingError(found["error"]),
    )
