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
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Serve what the first model was trained from too, as base.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes one that is free.")] = 8000,
    rows: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Requests that a base answers at a time; else 32.")
    ] = None,
    queue: Annotated[
        int | None, typer.Option(min=0, help="Answers that may wait, else 256; beyond, clients get 429.")
    ] = None,
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
    limits = {name: value for name, value in (("rows", rows), ("queue", queue)) if value is not None}
    if engine is not None:
        if limits:
            from finetune.errors import FinetuneError

            raise FinetuneError(
                f"--{' and --'.join(limits)} with --engine: {engine} has limits of its own; leave it out."
            )
        _by_another(engine, models, base, with_base, host, port)
        return
    tell_messages(as_json=False)

    from finetune import api

    api.serve(models, base=base, with_base=with_base, host=host, port=port, **limits)


def _by_another(
    engine: OtherEngine, models: list[str], base: str | None, with_base: bool, host: str, port: int
) -> None:
    """Print what serves the same by another program; a single command is run where it can be. It asks clients
    for the same key."""
    from finetune.environment import API_KEY
    from finetune.serving.listening import listening_socket
    from finetune.serving.models import name_targets
    from finetune.serving.other_engines import API_KEYS, commands_of
    from finetune.serving.server import api_key

    *before, command = commands_of(engine, name_targets(models, base, with_base=with_base), host, port)
    with listening_socket(host, 0) as listening:  # which says who can reach it
        key = api_key(host, listening)
    for line in before:
        out(line)
    out(f'{API_KEYS[engine]}="${API_KEY}" {command}' if key else command)
    words = shlex.split(command)
    if not before and shutil.which(words[0]) is not None:
        if key:
            os.environ[API_KEYS[engine]] = key
        os.execvp(words[0], words)  # noqa: S606 - the words were printed
