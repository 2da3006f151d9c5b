"""finetune train --launch: a run folder, its processes, and what is said where one fails."""

import shutil
from pathlib import Path

from finetune import signals
from finetune.engines.launch.check import check_launch, refuse_more_than_devices
from finetune.engines.launch.processes import Launch, import_torch_quietly, run_processes
from finetune.errors import LaunchFailed
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.lock import read_lock
from finetune.runs.compare import refuse_another_recipe
from finetune.runs.folder import RunFolder, create_run, open_run


def launched(
    launch: Launch,
    loaded: LoadedRecipe | None,
    resume: Path | None,
    arguments: list[str],
    folder: Path | None = None,
) -> Path | None:
    """Start the processes as `finetune ARGUMENTS` and wait for them; the run folder (None on a machine beside
    the first), which is made where `folder` isn't one.

    A run that was stopped is returned as one that came to its end. Raises LaunchError before anything was
    started, LaunchFailed with the reason of the process that failed first, KeyboardInterrupt where there is
    nothing to resume.
    """
    import_torch_quietly()
    run: RunFolder | None = None
    if resume is not None:
        run = open_run(resume.resolve())
        run.refuse_links()  # before processes write to their logs
        recipe = read_lock(run.lock_path).recipe
    else:
        assert loaded is not None  # noqa: S101 - the command line sees to it
        recipe = loaded.recipe
    check_launch(launch, recipe)
    refuse_more_than_devices(launch)
    launch.config.engine.prepare_launch()
    try:
        if run is None and loaded is not None and launch.node_rank == 0:
            run = (
                RunFolder(folder.resolve())
                if folder is not None
                else create_run(Path(recipe.output.folder).resolve(), recipe.output.name or loaded.name)
            )
        failure = run_processes(
            launch,
            arguments,
            run.path if run is not None else None,
            lambda path: refuse_another_recipe(path, read_lock(open_run(path).lock_path), recipe),
        )
        if failure is not None and failure.ending is not None:
            raise failure.ending
        if failure is not None:
            # Where another machine is gone, nothing is wrong with this one: started again, the run continues.
            code = signals.STOPPED if failure.lost and launch.nodes > 1 else failure.exit_code
            raise LaunchFailed(failure.text(run.log_of(failure.rank) if run is not None else None), code)
    except BaseException as error:
        if run is not None and not run.lock_path.is_file():
            if folder is None:
                shutil.rmtree(run.path)  # nothing is left behind where it could not start
            raise
        ended = run is not None and run.summary_path.is_file() and launch.node_rank == 0
        if not isinstance(error, KeyboardInterrupt) or not ended:
            raise
    return run.path if run is not None and launch.node_rank == 0 else None
