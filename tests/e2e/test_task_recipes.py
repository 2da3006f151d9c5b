"""Each recipe of recipes/tasks on rows in the form that its hub data set has: trained, measured, scored
again."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune.evaluation.evaluation import Evaluation
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.models.device import choose_precision
from finetune.recipe.load import load_recipe
from finetune.recipe.shipped import recipes_folder
from finetune.runs.target import resolve_target
from tests.support.processes import start

CONTEXT = "The brass lamp was sent to Ada on Friday."
MBPP = {"test_list": ["assert f(1) == 2"], "test_setup_code": "", "challenge_test_list": []}
HUB_ROWS: dict[str, dict[str, Any]] = {
    "sentiment": {"idx": 0, "sentence": "a fine film {n}", "label": 1},
    "sentiment_head": {"idx": 0, "sentence": "a fine film {n}", "label": 1},
    "multi_label": {"text": "well done {n}", "labels": [0, 15], "id": "x"},
    "regression": {"sentence1": "a lamp {n}", "sentence2": "the lamp", "label": 3.8, "idx": 0},
    "translation": {"translation": {"en": "the sky {n}", "es": "el cielo"}},
    "summarisation": {"document": "The lamp {n} was sent. It came on Friday.", "summary": "A lamp came.", "id": "1"},
    "code": {"task_id": 601, "text": "Write f, {n}.", "code": "def f(x):\r\n  return x + 1"} | MBPP,
    "question_answering": {
        "id": "1", "title": "t", "context": CONTEXT, "question": "Who got lamp {n}?",
        "answers": {"text": ["Ada", "Ada."], "answer_start": [27, 27]},
    },
    "dialogue": {
        "full_topic": "t",
        "messages": [
            {"role": "user", "content": "Hi {n}"}, {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."},
        ],
    },
    "continued_pretraining": {"prompt": "p", "text": "The sky is blue, {n}.", "format": "textbook", "text_token_length": 9},
}  # fmt: skip


def test_each_task_has_its_rows() -> None:
    """No recipe of recipes/tasks is left out here."""
    assert {path.stem for path in (recipes_folder() / "tasks").glob("*.yaml")} == set(HUB_ROWS)


def local_recipe(name: str, folder: Path, base: Path) -> Path:
    """The shipped recipe with rows of its data set's form in files, the tiny base, and two steps."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((recipes_folder() / "tasks" / f"{name}.yaml").read_text())
    evaluation = values["data"]["evaluation"].get("sources", [])
    for use, first, sources in (("train", 0, values["data"]["train"]), ("held_out", 100, evaluation)):
        for source in sources:
            for key in ("dataset", "config", "split"):
                source.pop(key, None)
            text = json.dumps(HUB_ROWS[name])
            source["path"] = str(folder / f"{use}.jsonl")
            Path(source["path"]).write_text(
                "".join(text.replace("{n}", str(first + n)) + "\n" for n in range(8))
            )
    if not evaluation:
        values["data"]["evaluation"] = {"fraction": 0.25}
    values["model"] = {
        "base": str(base),
        **({"head": values["model"]["head"]} if "head" in values["model"] else {}),
    }
    values["data"] |= {"max_length_tokens": 256, "pack_length_tokens": 256}
    del values["train"]["epochs"]
    values["train"] |= {"max_steps": 2, "precision": "fp32"}
    values["evaluate"] |= {"max_rows": 3} | ({"max_new_tokens": 4} if "head" not in values["model"] else {})
    values["tracking"] = {"tracker": "none"} | values.get("tracking", {})
    values["output"] = {"folder": str(folder / "runs")}
    path = folder / f"{name}.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    return path


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_task(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """Rows of the hub's form are read, learned and measured by every metric of the recipe; the run scores as
    in training."""
    if name == "code" and why_no_sandbox() is not None:
        pytest.skip(f"no sandbox here: {why_no_sandbox()}")
    recipe = load_recipe(str(local_recipe(name, tmp_path, tiny_base)), []).recipe
    run = start(recipe)
    summary = run.read_summary()
    assert summary["status"] == "finished"
    found = {metric: summary[f"final/{metric}"] for metric in recipe.evaluate.metrics}
    report = Evaluation(recipe, choose_precision("fp32")).of(resolve_target(str(run.path)))
    # pearson of a few equal rows isn't defined
    assert report.values == pytest.approx(
        {k: float("nan") if v is None else v for k, v in found.items()}, rel=1e-4, nan_ok=True
    )
    assert all(score.rows > 0 for score in report.scores.values())
