"""finetune evaluate as it prints and what it keeps."""

import json
from pathlib import Path

import pytest

from finetune.cli.evaluate import evaluate
from finetune.cli.generate import generate
from finetune.errors import FinetuneError, ModelError
from finetune.evaluation import dataset as evaluation_rows
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.recipe.load import load_recipe
from finetune.runs.folder import RunFolder
from tests.support.processes import start

RECIPE = """
model: {{base: {base}}}
adapter: {{rank: 4}}
data:
  train: [{{path: {rows}, format: classification}}]
  evaluation: {{fraction: 0.25}}
  max_length_tokens: 64
train: {{precision: fp32, learning_rate: 1e-2, max_steps: 6}}
evaluate: {{metrics: [accuracy, chrf, likelihood_accuracy, loss], labels: [red, green], max_new_tokens: 2}}
tracking: {{tracker: none}}
output: {{folder: {runs}}}
"""


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> str:
    """A recipe on rows whose answer is one of two labels."""
    rows = [
        {"text": f"{colour} {index}", "label": colour} for index in range(20) for colour in ("red", "green")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "colours.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=tmp_path / "rows.jsonl", runs=tmp_path / "runs"))
    return str(path)


def trained(recipe: str) -> RunFolder:
    return start(load_recipe(recipe, ["evaluate.metrics=[]", "evaluate.labels=[]"]).recipe)


def test_a_run_beside_its_base(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Base, tuned and the difference, each with its interval; the worst answers; predictions of both in the
    run folder."""
    run = trained(recipe)
    evaluate(str(run.path), recipe, compare="base", worst=2)
    printed = capsys.readouterr().out
    heading = next(line for line in printed.splitlines() if line.startswith("metric"))
    assert heading.split() == [
        "metric",
        "base",
        "tuned",
        "95",
        "%",
        "interval",
        "difference",
        "95",
        "%",
        "interval",
    ]
    assert "the worst by accuracy:" in printed
    assert printed.count("    expected  ") == 2
    assert "10 of 10 answers begin with none of the labels" in printed

    evaluate(str(run.path), recipe, compare="base", worst=0, as_json=True)
    said = json.loads(capsys.readouterr().out)
    loss = said["metrics"]["loss"]
    assert loss["difference"]["value"] == pytest.approx(loss["value"] - loss["base"]["value"])
    assert loss["difference"]["low"] <= loss["difference"]["value"] <= loss["difference"]["high"] < 0
    assert json.loads((run.predictions / "evaluate-colours-2.json").read_text())["metrics"]["loss"] == loss
    assert [Path(path).name for path in said["files"]] == [
        "evaluate-colours-2.jsonl",
        "evaluate-colours-2.base.jsonl",
        "evaluate-colours-2.json",
    ]
    kept = [
        [json.loads(line) for line in (run.predictions / name).read_text().splitlines()]
        for name in ("evaluate-colours.jsonl", "evaluate-colours.base.jsonl")
    ]
    assert [row["place"] for row in kept[0]] == [row["place"] for row in kept[1]]
    cut = [row.pop("cut") for row in kept[0] if "cut" in row]
    assert all(
        set(row) == {"place", "asked", "references", "answer", "metrics", "log_likelihoods"}
        for row in kept[0]
    )
    assert f"note: {len(cut)} of 10 answers were cut at max_new_tokens (2)" in printed
    assert "note: base: 10 of 10 answers were cut at max_new_tokens (2)" in printed
    assert said["base_notes"][0] == "10 of 10 answers were cut at max_new_tokens (2)"
    assert set(cut) == {"at max_new_tokens (2)"}
    assert set(kept[0][0]["metrics"]) == {"accuracy", "chrf", "likelihood_accuracy"}


def test_predictions_of_a_model_go_where_they_are_asked_to(
    recipe: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into --output; nothing is kept where a model folder is scored without it."""
    evaluate(str(tiny_base), recipe, worst=0)
    assert "kept" not in capsys.readouterr().out
    evaluate(str(tiny_base), recipe, ["evaluate.max_rows=3"], output=tmp_path / "out", worst=0)
    assert len((tmp_path / "out" / "evaluate-colours.jsonl").read_text().splitlines()) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(FinetuneError, match=r"--output .*file can't be a folder"):
        evaluate(str(tiny_base), recipe, output=tmp_path / "file", worst=0)
    with pytest.raises(ModelError, match="is a whole model, and nothing says what it was made from"):
        evaluate(str(tiny_base), recipe, compare="base", worst=0)


def test_two_models_on_the_same_rows_have_no_difference(
    recipe: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model beside itself: zero, and no clear difference."""
    evaluate(str(tiny_base), recipe, compare=str(tiny_base), worst=0)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("accuracy", "chrf", "loss"))
    ]
    assert len(lines) == 3
    assert all("+0.0000" in line and line.endswith("(no clear difference)") for line in lines)


@pytest.mark.skipif(why_no_sandbox() is not None, reason=f"no sandbox here: {why_no_sandbox()}")
def test_code_is_run_with_its_tests(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pass@k of a random model is 0, each answer says why; rows without tests and machines without a sandbox
    are refused."""
    tested = {"task": "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
    rows = [tested | {"task": f"Write f, the {n}th."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "code.yaml"
    values = {"base": tiny_base, "rows": tmp_path / "rows.jsonl", "runs": tmp_path / "runs"}
    text = (
        RECIPE.format(**values)
        .replace("format: classification", "format: code")
        .replace("max_length_tokens: 64", "max_length_tokens: 200")
    )
    path.write_text(
        text.replace(
            "[accuracy, chrf, likelihood_accuracy, loss], labels: [red, green]",
            '["pass@1", "pass@5"], samples_per_prompt: 5',
        )
    )
    evaluate(str(tiny_base), str(path), output=tmp_path / "out", worst=1)
    assert "    ran       " in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / "evaluate-code.jsonl").read_text().splitlines()[0])
    assert row["metrics"] == {"pass@1": 0.0, "pass@5": 0.0}
    assert len(row["answers"]) == len(row["programs"]) == 5
    assert "passed" not in row["programs"]
    monkeypatch.setattr(evaluation_rows, "why_no_sandbox", lambda: "it has no Landlock")
    with pytest.raises(
        FinetuneError, match=r"this machine can't confine it: it has no Landlock\. Take another metric"
    ):
        evaluate(str(tiny_base), str(path), worst=0)
    monkeypatch.undo()
    del tested["test_list"]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(tested | {"task": f"Write {n}"}) + "\n" for n in range(8))
    )
    with pytest.raises(
        FinetuneError, match=r"2 of 2 rows have none \(the first: rows\.jsonl:\d\): take format code"
    ):
        evaluate(str(tiny_base), str(path), worst=0)


def test_answers_need_prompts(tiny_base: Path, tmp_path: Path) -> None:
    """A metric that compares answers doesn't fit plain texts; bits per byte do."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"The sky is blue, {n}."}) + "\n" for n in range(8))
    )
    values = {"base": tiny_base, "rows": tmp_path / "rows.jsonl", "runs": tmp_path / "runs"}
    text = (
        RECIPE.format(**values)
        .replace("format: classification", "format: text")
        .replace(", labels: [red, green], max_new_tokens: 2", "")
    )
    path = tmp_path / "text.yaml"
    path.write_text(text.replace("[accuracy, chrf, likelihood_accuracy, loss]", "[chrf]"))
    with pytest.raises(
        FinetuneError, match="the metric chrf compares answers, and no evaluation row has a prompt"
    ):
        evaluate(str(tiny_base), str(path), worst=0)
    path.write_text(text.replace("[accuracy, chrf, likelihood_accuracy, loss]", "[bits_per_byte]"))
    evaluate(str(tiny_base), str(path), worst=3)


def test_a_head_writes_no_text(recipe: str, tmp_path: Path) -> None:
    """`generate` refuses a run with a classification head, and says what scores it."""
    text = Path(recipe).read_text().replace("model: {", "model: {head: {labels: [red, green]}, ")
    Path(recipe).write_text(
        text.replace(
            "[accuracy, chrf, likelihood_accuracy, loss], labels: [red, green], max_new_tokens: 2", "[]"
        )
    )
    run = start(load_recipe(recipe, []).recipe)
    with pytest.raises(
        FinetuneError,
        match=r"has a classification head and writes no text: finetune evaluate .*run-001 scores it",
    ):
        generate(str(run.path), prompt=["Hi"])
