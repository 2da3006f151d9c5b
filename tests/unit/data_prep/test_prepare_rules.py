"""Which rows are kept, changed, cut, held out and repeated, and what is refused."""

import json
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.clean import CONTROL_CHARACTERS, cleaned
from data_prep.config import CleanSection, DataSection
from data_prep.documents import Document
from data_prep.errors import DataError
from data_prep.masks import tokenize
from data_prep.messages import Conversation, Message, PlainText
from data_prep.prepare import PreparedData, prepare
from data_prep.tokenizer import load_tokenizer
from tests.conftest import save_tiny_tokenizer

NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
"""A chat template that ends an answer with no token."""
TWICE = "{{ bos_token }}{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
"""A chat template that writes BOS twice."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, and no model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def with_bos(llama_folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <s> before a text; its template writes ChatML after it."""
    return load_tokenizer(llama_folder, chat_template="chatml")


def with_template(folder: Path, text: str, tmp_path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder, with a template of the test's own."""
    path = tmp_path / "own.jinja"
    path.write_text(text)
    return load_tokenizer(folder, chat_template=str(path))


def file(path: Path, rows: Sequence[dict[str, Any]], format_name: str = "alpaca", **options: Any) -> dict[str, Any]:
    """A source of these rows."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"path": str(path), "format": format_name} | options


def section(*train: dict[str, Any], **options: Any) -> DataSection:
    return DataSection.model_validate({"train": list(train)} | options)


def said(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    """Alpaca rows."""
    return [{"instruction": instruction, "output": output} for instruction, output in pairs]


def talk(*turns: str, system: str | None = None, **answer: Any) -> dict[str, Any]:
    """A conversation of user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for index, content in enumerate(turns):
        messages.append({"role": "user", "content": content} if index % 2 == 0 else {"role": "assistant", "content": content})
    return {"messages": [*messages[:-1], messages[-1] | answer]}


def places(documents: Sequence[Document]) -> list[str]:
    return [document.place for document in documents]


# Duplicates and leakage.


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_duplicates_across_sources(duplicates: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row that equals an earlier one of any source, case and white space aside, is counted, and dropped if so asked."""
    first = file(tmp_path / "a.jsonl", said(("Say blue.", "blue sky"), ("Say red.", "red"), ("Say blue.", "blue sky")))
    second = file(tmp_path / "b.jsonl", said((" say\tBLUE.", "Blue  Sky\n"), ("Say green.", "green")))
    data = prepare(section(first, second, clean={"duplicates": duplicates}), tokenizer, seed=0)
    rows = [source.duplicates if duplicates == "keep" else source.dropped["duplicate"] for source in data.report.sources]
    counted = [(row.count, row.places) for row in rows]
    assert counted == [(1, ["a.jsonl:3"]), (1, ["b.jsonl:1"])]
    lines = "\n".join(data.report.lines())
    if duplicates == "keep":
        assert len(data.train) == 5
        assert "  kept 1 that repeat an earlier row: b.jsonl:1" in lines
    else:
        assert places(data.train) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:2"]
        assert "  dropped 1 that repeat an earlier row: a.jsonl:3" in lines
        assert "  dropped 1 that repeat an earlier row: b.jsonl:1" in lines
        assert "kept 1" not in lines


def test_evaluation_rows_that_repeat_are_counted_only(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows that are evaluated on stay as they are: one that repeats another is counted and kept whatever clean says."""
    held_out = file(tmp_path / "e.jsonl", said(("a", "b"), ("A", "b "), ("c", "d")))
    train = file(tmp_path / "t.jsonl", said(("e", "f")))
    clean = {"duplicates": "drop", "near_duplicates": 0.5}
    data = prepare(section(train, evaluation={"sources": [held_out]}, clean=clean), tokenizer, seed=0)
    assert len(data.evaluation) == len(data.evaluation_examples) == 3
    assert data.report.sources[1].duplicates.count == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(talk("q", "a"), talk("q", "b"), id="the answer"),
        pytest.param(talk("q", "a"), talk("p", "a"), id="the question"),
        pytest.param(talk("q", "a", system="Be brief."), talk("q", "a"), id="the system message"),
        pytest.param(talk("q", "a", "b", "c"), talk("q", "a b", "b", "c"), id="a turn"),
        pytest.param(talk("q", "a b"), talk("q", "ab"), id="where words end"),
    ],
)
def test_rows_that_differ_are_no_duplicates(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows that differ in more than case and white space are both kept."""
    data = prepare(
        section(file(tmp_path / "a.jsonl", [one, other], "messages"), clean={"duplicates": "drop"}), tokenizer, seed=0
    )
    assert len(data.train) == 2


def test_rows_with_other_tools_are_no_duplicates(tmp_path: Path, base: Path) -> None:
    """Rows that differ in the tools that can be called are both kept."""
    template = "{{ tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tools = [[{"name": name, "description": "", "parameters": {}}] for name in ("weather", "clock")]
    rows = [talk("What is the time?", "I can't tell.") | {"tools": tool} for tool in tools]
    data = section(file(tmp_path / "a.jsonl", rows, "messages"), clean={"duplicates": "drop"})
    assert len(prepare(data, with_template(base, template, tmp_path), seed=0).train) == 2


def test_rows_whose_completion_begins_elsewhere_are_no_duplicates(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two plain rows of the same text, of which another part is learned, are both kept."""
    rows = [{"prompt": "The sky is", "completion": " blue today."}, {"prompt": "The sky is blue", "completion": " today."}]
    data = section(file(tmp_path / "a.jsonl", rows, "prompt_completion"), clean={"duplicates": "drop"})
    assert len(prepare(data, tokenizer, seed=0).train) == 2


def test_near_duplicates(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row that nearly repeats one of an earlier source is dropped, and the earlier one named; system messages count not."""
    words = [f"word{number}" for number in range(100)]
    systems = [" ".join(f"{name}{number}" for number in range(200)) for name in ("one", "two")]
    original, changed = " ".join(words), " ".join([*words[:50], "other", *words[51:]])
    first = [talk("Say it.", "not this"), talk("Say it.", original, system=systems[0])]
    second = [talk("Say it.", changed, system=systems[1]), talk("Say others.", " ".join(reversed(words)), system=systems[0])]
    sources = [file(tmp_path / f"{name}.jsonl", rows, "messages") for name, rows in {"a": first, "b": second}.items()]
    data = prepare(section(*sources, clean={"near_duplicates": 0.8}), tokenizer, seed=0)
    assert places(data.train) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:2"]
    assert "  dropped 1 that nearly repeat an earlier row: b.jsonl:1 (like a.jsonl:2)" in data.report.lines()
    assert len(prepare(section(*sources), tokenizer, seed=0).train) == 4


def leaking(tmp_path: Path, **options: Any) -> DataSection:
    """Three of five rows, in two sources, stand in the evaluation as well."""
    first = file(tmp_path / "a.jsonl", said(("Say red.", "red"), ("SAY blue.", "blue "), ("Say lamp.", "lamp")))
    second = file(tmp_path / "b.jsonl", said(("Say lamp.", "lamp"), ("Say green.", "green")))
    held_out = file(tmp_path / "e.jsonl", said(("Say lamp.", "lamp"), ("Say blue.", "blue"), ("Say white.", "white")))
    return section(first, second, evaluation={"sources": [held_out]}, **options)


def test_leakage_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Training rows that also stand in the evaluation are refused with their number and the first one's place, from the
    cache too."""
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(DataError) as failed:
            prepare(leaking(tmp_path), tokenizer, seed=0, cache=cache)
        assert str(failed.value) == (
            "a.jsonl:2: it also stands in the evaluation rows\n"
            "3 rows in all. Mend them (data.clean.leakage: drop leaves them out), or name leakage in data.allow_findings"
        )


@pytest.mark.parametrize(("audit", "allowed"), [(True, []), (False, ["leakage"]), (True, ["leakage"])])
def test_leakage_is_reported(audit: bool, allowed: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """For an audit, and where the recipe allows it, rows that leak are reported and kept."""
    data = prepare(leaking(tmp_path, allow_findings=allowed), tokenizer, seed=0, audit=audit)
    assert data.report.findings() == {"leakage": 3}
    assert data.report.first("leakage") == "a.jsonl:2: it also stands in the evaluation rows"
    assert (len(data.train), len(data.evaluation)) == (5, 3)


def test_leakage_is_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With leakage: drop the training rows are left out and counted, and no row stands on both sides."""
    data = prepare(leaking(tmp_path, clean={"leakage": "drop"}), tokenizer, seed=0)
    assert places(data.train) == ["a.jsonl:1", "b.jsonl:2"]
    assert places(data.evaluation) == ["e.jsonl:1", "e.jsonl:2", "e.jsonl:3"]
    lines = data.report.lines()
    assert "  dropped 2 that also stand in the evaluation rows: a.jsonl:2, a.jsonl:3" in lines
    assert "  dropped 1 that also stand in the evaluation rows: b.jsonl:1" in lines
    assert data.report.findings() == {}


def test_leakage_is_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With leakage: keep the rows are kept, and are no finding."""
    data = prepare(leaking(tmp_path, clean={"leakage": "keep"}), tokenizer, seed=0)
    assert (len(data.train), data.report.findings()) == (5, {})


# Findings.


def found(finding: str, folders: dict[str, Path], tmp_path: Path) -> tuple[DataSection, PreTrainedTokenizerFast]:
    """Data with a finding in the second and third of four rows, but that a template's is in every row."""
    rows = said(("Say red.", "red"), ("Say blue.", "blue"), ("Say lamp.", "lamp"), ("Say white.", "white"))
    source = file(tmp_path / "a.jsonl", rows)
    if finding == "leakage":
        held_out = file(tmp_path / "e.jsonl", rows[1:3])
        return section(source, evaluation={"sources": [held_out]}), load_tokenizer(folders["plain"])
    if finding == "double_bos":
        return section(source), with_template(folders["llama"], TWICE, tmp_path)
    return section(source), with_template(folders["plain"], NO_END, tmp_path)


@pytest.mark.parametrize(
    ("finding", "count", "message"),
    [
        ("unsupervised_end_of_turn", 4, r"^a\.jsonl:1: the answer as the chat template \(.*own\.jinja\) writes it ends in"),
        ("double_bos", 4, r"^a\.jsonl:1: it begins with <s> twice; remove one of the two"),
        ("leakage", 2, r"^a\.jsonl:2: it also stands in the evaluation rows"),
    ],
)
def test_findings_are_refused_unless_they_are_allowed(
    finding: str, count: int, message: str, base: Path, llama_folder: Path, tmp_path: Path
) -> None:
    """A finding is refused with its row, reported by an audit, and counted where the recipe allows it; naming another
    finding doesn't allow it; and all of that is the same where the cache holds what was prepared before."""
    data, tokenizer = found(finding, {"plain": base, "llama": llama_folder}, tmp_path)
    others = [name for name in ("double_bos", "leakage", "unsupervised_end_of_turn", "no_supervised_token") if name != finding]
    allowed, not_allowed = (data.model_copy(update={"allow_findings": names}) for names in ((finding,), tuple(others)))
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        for refused in (data, not_allowed):
            with pytest.raises(DataError, match=message):
                prepare(refused, tokenizer, seed=0, cache=cache)
        for prepared in (
            prepare(allowed, tokenizer, seed=0, cache=cache),
            prepare(data, tokenizer, seed=0, cache=cache, audit=True),
        ):
            assert len(prepared.train) == 4
            assert prepared.report.findings() == {finding: count}
            assert prepared.report.sources[0].findings[finding].count == count


def test_a_row_counts_once_for_a_finding(base: Path, tmp_path: Path) -> None:
    """A conversation of three answers that have no end is one row with that finding."""
    data = section(file(tmp_path / "a.jsonl", [talk("q", "a", "r", "b", "s", "c")], "messages"))
    prepared = prepare(data, with_template(base, NO_END, tmp_path), seed=0, audit=True)
    assert prepared.report.findings() == {"unsupervised_end_of_turn": 1}


def test_a_row_with_nothing_to_learn_is_no_reason_to_refuse(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows with no token to learn are dropped and found, and the others are prepared, an audit or not."""
    rows = [{"prompt": "", "completion": "<|im_end|>"}, {"prompt": "a", "completion": "b"}]
    data = section(file(tmp_path / "a.jsonl", rows, "prompt_completion"), special_tokens_in_text="keep")
    for audit in (False, True):
        prepared = prepare(data, tokenizer, seed=0, audit=audit)
        assert prepared.report.findings() == {"no_supervised_token": 1}
        assert places(prepared.train) == ["a.jsonl:2"]


# Holding out.


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["say", "SAY", " Say "])), min_size=1, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_equal_rows_are_held_out_together(
    tokenizer: PreTrainedTokenizerFast, numbers: list[tuple[int, str]], fraction: float, seed: int
) -> None:
    """Of any rows, none that is held out equals one that is trained on; at most the fraction is held out, all others are
    trained on, both in their order."""
    with tempfile.TemporaryDirectory() as folder:
        rows = said(*((f"{verb} {number}.", str(number)) for number, verb in numbers))
        source = file(Path(folder) / "a.jsonl", rows)
        whole = prepare(section(source), tokenizer, seed=seed)
        try:
            data = prepare(section(source, evaluation={"fraction": fraction}), tokenizer, seed=seed)
        except DataError as error:
            # Nothing can be held out where the fraction is less than any group, and not everything may be.
            smallest = min(sum(number == other for other, _ in numbers) for number, _ in numbers)
            wanted = round(len(numbers) * fraction)
            assert wanted < smallest or wanted == len(numbers), error  # noqa: PT017 - the message is not in question
            return
        sides = data.train, data.evaluation
        assert not set(data.train.fingerprints.tolist()) & set(data.evaluation.fingerprints.tolist())
        assert 0 < len(data.evaluation) <= round(len(rows) * fraction)
        numbers_of = [[int(place.split(":")[1]) for place in places(side)] for side in sides]
        assert all(side == sorted(side) for side in numbers_of)
        assert sorted(numbers_of[0] + numbers_of[1]) == list(range(1, len(rows) + 1))
        assert [document for side in sides for document in side if document not in list(whole.train)] == []
        assert tokenize(list(zip(places(data.evaluation), data.evaluation_examples, strict=True)), tokenizer) == list(
            data.evaluation
        )
        assert (data.report.train_rows, data.report.evaluation_rows) == (len(data.train), len(data.evaluation))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_the_fraction_of_distinct_rows_is_met(
    tokenizer: PreTrainedTokenizerFast, count: int, fraction: float, seed: int
) -> None:
    """Of rows that all differ exactly the rounded number is held out."""
    wanted = round(count * fraction)
    with tempfile.TemporaryDirectory() as folder:
        source = file(Path(folder) / "a.jsonl", said(*((f"Say {number}.", str(number)) for number in range(count))))
        data = section(source, evaluation={"fraction": fraction})
        if wanted in (0, count):
            with pytest.raises(DataError, match="leaves no row to"):
                prepare(data, tokenizer, seed=seed)
        else:
            assert len(prepare(data, tokenizer, seed=seed).evaluation) == wanted


def test_the_parts_of_a_split_row_are_held_out_together(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Documents that one row was split into stand on one side; the row is one of the evaluation's examples, once."""
    rows = said(*((f"Count {number}.", " ".join(f"{number}x{step}" for step in range(30))) for number in range(10)))
    source = file(tmp_path / "a.jsonl", rows)
    data = section(source, evaluation={"fraction": 0.4}, over_length="split", max_length_tokens=48)
    prepared = prepare(data, tokenizer, seed=0)
    sides = [{place.split()[0] for place in places(side)} for side in (prepared.train, prepared.evaluation)]
    assert not sides[0] & sides[1]
    assert len(prepared.evaluation) > len(sides[1]) > 0
    asked = [example.messages[0].content for example in prepared.evaluation_examples if isinstance(example, Conversation)]
    assert asked == [rows[int(place.split(":")[1]) - 1]["instruction"] for place in dict.fromkeys(
        place.split()[0] for place in places(prepared.evaluation)
    )]  # fmt: skip


def test_evaluation_examples_are_those_of_the_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of two rows that are equal but for white space, the one that is not too long is the evaluation's example."""
    held_out = file(tmp_path / "e.jsonl", said(("Say it.", "b" + " \n \n" * 100 + "c"), ("Say it.", "b c")))
    train = file(tmp_path / "t.jsonl", said(("a", "b")))
    data = prepare(section(train, evaluation={"sources": [held_out]}, max_length_tokens=60), tokenizer, seed=0)
    assert places(data.evaluation) == ["e.jsonl:2"]
    assert [example.messages[-1].content for example in data.evaluation_examples if isinstance(example, Conversation)] == [
        "b c"
    ]


# Cleaning.


def test_short_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row with an answer of fewer characters, blanks around it aside, is dropped and counted; one that isn't learned may
    be short."""
    rows = [
        talk("q", "abc"), talk("q", "ab"), talk("q", " ab\n"), talk("q", "a", "r", "abcd"), talk("q", "abcd", "r", "a"),
    ]  # fmt: skip
    unlearned = talk("q", "a", "r", "abcd")
    unlearned["messages"][1]["weight"] = 0
    data = section(file(tmp_path / "a.jsonl", [*rows, unlearned], "messages"), clean={"minimum_answer_characters": 3})
    prepared = prepare(data, tokenizer, seed=0)
    assert places(prepared.train) == ["a.jsonl:1", "a.jsonl:6"]
    line = "  dropped 4 with an answer shorter than data.clean.minimum_answer_characters: a.jsonl:2, a.jsonl:3, a.jsonl:4, ..."
    assert line in prepared.report.lines()


@pytest.mark.parametrize("supervise", ["last", "completion"])
def test_a_short_answer_that_is_not_learned(supervise: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An earlier answer may be short where data.supervise leaves it out of what is learned."""
    source = file(tmp_path / "a.jsonl", [talk("q", "ok", "r", "a longer answer"), talk("q", "long enough")], "messages")
    data = section(source, supervise=supervise, clean={"minimum_answer_characters": 5})
    assert len(prepare(data, tokenizer, seed=0).train) == 2


@pytest.mark.parametrize(
    ("clean", "text", "expected"),
    [
        ({"unicode": "NFC"}, "cafe\u0301", "caf\u00e9"),
        ({"unicode": "NFC"}, "\ufb01x", "\ufb01x"),
        ({"unicode": "NFKC"}, "\ufb01x \uff21", "fix A"),
        ({"remove_control_characters": True}, "a\x00b\x1b[0m\x9bc\x7f", "ab[0mc"),
        ({"remove_control_characters": True}, "a\r\nb\rc\td\n", "a\nbc\td\n"),
        ({"remove_control_characters": True, "unicode": "NFC"}, "e\u0301\x00", "\u00e9"),
        ({"remove_control_characters": True, "unicode": "NFC"}, "e\x00\u0301", "\u00e9"),
        ({}, "cafe\u0301\x00\r\n", "cafe\u0301\x00\r\n"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "prompt_completion"])
def test_texts_are_cleaned(
    form: str, clean: dict[str, Any], text: str, expected: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Questions and answers are normalised and freed of control characters as asked, and the rows that change counted."""
    rows = {
        "messages": lambda text: talk(f"Q {text} Q", f"A {text} A"),
        "prompt_completion": lambda text: {"prompt": f"Q {text} Q", "completion": f"A {text} A"},
    }[form]
    sources = [
        file(tmp_path / f"{name}.jsonl", [rows(content), rows("plain")], form)
        for name, content in {"raw": text, "clean": expected}.items()
    ]
    raw, wanted = (prepare(section(source, clean=clean), tokenizer, seed=0) for source in sources)
    assert [document.token_ids for document in raw.train] == [document.token_ids for document in wanted.train]
    assert raw.report.sources[0].cleaned == int(text != expected)
    assert wanted.report.sources[0].cleaned == 0
    assert ("  changed the text of 1 by data.clean" in raw.report.lines()) == (text != expected)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(max_size=20), st.text("e\u0301\u0327\x00\r\n\ufb01\u212b", max_size=6)),
    st.sampled_from([None, "NFC", "NFKC"]),
    st.booleans(),
)
def test_cleaned_text_is_clean(text: str, unicode: str | None, control: bool) -> None:
    """What was cleaned is normalised and has no control character if so asked; cleaning it again changes nothing."""
    clean = CleanSection.model_validate({"unicode": unicode, "remove_control_characters": control})
    for example in (PlainText("", text), Conversation((Message("user", "q"), Message("assistant", text)))):
        after = cleaned(example, clean)
        found = after.completion if isinstance(after, PlainText) else after.messages[-1].content
        if control:
            assert not CONTROL_CHARACTERS.search(found)
        if unicode is not None:
            assert unicodedata.normalize(unicode, found) == found  # type: ignore[arg-type]
        assert cleaned(after, clean) is after
        if found == text:
            assert after is example


def test_tool_calls_are_cleaned(tmp_path: Path, base: Path) -> None:
    """The arguments of tool calls are cleaned like any text."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"for": ["caf\u0065\u0301"]}}}]}
    messages = [{"role": "user", "content": "q"}, call]
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}{{ m.tool_calls | default('') | string }}<|im_end|>{% endfor %}"
    )
    source = file(tmp_path / "a.jsonl", [{"messages": messages}], "messages")
    tokenizer = with_template(base, template, tmp_path)
    data = prepare(section(source, clean={"unicode": "NFC"}), tokenizer, seed=0)
    assert "caf\u00e9" in tokenizer.decode(data.train[0].token_ids)
    assert data.report.sources[0].cleaned == 1


def test_rows_are_judged_after_they_are_cleaned(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What cleaning makes empty, a special token or equal to another row is dropped for that."""
    rows = said(("Say it.", "caf\u00e9"), ("Say it.", "cafe\u0301"), ("Say it.", "\x00"), ("Say it.", "<|im_\x00end|>"))
    clean = {"unicode": "NFC", "remove_control_characters": True, "duplicates": "drop"}
    data = prepare(section(file(tmp_path / "a.jsonl", rows), clean=clean), tokenizer, seed=0)
    reasons = {reason: dropped.places for reason, dropped in data.report.sources[0].dropped.items()}
    assert reasons == {
        "duplicate": ["a.jsonl:2"], "empty_answer": ["a.jsonl:3"], "special_tokens_in_text": ["a.jsonl:4"],
    }  # fmt: skip
    assert data.report.sources[0].cleaned == 3


# First rows, mixtures, prompts, weights.


def test_first_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of each source, the evaluation's too, as many rows are read as were asked for, whatever becomes of them."""
    rows = said(("a", ""), ("b", "c"), ("d", "e"), ("f", "g"))
    sources = [file(tmp_path / f"{name}.jsonl", [{**row, "input": name} for row in rows]) for name in "xyz"]
    data = section(*sources[:2], evaluation={"sources": sources[2:]})
    prepared = prepare(data, tokenizer, seed=0, first_rows=2)
    assert [(source.rows_read, source.rows_kept) for source in prepared.report.sources] == [(2, 1)] * 3
    assert (places(prepared.train), places(prepared.evaluation)) == (["x.jsonl:2", "y.jsonl:2"], ["z.jsonl:2"])
    assert len(prepared.evaluation_examples) == 1
    many = prepare(data, tokenizer, seed=0, first_rows=100)
    assert places(many.train) == places(prepare(data, tokenizer, seed=0).train)


def test_first_rows_may_lack_an_optional_column(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A mapped column that only later rows have is no error where only the first rows are read."""
    rows = [*said(("a", "b"), ("c", "d")), {"instruction": "e", "output": "f", "context": "g"}]
    data = section(file(tmp_path / "a.jsonl", rows, columns={"input": "context"}))
    assert len(prepare(data, tokenizer, seed=0).train) == 3
    assert len(prepare(data, tokenizer, seed=0, first_rows=2).train) == 2


def mixed(tmp_path: Path, long_rows: int, short_rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A source of long rows and one of short rows, all different."""
    return (
        file(tmp_path / "long.jsonl", said(*((f"Say {n}.", f"{n} blue " * 12) for n in range(long_rows)))),
        file(tmp_path / "short.jsonl", said(*((f"Say {n}.", f"{n}") for n in range(short_rows)))),
    )


def sizes_of(data: PreparedData) -> tuple[list[int], list[int]]:
    """Rows and tokens of each of two sources."""
    rows, tokens = [0, 0], [0, 0]
    for source, length in zip(data.train.sources.tolist(), data.train.lengths.tolist(), strict=True):
        rows[source] += 1
        tokens[source] += length
    return rows, tokens


@pytest.mark.parametrize("share_of", ["tokens", "rows"])
@pytest.mark.parametrize("evaluation", [None, {"fraction": 0.25}])
def test_shares(share_of: str, evaluation: dict[str, Any] | None, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each source is repeated so that it makes up its share of the tokens, or rows, that are left to train on, of which an
    epoch has as many as before; a line for each source says so."""
    first, second = mixed(tmp_path, 12, 20)
    sources = (first | {"share": 0.3}, second | {"share": 0.7})
    data = prepare(section(*sources, share_of=share_of, evaluation=evaluation), tokenizer, seed=0)
    rows, tokens = sizes_of(data)
    sizes = tokens if share_of == "tokens" else rows
    assert data.repeats == pytest.approx([0.3 * sum(sizes) / sizes[0], 0.7 * sum(sizes) / sizes[1]])
    seen = [repeat * size for repeat, size in zip(data.repeats, sizes, strict=True)]
    assert [size / sum(seen) for size in seen] == pytest.approx([0.3, 0.7])
    assert sum(seen) == pytest.approx(sum(sizes))
    whole = sum(repeat * size for repeat, size in zip(data.repeats, tokens, strict=True))
    assert data.report.mixture == [
        f"{source['path']}: each row {repeat:.4g} times an epoch, {repeat * size / whole:.1%} of its tokens"
        for source, repeat, size in zip(sources, data.repeats, tokens, strict=True)
    ]
    assert data.report.lines()[-3:-1] == data.report.mixture
    if share_of == "tokens":
        assert data.report.mixture[0].endswith("times an epoch, 30.0% of its tokens")


def test_repeats(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source is repeated as the recipe says, with a line for each source; with no repeat there is none."""
    first, second = mixed(tmp_path, 2, 4)
    data = prepare(section(first | {"repeat": 2.5}, second), tokenizer, seed=0)
    assert data.repeats == [2.5, 1.0]
    tokens = sizes_of(data)[1]
    part = 2.5 * tokens[0] / (2.5 * tokens[0] + tokens[1])
    assert data.report.mixture == [
        f"{first['path']}: each row 2.5 times an epoch, {part:.1%} of its tokens",
        f"{second['path']}: each row 1 times an epoch, {1 - part:.1%} of its tokens",
    ]
    plain = prepare(section(first, second), tokenizer, seed=0)
    assert (plain.repeats, plain.report.mixture) == ([1.0, 1.0], [])


def test_a_share_of_nothing_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source with a share of which no row is left ends the preparation, and is named."""
    first, second = mixed(tmp_path, 3, 3)
    data = section(first | {"share": 0.5}, second | {"share": 0.5}, max_length_tokens=30)
    with pytest.raises(DataError, match=r"long\.jsonl has a share of the mixture, but no row to train on is left of it"):
        prepare(data, tokenizer, seed=0)


def asked(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The first word that the user says in each row."""
    return [tokenizer.decode(document.token_ids).split("user\n")[1].split()[0] for document in data.train]


def test_other_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each row draws one of all prompts by the seed and its place, and keeps it however many rows follow or go before."""
    template = {"prompt": "Say {{ a }}", "other_prompts": ["Write {{ a }}", "Give {{ a }}"], "completion": "{{ a }}"}
    rows = [{"a": str(number)} for number in range(60)]
    source = file(tmp_path / "a.jsonl", rows, "template", template=template)
    drawn = asked(prepare(section(source), tokenizer, seed=0), tokenizer)
    assert all(10 <= drawn.count(word) <= 35 for word in ("Say", "Write", "Give"))
    assert asked(prepare(section(source), tokenizer, seed=0), tokenizer) == drawn
    assert asked(prepare(section(source), tokenizer, seed=1), tokenizer) != drawn
    assert asked(prepare(section(source), tokenizer, seed=0, first_rows=30), tokenizer) == drawn[:30]
    before = file(tmp_path / "b.jsonl", rows[:5], "template", template=template)
    assert asked(prepare(section(before, source), tokenizer, seed=0), tokenizer)[5:] == drawn
    assert asked(prepare(section(before, source), tokenizer, seed=0), tokenizer)[:5] != drawn[:5]
    held_out = prepare(section(before, evaluation={"sources": [source]}, clean={"leakage": "keep"}), tokenizer, seed=0)
    again = [example.messages[0].content.split()[0] for example in held_out.evaluation_examples]  # type: ignore[union-attr]
    assert again == drawn


@pytest.mark.parametrize("cached", [False, True])
def test_weights_of_messages(cached: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens of an answer and its end count by the weight of its message, 1 where it has none, and not at all for 0."""
    row = talk("one", "blue", "two", "lamp", "three", "seven", "four", "Ada")
    for index, weight in {1: 0.5, 3: 0, 7: 2.5}.items():
        row["messages"][index]["weight"] = weight
    data = section(file(tmp_path / "a.jsonl", [row], "messages"))
    if cached:
        prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    (document,) = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache" if cached else None).train
    by_weight: dict[float, list[int]] = {}
    for token, weight in zip(document.token_ids, document.weights, strict=True):
        by_weight.setdefault(weight, []).append(token)
    texts = {weight: tokenizer.decode(tokens) for weight, tokens in by_weight.items() if weight}
    assert texts == {0.5: "blue<|im_end|>", 1.0: "seven<|im_end|>", 2.5: "Ada<|im_end|>"}
    assert document.supervised_tokens == sum(len(tokens) for weight, tokens in by_weight.items() if weight)


# Rows over the length.


def over_length(
    how: str, most: int, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> tuple[list[Document], PreparedData]:
    """The whole documents, and what is prepared of them with a length."""
    source = file(tmp_path / "a.jsonl", rows)
    whole = list(prepare(section(source), tokenizer, seed=0).train)
    return whole, prepare(section(source, over_length=how, max_length_tokens=most), tokenizer, seed=0)


LONG_ANSWER = said(("Count.", " ".join(map(str, range(60)))), ("Say blue.", "blue"))
LONG_QUESTION = said((" ".join(map(str, range(60))), "Yes, all of these."), ("Say blue.", "blue"))


def test_truncate_end(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is cut at its end keeps its first tokens; what was learned of the rest is counted as lost."""
    whole, data = over_length("truncate_end", 64, LONG_ANSWER, with_bos, tmp_path)
    assert data.train[0].token_ids == whole[0].token_ids[:64]
    assert data.train[0].weights == whole[0].weights[:64]
    assert data.train[1] == whole[1]
    report, lost = data.report.sources[0], sum(whole[0].supervised[64:])
    assert lost > 50
    assert (report.truncated.count, report.truncated.places) == (1, ["a.jsonl:1"])
    assert report.truncated_supervised_tokens == lost
    assert f"  cut 1 to data.max_length_tokens, and with them {lost:,} supervised tokens: a.jsonl:1" in data.report.lines()


def test_truncate_end_with_nothing_left_to_learn(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row whose answer is cut off whole is dropped as too long, and counted as that alone."""
    whole, data = over_length("truncate_end", 64, LONG_QUESTION, with_bos, tmp_path)
    report = data.report.sources[0]
    assert list(data.train) == whole[1:]
    assert report.dropped["too_long"].places == ["a.jsonl:1"]
    assert (report.truncated.count, report.truncated_supervised_tokens, report.rows_kept) == (0, 0, 1)


def test_truncate_start(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is cut at its start keeps BOS and its last tokens, with all that is learned where only the question is cut."""
    whole, data = over_length("truncate_start", 64, LONG_QUESTION, with_bos, tmp_path)
    cut = data.train[0]
    assert cut.token_ids == [with_bos.bos_token_id, *whole[0].token_ids[-63:]]
    assert cut.weights == [0.0, *whole[0].weights[-63:]]
    report = data.report.sources[0]
    assert (report.truncated.places, report.truncated_supervised_tokens) == (["a.jsonl:1"], 0)
    whole, data = over_length("truncate_start", 64, LONG_ANSWER, with_bos, tmp_path)
    assert data.train[0].token_ids == [with_bos.bos_token_id, *whole[0].token_ids[-63:]]
    lost = whole[0].supervised_tokens - data.train[0].supervised_tokens
    assert data.report.sources[0].truncated_supervised_tokens == lost > 50


def test_truncate_start_without_bos(llama_folder: Path, tmp_path: Path) -> None:
    """Where a row begins with no BOS, one that is cut at its start begins with none either."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    tokenizer.chat_template = str(tokenizer.chat_template).removeprefix("{{ bos_token }}")
    whole, data = over_length("truncate_start", 64, LONG_QUESTION, tokenizer, tmp_path)
    assert whole[0].token_ids[0] != tokenizer.bos_token_id
    assert data.train[0].token_ids == whole[0].token_ids[-64:]


def test_split(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is split becomes documents of the length that begin with BOS and together hold all of its tokens; those
    with nothing to learn are left out, and the labels of first tokens counted as lost."""
    rows = said((" ".join(map(str, range(40))), " ".join(map(str, range(60)))), ("Say blue.", "blue"))
    whole, data = over_length("split", 64, rows, with_bos, tmp_path)
    *parts, short = data.train
    assert short == whole[1]
    bos, ids = with_bos.bos_token_id, whole[0].token_ids
    assert whole[0].weights[:64] == [0.0] * 64
    expected = [ids[:64], *([bos, *ids[start : start + 63]] for start in range(64, len(ids), 63))]
    assert [part.token_ids for part in parts] == expected[1:]  # the first part holds nothing but the question
    assert places(parts) == [f"a.jsonl:1 part {number}" for number in range(2, len(expected) + 1)]
    report = data.report.sources[0]
    lost = whole[0].supervised_tokens - sum(part.supervised_tokens for part in parts)
    assert (report.split.places, report.truncated.count) == (["a.jsonl:1"], 0)
    assert report.truncated_supervised_tokens == lost
    assert 0 < lost <= len(expected)
    assert (report.rows_kept, report.documents, data.report.train_rows) == (2, len(data.train), len(data.train))
    split = "  split 1 into documents of data.max_length_tokens, whose first tokens have no label"
    assert f"{split} ({lost} labels lost): a.jsonl:1" in data.report.lines()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=5),
    st.sampled_from(["drop", "truncate_end", "truncate_start", "split"]),
    st.integers(8, 90),
)
def test_no_supervised_token_goes_uncounted(
    with_bos: PreTrainedTokenizerFast, words: list[tuple[int, int]], how: str, most: int
) -> None:
    """Of any rows, what is kept is no longer than the length, begins with BOS and has something to learn; every learned
    token is kept, counted as lost, or of a row that is dropped."""
    rows = said(*((f"{row} " * question, f"a{row} " * answer) for row, (question, answer) in enumerate(words)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            whole, data = over_length(how, most, rows, with_bos, Path(folder))
        except DataError as error:
            assert "leaves no row" in str(error)  # noqa: PT017 - every row may be dropped
            return
    assert all(len(document.token_ids) <= most for document in data.train)
    assert all(document.token_ids[0] == with_bos.bos_token_id for document in data.train)
    assert all(document.supervised_tokens and not document.supervised[0] for document in data.train)
    report = data.report.sources[0]
    kept = {place.split()[0] for place in places(data.train)}
    of_kept = sum(document.supervised_tokens for document in whole if document.place in kept)
    assert report.supervised_tokens + report.truncated_supervised_tokens == of_kept
    dropped = report.dropped["too_long"].count if "too_long" in report.dropped else 0
    assert len(kept) + dropped == len(rows) == report.rows_read
    assert report.truncated.count + report.split.count == sum(
        len(document.token_ids) > most for document in whole if document.place in kept
    )
