"""finetune train: a recipe to a run folder."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.common import AllowCodeOption, JsonOption, OverridesArgument, allowed_code, out, print_json, teller


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's file, or the name of a shipped one.")] = None,
    overrides: OverridesArgument = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="With --resume: load DeepSpeed checkpoints that somebody else wrote.")
    ] = False,
    launch: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="How to shard: ddp, zero3, fsdp2 ... or a file.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="With --launch: processes, of all machines together.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="With --launch: machines.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="With --nodes: which machine this is, from 0.")] = 0,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="With --nodes: machine 0's address.")] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="With --launch: how often to go on after a process died.")] = 0,
    patience: Annotated[
        float, typer.Option(min=0.01, metavar="MINUTES", help="With --launch: how long to wait for others.")
    ] = 30.0,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe.

    The result, and everything about it, is in a new run folder.
    """
    from finetune.errors import LaunchError
    from finetune.launch import worker
    from finetune.recipe.load import load_recipe

    if recipe is None and resume is None:
        raise LaunchError("name a recipe (finetune train RECIPE), or a run to go on with (finetune train --resume RUN).")
    if resume is not None and recipe is not None and "=" in recipe and not Path(recipe).exists():
        raise LaunchError(
            f"got {recipe} with --resume: a resumed run goes on with the recipe of its lock, which no override changes; "
            f"start a new run for another value:\n    {_new_run(resume, (recipe, *(overrides or ())))}"
        )
    if trust_checkpoint and resume is None:
        raise LaunchError("--trust-checkpoint is about the checkpoints of a run: it needs --resume RUN.")
    loaded = load_recipe(recipe, overrides or []) if recipe is not None else None
    if launch is None and (processes, nodes, node_rank, rendezvous, max_restarts, patience) != (None, 1, 0, None, 0, 30.0):
        raise LaunchError("--processes, --nodes, --node-rank, --rendezvous, --max-restarts and --patience need --launch NAME.")
    if launch is not None and not worker.is_worker():
        from finetune.launch.check import plan_launch
        from finetune.launch.start import launched

        asked = plan_launch(
            launch,
            processes=processes,
            nodes=nodes,
            node_rank=node_rank,
            rendezvous=rendezvous,
            max_restarts=max_restarts,
            patience_minutes=patience,
        )
        if asked.processes > 1:
            _tell(launched(asked, loaded, resume, sys.argv[1:]), as_json)
            return

    from finetune.runs.folder import is_run
    from finetune.train import run

    say, allowed, made = teller(as_json), allowed_code(allow_code), worker.run_folder()
    if resume is None and made is not None and is_run(made):
        resume, loaded = made, None  # the launcher starts its processes again
    if resume is not None:
        folder = resume.resolve()
        known = loaded.recipe if loaded else None
        run.resume(folder, recipe=known, allow_code=allowed, say=say, trust_checkpoint=trust_checkpoint)
    else:
        assert loaded is not None  # noqa: S101 - one of the two is there, see above
        command = shlex.join(["finetune", *sys.argv[1:]])
        summary = run.start(
            loaded.recipe,
            name=loaded.name,
            command=command,
            allow_code=allowed,
            say=say,
            folder=made,
            origins=loaded.origins,
        )
        folder = Path(loaded.recipe.output.folder) / summary["name"]
    if not worker.is_worker() and int(os.environ.get("RANK", "0")) == 0:
        _tell(folder, as_json)


def _new_run(resume: Path, overrides: tuple[str, ...]) -> str:
    """The command for a new run with other values: from the result of one that is finished, else from the beginning."""
    from finetune.recipe.lock import read_lock
    from finetune.runs.folder import open_run
    from finetune.train.further import command_to_train_further

    run = open_run(resume.resolve())
    if run.finished:
        return command_to_train_further(run, read_lock(run.lock_path), overrides)
    return shlex.join(["finetune", "train", str(run.lock_path), *overrides])


def _tell(folder: Path | None, as_json: bool) -> None:
    """The outcome of a run that came to its end."""
    from finetune.runs.folder import open_run

    if folder is None:
        return
    summary = open_run(folder).read_summary()
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    for line in closing_lines(folder, summary):
        out(line)


def closing_lines(folder: Path, summary: dict[str, Any]) -> list[str]:
    """What a person wants to know at the end, and what to type next."""
    from finetune.runs.commands import shell_command

    minutes = float(str(summary["seconds"])) / 60
    lines = [
        f"finished {summary['steps']} steps, {summary['tokens']:,} tokens in {minutes:.1f} minutes, "
        f"{summary['tokens_per_second']:,} tokens/s, {float(str(summary['peak_memory_bytes'])) / 1e9:.1f} GB"
    ]
    if summary["evaluation_loss"] is not None:
        lines.append(f"evaluation loss {summary['evaluation_loss_before']:.4f} before, {summary['evaluation_loss']:.4f} after")
    lines.append(f"result   {folder}")
    recipe = dict(summary["recipe"])
    if recipe["adapter"]["method"] != "full":
        lines.append(f"merge    {shell_command('merge', folder, '--output', folder / 'merged')}")
    if recipe["model"]["head"] is None:
        lines.append(f'generate {shell_command("generate", folder)} --prompt "..."')
    elif recipe["data"]["evaluation"] is not None:
        lines.append(f"evaluate {shell_command('evaluate', folder, '--compare', 'base', *_code_options(recipe))}")
    return lines


def _code_options(recipe: dict[str, Any]) -> list[str]:
    """What lets format python run again."""
    from data_prep.formats.code import code_sha256

    sources = [*recipe["data"]["train"], *(recipe["data"]["evaluation"]["sources"] or ())]
    codes = sorted({code_sha256(source["code"]) for source in sources if source.get("code")})
    return [word for sha256 in codes for word in ("--allow-code", sha256)]
