"""Train several recipes of one base together, in this process or in several that are started for it. Loads no
torch by itself."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from traceback import clear_frames, format_exception
from typing import TYPE_CHECKING

from data_prep.errors import DataError
from finetune import environment, signals
from finetune.engines.registry import frozen_shared_out
from finetune.errors import CheckpointError, FinetuneError, LaunchError, TrainingError
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.rules.packages import check_packages
from finetune.recipe.rules.together import problem_of
from finetune.runs.commands import shell_command
from finetune.runs.folder import RunFolder, open_run
from finetune.training.many_processes import (
    Outcome,
    asked_in,
    launched,
    names_of_engines,
    planned,
    refuse_here,
    tell_outcomes,
)
from finetune.training.start import alone
from finetune.training.watching import Watcher

if TYPE_CHECKING:
    from finetune.training.company import Member

logger = logging.getLogger(__name__)


def start_many(
    recipes: Sequence[LoadedRecipe],
    resumed: Sequence[Path] = (),
    *,
    names: Sequence[str] = (),
    most: int = 8,
    launch: str | None = None,
    processes: int | None = None,
    allow_code: Collection[str] = (),
    arguments: Sequence[str] = ("train-many",),
) -> list[Outcome]:
    """Train the recipes, called by `names`, and resume runs, at most so many at a time; what became of each.
    With `launch` in so many processes of this machine. `arguments` are the words behind `finetune` that say
    this on a command line, for the locks.

    A run that fails or ends leaves, and the others continue. Raises FinetuneError, before anything is
    trained, where one of them can't be trained together with others, or so; LaunchFailed where a process
    ended; KeyboardInterrupt where Ctrl-C came twice.
    """
    from finetune.engines.launch.check import check_environment

    called = _unique([*(names or [loaded.name for loaded in recipes]), *(path.name for path in resumed)])
    if len(called) < 2:
        raise TrainingError(
            f"got {len(called)} runs to train together, expected at least two; finetune train trains one."
        )
    if most < 1:
        raise TrainingError(f"at most {most} runs at a time; expected a number from 1.")
    if processes is not None and launch is None:
        raise LaunchError(f"--processes {processes} needs --launch {names_of_engines()}.")
    wanted = [loaded.recipe for loaded in recipes]
    wanted += [read_lock(open_run(path.resolve()).lock_path).recipe for path in resumed]
    for name, recipe in zip(called, wanted, strict=True):
        check_packages(recipe)
        problem = problem_of(recipe)
        if problem is not None:
            raise TrainingError(f"{name}: {problem}. Train it alone.")
    if launch is not None and not environment.is_worker():
        plan = planned(launch, processes, wanted)
        if plan.processes > 1:
            asked = {
                "recipes": [(str(loaded.path), loaded.overrides) for loaded in recipes],
                "resumed": [str(path.resolve()) for path in resumed],
                "names": list(names),
                "most": most,
                "allow_code": sorted(allow_code),
                "arguments": list(arguments),
            }
            return launched(plan, asked)
    if not environment.is_worker():
        for recipe in wanted:
            check_environment(recipe)
    environment.settle_training()
    paths = [path.resolve() for path in resumed]
    passes, newest = _where_they_were_together(paths)
    outcomes = [Outcome(name) for name in called]
    allowed, command = frozenset(allow_code), shell_command(*arguments)
    begun = [
        *(partial(train_member, loaded, command=command, allow_code=allowed) for loaded in recipes),
        *(partial(resume_member, path, allow_code=allowed, newest=newest.get(path)) for path in paths),
    ]
    runs = [
        (outcome.name, partial(_carried_out, outcome, work))
        for outcome, work in zip(outcomes, begun, strict=True)
    ]
    refuse_here(wanted)
    with frozen_shared_out() as shares_out:
        train_together(runs, most, passes, shares_out=shares_out)
    return outcomes


def train_asked(folder: Path) -> None:
    """What `start_many` asked in this folder of the processes that it launched, of which this is one."""
    asked = asked_in(folder)
    recipes = [load_recipe(path, overrides) for path, overrides in asked.pop("recipes")]
    outcomes = start_many(recipes, [Path(path) for path in asked.pop("resumed")], **asked)
    if environment.world().rank == 0:
        tell_outcomes(outcomes, folder)


def train_together(
    runs: "Iterable[tuple[str, Callable[[Member], None]]]",
    most: int,
    passes: int = 0,
    *,
    shares_out: bool = False,
) -> None:
    """Carry runs out, each a name and what its thread does with it (train_member, resume_member), at most so
    many at a time; the next is taken when one ends. See Company for `passes` and `shares_out`, and its run
    for what is raised."""
    from finetune.engines.group import contact, this_group
    from finetune.training.company import Company
    from finetune.training.run_log import heard

    group = this_group()
    with alone(), signals.listening() as requests, contact(group), heard():
        group.form()
        with requests.deferring():
            Company(most, requests, passes, group, shares_out=shares_out).run(
                (environment.RUN_THREAD + name, work) for name, work in runs
            )
        group.leave()


def _carried_out(outcome: Outcome, work: "partial[tuple[Path, str]]", member: "Member") -> None:
    """One run, in its own thread; its error is its own."""
    try:
        if member.comes_too_late:
            raise KeyboardInterrupt
        outcome.folder, outcome.status = work(member)
    except Exception as error:  # noqa: BLE001 - told, and kept as the outcome
        expected = isinstance(error, FinetuneError | DataError | OSError | MemoryError | RuntimeError)
        told = f"{type(error).__name__}: {error}" if expected else "".join(format_exception(error)).strip()
        outcome.error = error
        let_go(error)
        outcome.folder = member.folder if member.folder is not None and member.folder.is_dir() else None
        go_on = "; the other runs continue" if member.leaves(error) else ""
        logger.error(told + go_on)
    except KeyboardInterrupt:
        outcome.status = "stopped"
        raise


def let_go(error: BaseException | None) -> None:
    """An error is kept to the end; what its frames hold, a model and its optimizer among it, is not."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def train_member(
    loaded: LoadedRecipe,
    member: "Member",
    *,
    command: str,
    allow_code: frozenset[str],
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> tuple[Path, str]:
    """A new run, in its own folder or in this one, in the thread of the member that it is; the folder and the
    run's status."""
    from finetune.training import run

    with loaded.placing():
        ended = run.start(
            loaded.recipe,
            name=member.name.removeprefix(environment.RUN_THREAD),
            command=command,
            allow_code=allow_code,
            folder=folder,
            origins=loaded.origins,
            member=member,
            watcher=watcher,
        )
    return ended.folder.path, ended.summary["status"]


def resume_member(
    path: Path,
    member: "Member",
    *,
    allow_code: frozenset[str],
    newest: Path | None = None,
    watcher: Watcher | None = None,
) -> tuple[Path, str]:
    """The same of a run that is there."""
    from finetune.training import run

    ended = run.resume(
        path, recipe=None, allow_code=allow_code, member=member, newest=newest, watcher=watcher
    )
    return ended.folder.path, ended.summary["status"]


def _where_they_were_together(runs: Sequence[Path]) -> tuple[int, dict[Path, Path]]:
    """The last common pass after which each of the runs has a checkpoint, and these: one that was killed may
    have left one run's checkpoint and not yet another's. None where there is no such pass."""
    from finetune.runs.checkpoint import complete_checkpoints
    from finetune.training.checkpoints.contents import read_counters

    found: dict[Path, dict[int, Path]] = {}
    for run in runs:
        found[run] = {}
        for checkpoint in complete_checkpoints(RunFolder(run).checkpoints):
            with suppress(CheckpointError):  # which is said when it would be resumed from
                found[run][read_counters(checkpoint).company_passes] = checkpoint
    common = set.intersection(*(set(of_run) for of_run in found.values())) - {0} if found else set[int]()
    if not common:
        if any(found.values()):
            logger.info(
                "the runs have no checkpoints of the same moment: each resumes from its newest, and may "
                "differ in its last digits from an uninterrupted one"
            )
        return 0, {}
    passes = max(common)
    return passes, {run: of_run[passes] for run, of_run in found.items()}


def _unique(names: Sequence[str]) -> list[str]:
    """The names, a number behind those that others have too; none is another's."""
    counts, seen = Counter(names), Counter[str]()
    taken = {name for name in names if counts[name] == 1}
    found = []
    for name in names:
        own = name
        while counts[name] > 1 and (own == name or own in taken):
            seen[name] += 1
            own = f"{name}-{seen[name]}"
        taken.add(own)
        found.append(own)
    return found
