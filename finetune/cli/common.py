"""What the verbs share: their common arguments, and plain output that is safe for a terminal."""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from data_prep.text import printable as printable
from finetune.environment import RUN_THREAD
from finetune.recipe.secrets import scrubbed, scrubbed_recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides: train.learning_rate=1e-4, data.train.0.path=x.json."
    ),
]
AllowCodeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHA256",
        help="Let format python run the file with this SHA-256; may be given more than once.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="The adapter's base: a folder, a hub id or a GGUF file, in place of the one it names.",
    ),
]
RoundingOption = Annotated[
    str | None,
    typer.Option(
        help="How weights become 16-bit ones: auto (when absent), nearest, stochastic or calibrated."
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Of stochastic rounding; 0 when absent.")]
CalibrationOption = Annotated[
    str | None, typer.Option(help="A recipe whose rows calibrate the rounding; when absent the run's own.")
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="Measure another model or run too, and the difference; `base` is MODEL_OR_RUN's own base.",
    ),
]


def allowed_code(options: list[str] | None) -> frozenset[str]:
    """What --allow-code allows."""
    return frozenset(options or ())


def colour_wanted(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colour (NO_COLOR and TERM=dumb say no; FORCE_COLOR says
    yes)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def dim(text: str, stream: TextIO) -> str:
    """Text in a pale colour where the stream shows colour."""
    return f"\x1b[2m{text}\x1b[0m" if colour_wanted(stream) and text else text


def out(text: str, *, pale: str = "", stream: TextIO | None = None) -> None:
    """Print printable text, and a pale remark after it; on standard output by default."""
    stream = stream or sys.stdout
    print(printable(text) + dim(printable(pale), stream), file=stream, flush=True)


def note(text: str) -> None:
    """Print what a person should know beside the result, on standard error."""
    out(f"note: {text}", stream=sys.stderr)


class Messages(logging.Handler):
    """Prints what the toolkit logs: warnings on standard error, and all messages where a verb tells them as
    it works."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.as_json = True
        self.unheard = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        if self.unheard:
            return
        thread = record.threadName or ""
        label = f"{thread.removeprefix(RUN_THREAD)}: " if thread.startswith(RUN_THREAD) else ""
        label += "warning: " if record.levelno >= logging.WARNING else ""
        try:
            out(label + record.getMessage(), stream=sys.stderr if self.as_json else sys.stdout)
        except OSError as error:
            # The terminal was closed (SIGHUP), or the reader of a pipe ended: no reason to lose a run.
            self.unheard = True
            toolkit.warning(f"nobody reads the output any more ({error})")


toolkit = logging.getLogger("finetune")
_messages = Messages()


@contextmanager
def messages_shown() -> Iterator[None]:
    """While this lasts, warnings of the toolkit go to standard error, and to nobody else's handlers."""
    global _messages
    level, _messages = toolkit.level, Messages()
    toolkit.addHandler(_messages)
    toolkit.setLevel(logging.INFO)
    toolkit.propagate = False
    try:
        yield
    finally:
        toolkit.removeHandler(_messages)
        toolkit.setLevel(level)
        toolkit.propagate = True


def tell_messages(as_json: bool) -> None:
    """Print all messages of a long job from now on: on standard output, or on standard error where that
    belongs to JSON."""
    _messages.setLevel(logging.INFO)
    _messages.as_json = as_json


def progress_line(what: str, *, quiet: bool) -> Callable[[int, int], None] | None:
    """What is told of work as it is done: a line on the terminal, on stderr, that moves; nothing
    elsewhere."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, of: int) -> None:
        print(f"\r{done:,} of {of:,} {what}", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def leave_messages_to(handler: logging.Handler) -> None:
    """Print no messages from now on: the handler takes them."""
    toolkit.removeHandler(_messages)
    toolkit.addHandler(handler)


def print_json(value: Any) -> None:
    """Print a value as indented JSON in printable ASCII on standard output, without secrets; what is not
    finite is null."""
    print(json.dumps(_for_others(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def _for_others(value: Any) -> Any:
    """The value without secrets in its texts; paths of a recipe, and of what is there, stay: scripts go on
    with them."""
    if isinstance(value, dict):
        return {
            key: scrubbed_recipe(below) if key == "recipe" else _for_others(below)
            for key, below in value.items()
        }
    if isinstance(value, list | tuple):
        return [_for_others(below) for below in value]
    if isinstance(value, str):
        return value if os.path.isabs(value) and os.path.lexists(value) else scrubbed(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(message: str) -> None:
    """Print a message on standard error, the first word in red where it shows colour."""
    label = "\x1b[1;31merror:\x1b[0m" if colour_wanted(sys.stderr) else "error:"
    print(f"{label} {printable(message)}", file=sys.stderr)


def print_failure(message: str, problems: list[dict[str, str]], *, as_json: bool) -> None:
    """Print what went wrong, and each problem: for a person on standard error, as JSON on standard output."""
    if as_json:
        print_json({"error": message, "problems": problems})
        return
    print_error(message)
    for problem in problems:
        out("  ".join(part for part in problem.values() if part), stream=sys.stderr)


def never_fail_to_print() -> None:
    """Let standard output and error write what their encoding lacks as escapes: an ASCII locale loses no
    line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
