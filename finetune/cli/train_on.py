"""finetune train --on: the recipe as a job of a cluster."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetune.cli.common import out, print_json, tell_messages
from finetune.errors import LaunchError


def refuse_without_cluster(**given: Any) -> None:
    """Raises LaunchError where something is said of a job, and no cluster is named."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if names:
        raise LaunchError(f"{' and '.join(names)} is about a cluster's job: name the cluster, as --on slurm.")


def train_on(
    cluster: str,
    recipe: str | None,
    overrides: Sequence[str],
    *,
    settings: Sequence[str],
    launch: str | None,
    options: Mapping[str, Any],
    own: Mapping[str, Any],
    grace_seconds: float | None,
    allow_code: Collection[str],
    submit: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a job's file, print it, or submit it. `options` are those of several processes; `own` what only a
    training that starts here can have. Raises LaunchError for the latter, and as write_job does."""
    from finetune import api
    from finetune.clusters.job import Asked
    from finetune.clusters.submit import write_job

    if recipe is None:
        raise LaunchError(f"--on {cluster} trains a recipe: finetune train RECIPE --on {cluster}.")
    refused = [name for name, value in own.items() if value is not None]
    refused += [name for name in ("node_rank", "rendezvous", "max_restarts") if name in options]
    if refused:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in refused)
        raise LaunchError(
            f"{names}: a job has a run folder of its own, finds its nodes and starts again by itself. Leave "
            "it out; the file of a job that has ended can be submitted again, and continues its run."
        )
    if submit and dry_run:
        raise LaunchError("--dry-run only prints what --submit would submit: leave one of them out.")
    tell_messages(as_json)
    words = ["--timeout-minutes", options["timeout_minutes"]] if "timeout_minutes" in options else []
    words += [word for sha256 in sorted(allow_code) for word in ("--allow-code", sha256)]
    asked = Asked(
        recipe=recipe,
        settings=settings,
        launch=launch,
        nodes=options.get("nodes"),
        processes=options.get("processes"),
        words=[str(word) for word in words],
        grace_seconds=grace_seconds,
    )
    job = write_job(api.load_recipe(recipe, overrides), cluster, asked, submit=submit, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "file": job.file and str(job.file),
                "run": str(job.run),
                "submitted": job.submitted,
                "text": job.text,
            }
        )
    elif job.file is None:
        out(job.text.rstrip("\n"))
    else:
        out(f"job      {job.file}")
        out(f"run      {job.run}")
        out(f"submit   {job.submitted or shlex.join(job.command or ())}")
