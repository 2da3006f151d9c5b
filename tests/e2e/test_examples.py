"""Every example runs as it is written, on a tiny model in place of its own."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import finetune

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COLOURS = """
model: {{base: {base}{head}}}
data:
  train: [{{path: rows.jsonl, format: classification}}]
  evaluation: {{fraction: 0.25}}
  max_length_tokens: 64
train: {{precision: fp32, learning_rate: 1e-2, max_steps: 3}}
evaluate: {{{evaluate}}}
tracking: {{tracker: none}}
"""


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe, colours.yaml, and one of a classification head, head.yaml."""
    rows = [
        {"text": f"{colour} {index}", "label": colour} for index in range(20) for colour in ("red", "green")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.yaml").write_text(
        COLOURS.format(base=tiny_base, head="", evaluate="metrics: [exact_match], max_new_tokens: 4")
    )
    head = ", head: {problem: single_label, labels: [red, green]}"
    (tmp_path / "head.yaml").write_text(
        COLOURS.format(base=tiny_base, head=head, evaluate="metrics: [accuracy]")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments: str) -> None:
    """An example's own main, in this process."""
    code = compile((EXAMPLES / name).read_text(), name, "exec")
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(code, namespace)  # noqa: S102 - a file of this repository
    namespace["main"](*arguments)


def test_train_and_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train.py", "colours.yaml", "train.max_steps=2")
    out = capsys.readouterr().out
    assert "30 documents" in out
    assert f"finished: {folder / 'runs' / 'colours-001'}" in out
    run("merge_and_generate.py", "runs/colours-001", "red 1")
    out = capsys.readouterr().out
    assert out.startswith("holds on ")
    assert "> red 1\n" in out


def test_classify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("classify.py", "head.yaml")
    out = capsys.readouterr().out
    assert "accuracy 0." in out or "accuracy 1." in out
    assert "A warm, funny film" in out
    assert "'green'" in out


def test_custom_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("custom_format.py", "colours.yaml", "train.max_steps=1")
    out = capsys.readouterr().out
    assert "Where is Rome?" in out
    assert "In Italy." in out
    assert "status='finished'" in out


def test_compare_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("compare_runs.py", "colours.yaml", "train.learning_rate", "1e-2", "1e-7")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("colours-001")
    assert lines[1].endswith("colours-002")
    assert "train.learning_rate: 0.01 in colours-001, 1e-07 in colours-002" in lines


def test_rank_answers(folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards are those that `evaluate` measures of the same pairs."""
    pairs = [{"prompt": f"{n}?", "chosen": f"it is {n}", "rejected": f"not {n + 1}"} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = [{"prompt": pair["prompt"], "answers": [pair["rejected"], pair["chosen"]]} for pair in pairs]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "reward.yaml").write_text(
        f"model: {{base: {tiny_base}}}\nobjective: {{kind: reward}}\n"
        "data: {train: [{path: pairs.jsonl, format: preference}], max_length_tokens: 64, "
        "evaluation: {sources: [{path: pairs.jsonl, format: preference}]}, allow_findings: [leakage]}\n"
        "train: {precision: fp32, learning_rate: 1e-2, max_steps: 8, global_batch_size: 4}\n"
        "tracking: {tracker: none}\n"
    )
    trained = finetune.train("reward.yaml")
    run("rank_answers.py", str(trained.folder), "asked.jsonl", "ranked.jsonl")
    ranked = [json.loads(line) for line in (folder / "ranked.jsonl").read_text().splitlines()]
    right = sum(row["chosen"].startswith("it is") for row in ranked)
    measured = trained.evaluate().scores
    assert right / 12 == pytest.approx(measured["reward_accuracy"].value)
    signed = [row["margin"] * (1 if row["chosen"].startswith("it is") else -1) for row in ranked]
    assert sum(signed) / 12 == pytest.approx(measured["reward_margin"].value, rel=1e-3, abs=1e-5)


@pytest.mark.long
def test_the_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real kernel, whose event loop runs while a cell trains."""
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'RECIPE, OVERRIDES = "quickstart", {}' in first.source
    first.source = first.source.replace('"quickstart", {}', '"colours.yaml", {"train.max_steps": 2}')
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [
        str(output.get("text") or output["data"]["text/plain"])
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type != "error"
    ]
    assert any("Run('" in text and "status='finished'" in text for text in shown)
    assert any("holds on " in text for text in shown)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    """Under 40 lines; its docstring names its command."""
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 40
    assert f"python examples/{name}" in text
