"""How many rows are read, how often each is seen in an epoch, which prompt it draws, and how much its
messages weigh."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare
from tests.unit.data_prep.rows import file, places, said, section, talk


def test_first_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of each source, the evaluation's too, as many rows are read as were asked for, whatever becomes of
    them."""
    rows = said(("a", ""), ("b", "c"), ("d", "e"), ("f", "g"))
    sources = [file(tmp_path / f"{name}.jsonl", [{**row, "input": name} for row in rows]) for name in "xyz"]
    data = section(*sources[:2], evaluation={"sources": sources[2:]})
    prepared = prepare(data, tokenizer, seed=0, first_rows=2)
    assert [(source.rows_read, source.rows_kept) for source in prepared.report.sources] == [(2, 1)] * 3
    assert (places(prepared.train), places(prepared.evaluation)) == (
        ["x.jsonl:2", "y.jsonl:2"],
        ["z.jsonl:2"],
    )
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
def test_shares(
    share_of: str, evaluation: dict[str, Any] | None, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each source is repeated so that it makes up its share of the tokens, or rows, that are left to train
    on, of which an epoch has as many as before; a line for each source says so."""
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
        f"{source['path']}: each row {repeat:.4g} times per epoch, {repeat * size / whole:.1%} of its tokens"
        for source, repeat, size in zip(sources, data.repeats, tokens, strict=True)
    ]
    assert data.report.lines()[-3:-1] == data.report.mixture
    if share_of == "tokens":
        assert data.report.mixture[0].endswith("times per epoch, 30.0% of its tokens")


def test_repeats(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source is repeated as the recipe says, with a line for each source; with no repeat there is none."""
    first, second = mixed(tmp_path, 2, 4)
    data = prepare(section(first | {"repeat": 2.5}, second), tokenizer, seed=0)
    assert data.repeats == [2.5, 1.0]
    tokens = sizes_of(data)[1]
    part = 2.5 * tokens[0] / (2.5 * tokens[0] + tokens[1])
    assert data.report.mixture == [
        f"{first['path']}: each row 2.5 times per epoch, {part:.1%} of its tokens",
        f"{second['path']}: each row 1 times per epoch, {1 - part:.1%} of its tokens",
    ]
    plain = prepare(section(first, second), tokenizer, seed=0)
    assert (plain.repeats, plain.report.mixture) == ([1.0, 1.0], [])


def test_a_share_of_nothing_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source with a share of which no row is left ends the preparation, and is named."""
    first, second = mixed(tmp_path, 3, 3)
    data = section(first | {"share": 0.5}, second | {"share": 0.5}, max_length_tokens=30)
    with pytest.raises(
        DataError, match=r"long\.jsonl has a share of the mixture, but no rows left to train on"
    ):
        prepare(data, tokenizer, seed=0)


def asked(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The first word that the user says in each row."""
    return [tokenizer.decode(document.token_ids).split("user\n")[1].split()[0] for document in data.train]


def test_other_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each row draws one of all prompts by the seed and its place, and keeps it however many rows follow or
    go before."""
    template = {
        "prompt": "Say {{ a }}",
        "other_prompts": ["Write {{ a }}", "Give {{ a }}"],
        "completion": "{{ a }}",
    }
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
    held_out = prepare(
        section(before, evaluation={"sources": [source]}, clean={"leakage": "keep"}), tokenizer, seed=0
    )
    again = [example.messages[0].content.split()[0] for example in held_out.evaluation_examples]  # type: ignore[union-attr]
    assert again == drawn


@pytest.mark.parametrize("cached", [False, True])
def test_weights_of_messages(cached: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens of an answer and its end count by the weight of its message, 1 where it has none, and not at
    all for 0."""
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
