"""What the verbs share: their common arguments, and plain output that is safe for a terminal."""

import json
import os
import sys
from typing import Annotated, Any, TextIO

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: train.learning_rate=1e-4, data.train.0.path=x.json."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def colour_wanted(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colour (NO_COLOR and TERM=dumb say no; FORCE_COLOR says yes)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def dim(text: str, stream: TextIO) -> str:
    """Text in a pale colour where the stream shows colour."""
    return f"\x1b[2m{text}\x1b[0m" if colour_wanted(stream) and text else text


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_error(message: str) -> None:
    """Print a message on standard error, the first word in red where it shows colour."""
    label = "\x1b[1;31merror:\x1b[0m" if colour_wanted(sys.stderr) else "error:"
    print(f"{label} {message}", file=sys.stderr)
