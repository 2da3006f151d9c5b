"""Does what stands beside weights say what was trained? Read back by plain transformers, and compared.

Logits can't tell: they are computed from ids, with the configuration that was written.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from data_prep.chat.rendering import ChatRenderer, end_of_turn_ids
from data_prep.errors import DataError
from data_prep.messages import Message, ToolCall
from finetune.models.bases.tokenizer_files import differences_beside_transformers, probe_texts, read_texts
from finetune.models.description import CONFIG, rope_spellings
from finetune.recipe.heads import classifies

OF_THE_READER = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"})
"""Values of a configuration that are no part of the model, or that the weights themselves say."""
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
ASKED, ANSWERED = Message("user", "How are you, today?"), Message("assistant", " Well, thank you. ")
CALLED = (
    Message("user", "And the weather?"),
    Message("assistant", "", tool_calls=(ToolCall("weather", {"town": "Kiel"}, "call00001"),)),
    Message("tool", "rain", tool_call_id="call00001"),
    Message("assistant", "It rains."),
)
CONVERSATIONS: tuple[tuple[tuple[Message, ...], tuple[dict[str, Any], ...], bool], ...] = (
    ((ASKED,), (), True),
    ((ASKED, ANSWERED, ASKED), (), True),
    ((Message("system", "Be brief."), ASKED, ANSWERED), (), False),
    (CALLED, (TOOL,), False),
)
"""Messages, tools, and whether an answer is asked for."""


def differences(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainedConfig | None,
    *,
    for_version_4: bool = True,
) -> list[str]:
    """What plain transformers reads from a folder otherwise than it was trained, in words.

    `config` is the configuration of the model as it was trained; None where the folder is an adapter's. What
    transformers 4 alone looks for was not written by earlier versions of this toolkit: `for_version_4` says
    whether it must be there.
    """
    found = list(_tokenizer_differences(folder, tokenizer, for_version_4=for_version_4))
    if config is not None:
        found += _config_differences(folder, config, for_version_4=for_version_4)
        found += [] if classifies(config.to_dict()) else _ending_differences(folder, tokenizer)
    return found


def _config_differences(folder: Path, trained: PretrainedConfig, *, for_version_4: bool) -> Iterator[str]:
    path = folder / CONFIG
    try:
        stored, read = json.loads(path.read_text()), AutoConfig.from_pretrained(folder).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{CONFIG} can't be read: {' '.join(str(error).split())}"
        return
    spelled = rope_spellings(trained)
    expected = trained.to_dict()
    if "rope_parameters" in spelled:
        expected["rope_parameters"] = spelled["rope_parameters"]
    for key in sorted((expected.keys() | read.keys()) - OF_THE_READER):
        if (key in expected or key not in spelled) and _plain(read.get(key)) != _plain(expected.get(key)):
            yield f"{CONFIG} says {key} {read.get(key)}, and {expected.get(key)} was trained"
    for key, value in spelled.items() if for_version_4 else ():
        if _plain(stored.get(key)) != _plain(value):
            yield (
                f"{CONFIG} has {key} {stored.get(key)}, which transformers 4 goes by, and {value} was trained"
            )


def _plain(value: Any) -> Any:
    """As JSON has it: text keys, lists."""
    return json.loads(json.dumps(value, default=str))


def _ending_differences(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Whether what ended an answer in training ends it in what generates."""
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    except (OSError, ValueError, TypeError) as error:
        yield f"generation_config.json can't be read: {' '.join(str(error).split())}"
        return
    absent = set(end_of_turn_ids(tokenizer)) - set(ends if isinstance(ends, list) else [ends])
    if absent:
        yield (
            f"generation_config.json ends an answer at {ends}, and not at {sorted(absent)}, which ended it "
            "in training"
        )


def _tokenizer_differences(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, for_version_4: bool
) -> Iterator[str]:
    try:
        plain = AutoTokenizer.from_pretrained(folder)
        yield from differences_beside_transformers(folder, tokenizer, for_version_4=for_version_4)
    except Exception as error:  # noqa: BLE001 - whatever a reader stumbles over, it does not read this
        yield f"the tokenizer can't be read: {' '.join(str(error).split())}"
        return
    texts = probe_texts(tokenizer)
    for index, (mine, its) in enumerate(
        zip(read_texts(tokenizer, texts), read_texts(plain, texts), strict=True)
    ):
        if mine != its:
            yield f"the tokenizer makes {its[:12]} of {texts[index // 2]!r}, and {mine[:12]} was trained"
            break
    vocabulary, known = tokenizer.get_vocab(), plain.get_vocab()
    if vocabulary != known:
        odd = sorted(set(vocabulary.items()) ^ set(known.items()), key=lambda item: item[1])
        yield f"the vocabulary differs in {len(odd)} entries, the first {odd[0]}"
    for name in NAMED_TOKENS:
        mine, its = getattr(tokenizer, name), getattr(plain, name)
        if mine != its:
            yield f"{name} is {its!r}, and was {mine!r}"
    flags, those = (
        [token.special for _, token in sorted(one.added_tokens_decoder.items())] for one in (tokenizer, plain)
    )
    if flags != those:
        yield "other added tokens are special, and left out of answers, than were"
    yield from _template_differences(tokenizer, plain)


def _template_differences(tokenizer: PreTrainedTokenizerFast, plain: Any) -> Iterator[str]:
    try:
        renderer = ChatRenderer(tokenizer)
    except DataError:
        if plain.chat_template and not tokenizer.chat_template:
            yield "there is a chat template, and none was trained with"
        return
    for messages, tools, asked in CONVERSATIONS:
        mine = _rendered(renderer, messages, tools, asked=asked)
        if mine is None:
            continue  # the template refuses such a conversation, so none was trained on
        try:
            its = plain.apply_chat_template(
                renderer.turns(messages, tools),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=asked,
            )
        except Exception as error:  # noqa: BLE001 - a template can raise what it likes
            yield f"the chat template fails: {' '.join(str(error).split())}"
            return
        if its != mine:
            yield f"the chat template writes {_excerpt(its, mine)!r}, and {_excerpt(mine, its)!r} was trained"
            return


def _rendered(
    renderer: ChatRenderer, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, asked: bool
) -> str | None:
    try:
        return renderer.render(messages, tools=tools, add_generation_prompt=asked)
    except DataError:
        return None


def _excerpt(text: str, other: str) -> str:
    """A text around where it differs from another."""
    place = next(
        (index for index, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), len(other)
    )
    return text[max(0, place - 20) : place + 40]
