"""How a model is asked: as the rows were that it learned, plain texts plainly, conversations by the chat
template."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from data_prep import formats
from data_prep.config import RowsSource, Source
from data_prep.errors import DataError
from data_prep.formats.chat import message_of
from data_prep.formats.parser import read_parsed
from data_prep.formats.row_rules import RowRules
from data_prep.messages import Message, Parsed, PlainText
from finetune.errors import FinetuneError
from finetune.generation.generate import conversation_ids, plain_ids
from finetune.recipe.schema import Recipe

Asked = Literal["plainly", "by the chat template"]


def asked(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, *, allow_code: Collection[str] = ()) -> Asked:
    """How a run's model is asked: plainly where all of its sources are plain texts, or there is no template.

    Where the format's name doesn't tell, the source's first row does. Raises DataError where that can't be
    read.
    """
    plain = tokenizer.chat_template is None or all(
        _is_plain(source, recipe, allow_code) for source in recipe.data.train
    )
    return "plainly" if plain else "by the chat template"


def prompt_ids(
    prompt: str, tokenizer: PreTrainedTokenizerFast, how: Asked, system: str | None = None
) -> list[int]:
    """The token ids of a prompt, behind a system message where there is one. Raises FinetuneError where a
    template lacks."""
    if how == "plainly":
        return plain_ids((system or "") + prompt, tokenizer)
    before = [Message("system", system)] if system is not None else []
    return conversation_ids([*before, Message("user", prompt)], tokenizer)


def turns_of(messages: Sequence[Mapping[str, Any] | Message]) -> list[Message]:
    """The turns of a conversation that is to be answered, read as rows of data are.

    Raises FinetuneError for one that can't be read, and where nobody waits for an answer.
    """
    turns = []
    for number, message in enumerate(messages):
        try:
            turns.append(
                message if isinstance(message, Message) else message_of(message, f"messages[{number}]")
            )
        except ValueError as error:
            raise FinetuneError(f"{error}.") from None
    if not turns or turns[-1].role not in ("user", "tool"):
        last = f"ends with a turn of the {turns[-1].role}" if turns else "has no turn"
        raise FinetuneError(
            f"the conversation {last}; expected one of the user, or a tool's result, to be answered."
        )
    return turns


def _is_plain(source: Source, recipe: Recipe, allow_code: Collection[str]) -> bool:
    if not isinstance(source, RowsSource):
        return False
    if source.template is not None:
        return not source.template.chat
    makes = "either" if source.format == "auto" else formats.named(source.format).makes
    if makes != "either":
        return makes == "texts"
    return isinstance(_first_example(source, recipe, allow_code), PlainText)


def _first_example(source: Source, recipe: Recipe, allow_code: Collection[str]) -> Parsed | None:
    data, skips = recipe.data, recipe.data.on_bad_row == "skip"
    parser, rows = read_parsed(
        source,
        (lambda _: None) if skips else None,
        seed=recipe.train.seed,
        allow_code=allow_code,
        rules=RowRules(data.turn_order),
        streaming=data.streaming is not None,
        use="train",
    )
    for row in rows:
        try:
            return parser.parse(row)[0][1]
        except DataError:
            if not skips:
                raise
    return None
