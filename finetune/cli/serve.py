"""finetune serve: models behind OpenAI's API."""

from typing import Annotated

import typer

from finetune.cli.common import BaseOption, tell_messages


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
) -> None:
    """Serve models by OpenAI's API.

    Adapters of one base share it in memory and in each batch. There is a chat page at /, and metrics at
    /metrics."""
    tell_messages(as_json=False)

    from finetune import api

    api.serve(models, base=base, host=host, port=port, rows=rows, queue=queue)
