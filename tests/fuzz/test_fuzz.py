"""Models, adapters and runs that were damaged or never right: every command ends in an answer or in a
message."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import running
from tests.fuzz.cases import Case, make_case
from tests.fuzz.running import LONGEST_MESSAGE, Fuzzer, judged
from tests.fuzz.subjects import BASES

SEEDS, MORE_SEEDS = range(60), range(60, 360)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    """One for all cases, so that what they work on is made once."""
    fuzzer = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield fuzzer
    fuzzer.stop()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_changed_file_ends_in_an_answer_or_a_message(fuzzer: Fuzzer, seed: int) -> None:
    """A command on changed files ends with exit code 0, 2 or 3, in time, without a traceback."""
    outcome = fuzzer.run(seed)
    again = f".venv/bin/python benchmarks/bench_fuzz.py --case {seed}"
    assert not outcome.failure, f"{outcome.words}\n{outcome.failure}\n{outcome.details}\nagain: {again}"


@pytest.mark.long
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_more_changed_files_end_so(fuzzer: Fuzzer, seed: int) -> None:
    """So do more of them."""
    test_a_changed_file_ends_in_an_answer_or_a_message(fuzzer, seed)


@pytest.mark.long
def test_a_hang_is_found(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that outlasts its limit is a failure, and the next one runs all the same."""
    with monkeypatch.context() as patched:
        patched.setattr(running, "LIMIT_SECONDS", 0)
        assert "a hang" in fuzzer.run(0).failure
    assert not fuzzer.run(0).failure


def test_a_seed_is_a_case(fuzzer: Fuzzer, tmp_path: Path) -> None:
    """The same seed makes the same files and the same command; another makes others."""
    fuzzer.run(0)  # makes what cases work on
    made = []
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        folder = tmp_path / name
        folder.mkdir()
        case = make_case(seed, fuzzer.scratch / "subjects", folder)
        files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        content = {str(name): path.read_bytes().replace(bytes(folder), b"") for name, path in files.items()}
        made.append((case.words, case.changes, content))
    assert made[0] == made[1] != made[2]


def test_what_cases_work_on_is_whole(fuzzer: Fuzzer) -> None:
    """Each base, the adapter and the run can be used before anything is changed; a case then fails for its
    changes alone."""
    fuzzer.run(0)
    subjects = fuzzer.scratch / "subjects"
    for target in (*BASES, "adapter", "runs/two_steps-001"):
        case = Case(
            0,
            ["generate", str(subjects / target), "--prompt", "Say blue.", "--max-new-tokens", "2"],
            [],
            frozenset(),
        )
        outcome = running.run_case(case, fuzzer.scratch)
        assert outcome.code == 0, f"{target}: {outcome.message}{outcome.details}"


@pytest.mark.parametrize(
    ("code", "said", "failure"),
    [
        (0, "", ""),
        (2, "error: config.json: vocab_size is 0\n", ""),
        (3, "error: config.json: the check failed\n", ""),
        (1, "error: config.json: vocab_size is 0\n", "exit 1"),
        (130, "", "exit 130"),
        (None, "", "exit None"),
        (
            1,
            'Traceback (most recent call last):\n  File "/x/finetune/models/load.py", line 3, in '
            "load\nKeyError: 1\n",
            "load",
        ),
        (2, "error: a\nTraceback (most recent call last):\nKeyError: 1\n", "KeyError"),
    ],
)
def test_failures_are_known(code: int | None, said: str, failure: str) -> None:
    """A traceback fails a case, and so does an exit code that is none of 0, 2 and 3."""
    outcome = judged(a_case(), code, said, "", 0.1, prepared=False)
    assert failure in outcome.failure
    assert bool(outcome.failure) is bool(failure)


@pytest.mark.parametrize(
    ("said", "weakness"),
    [
        ("error: config.json: vocab_size is 0\n", None),
        ("", "no message"),
        ("error:\n", "no message"),
        ("error: config.json: a\nerror: config.json: b\n", "a second error line"),
        (f"error: config.json: {'x' * LONGEST_MESSAGE}\n", "characters"),
        ("error: something went wrong\n", "names no file or key"),
    ],
)
def test_weaknesses_are_known(said: str, weakness: str | None) -> None:
    """A message is weak that is empty, not the only one, long, or about nothing that the user has."""
    found = judged(a_case(), 2, said, "", 0.1, prepared=False).weaknesses
    assert [weakness in text for text in found] == [True] if weakness else not found


def test_what_is_said_too_late_is_known() -> None:
    """A fault of the model that is said after the data were prepared is a weakness."""
    found = judged(a_case(), 2, "error: config.json: vocab_size is 0\n", "", 0.1, prepared=True).weaknesses
    assert found == ("said after the data were prepared",)


def a_case() -> Case:
    return Case(
        1,
        ["train", "recipe.yaml"],
        [("base/config.json", "vocab_size = 0")],
        frozenset({"config.json", "base"}),
    )
