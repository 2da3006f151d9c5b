"""finetune serve: models behind OpenAI's API."""

import os
import shlex
import shutil
from enum import StrEnum
from typing import Annotated

import typer

from finetune.cli.common import BaseOption, out, tell_messages


class OtherEngine(StrEnum):
    """Another program that can serve the same."""

    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN_OR_MODEL...",
            help="Runs, checkpoints, adapters, models or hub ids; NAME is what clients call it.",
        ),
    ],
    base: BaseOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes one that is free.")] = 8000,
    rows: Annotated[int, typer.Option(min=1, max=1024, help="Requests that a base answers at a time.")] = 32,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; beyond, clients get 429.")] = 256,
    engine: Annotated[
        OtherEngine | None,
        typer.Option(
            help="Print the command by which this program serves the same; run it where it is installed."
        ),
    ] = None,
) -> None:
    """Serve models by OpenAI's API.

    Adapters of one base share it in memory and in each batch. There is a chat page at /, and metrics at
    /metrics."""
    if engine is not None:
        _by_another(engine, models, base, host, port)
        return
    tell_messages(as_json=False)

    from finetune import api

    api.serve(models, base=base, host=host, port=port, rows=rows, queue=queue)


def _by_another(engine: OtherEngine, models: list[str], base: str | None, host: str, port: int) -> None:
    """Print what serves the same by another program; a single command is run where it can be."""
    from finetune.serving.models import name_targets
    from finetune.serving.other_engines import commands_of

    commands = commands_of(engine, name_targets(models, base), host, port)
    for command in commands:
        out(command)
    words = shlex.split(commands[0])
    if len(commands) == 1 and shutil.which(words[0]) is not None:
        os.execvp(words[0], words)  # noqa: S606 - the words were printed
