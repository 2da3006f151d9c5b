"""Rows that nearly repeat an earlier one are found, and others are not."""

import hashlib
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cleaning import near_duplicates
from data_prep.cleaning.near_duplicates import RECENT_ROWS, SHINGLE_WORDS, NearDuplicates

ROOT = Path(__file__).resolve().parents[3]


def words(count: int, seed: int) -> list[str]:
    """Different words, others for another seed."""
    return [f"w{seed}x{number}" for number in random.Random(seed).sample(range(10**6), count)]  # noqa: S311 - no secret


def pair(length: int, changed: int, seed: int) -> tuple[str, str]:
    """A text, and the same with its last words changed."""
    kept = words(length, seed)
    return " ".join(kept), " ".join(kept[: length - changed] + words(changed, -seed - 1))


def jaccard(one: str, other: str) -> float:
    """The exact similarity, counted."""
    first, second = (
        {
            tuple(text.split()[start : start + SHINGLE_WORDS])
            for start in range(len(text.split()) - SHINGLE_WORDS + 1)
        }
        for text in (one, other)
    )
    return len(first & second) / len(first | second)


def answers(texts: list[str], threshold: float = 0.8, batch: int = 512) -> list[str | None]:
    """What the rows nearly repeat, asked in batches; the place of a row is its number."""
    rows = NearDuplicates(threshold)
    places = [str(number) for number in range(len(texts))]
    starts = range(0, len(texts), batch)
    return [answer for i in starts for answer in rows.first_like(texts[i : i + batch], places[i : i + batch])]


def at_the_threshold() -> list[str]:
    """Texts of which about half nearly repeat another, by estimates that are close to the threshold."""
    return [text for seed in range(200) for text in pair(60, 6, seed)]


@pytest.mark.parametrize("position", [0, 1, 50, 99])
def test_a_copy_with_one_word_changed_is_found(position: int) -> None:
    """A text of 100 words and its copy with one of them changed are near duplicates at 0.8, in one batch and
    in two."""
    original = words(100, 0)
    changed = [*original[:position], "other", *original[position + 1 :]]
    texts = [" ".join(words(100, 1)), " ".join(original), " ".join(changed)]
    assert answers(texts) == answers(texts, batch=1) == [None, None, "1"]


def test_unrelated_texts_are_kept() -> None:
    """Of 3,000 unrelated texts each is kept, even at a threshold of 0.2."""
    assert answers([" ".join(words(40, seed)) for seed in range(3000)], threshold=0.2) == [None] * 3000


def test_a_row_is_like_others_only() -> None:
    """A row is not like itself; given once more it is like the first, and so is each after it, none of which
    is kept."""
    text = " ".join(words(30, 0))
    assert answers([text]) == [None]
    assert answers([text] * 4) == answers([text] * 4, batch=1) == [None, "0", "0", "0"]


def test_the_earliest_of_several_is_named() -> None:
    """A row that nearly repeats two kept rows, which are no near duplicates of each other, names the earlier
    one."""
    text = words(100, 0)
    start, end = [*words(12, 1), *text[12:]], [*text[:88], *words(12, 2)]
    assert jaccard(" ".join(start), " ".join(end)) < 0.65
    assert answers([" ".join(row) for row in (start, end, text)], threshold=0.72) == [None, None, "0"]
    assert answers([" ".join(row) for row in (end, start, text)], threshold=0.72) == [None, None, "0"]


def test_case_and_whitespace_make_no_difference() -> None:
    """Texts that differ in case and in kinds and amounts of whitespace only are alike at any threshold."""
    text = " ".join(words(20, 0)) + " Straße"
    assert answers([text, f"\n {text.upper()}", text.replace(" ", "\t\u00a0\r\n")], threshold=0.999) == [
        None,
        "0",
        "0",
    ]


def test_the_order_of_words_matters() -> None:
    """A text is not like its own words in another order."""
    text = words(100, 0)
    assert (
        answers([" ".join(text), " ".join(sorted(text)), " ".join(reversed(text))], threshold=0.3)
        == [None] * 3
    )


def test_a_text_shorter_than_a_shingle_is_like_its_copies_only() -> None:
    """Texts of no word to four are near duplicates of equal texts, and of no others."""
    texts = ["", "yes", "no", "a b c d", "a b c e", "a b c d e", " ", "Yes", "no", "a  B c d", "b c d", "\n"]
    assert answers(texts, threshold=0.1) == [*[None] * 6, "0", "1", "2", "3", None, "0"]


def test_any_text_can_be_compared() -> None:
    """Text in scripts without spaces, NUL and half a surrogate pair are compared like others."""
    texts = ["今日は天気がいいです。", "\x00", "broken \ud83d emoji", "👍🏽", "今日は天気が悪いです。"]
    assert answers(texts * 2) == [*[None] * 5, "0", "1", "2", "3", "4"]


def test_recall_and_precision() -> None:
    """At 0.8, of 500 pairs with J of 0.88 to 0.93 at least 99 % are found, and of 500 with 0.65 to 0.71 at
    most 1 %."""
    shapes = {
        True: [(100, 5), (180, 7), (60, 2), (90, 4), (200, 10)],
        False: [(100, 18), (180, 36), (60, 10), (35, 6), (200, 40)],
    }
    for alike, lengths in shapes.items():
        pairs = [pair(*lengths[seed % 5], seed) for seed in range(500)]
        least, most = (0.88, 0.94) if alike else (0.65, 0.71)
        assert all(least <= jaccard(*both) <= most for both in pairs)
        found = answers([text for both in pairs for text in both])
        assert all(answer in (None, str(number - number % 2)) for number, answer in enumerate(found))
        assert len(found) - found.count(None) >= 495 if alike else len(found) - found.count(None) <= 5


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("ABCab"), max_size=12).map(" ".join), max_size=30),
    st.sampled_from([0.1, 0.5, 0.8, 0.95]),
    st.integers(1, 31),
    st.integers(1, 10),
)
def test_batches_make_no_difference(texts: list[str], threshold: float, batch: int, recent: int) -> None:
    """The answers are the same however the rows are split, and wherever they are looked up, in the dict or in
    the index; they name earlier rows that were kept, and no kept row equals another."""
    whole = answers(texts, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "RECENT_ROWS", recent)
        assert answers(texts, threshold, batch) == whole
    kept = {
        str(number): text.lower()
        for number, (text, answer) in enumerate(zip(texts, whole, strict=True))
        if answer is None
    }
    assert all(
        answer is None or (answer in kept and int(answer) < number) for number, answer in enumerate(whole)
    )
    assert len(set(kept.values())) == len(kept)


def test_every_process_gives_the_same_answers() -> None:
    """Estimates close to the threshold fall on the same side of it in any process, whatever seeds Python's
    hashes."""
    code = "from tests.unit.data_prep.test_near_duplicates import *; print(answers(at_the_threshold()))"
    expected = answers(at_the_threshold())
    assert 20 < expected.count(None) - 200 < 180
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == repr(expected)


def test_the_answers_stay_as_they_are() -> None:
    """The answers for the same rows are those of the day the test was written, whatever the platform and the
    versions."""
    digest = hashlib.sha256(repr(answers(at_the_threshold())).encode()).hexdigest()
    assert digest == "fe9c4bd7b5fa34c6de1dcfc76950272f80ded8d6783a78185bcf803ed949401d"


def test_importing_it_loads_nothing_heavy() -> None:
    """The module loads numpy and rensa when it is used, not before, and torch never."""
    show = "print([name for name in ('numpy', 'rensa', 'torch') if name in sys.modules])"
    code = (
        f"import sys; from data_prep.cleaning.near_duplicates import NearDuplicates; {show}; "
        f"NearDuplicates(0.8).first_like(['a'], ['b']); {show}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['numpy', 'rensa']"]


def test_memory_of_a_kept_row() -> None:
    """A kept row takes less than 600 bytes at 0.8, its place included."""
    texts = [" ".join(words(8, seed)) for seed in range(2 * RECENT_ROWS)]
    NearDuplicates(0.8).first_like(["load the library"], [""])
    tracemalloc.start()
    try:
        rows = NearDuplicates(0.8)
        for start in range(0, len(texts), 512):
            rows.first_like(texts[start : start + 512], [f"train.jsonl:{start + i}" for i in range(512)])
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / len(texts) < 600


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 80, float("nan")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float) -> None:
    """A threshold of 0, of 1 or beyond is refused, with what was got and what is expected."""
    with pytest.raises(ValueError, match=r"over 0 and under 1"):
        NearDuplicates(threshold)


def test_each_text_has_a_place() -> None:
    """More texts than places are refused; no texts have no answers."""
    assert NearDuplicates(0.8).first_like([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        NearDuplicates(0.8).first_like(["a", "b"], ["1"])
