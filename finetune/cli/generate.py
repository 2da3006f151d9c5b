"""finetune generate: answers to prompts."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import BaseOption, JsonOption, note, out, print_json

MAX_FILE_BYTES = 2**30
"""The largest file of prompts."""

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_RUN", help="A run, a checkpoint of one, an adapter, a model, or a hub id."
    ),
]
SystemOption = Annotated[str | None, typer.Option(help="A system message that goes first.")]
TokensOption = Annotated[
    int | None, typer.Option(min=1, help="The longest answer; the run's own, else 256, when absent.")
]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="0 takes the likeliest token; above, tokens are drawn.")
]


def generate(
    target: TargetArgument,
    base: BaseOption = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with a prompt a line.")] = None,
    system: SystemOption = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="What tokens are drawn from.")] = 0,
    raw: Annotated[
        bool | None,
        typer.Option(
            "--raw/--chat",
            help="Plain text, or the chat template; when absent as the run's rows were written.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts.

    In batches; asked as the run's rows were written, a model through its chat template.
    """
    check_text("--system", system)
    prompts = read_prompts(prompt or [], file)

    from finetune import api
    from finetune.generation.base_options import unused_options
    from finetune.generation.generate import cut_notes

    model = api.load(refuse_head(target, base), base=base)
    how = model.asked if raw is None else "plainly" if raw else "by the chat template"
    answers = model.answers(
        prompts, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, how=how
    )
    if as_json:
        print_json(
            [{"prompt": p, "answer": a.text, "cut": a.cut} for p, a in zip(prompts, answers, strict=True)]
        )
    else:
        for number, (text, answer) in enumerate(zip(prompts, answers, strict=True)):
            if len(prompts) > 1:
                out(("\n" if number else "") + "> " + text)
            out(answer.text)
    if raw is None and how == "plainly" and model.tokenizer.chat_template is not None:
        note("asked plainly, as the run's rows are written; --chat asks by the chat template")
    for line in [
        *unused_options(model.model, model.tokenizer),
        *cut_notes([answer.cut for answer in answers]),
    ]:
        note(line)


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of the options and of the file, in this order. Raises FinetuneError where there is none."""
    from finetune.errors import FinetuneError

    for prompt in prompts:
        check_text("--prompt", prompt)
    if file is not None:
        prompts = prompts + [line for line in read_lines(file) if line.strip()]
    if not prompts:
        raise FinetuneError('there is no prompt: give --prompt "..." or --file FILE with a prompt a line.')
    return prompts


def read_lines(file: Path) -> list[str]:
    r"""The lines of a file of prompts: \n or \r\n ends one, and nothing else that Unicode knows as a line's
    end."""
    from data_prep.disk import read_regular
    from finetune.errors import FinetuneError

    try:
        text = read_regular(file, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise FinetuneError(f"--file {file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FinetuneError(
            f"--file {file} is not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}. Save "
            "it as UTF-8."
        ) from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def check_text(option: str, text: str | None) -> None:
    """Raise FinetuneError where the bytes that were typed are no text in the terminal's encoding."""
    from finetune.errors import FinetuneError

    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise FinetuneError(
            f"{option} is not valid text at character {error.start + 1}: expected UTF-8."
        ) from error


def refuse_head(target: str, base: str | None) -> str:
    """The target. Raises FinetuneError, before weights are loaded, where it has a classification head."""
    from finetune.errors import FinetuneError
    from finetune.runs.commands import shell_command
    from finetune.runs.target import resolve_target

    found = resolve_target(target, base)
    if found.model.classifies:
        scores = shell_command("evaluate", Path(target), *([] if found.recipe is not None else ["RECIPE"]))
        raise FinetuneError(
            f"{found.description} has a classification head and writes no text: {scores} scores it."
        )
    return target
