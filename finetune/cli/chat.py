"""finetune chat: a conversation in the terminal."""

import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import BaseOption, note, out, printable
from finetune.cli.generate import (
    SystemOption,
    TargetArgument,
    TemperatureOption,
    TokensOption,
    check_text,
    refuse_head,
)

if TYPE_CHECKING:
    from data_prep.messages import Message
    from finetune.api import Model

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

    from data_prep.messages import Message
    from finetune import api
    from finetune.errors import FinetuneError
    from finetune.generation.base_options import unused_options

    model = api.load(refuse_head(target, base), base=base)
    _check_template(target, model)
    for remark in unused_options(model.model, model.tokenizer):
        note(remark)
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
            pieces = model.stream(
                asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + len(asked)
            )
            messages = [*asked, show(pieces)]
        except FinetuneError as error:
            if not interactive:
                raise
            out(f"{error} (/reset begins a new conversation)")


def _check_template(target: str, model: "Model") -> None:
    """Refuse a model that has no template of conversations, and say where a run has learned none."""
    from finetune.errors import FinetuneError
    from finetune.runs.commands import shell_command

    plain = shell_command("generate", Path(target), "--raw", "--prompt")
    if model.tokenizer.chat_template is None:
        raise FinetuneError(
            "this model's tokenizer has no chat template, so it can't hold a conversation: name one in the "
            "recipe's "
            f'model.chat_template before training, or let it continue a text: {plain} "..."'
        )
    if model.asked == "plainly":
        note(
            f"this run learned plain texts, and a chat asks by the chat template; as it learned asks {plain} "
            '"..."'
        )


def questions(interactive: bool) -> Iterator[str]:
    """What the user writes, line by line, until /exit or the end of the input; blank lines are passed
    over."""
    from finetune.errors import FinetuneError

    if interactive:
        import readline  # noqa: F401 - importing it gives input() its line editing
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(newline="\n")
    byte_order_mark = "" if interactive else "\ufeff"
    while True:
        try:
            line = input("you> ").strip() if interactive else _piped_line().removeprefix(byte_order_mark)
            byte_order_mark = ""
        except EOFError:
            if interactive:
                print()
            return
        except UnicodeDecodeError as error:
            raise FinetuneError(
                f"the input is not text in {error.encoding}: byte {error.object[error.start]:#04x}."
            ) from error
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(f"\n{HELP}")
            continue
        check_text("the input", line)
        if line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip() if line.strip() == "/reset" else line


def _piped_line() -> str:
    r"""The next line of the standard input as it is written; \n or \r\n ends it, as in a file of prompts."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def show(pieces: Generator[str, None, str | None]) -> "Message":
    """Print an answer as it comes, and return it as a turn; Ctrl-C ends it where it is."""
    from data_prep.messages import Message

    answer, shown, cut = "", 0, None

    def told() -> Generator[str, None, None]:
        nonlocal cut
        cut = yield from pieces

    try:
        for piece in told():
            answer += piece
            # A word that goes on may be a secret, which is known by the whole of it.
            ready = len(UNFINISHED_WORD.sub("", answer[shown:])) + shown
            print(printable(answer[shown:ready]), end="", flush=True)
            shown = ready
        print(printable(answer[shown:]), end="")
    except KeyboardInterrupt:
        print(f"{printable(answer[shown:])} ...", end="")
    print()
    if cut is not None:
        note(f"the answer was cut {cut}")
    return Message("assistant", answer)
