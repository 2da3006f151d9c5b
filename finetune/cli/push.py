"""finetune push: a result to the Hugging Face hub."""

from typing import Annotated

import typer

from finetune.cli.common import JsonOption, note, out, print_json


def push(
    result: Annotated[
        str,
        typer.Argument(metavar="RESULT", help="A run, or a folder with an adapter, a model or GGUF files."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where there is none.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make it a private one.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a repository that holds other files.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a result to the hub, with a model card.

    The token is HF_TOKEN. What was uploaded is compared with the files; exits with code 3 if it differs.
    """
    from finetune import api

    pushed = api.push(result, name, private=private, overwrite=overwrite)
    if as_json:
        print_json(pushed.as_dict())
        return
    for text in pushed.notes:
        note(text)
    out(f"url      {pushed.url}{' (private)' if pushed.private else ''}")
    out(f"commit   {pushed.commit}")
    out(f"files    {len(pushed.files)}, {pushed.bytes / 1e6:,.1f} MB, each with the hash that it has here")
