"""finetune benchmark as it prints, what a run keeps of it, and what it refuses."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import finetune
from finetune.models.adapters.adapter import attach, save_adapter
from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import AdapterSection
from tests.support.cli import run_here

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "llama-finetune[benchmarks]"')

Benchmark = Callable[..., tuple[int, str, str]]

TASK = """
task: lamps
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["blue", "brass"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
"""


@pytest.fixture
def task_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the task `lamps` and its rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": f"Lamp {number} is", "answer": ["blue", "brass"][number % 2]} for number in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lamps.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    return folder


@pytest.fixture
def benchmark(
    monkeypatch: pytest.MonkeyPatch, task_folder: Path, capfd: pytest.CaptureFixture[str]
) -> Benchmark:
    """benchmark("target", "--option") runs the verb on the task `lamps`: its exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        given = (
            [*arguments]
            if "--task" in arguments
            else [*arguments, "--task", "lamps", "--task-folder", str(task_folder)]
        )
        done = run_here(monkeypatch, capfd, "benchmark", *given)
        # transformers' bar is kept off before its import, which was long ago here.
        return done.code, done.stdout, re.sub(r"\rLoading weights.*\n", "", done.stderr)

    return call


@pytest.fixture
def run_folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A run whose adapter changes what the tiny base says."""
    data = {"train": [{"path": "/rows.json", "format": "alpaca"}]}
    recipe = Recipe.model_validate({"model": {"base": str(tiny_base)}, "adapter": {"rank": 4}, "data": data})
    model = attach(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), AdapterSection(rank=4)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    folder = tmp_path / "lamps-001"
    save_adapter(model, folder / "adapter", str(tiny_base))
    lock = Lock(
        recipe=recipe,
        command="finetune train",
        created="2026-01-01",
        base={"kind": "folder", "name": str(tiny_base)},
    )
    (folder / "recipe.lock.yaml").write_text(lock.to_yaml())
    return folder


def figures_of(printed: str) -> dict[str, dict[str, Any]]:
    return {figure["metric"]: figure for figure in json.loads(printed)["figures"]}


def test_a_run_is_compared_with_its_base_and_keeps_the_result(
    benchmark: Benchmark, run_folder: Path, tiny_base: Path
) -> None:
    """base, tuned and difference stand side by side, as each alone has them, and in the run's predictions as
    JSON."""
    code, printed, errors = benchmark(str(run_folder), "--compare", str(tiny_base), "--json")
    assert code == 0
    assert errors.splitlines() == [
        "loading lamps",
        f"asking the model in {tiny_base}",
        "asking run lamps-001",
    ]
    kept = run_folder / "predictions" / "benchmark-lamps.json"
    assert json.loads(kept.read_text()) == json.loads(printed)
    both = figures_of(printed)
    for target, read in ((run_folder, lambda figure: figure), (tiny_base, lambda figure: figure["base"])):
        code, alone, _ = benchmark(str(target), "--json")
        assert code == 0
        for metric, figure in figures_of(alone).items():
            assert read(both[metric])["value"] == figure["value"]
    brier = both["brier_score"]
    assert brier["difference"] == brier["value"] - brier["base"]["value"] != 0
    assert brier["higher_is_better"] is False
    assert not (tiny_base / "predictions").exists()


def test_python_gives_what_the_verb_prints(benchmark: Benchmark, task_folder: Path, run_folder: Path) -> None:
    """finetune.benchmark's figures are those of the command line, and it names the file that the run keeps."""
    _, printed, _ = benchmark(str(run_folder), "--json")
    result = finetune.benchmark(finetune.Run(run_folder), "lamps", task_folder=task_folder)
    assert {figure.metric: figure.value for figure in result.figures} == {
        name: figure["value"] for name, figure in figures_of(printed).items()
    }
    assert result.kept == run_folder / "predictions" / "benchmark-lamps.json"


def test_the_table_names_task_metric_value_and_error(
    benchmark: Benchmark, run_folder: Path, tiny_base: Path
) -> None:
    """A line a metric; what is better lower says so; nothing but our own lines is printed."""
    code, printed, errors = benchmark(str(tiny_base), "--limit", "5", "--batch-size", "2")
    assert (code, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[:2] == ["loading lamps", f"asking the model in {tiny_base}"]
    assert lines[-3].split() == ["task", "metric", "shots", "questions", "value", "std.", "error"]
    assert lines[-2].split()[:4] == ["lamps", "acc", "0", "5"]
    assert lines[-1].startswith("lamps  brier_score, lower is better  0      5")
    code, printed, _ = benchmark(str(run_folder), "--compare", "base")
    assert code == 0
    assert "asking the base of run lamps-001" in printed
    assert re.search(r"questions +base +std. error +tuned +std. error +difference +std. error\n", printed)
    assert printed.splitlines()[-1] == f"kept in    {run_folder / 'predictions' / 'benchmark-lamps.json'}"


def test_names_that_are_no_file_name_are_shortened(benchmark: Benchmark, run_folder: Path) -> None:
    """Many tasks, or one with a slash in its name, still make one file name, and different ones for different
    tasks."""
    from finetune.evaluation.harness.benchmark import _file_name

    assert _file_name(["arc_easy", "gsm8k"]) == "arc_easy+gsm8k"
    long = [_file_name([f"task_{number}" for number in range(count)]) for count in (200, 201)]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 120
    assert "/" not in _file_name(["a/b"])
    assert _file_name(["a/b"]) != _file_name(["a_b"])


def test_wrong_input_is_one_message_and_exit_code_2(
    benchmark: Benchmark, run_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 0, no task, a folder that isn't there, a run without result, and lm-eval absent: no
    traceback, no table."""
    for arguments, message in (
        ((str(tiny_base), "--limit", "0"), "--limit"),
        ((str(tiny_base), "--task", "lamps", "--task-folder", str(tmp_path / "gone")), "is not a folder"),
        ((str(tmp_path / "nothing"),), "expected a run folder"),
    ):
        code, printed, errors = benchmark(*arguments)
        assert code == 2
        assert message in errors
        assert "Traceback" not in errors
        assert "acc" not in printed
    for path in (run_folder / "adapter").iterdir():
        path.unlink()
    (run_folder / "adapter").rmdir()
    code, printed, errors = benchmark(str(run_folder))
    assert (code, printed) == (2, "")
    assert "has no result yet" in errors
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, printed, errors = benchmark(str(tmp_path / "nothing"))
    assert (code, printed) == (2, "")
    assert (
        errors
        == 'error: a benchmark needs lm-eval, which is not installed: pip install "llama-finetune[benchmarks]".\n'
    )
