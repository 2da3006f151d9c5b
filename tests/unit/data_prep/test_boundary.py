"""The prompt that is asked is the prompt that was learned, for every tokenizer; where it can't be, the audit
says so."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep import Conversation, Message, load_tokenizer, tokenize
from data_prep.chat.rendering import prompt_and_reference
from data_prep.errors import DataError
from data_prep.messages import PlainText
from data_prep.preparation import prepare
from data_prep.table.documents import Document
from tests.unit.data_prep.rows import file, section, write
from tests.unit.data_prep.tokenizer_kinds import KINDS, Load


def one(example: PlainText | Conversation, tokenizer: PreTrainedTokenizerFast) -> Document:
    [document] = tokenize([("row", example)], tokenizer, on_finding=lambda finding, place, message: None)
    return document


PIECE = st.one_of(
    st.sampled_from([" ", "  ", "\n", "\n\n", ":", "Paris", "is", "12", "3", "Ada", "\t", "é"]),
    st.text(max_size=3),
)
TEXT = (
    st.lists(PIECE, min_size=1, max_size=5).map("".join).filter(lambda text: bool(text) and "<" not in text)
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_prompt_is_the_beginning_of_what_is_learned(kind: str, load: Load) -> None:
    """The ids that a prompt is asked with are those that a row with this prompt begins with, and all others
    are learned."""
    tokenizer = load(kind)

    @settings(deadline=None, max_examples=80)
    @given(prompt=TEXT, completion=TEXT)
    def check(prompt: str, completion: str) -> None:
        document = one(PlainText(prompt, completion), tokenizer)
        asked, reference = prompt_and_reference(PlainText(prompt, completion), tokenizer)
        assert reference == completion
        assert document.token_ids[: len(asked)] == asked
        assert document.spans == ((len(asked), len(document.token_ids), 1.0),)

    check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("called: ", "tom"),
        ("called:", " tom"),
        ("called:", "tom"),
        ("Par", "is"),
        ("is:\n", "yes"),
        ("is\n", "\ntom"),
        ("12", "3"),
    ],
)
def test_a_row_reads_back_as_it_was_written(prompt: str, completion: str, kind: str, load: Load) -> None:
    """Cut in two, a text is the same text: no blank comes between the parts, and none is lost."""
    tokenizer = load(kind)
    ids = one(PlainText(prompt, completion), tokenizer).token_ids
    if kind == "unigram" and "\n" in prompt + completion:
        return  # it knows no line break
    assert (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        == prompt + completion
    )


def test_a_blank_before_an_answer_belongs_to_its_first_word(load: Load) -> None:
    """Wherever the blank between prompt and completion was written, the row is the same; a line break stays
    in the prompt."""
    for kind in KINDS:
        tokenizer = load(kind)
        rows = [one(PlainText(*parts), tokenizer) for parts in (("called: ", "tom"), ("called:", " tom"))]
        assert rows[0].token_ids == rows[1].token_ids
        assert rows[0].spans == rows[1].spans
    tokenizer = load("byte-level")
    asked, _ = prompt_and_reference(PlainText("Answer:\n", "yes"), tokenizer)
    assert tokenizer.decode(asked).endswith(":\n")


def test_an_earlier_preparation_keeps_its_tokens(load: Load, tmp_path: Path) -> None:
    """A run that was started before tokenises both parts as one text, as it did."""
    load("byte-level").save_pretrained(tmp_path)
    then = load_tokenizer(tmp_path, preparation=2)
    ids = one(PlainText("Par", "is"), then).token_ids
    assert ids[:-1] == then("Paris", add_special_tokens=False)["input_ids"]
    assert (
        prompt_and_reference(PlainText("called: ", "tom"), then)[0]
        == then("called: ", add_special_tokens=False)["input_ids"]
    )


PLAIN_HEADERS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% "
    "endfor %}"
)
HEADER = PLAIN_HEADERS + "{% if add_generation_prompt %}[assistant]{% endif %}"
CLOSES = {
    "a blank that the generation prompt ends in": HEADER.replace("[assistant]", "[assistant] ").replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %} {% endif %}{{ m.content }}"
    ),
    "thinking that only the generation prompt begins": HEADER.replace(
        "[assistant]{% endif %}", "[assistant]<think>\n{% endif %}"
    ),
    "a question in other words when it is asked": HEADER.replace(
        "[{{ m.role }}]", "[{{ m.role }}{{ messages | length }}]"
    ).replace("[assistant]{%", "[assistant{{ messages | length }}]{%"),
}


def chat(folder: Path, template: str, load: Load) -> PreTrainedTokenizerFast:
    load("byte-level").save_pretrained(folder)
    (folder / "template.jinja").write_text(template)
    return load_tokenizer(folder, chat_template=str(folder / "template.jinja"))


def rows_with(folder: Path, *answers: str) -> dict[str, object]:
    rows = [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    write(folder / "rows.jsonl", rows)
    return file(folder / "rows.jsonl", rows, "messages")


@pytest.mark.parametrize("template", CLOSES)
def test_a_chat_that_is_asked_otherwise_than_learned_fails_the_audit(
    template: str, load: Load, tmp_path: Path
) -> None:
    """It is counted under a finding of its own, and refused for training; where the recipe allows it, its ids
    are unchanged."""
    tokenizer = chat(tmp_path, CLOSES[template], load)
    data = section(rows_with(tmp_path, "tom", "likes"))
    assert prepare(data, tokenizer, seed=0, audit=True).report.findings() == {"prompt_not_learned": 2}
    with pytest.raises(DataError, match=r"data\.allow_findings: \[prompt_not_learned\]"):
        prepare(data, tokenizer, seed=0)
    allowed = data.model_copy(update={"allow_findings": ("prompt_not_learned",)})
    made = prepare(allowed, tokenizer, seed=0).train[0]
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "tom"}]
    assert made.token_ids == tokenizer.apply_chat_template(talk, return_dict=False)


def test_only_answers_that_grow_together_with_the_header_are_counted(load: Load, tmp_path: Path) -> None:
    """With a header that is no special token, an answer that begins with what follows a bracket in one token
    is found."""
    tokenizer = chat(tmp_path, HEADER.replace("[assistant]", "A:\n").replace("[{{ m.role }}]", "A:\n"), load)
    report = prepare(
        section(rows_with(tmp_path, "Ada", "\n\nAda", "Paris")), tokenizer, seed=0, audit=True
    ).report
    assert report.findings() == {"prompt_not_learned": 1}
    assert report.first("prompt_not_learned").startswith(
        "rows.jsonl:2: by itself, the prompt ends in the tokens"
    )


@settings(deadline=None, max_examples=80)
@given(question=TEXT, answer=TEXT)
def test_without_a_finding_a_chat_is_asked_as_it_was_learned(
    question: str, answer: str, tmp_path_factory: pytest.TempPathFactory, load: Load
) -> None:
    """Whatever is said, either the generation prompt's ids begin the row, or the row is found."""
    tokenizer = chat(tmp_path_factory.mktemp("chat"), HEADER, load)
    example = Conversation((Message("user", question), Message("assistant", answer)))
    findings: list[str] = []
    [document] = tokenize(
        [("row", example)], tokenizer, on_finding=lambda finding, place, message: findings.append(finding)
    )
    asked, _ = prompt_and_reference(example, tokenizer)
    assert (document.token_ids[: len(asked)] == asked) == ("prompt_not_learned" not in findings)
