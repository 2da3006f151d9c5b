"""Which rows are held out for the evaluation."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.chat.tokenization import tokenize
from data_prep.errors import DataError
from data_prep.messages import Conversation
from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, places, said, section


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["say", "SAY", " Say "])), min_size=1, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_equal_rows_are_held_out_together(
    tokenizer: PreTrainedTokenizerFast, numbers: list[tuple[int, str]], fraction: float, seed: int
) -> None:
    """Of any rows, none that is held out equals one that is trained on; at most the fraction is held out, all
    others are trained on, both in their order."""
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
        assert tokenize(
            list(zip(places(data.evaluation), data.evaluation_examples, strict=True)), tokenizer
        ) == list(data.evaluation)
        assert (data.report.train_rows, data.report.evaluation_rows) == (
            len(data.train),
            len(data.evaluation),
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_the_fraction_of_distinct_rows_is_met(
    tokenizer: PreTrainedTokenizerFast, count: int, fraction: float, seed: int
) -> None:
    """Of rows that all differ exactly the rounded number is held out."""
    wanted = round(count * fraction)
    with tempfile.TemporaryDirectory() as folder:
        source = file(
            Path(folder) / "a.jsonl", said(*((f"Say {number}.", str(number)) for number in range(count)))
        )
        data = section(source, evaluation={"fraction": fraction})
        if wanted in (0, count):
            with pytest.raises(DataError, match="leaves no rows to"):
                prepare(data, tokenizer, seed=seed)
        else:
            assert len(prepare(data, tokenizer, seed=seed).evaluation) == wanted


def test_the_parts_of_a_split_row_are_held_out_together(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Documents that one row was split into stand on one side; the row is one of the evaluation's examples,
    once."""
    rows = said(
        *((f"Count {number}.", " ".join(f"{number}x{step}" for step in range(30))) for number in range(10))
    )
    source = file(tmp_path / "a.jsonl", rows)
    data = section(source, evaluation={"fraction": 0.4}, over_length="split", max_length_tokens=48)
    prepared = prepare(data, tokenizer, seed=0)
    sides = [{place.split()[0] for place in places(side)} for side in (prepared.train, prepared.evaluation)]
    assert not sides[0] & sides[1]
    assert len(prepared.evaluation) > len(sides[1]) > 0
    asked = [
        example.messages[0].content
        for example in prepared.evaluation_examples
        if isinstance(example, Conversation)
    ]
    assert asked == [rows[int(place.split(":")[1]) - 1]["instruction"] for place in dict.fromkeys(
        place.split()[0] for place in places(prepared.evaluation)
    )]  # fmt: skip


def test_evaluation_examples_are_those_of_the_documents(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of two rows that are equal but for white space, the one that is not too long is the evaluation's
    example."""
    held_out = file(tmp_path / "e.jsonl", said(("Say it.", "b" + " \n \n" * 100 + "c"), ("Say it.", "b c")))
    train = file(tmp_path / "t.jsonl", said(("a", "b")))
    data = prepare(
        section(train, evaluation={"sources": [held_out]}, max_length_tokens=60), tokenizer, seed=0
    )
    assert places(data.evaluation) == ["e.jsonl:2"]
    assert [
        example.messages[-1].content
        for example in data.evaluation_examples
        if isinstance(example, Conversation)
    ] == ["b c"]
