"""finetune train: a recipe to a run folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import environment, signals
from finetune.cli.common import (
    AllowCodeOption,
    JsonOption,
    OverridesArgument,
    leave_messages_to,
    out,
    print_json,
    tell_messages,
)


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's file, or the name of a shipped one.")
    ] = None,
    overrides: OverridesArgument = None,
    resume: Annotated[Path | None, typer.Option(help="Resume this run folder.")] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="The run's own folder: the same command, given again, continues the run there."),
    ] = None,
    trust_checkpoint: Annotated[
        bool,
        typer.Option(
            "--trust-checkpoint", help="With --resume: load DeepSpeed checkpoints that somebody else wrote."
        ),
    ] = False,
    launch: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="How to shard: ddp, zero3, fsdp2 ... or a file.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --launch: processes, of all machines together.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="With --launch: machines; one, or as a file says.")
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option(min=0, help="With --nodes: which machine this is, from 0.")
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --nodes: machine 0's address.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --launch: how often to continue after a process or a machine was gone; never when "
            "absent.",
        ),
    ] = None,
    timeout_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="With --launch: how long to wait for other processes; 30 when absent."),
    ] = None,
    patience: Annotated[float | None, typer.Option("--patience", min=0.01, hidden=True)] = None,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=86400,
            help="After a signal: how long step and checkpoint may take; no bound when absent.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="CLUSTER", help="Write a job for slurm, kubernetes or skypilot; train there."),
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --on: of the job, as partition=a100, time=12:00:00."),
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="With --on: submit the job, too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --on: print the job's file, write nothing.")
    ] = False,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe.

    The result, and everything about it, is in a new run folder, or in --run-folder. SIGTERM and SIGUSR1 stop
    it with a checkpoint, as Ctrl-C does, and the exit code 75; SIGUSR2 saves one and continues.
    """
    from finetune import api
    from finetune.cli.train_on import refuse_without_cluster, train_on
    from finetune.engines.launch.messages import to_launcher
    from finetune.errors import LaunchError
    from finetune.training.start import start, start_at

    asked: dict[str, Any] = {
        "processes": processes, "nodes": nodes, "node_rank": node_rank, "rendezvous": rendezvous,
        "max_restarts": max_restarts, "timeout_minutes": timeout_minutes or patience,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    with signals.listening(None if environment.is_worker() else grace_seconds) as requests:
        if timeout_minutes is not None and patience is not None:
            raise LaunchError("--patience is the earlier name of --timeout-minutes: give one of them.")
        if on is not None:
            train_on(
                on, recipe, overrides or [], settings=job or [], launch=launch, options=asked,
                own={"resume": resume, "run_folder": run_folder}, grace_seconds=grace_seconds,
                allow_code=allow_code or (), submit=submit, dry_run=dry_run, as_json=as_json,
            )  # fmt: skip
            return
        refuse_without_cluster(job=job, submit=submit, dry_run=dry_run)
        if recipe is None and resume is None:
            raise LaunchError(
                "name a recipe (finetune train RECIPE), or a run to resume (finetune train --resume RUN)."
            )
        if resume is not None and recipe is not None and "=" in recipe and not Path(recipe).exists():
            raise LaunchError(
                f"got {recipe} with --resume: a resumed run keeps the recipe of its lock, which no override "
                "changes; start a new run for another value:\n    "
                f"{_new_run(resume, (recipe, *(overrides or ())))}"
            )
        if run_folder is not None and resume is not None:
            raise LaunchError("--run-folder and --resume both name a run: leave one of them out.")
        if trust_checkpoint and resume is None:
            raise LaunchError("--trust-checkpoint is about the checkpoints of a run: it needs --resume RUN.")
        if launch is None and asked:
            raise LaunchError(
                "--processes, --nodes, --node-rank, --rendezvous, --max-restarts and --timeout-minutes need "
                "--launch NAME."
            )
        loaded = api.load_recipe(recipe, overrides or []) if recipe is not None else None
        launcher = to_launcher()
        if launcher is not None:
            leave_messages_to(launcher)
        elif not environment.is_worker() or environment.world().rank == 0:
            tell_messages(as_json)
        how: dict[str, Any] = {
            "launch": launch, "options": asked, "allow_code": allow_code or (), "arguments": sys.argv[1:],
        }  # fmt: skip
        if run_folder is not None and loaded is not None:
            trained = start_at(run_folder.resolve(), loaded, **how)
        else:
            trained = start(loaded, resume, trust_checkpoint=trust_checkpoint, **how)
        if trained is None:  # it is told on the first machine
            return
        if trained.status != "finished":
            raise requests.ending()  # which every process ends with
        if environment.world().rank == 0 and not environment.is_worker():
            _tell(trained.folder, as_json)


def _new_run(resume: Path, overrides: tuple[str, ...]) -> str:
    """The command for a new run with other values: from the result of one that is finished, else from the
    beginning."""
    from finetune.recipe.lock import read_lock
    from finetune.runs.folder import open_run
    from finetune.runs.further import command_to_train_further

    run = open_run(resume.resolve())
    if run.finished:
        return command_to_train_further(run, read_lock(run.lock_path), overrides)
    return shlex.join(["finetune", "train", str(run.lock_path), *overrides])


def _tell(folder: Path, as_json: bool) -> None:
    """The outcome of a run that came to its end."""
    from finetune.runs.folder import open_run

    summary = open_run(folder).read_summary()
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    for line in closing_lines(folder, summary):
        out(line)


def closing_lines(folder: Path, summary: dict[str, Any]) -> list[str]:
    """What a person wants to know at the end, and what to type next."""
    from finetune.runs.commands import shell_command
    from finetune.runs.compare import UNROUNDED_LOSS

    minutes = float(str(summary["seconds"])) / 60
    lines = [
        f"finished {summary['steps']} steps, {summary['tokens']:,} tokens in {minutes:.1f} minutes, "
        f"{summary['tokens_per_second']:,} tokens/s, {float(str(summary['peak_memory_bytes'])) / 1e9:.1f} GB"
    ]
    if summary["evaluation_loss"] is not None:
        lines.append(
            f"evaluation loss {summary['evaluation_loss_before']:.4f} before, "
            f"{summary['evaluation_loss']:.4f} after"
        )
    if UNROUNDED_LOSS in summary:
        lines.append(
            f"         both with the base in FP8; {summary[UNROUNDED_LOSS]:.4f} with it as it was loaded, "
            "which is what is merged"
        )
    lines.append(f"result   {folder}")
    recipe = dict(summary["recipe"])
    if recipe["adapter"]["method"] != "full":
        lines.append(f"merge    {shell_command('merge', folder, '--output', folder / 'merged')}")
    if recipe["model"]["head"] is None:
        lines.append(f'generate {shell_command("generate", folder)} --prompt "..."')
    elif summary["evaluation_loss"] is not None:
        lines.append(
            f"evaluate {shell_command('evaluate', folder, '--compare', 'base', *_code_options(recipe))}"
        )
    return lines


def _code_options(recipe: dict[str, Any]) -> list[str]:
    """What lets format python run again."""
    from data_prep.formats.python import code_sha256

    sources = [*recipe["data"]["train"], *((recipe["data"]["evaluation"] or {}).get("sources") or ())]
    codes = sorted({code_sha256(source["code"]) for source in sources if source.get("code")})
    return [word for sha256 in codes for word in ("--allow-code", sha256)]
