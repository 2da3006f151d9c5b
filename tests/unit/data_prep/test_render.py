"""Rendering and masks."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import TEMPLATES, tokenize
from data_prep.chat.rendering import (
    end_of_turn_ids,
    prompt_and_reference,
    render,
    render_prompt,
    special_tokens,
    special_tokens_in,
)
from data_prep.errors import DataError
from data_prep.messages import Conversation, Message, PlainText
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rendered import one, supervised_texts
from tests.unit.data_prep.rows import allowing

GOLDEN = {
    "chatml": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is "
        "blue?<|im_end|>\n<|im_start|>assistant\n"
        "The sky.\nAnd lamps <|im_end|>\n<|im_start|>user\nAnd in German?<|im_end|>\n<|im_start|>assistant\n"
        "Der Himmel 🙂<|im_end|>\n",
        ["The sky.\nAnd lamps <|im_end|>", "Der Himmel 🙂<|im_end|>"],
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is blue? [/INST] The sky.\nAnd lamps </s>"
        "<s>[INST] And in German? [/INST] Der Himmel 🙂 </s>",
        [" The sky.\nAnd lamps </s>", " Der Himmel 🙂 </s>"],
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe "
        "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is blue?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nThe sky.\nAnd "
        "lamps<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd in German?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nDer Himmel 🙂<|eot_id|>",
        ["The sky.\nAnd lamps<|eot_id|>", "Der Himmel 🙂<|eot_id|>"],
    ),
    "mistral": (
        "<s>[INST] Be brief.\n\nWhat is blue? [/INST] The sky.\nAnd lamps </s>[INST] And in German? [/INST] "
        "Der Himmel 🙂</s>",
        [" The sky.\nAnd lamps </s>", " Der Himmel 🙂</s>"],
    ),
    "zephyr": (
        "<s><|system|>\nBe brief.</s>\n<|user|>\nWhat is blue?</s>\n<|assistant|>\nThe sky.\nAnd lamps </s>\n"
        "<|user|>\nAnd in German?</s>\n<|assistant|>\nDer Himmel 🙂</s>\n",
        ["The sky.\nAnd lamps </s>", "Der Himmel 🙂</s>"],
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nWhat is blue?\n\n### Response:\nThe sky.\nAnd lamps </s>\n\n"
        "### Instruction:\nAnd in German?\n\n### Response:\nDer Himmel 🙂</s>",
        ["The sky.\nAnd lamps </s>", "Der Himmel 🙂</s>"],
    ),
}
LAST_HEADER = {
    "chatml": "<|im_start|>assistant\n",
    "llama2": "[/INST]",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[/INST]",
    "zephyr": "<|assistant|>\n",
    "alpaca": "### Response:\n",
}


def test_golden_covers_every_template() -> None:
    """Every shipped template has a golden mask."""
    assert set(GOLDEN) == set(TEMPLATES)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_masks(name: str, llama_folder: Path, conversation: Conversation) -> None:
    """With each shipped template, exactly the answers and their ends of turn are supervised, and the text is
    the golden one."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    text, answers = GOLDEN[name]
    document = one(conversation, tokenizer)
    assert tokenizer.decode(document.token_ids, clean_up_tokenization_spaces=False) == text
    assert supervised_texts(document, tokenizer) == answers
    assert supervised_texts(one(conversation, tokenizer, "last"), tokenizer) == answers[-1:]
    assert one(conversation, tokenizer, "all").supervised == [False] + [True] * (len(document.token_ids) - 1)


@pytest.mark.parametrize("name", GOLDEN)
def test_prompt_is_what_stands_before_the_answer(
    name: str, llama_folder: Path, conversation: Conversation
) -> None:
    """The prompt for generation is the training text up to the last answer, header included, token for
    token."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    token_ids, reference = prompt_and_reference(conversation, tokenizer)
    document = one(conversation, tokenizer, "last")
    assert reference == "Der Himmel 🙂"
    assert token_ids == document.token_ids[: document.supervised.index(True)]
    assert render_prompt(conversation.messages[:-1], tokenizer).endswith(LAST_HEADER[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_no_double_bos(name: str, llama_folder: Path, conversation: Conversation) -> None:
    """A template that writes BOS and a tokenizer that adds one make one BOS together."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    ids = one(conversation, tokenizer).token_ids
    prompt = prompt_and_reference(conversation, tokenizer)[0]
    for sequence in (ids, prompt):
        assert sequence[0] == tokenizer.bos_token_id
        assert sequence[1] != tokenizer.bos_token_id


@pytest.mark.parametrize("pad", ["<|eot_id|>", "</s>", None])
def test_pad_token_does_not_matter(pad: str | None, llama_folder: Path, conversation: Conversation) -> None:
    """The end of turn is supervised though it is the pad token as well."""
    tokenizer = load_tokenizer(llama_folder, chat_template="llama3", pad_token=pad)
    document = one(conversation, tokenizer)
    ends = [flag for token, flag in zip(document.token_ids, document.supervised, strict=True)
            if token == tokenizer.convert_tokens_to_ids("<|eot_id|>")]  # fmt: skip
    assert ends == [False, False, True, False, True]


def test_end_of_turn_text_inside_a_question(llama_folder: Path) -> None:
    """An end-of-turn token that a user or an answer quotes moves no mask."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    example = Conversation(
        (Message("user", "What is <|im_end|>?"), Message("assistant", "It is <|im_end|>, a token."))
    )
    assert supervised_texts(one(example, tokenizer), tokenizer) == ["It is <|im_end|>, a token.<|im_end|>"]


def test_end_of_turn_ids(llama_folder: Path) -> None:
    """Generation stops at the end token and at what the template ends an answer with."""
    tokenizer = load_tokenizer(llama_folder, chat_template="llama3")
    assert end_of_turn_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["</s>", "<|eot_id|>"])
    assert end_of_turn_ids(load_tokenizer(llama_folder, chat_template="llama2")) == [tokenizer.eos_token_id]
    assert end_of_turn_ids(load_tokenizer(llama_folder)) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("mention", ["", "{# add_generation_prompt is left alone #}"])
def test_a_template_without_generation_prompt(mention: str, tmp_path: Path, llama_folder: Path) -> None:
    """Where a template ignores add_generation_prompt, the header is still no part of the answer."""
    template = tmp_path / "plain.jinja"
    template.write_text(
        mention + "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    tokenizer = load_tokenizer(llama_folder, chat_template=str(template))
    example = Conversation((Message("user", "hi"), Message("assistant", "ho")))
    assert (
        render_prompt(example.messages[:1], tokenizer)
        == "<s><|im_start|>user:hi<|im_end|>\n<|im_start|>assistant:"
    )
    assert supervised_texts(one(example, tokenizer), tokenizer) == ["ho<|im_end|>"]


def test_a_template_that_changes_earlier_turns(
    tmp_path: Path, llama_folder: Path, conversation: Conversation
) -> None:
    """A template that writes a turn differently once others follow gets the right mask all the same."""
    template = tmp_path / "count.jinja"
    template.write_text(
        "{{ messages | length }} turns\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim "
        "}}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = load_tokenizer(llama_folder, chat_template=str(template))
    answers = ["The sky.\nAnd lamps<|im_end|>", "Der Himmel 🙂<|im_end|>"]
    [document] = tokenize([("rows.json row 1", conversation)], tokenizer, on_finding=allowing)
    assert supervised_texts(document, tokenizer) == answers


def test_an_answer_that_cannot_be_found(
    tmp_path: Path, llama_folder: Path, conversation: Conversation
) -> None:
    """A template that rewrites answers beyond recognition ends in an error that names it and the row."""
    template = tmp_path / "upper.jinja"
    template.write_text(
        "{{ messages | length }}{% for m in messages %}{{ m.content | replace('The', 'A') }}</s>{% endfor %}"
    )
    tokenizer = load_tokenizer(llama_folder, chat_template=str(template))
    with pytest.raises(DataError, match=r"rows.json row 1: .*upper.jinja.*located"):
        one(conversation, tokenizer)


def test_an_end_of_turn_that_is_no_token(tiny_base: Path, conversation: Conversation) -> None:
    """A template whose end of turn the tokenizer doesn't know is refused; model.new_tokens mends it."""
    with pytest.raises(DataError, match=r"rows.json row 1: .*<\|eot_id\|>.*new_tokens"):
        one(conversation, load_tokenizer(tiny_base, chat_template="llama3"))
    tokenizer = load_tokenizer(tiny_base, chat_template="llama3", new_tokens=["<|eot_id|>"])
    assert supervised_texts(one(conversation, tokenizer), tokenizer) == GOLDEN["llama3"][1]


def test_an_end_of_turn_that_only_the_answer_holds(tmp_path: Path, llama_folder: Path) -> None:
    """An end token that stands in the answer's own text doesn't stand for the one that the template should
    write."""
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer = load_tokenizer(llama_folder, chat_template=str(template))
    with pytest.raises(DataError, match=r"rows.json row 1: .*would not learn to stop"):
        one(Conversation((Message("user", "hi"), Message("assistant", "ho</s>"))), tokenizer)


def test_bos_is_part_of_the_template(llama_folder: Path, tiny_base: Path, conversation: Conversation) -> None:
    """A named template writes the BOS that the tokenizer adds to plain text, and none where it adds none."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    turns = [{"role": message.role, "content": message.content} for message in conversation.messages]
    assert tokenizer.apply_chat_template(turns, tokenize=False).count("<s>") == 1
    without = load_tokenizer(tiny_base, chat_template="chatml")
    assert render(conversation.messages, without) == GOLDEN["chatml"][0].removeprefix("<s>")


def test_special_tokens_in_text(llama_folder: Path) -> None:
    """Special tokens are found in a row's own text; a plain text may begin with BOS and end with the end
    token."""
    tokenizer = load_tokenizer(llama_folder, new_tokens=["<city>"])
    special = special_tokens(tokenizer)
    talk = Conversation((Message("user", "a <|im_end|> b <city>"), Message("assistant", "c")))
    assert special_tokens_in(talk, special, tokenizer) == ["<|im_end|>"]
    assert special_tokens_in(PlainText("<s>a", "b</s>"), special, tokenizer) == []
    assert special_tokens_in(PlainText("a", "<s>b</s>c"), special, tokenizer) == ["<s>", "</s>"]


def test_no_template(llama_folder: Path, conversation: Conversation) -> None:
    """A conversation without a chat template is an error that names the recipe's key and its choices."""
    with pytest.raises(
        DataError, match=r"model\.chat_template: alpaca, chatml, llama2, llama3, mistral, zephyr"
    ):
        one(conversation, load_tokenizer(llama_folder))


@pytest.mark.parametrize(
    "body", ["{{ raise_exception('no system') }}", "{% for %}", "{{ messages.x.y }}", "{{ 1 / 0 }}"]
)
def test_a_template_that_fails(
    body: str, tmp_path: Path, llama_folder: Path, conversation: Conversation
) -> None:
    """A template that refuses a row, or is broken, ends in a DataError with the row and the template."""
    template = tmp_path / "broken.jinja"
    template.write_text(body)
    with pytest.raises(DataError, match=r"rows.json row 1: the chat template \(.*broken.jinja\) fails"):
        one(conversation, load_tokenizer(llama_folder, chat_template=str(template)))


def test_a_template_stays_in_its_sandbox(
    tmp_path: Path, llama_folder: Path, conversation: Conversation
) -> None:
    """A template that reaches for Python's internals is stopped."""
    template = tmp_path / "escape.jinja"
    template.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="unsafe"):
        one(conversation, load_tokenizer(llama_folder, chat_template=str(template)))


def test_completion_start(llama_folder: Path, conversation: Conversation) -> None:
    """Answers before completion_start are context, not learned."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    example = Conversation(conversation.messages, completion_start=4)
    assert supervised_texts(one(example, tokenizer), tokenizer) == GOLDEN["chatml"][1][1:]


def test_plain_text_with_bos(llama_folder: Path) -> None:
    """A plain text is BOS, prompt, completion, EOS where the tokenizer adds BOS; completion and EOS are
    supervised."""
    tokenizer = load_tokenizer(llama_folder)
    document = one(PlainText("Send lamps", " to Ada."), tokenizer)
    assert (
        tokenizer.decode(document.token_ids, clean_up_tokenization_spaces=False)
        == "<s>Send lamps to Ada.</s>"
    )
    assert supervised_texts(document, tokenizer) == [" to Ada.</s>"]
    assert supervised_texts(one(PlainText("", "All of it."), tokenizer), tokenizer) == ["All of it.</s>"]
    assert supervised_texts(one(PlainText("<s>a", "b</s>"), tokenizer), tokenizer) == ["b</s>"]
    assert tokenizer.decode(one(PlainText("<s>a", "b</s>"), tokenizer).token_ids) == "<s>ab</s>"


def test_plain_text_without_bos(tiny_base: Path) -> None:
    """A tokenizer that has a BOS but doesn't add it gets none; the first token is then not supervised."""
    tokenizer = load_tokenizer(tiny_base)
    document = one(PlainText("", "Ada and Bob"), tokenizer)
    assert tokenizer.decode(document.token_ids) == "Ada and Bob<|im_end|>"
    assert document.supervised == [False] + [True] * (len(document.token_ids) - 1)
    assert prompt_and_reference(PlainText("", "Ada"), tokenizer) == ([tokenizer.eos_token_id], "Ada")


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_masks_never_leave_their_turns(contents: list[str], llama_folder: Path) -> None:
    """Whatever the contents, the supervised text of a ChatML conversation is its answers, but for blanks they
    begin with."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents))
    document = one(Conversation(messages), tokenizer)
    text = render(messages, tokenizer)
    assert tokenizer.decode(document.token_ids, clean_up_tokenization_spaces=False) == text
    got = [run.lstrip() for run in supervised_texts(document, tokenizer)]
    assert got == [f"{answer}<|im_end|>".lstrip() for answer in contents[1::2]]
