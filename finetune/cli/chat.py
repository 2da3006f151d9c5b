"""finetune chat: a conversation in the terminal."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import BaseOption, out, printable
from finetune.cli.generate import (
    SystemOption,
    TargetArgument,
    TemperatureOption,
    TokensOption,
    check_text,
    load_for_answers,
)

if TYPE_CHECKING:
    from data_prep.messages import Message

UNFINISHED_WORD = re.compile(r"(?<![\x1b!-~])[\x1b!-~]+$")
HELP = "/reset begins anew, /exit or Ctrl-D ends the chat, Ctrl-C ends an answer"


def chat(
    target: TargetArgument,
    base: BaseOption = None,
    system: SystemOption = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="What tokens are drawn from.")] = 0,
) -> None:
    """Talk to a model or a run.

    Answers appear as they are made. Lines can be piped in, too.
    """
    check_text("--system", system)
    model, tokenizer, options = load_for_answers(target, base)

    from data_prep.messages import Message
    from finetune.errors import FinetuneError
    from finetune.evaluate import generation

    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP)
    start = [Message("system", system)] if system is not None else []
    messages = list(start)
    for line in questions(interactive):
        if line == "/reset":
            messages = list(start)
            continue
        asked = [*messages, Message("user", line)]
        try:
            pieces = generation.stream(
                model,
                tokenizer,
                generation.conversation_ids(asked, tokenizer),
                max_new_tokens=max_new_tokens or options.max_new_tokens,
                temperature=temperature,
                seed=seed + len(asked),
            )
            messages = [*asked, show(pieces)]
        except FinetuneError as error:
            if not interactive:
                raise
            out(f"{error} (/reset begins a new conversation)")


def questions(interactive: bool) -> Iterator[str]:
    """What the user writes, line by line, until /exit or the end of the input; blank lines are passed over."""
    from finetune.errors import FinetuneError

    if interactive:
        import readline  # noqa: F401 - importing it gives input() its line editing
    while True:
        try:
            line = input("you> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        except UnicodeDecodeError as error:
            raise FinetuneError(f"the input is not text in {error.encoding}: byte {error.object[error.start]:#04x}.") from error
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(f"\n{HELP}")
            continue
        if line == "/exit":
            return
        if line:
            yield line


def show(pieces: Iterator[str]) -> "Message":
    """Print an answer as it comes, and return it as a turn; Ctrl-C ends it where it is."""
    from data_prep.messages import Message

    answer, shown = "", 0
    try:
        for piece in pieces:
            answer += piece
            # A word that goes on may be a secret, which is known by the whole of it.
            ready = len(UNFINISHED_WORD.sub("", answer[shown:])) + shown
            print(printable(answer[shown:ready]), end="", flush=True)
            shown = ready
        print(printable(answer[shown:]), end="")
    except KeyboardInterrupt:
        print(f"{printable(answer[shown:])} ...", end="")
    print()
    return Message("assistant", answer)
