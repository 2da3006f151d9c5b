"""What an answer is worth, by each kind of reward."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from data_prep.messages import Conversation, Message
from finetune.errors import FinetuneError
from finetune.evaluation.rewards import Rewards
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.models.device import choose_precision
from finetune.recipe.schema.rewards import RewardSection
from finetune.scoring.measured import Prediction, Question
from finetune.scoring.rewards import last_number

ORDER = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "minLength": 1},
        "quantity": {"type": "integer", "minimum": 1},
    },
    "required": ["product", "quantity"],
    "additionalProperties": False,
}


def rewarded(
    section: dict[str, Any],
    answer: str,
    *references: str,
    tests: str = "",
    tokens: int = 1,
    labels: tuple[str, ...] = (),
    allow_code: tuple[str, ...] = (),
) -> float:
    """The reward of an answer beside its row's answers."""
    first = references[0] if references else "x"
    row = Conversation((Message("user", "How many?"), Message("assistant", first)), tests=tests)
    question = Question("rows.json row 1", row, (1, 2), references or ("x",), tests)
    table = {"own": RewardSection.model_validate(section)}
    rewards = Rewards(table, labels, precision=choose_precision("fp32"), allow_code=allow_code)
    rewards.check([question])
    ((found,),) = rewards.of([Prediction(question, (answer,))], [tokens])
    return found


@pytest.mark.parametrize(
    ("section", "answer", "reference", "expected"),
    [
        ({"kind": "exact_match"}, " blue\n", "blue", 1),
        ({"kind": "exact_match"}, "Blue", "blue", 0),
        ({"kind": "exact_match"}, "<think>is it?</think>blue", "blue", 1),
        ({"kind": "squad_f1"}, "the blue sky", "blue", 2 / 3),
        ({"kind": "rouge1"}, "blue sky", "blue", 2 / 3),
        ({"kind": "chrf"}, "blue", "blue", 1),
        ({"kind": "number"}, "3 + 4 = 7, so it is 7.0.", "the sum is 7", 1),
        ({"kind": "number"}, "1,234 lamps", "1234", 1),
        ({"kind": "number"}, "-3", "3", 0),
        ({"kind": "number"}, "none at all", "3", 0),
        ({"kind": "regex", "pattern": r"<answer>.*</answer>"}, "so <answer>a\nb</answer>", "x", 1),
        ({"kind": "regex", "pattern": r"^\d+$"}, "seven", "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "lamp", "quantity": 2}', "x", 1),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "lamp", "quantity": 2.5}', "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "lamp", "quantity": true}', "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "lamp"}', "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "", "quantity": 2}', "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, '{"product": "a", "quantity": 2, "b": 1}', "x", 0),
        ({"kind": "json_schema", "json_schema": ORDER}, "two lamps", "x", 0),
        ({"kind": "json_schema", "json_schema": {"items": {"enum": [1, "a"]}}}, '[1, "a"]', "x", 1),
        ({"kind": "json_schema", "json_schema": {"items": {"enum": [1, "a"]}}}, "[true]", "x", 0),
        ({"kind": "json_schema", "json_schema": {"anyOf": [{"type": "null"}, {"const": 3}]}}, "3", "x", 1),
        (
            {
                "kind": "json_schema",
                "json_schema": {"items": {"$ref": "#/$defs/one"}, "$defs": {"one": {"const": 1}}},
            },
            "[1, 2]",
            "x",
            0,
        ),
    ],
)
def test_rewards_are_what_they_say(
    section: dict[str, Any], answer: str, reference: str, expected: float
) -> None:
    """Each by an answer that has it, and one that hasn't."""
    assert rewarded(section, answer, reference) == pytest.approx(expected)


def test_the_best_reference_counts() -> None:
    """Other answers of a row are as good as its own."""
    assert rewarded({"kind": "number"}, "4", "3", "4") == 1


def test_a_label_begins_the_answer() -> None:
    """As the metric accuracy reads it."""
    assert rewarded({"kind": "label"}, "Blue, I think", "blue", labels=("blue", "red")) == 1
    assert rewarded({"kind": "label"}, "I think blue", "blue", labels=("blue", "red")) == 0


@pytest.mark.parametrize(
    ("bounds", "tokens", "expected"),
    [
        ({"most_tokens": 10}, 10, 0), ({"most_tokens": 10}, 11, -1), ({"least_tokens": 4}, 3, -1),
        ({"most_tokens": 10, "margin_tokens": 4}, 11, -0.25), ({"most_tokens": 10, "margin_tokens": 4}, 40, -1),
        ({"least_tokens": 8, "margin_tokens": 4}, 6, -0.5),
    ],
)  # fmt: skip
def test_length_is_punished_outside_its_bounds(bounds: dict[str, int], tokens: int, expected: float) -> None:
    """At once, or on a line over the margin."""
    assert rewarded({"kind": "length", **bounds}, "any", tokens=tokens) == expected


@pytest.mark.skipif(why_no_sandbox() is not None, reason="no sandbox on this machine")
def test_tests_are_run_in_the_sandbox() -> None:
    """The code of an answer passes its row's tests, or doesn't; one that hangs doesn't."""
    section, tests = {"kind": "pass", "seconds": 1}, "assert double(4) == 8"
    assert rewarded(section, "```python\ndef double(x): return 2 * x\n```", tests=tests) == 1
    assert rewarded(section, "def double(x): return x", tests=tests) == 0
    assert rewarded(section, "while True: pass", tests=tests) == 0


def own_file(folder: Path, body: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A reward of a file with this function, and its permission."""
    code = folder / "rewards.py"
    code.write_text(f"import time\ndef reward(prompt, answer, references):\n    {body}\n")
    return {"kind": "python", "code": str(code)}, (hashlib.sha256(code.read_bytes()).hexdigest(),)


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    """Gets the prompt, the answer and the row's answers."""
    section, allowed = own_file(tmp_path, "return len(prompt) + 10 * len(answer) + 100 * len(references)")
    assert rewarded(section, "abc", "a", "b", allow_code=allowed) == 9 + 30 + 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "it raised ZeroDivisionError: division by zero"),
        ("return 'good'", "it returned 'good'; expected a number"),
        ("return float('nan')", "it is nan, and no finite number"),
        ("raise SystemExit(3)", "it raised SystemExit: 3"),
        ("time.sleep(60)", "it takes more than 0.1 s"),
        (
            "\n    while True:\n        try:\n            time.sleep(1)\n        except Exception: pass",
            "more than 0.1 s",
        ),
    ],
)
def test_a_reward_that_fails_counts_as_told(tmp_path: Path, body: str, message: str) -> None:
    """It ends the run with its row and reason, or counts as 0."""
    section, allowed = own_file(tmp_path, body)
    section |= {"seconds": 0.1}
    with pytest.raises(
        FinetuneError, match=r"objective.rewards.own can't be had of an answer to rows.json row 1"
    ) as e:
        rewarded(section, "abc", allow_code=allowed)
    assert message in str(e.value)
    assert rewarded(section | {"on_error": "zero"}, "abc", allow_code=allowed) == 0


def test_a_pattern_that_never_ends_is_stopped() -> None:
    """Python's regular expressions can take as long as the universe."""
    section = {"kind": "regex", "pattern": "(a+)+$", "seconds": 0.2, "on_error": "zero"}
    assert rewarded(section, "a" * 60 + "b") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("3 and 4", 4), ("-1,000.50", -1000.5), ("a1b2", 2), ("3.", 3), (".5", 0.5)],
)
def test_the_last_number_of_a_text(text: str, expected: float | None) -> None:
    """With commas, signs and fractions."""
    found = last_number(text)
    assert (None if found is None else float(found)) == expected
