"""The file of a job, written or printed, and its submission. Torch-free."""

import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

from finetune.clusters.base import Cluster
from finetune.clusters.job import Asked, job_of, spread_of
from finetune.clusters.registry import find_cluster, settings_of
from finetune.recipe.load import LoadedRecipe
from finetune.runs.folder import JOB, RunFolder, create_run


class WrittenJob(NamedTuple):
    """A job's file."""

    text: str
    file: Path | None
    """None where it is only to be printed."""
    run: Path
    """The run folder, where the nodes find it."""
    command: list[str] | None
    """What submits the file."""
    submitted: str | None
    """What the scheduler said."""


def write_job(
    loaded: LoadedRecipe, on: str, asked: Asked, *, submit: bool = False, dry_run: bool = False
) -> WrittenJob:
    """Write the file of a job that trains a recipe, and submit it if that is asked for.

    Raises LaunchError, with nothing left behind, where the recipe can't be trained so, the cluster can't have
    such a job, or its scheduler refuses it; ModelError where finetune plan has no formula for it.
    """
    cluster = find_cluster(on)
    settings = settings_of(cluster, asked.settings)
    if submit:
        cluster.check_program()
    spread = spread_of(asked, settings, loaded.recipe)
    output = loaded.recipe.output
    folder, name = Path(output.folder), output.name or loaded.name
    made: RunFolder | None = None
    if not cluster.shares_files:
        run = cluster.run_folder(f"{name}-{secrets.token_hex(3)}", settings)
    elif dry_run:
        run = folder / f"{name}-NNN"
    else:
        made = create_run(folder, name)
        run = made.path
    try:
        text = cluster.render(job_of(loaded, asked, cluster, settings, spread, run=run), settings)
        if dry_run:
            return WrittenJob(text, None, run, None, None)
        file = (
            made.path / JOB / cluster.file if made is not None else Path.cwd() / f"{run.name}.{cluster.file}"
        )
        return WrittenJob(
            text, file, run, cluster.command(file), _carry_out(cluster, file, text, submit=submit)
        )
    except BaseException:
        if made is not None:
            shutil.rmtree(made.path)
        raise


def _carry_out(cluster: Cluster, file: Path, text: str, *, submit: bool) -> str | None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    try:
        return cluster.submit(file) if submit else None
    except BaseException:
        file.unlink()
        raise
