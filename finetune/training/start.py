"""Train a recipe, or resume a run: in this process, or in several that are started for it. Loads no torch by
itself."""

import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune import environment
from finetune.errors import LaunchError
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.lock import read_lock
from finetune.recipe.rules.packages import check_packages
from finetune.recipe.schema import Recipe
from finetune.runs.commands import shell_command
from finetune.runs.compare import refuse_another_recipe
from finetune.runs.folder import is_run, open_run, run_folder_at
from finetune.training.watching import Watcher

if TYPE_CHECKING:
    from finetune.engines.launch.processes import Launch

logger = logging.getLogger(__name__)

LEAST = {"processes": 1, "max_restarts": 0, "timeout_minutes": 0.01}
"""The smallest value of an option."""

_training = threading.Lock()


class Trained(NamedTuple):
    """A run that ended."""

    folder: Path
    status: str
    """finished, stopped, or interrupted where its processes were not let come to the end of a step."""


def start(
    loaded: LoadedRecipe | None,
    resumed: Path | None,
    *,
    launch: str | None = None,
    options: Mapping[str, Any],
    allow_code: Collection[str] = (),
    trust_checkpoint: bool = False,
    arguments: Sequence[str] | None = None,
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> Trained | None:
    """Train a recipe, or resume a run, here or in processes of their own; None on a machine beside the first.

    `options` are those of finetune.engines.launch.check.plan_launch. `arguments` are the words behind
    `finetune` that say this on a command line, for the lock and for processes to be started with; made from
    the rest where they are None. `folder`, which is there (make_run), becomes the run's; `watcher` sees its
    evaluations, and may stop it, in a training in this process.
    """
    allowed = frozenset(allow_code)
    words = list(arguments) if arguments is not None else words_of(loaded, resumed, allowed, trust_checkpoint)
    for name, value in options.items():
        if name in LEAST and not (isinstance(value, int | float) and value >= LEAST[name]):
            raise LaunchError(f"{name} is {value!r}; expected a number from {LEAST[name]:g}.")
    if launch is None and options:
        raise LaunchError(f"{', '.join(options)}: these are about several processes, and need launch.")
    if not environment.is_worker():
        check_packages(_recipe_of(loaded, resumed))
    if launch is None or environment.is_worker():
        _settle(loaded, resumed)
    else:
        plan = _planned(launch, options, loaded, resumed)
        if plan is not None:
            from finetune.engines.launch.start import launched

            ended = launched(plan, loaded, resumed, words, folder)
            return None if ended is None else Trained(ended, str(open_run(ended).outcome()["status"]))
    with alone():
        return _train_here(
            loaded,
            resumed,
            allowed,
            trust_checkpoint=trust_checkpoint,
            command=shell_command(*words),
            folder=folder,
            watcher=watcher,
        )


def start_at(path: Path, loaded: LoadedRecipe, **options: Any) -> Trained | None:
    """Train a recipe in this very run folder, or continue the run that is there: the same call, made again,
    goes on where it was, and does nothing once the run is finished. `options` are those of `start`.

    Raises CheckpointError where the run is another recipe's, LaunchError where the folder is no run's.
    """
    if is_run(path):
        run = open_run(path)
        refuse_another_recipe(path, read_lock(run.lock_path), loaded.recipe)
        if run.finished:
            logger.info(f"{path} is finished: nothing is left to do")
            return Trained(path, "finished")
        return start(loaded, path, **options)
    beside_the_first = (
        environment.is_worker()
        or (environment.has_company() and environment.world().rank > 0)
        or options["options"].get("node_rank", 0) > 0
    )
    with nullcontext() if beside_the_first else run_folder_at(path):
        return start(loaded, None, folder=path, **options)


@contextmanager
def alone() -> Iterator[None]:
    """Raises LaunchError where another thread of this process trains: generators, signals and logs are one
    for both."""
    if not _training.acquire(blocking=False):
        raise LaunchError(
            "another training is running in this process: wait for it, or start this one in another process."
        )
    try:
        yield
    finally:
        _training.release()


def _settle(loaded: LoadedRecipe | None, resumed: Path | None) -> None:
    """See to it that what launchers left in the environment fits this training."""
    from finetune.engines.launch.check import check_environment

    if not environment.is_worker():
        check_environment(_recipe_of(loaded, resumed))
    environment.settle_training()


def _planned(
    launch: str, options: Mapping[str, Any], loaded: LoadedRecipe | None, resumed: Path | None
) -> "Launch | None":
    """The launch; None where it is one process, which is this one then."""
    from finetune.engines.launch.check import check_alone, plan_launch

    plan = plan_launch(launch, **{"processes": None, **options})
    environment.settle_training(plan.nodes)
    if plan.processes == 1:
        for note in check_alone(plan.config, _recipe_of(loaded, resumed)):
            logger.info(note)
        return None
    if plan.nodes > 1:
        logger.info(
            f"machine {plan.node_rank} of {plan.nodes}, which meet at {plan.rendezvous}: "
            f"waiting for the others, at most {plan.timeout_minutes:g} minutes"
        )
    return plan


def _train_here(
    loaded: LoadedRecipe | None,
    resumed: Path | None,
    allow_code: frozenset[str],
    *,
    trust_checkpoint: bool,
    command: str,
    folder: Path | None,
    watcher: Watcher | None,
) -> Trained:
    """Train in this process, which may be one of several that a launcher started."""
    from finetune.training import run

    made = folder or environment.run_folder() or environment.continued_run()
    if resumed is None and made is not None and is_run(made):
        resumed, loaded = made, None  # the launcher starts its processes again
    if resumed is not None:
        known = loaded.recipe if loaded else None
        ended = run.resume(
            resumed.resolve(),
            recipe=known,
            allow_code=allow_code,
            trust_checkpoint=trust_checkpoint,
            watcher=watcher,
        )
    else:
        assert loaded is not None  # noqa: S101 - the callers see to it
        with loaded.placing():
            ended = run.start(
                loaded.recipe,
                name=loaded.name,
                command=command,
                allow_code=allow_code,
                folder=made,
                origins=loaded.origins,
                watcher=watcher,
            )
    return Trained(ended.folder.path, ended.summary["status"])


def _recipe_of(loaded: LoadedRecipe | None, resumed: Path | None) -> Recipe:
    """What is to be trained."""
    if resumed is not None:
        return read_lock(open_run(resumed.resolve()).lock_path).recipe
    assert loaded is not None  # noqa: S101 - the callers see to it
    return loaded.recipe


def words_of(
    loaded: LoadedRecipe | None,
    resumed: Path | None,
    allow_code: frozenset[str],
    trust_checkpoint: bool = False,
) -> list[str]:
    """The words behind `finetune` that train this in one process."""
    words = ["train"]
    if resumed is not None:
        words += ["--resume", str(resumed.resolve()), *(["--trust-checkpoint"] if trust_checkpoint else [])]
    else:
        assert loaded is not None  # noqa: S101 - the callers see to it
        words += [str(loaded.path), *loaded.overrides]
    return words + [word for sha256 in sorted(allow_code) for word in ("--allow-code", sha256)]
