"""Rows that are prompts without an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.audit.report import NOTES
from data_prep.errors import DataError
from finetune.errors import FinetuneError
from finetune.training.inputs import build_inputs
from tests.support.grpo import OBJECTIVE, Asking
from tests.support.preferences import column
from tests.support.processes import start, trainer_of
from tests.support.recipes import prompts_recipe

TEXTS = [{"prompt": f"number {index}?"} for index in range(8)]
CHATS = [{"prompt": [{"role": "user", "content": f"Count to {index}."}]} for index in range(8)]


def of(tmp_path: Path, rows: list[dict[str, Any]], form: str = "prompt") -> dict[str, Any]:
    """A data section of these rows, two of them held out."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "train": [{"path": str(tmp_path / "prompts.jsonl"), "format": form}],
        "evaluation": {"rows": 2},
    }


@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["texts", "messages"])
def test_rewards_that_read_no_answer_need_none(
    asking: Asking, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """The model is asked each row's own prompt, and evaluated on the held-out ones."""
    recipe = asking(data=of(tmp_path, rows), train={"max_steps": 1, "evaluate_every": 1})
    feed: Any = trainer_of(recipe, Path("unused")).feed
    for question, document in zip(feed.questions, feed.table, strict=True):
        prompt = list(question.prompt_ids)
        assert document.token_ids[: len(prompt)] == prompt
        assert len(document.token_ids) == len(prompt) + 1
        assert question.references == ()
    run = start(recipe)
    assert len(column(run, "eval/reward")) == 2


def test_the_prompt_is_that_of_a_row_with_an_answer(asking: Asking, tmp_path: Path) -> None:
    """The same tokens are asked, and the same answers drawn."""
    answered = [row | {"completion": "it is 3"} for row in TEXTS]
    alone = asking(data=of(tmp_path, TEXTS), train={"max_steps": 2})
    first = start(alone, "alone")
    second = start(
        asking(data=of(tmp_path, answered, "prompt_completion"), train={"max_steps": 2}), "answered"
    )
    assert column(first, "train/reward") == column(second, "train/reward")


@pytest.mark.parametrize("kind", ["exact_match", "rougeL", "number"])
def test_a_reward_that_compares_names_the_row_without_an_answer(
    asking: Asking, tmp_path: Path, kind: str
) -> None:
    """Before a weight is loaded."""
    objective = OBJECTIVE | {"rewards": {"own": {"kind": kind}}}
    message = r"objective.rewards.own: .*prompts.jsonl:\d has no answer to compare with: give it one"
    with pytest.raises(FinetuneError, match=message):
        build_inputs(asking(objective=objective, data=of(tmp_path, TEXTS)))


def test_a_metric_that_compares_names_the_row_without_an_answer(asking: Asking, tmp_path: Path) -> None:
    """Before the first step."""
    recipe = asking(data=of(tmp_path, TEXTS), evaluate={"metrics": ["exact_match"]})
    with pytest.raises(FinetuneError, match=r"prompts.jsonl:\d has no answer to compare with"):
        start(recipe)


@pytest.mark.parametrize("objective", ["supervised", "dpo", "kto"])
def test_objectives_that_learn_answers_refuse_prompts_alone(
    drawing_base: Path, tmp_path: Path, objective: str
) -> None:
    """By their source."""
    train = {"global_batch_size": 4, "micro_batch_size": 2}
    changed = {"data": of(tmp_path, TEXTS)}
    recipe = prompts_recipe(tmp_path, drawing_base, {"kind": objective}, train, changed)
    with pytest.raises(DataError, match=r"prompts.jsonl: 8 of its rows"):
        build_inputs(recipe)


def test_the_report_counts_them(asking: Asking, tmp_path: Path) -> None:
    """Beside all else that is known of kept rows."""
    report = build_inputs(asking(data=of(tmp_path, TEXTS))).data.report
    assert any(f"kept 8 {NOTES['no_answer']}" in line for line in report.lines())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "prompt is empty, so nothing is asked"),
        ({"prompt": []}, "prompt is empty; what is to be answered is a user's turn"),
        ({"prompt": "a", "completion": "b"}, "completion is an answer, and format prompt reads none"),
        ({"prompt": "a", "system": "b"}, "system needs a conversation; prompt must then be a list"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "prompt ends with the assistant's turn; what is to be answered is a user's turn",
        ),
        ({"question": "a"}, "no column 'prompt'"),
    ],
)
def test_bad_rows_are_refused(asking: Asking, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    """With their place."""
    with pytest.raises(DataError, match=r"prompts.jsonl:1, read as format 'prompt': ") as error:
        build_inputs(asking(data=of(tmp_path, [row, *TEXTS])))
    assert message in str(error.value)


def test_auto_takes_no_row_for_a_prompt_alone(asking: Asking, tmp_path: Path) -> None:
    """Whose answer may be in a column of another name."""
    rows = [row | {"response": "3"} for row in TEXTS]
    with pytest.raises(DataError, match="format auto: no format fits"):
        build_inputs(asking(data=of(tmp_path, rows, "auto")))
