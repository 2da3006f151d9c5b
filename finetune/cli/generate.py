"""finetune generate: answers to prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import BaseOption, JsonOption, out, print_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from finetune.recipe.schema.evaluate import EvaluateSection

TargetArgument = Annotated[
    str, typer.Argument(metavar="MODEL_OR_RUN", help="A run, a checkpoint of one, an adapter, a model, or a hub id.")
]
SystemOption = Annotated[str | None, typer.Option(help="A system message that goes first.")]
TokensOption = Annotated[int | None, typer.Option(min=1, help="The longest answer; the run's own, else 256, when absent.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; above, tokens are drawn.")]


def generate(
    target: TargetArgument,
    base: BaseOption = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with a prompt a line.")] = None,
    system: SystemOption = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="What tokens are drawn from.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts.

    In batches; the chat template of the model or run is applied.
    """
    check_text("--system", system)
    prompts = read_prompts(prompt or [], file)
    model, tokenizer, options = load_for_answers(target, base)

    from data_prep.messages import Message
    from finetune.evaluate import generation

    before = [Message("system", system)] if system is not None else []
    if raw:
        ids = [generation.plain_ids((system or "") + text, tokenizer) for text in prompts]
    else:
        ids = [generation.conversation_ids([*before, Message("user", text)], tokenizer) for text in prompts]
    answers = generation.generate(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens or options.max_new_tokens,
        batch_size=options.batch_size,
        temperature=temperature,
        seed=seed,
    )
    if as_json:
        print_json([{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)])
        return
    for number, (text, answer) in enumerate(zip(prompts, answers, strict=True)):
        if len(prompts) > 1:
            out(("\n" if number else "") + "> " + text)
        out(answer)


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of the options and of the file, in this order. Raises FinetuneError where there is none."""
    from data_prep.disk import read_regular
    from finetune.errors import FinetuneError

    for prompt in prompts:
        check_text("--prompt", prompt)
    if file is not None:
        try:
            lines = read_regular(file, 2**30).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FinetuneError(f"--file {file} can't be read: {error}") from error
        prompts = prompts + [line for line in lines if line.strip()]
    if not prompts:
        raise FinetuneError('there is no prompt: give --prompt "..." or --file FILE with a prompt a line.')
    return prompts


def check_text(option: str, text: str | None) -> None:
    """Raise FinetuneError where the bytes that were typed are no text in the terminal's encoding."""
    from finetune.errors import FinetuneError

    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise FinetuneError(f"{option} is not valid text at character {error.start + 1}: expected UTF-8.") from error


def load_for_answers(target: str, base: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast, EvaluateSection]":
    """Model and tokenizer of MODEL_OR_RUN, on the device, and how its run generates."""
    from finetune.errors import FinetuneError
    from finetune.recipe.schema.evaluate import EvaluateSection
    from finetune.runs.target import resolve_target

    found = resolve_target(target, base)
    if found.model.head is not None:
        raise FinetuneError(
            f"{found.description} has a classification head and writes no text: finetune evaluate {target} RECIPE scores it."
        )

    from finetune.evaluate.loading import load_ready
    from finetune.model.precision import choose_precision

    dtype = choose_precision("auto").dtype
    model, tokenizer = load_ready(found, dtype=dtype)
    return model, tokenizer, found.recipe.evaluate if found.recipe is not None else EvaluateSection()
