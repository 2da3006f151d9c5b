"""Each recipe of recipes/tasks on small real data: the base beside what a few minutes of training make of it.

    python benchmarks/bench_tasks.py [--tasks sentiment code ...] [--shared FOLDER] [--keep FOLDER]

A shipped recipe with local rows in place of its hub data set; `finetune train`, then `finetune evaluate RUN
RECIPE --compare base` on rows that were held out. A line a metric: base, tuned with its 95 % interval, the
difference with its own, the minutes of training and the tokens/s. The rows lie in the folder data of
--shared; each task's comes from where its `rows` says.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SHARED = Path(os.environ.get("FINETUNE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
Rows = list[dict[str, Any]]
OPERATIONS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}
"""The labels of the multi-label task: which operations a problem of GSM8K takes, by its solution's own
annotations."""


@dataclass(frozen=True)
class Task:
    """A recipe on local rows."""

    rows: Callable[[Path], tuple[Rows, Rows]]
    """Rows to train on and rows that are held out, from the folder of data."""
    source: dict[str, Any]
    """How they are read: format, columns ..."""
    changes: dict[str, Any]
    """What the recipe is given besides, by its dotted path."""


def lines_of(path: Path) -> Rows:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def shuffled(rows: Rows) -> Rows:
    """The rows in another order, always the same."""
    random.Random(0).shuffle(rows)
    return rows


def polarity(data: Path) -> tuple[Rows, Rows]:
    """sentence_polarity: 2,000 rows and 500."""
    rows = lines_of(data / "sentiment" / "sentence_polarity.jsonl")
    texts = {row["text"]: row for row in rows}  # a few stand there twice
    distinct = list(texts.values())
    return distinct[:2000], distinct[2000:2500]


def sentences(data: Path) -> tuple[Rows, Rows]:
    """The same under SST-2's names."""
    named = [
        [{"sentence": row["text"], "label": int(row["label"] == "positive")} for row in rows]
        for rows in polarity(data)
    ]
    return named[0], named[1]


def operations(data: Path) -> tuple[Rows, Rows]:
    """GSM8K's test set: each problem, and which of the four operations its solution takes."""
    rows: Rows = []
    for row in lines_of(data / "math" / "gsm8k_test.jsonl"):
        sums = " ".join(re.findall(r"<<(.*?)=", row["answer"]))
        rows.append(
            {"text": row["question"], "label": [name for name, sign in OPERATIONS.items() if sign in sums]}
        )
    return rows[:1019], rows[1019:]


def step_counts(data: Path) -> tuple[Rows, Rows]:
    """GSM8K's test set: each problem, and how many calculations its solution takes."""
    rows = [
        {"text": row["question"], "value": float(len(re.findall("<<", row["answer"])))}
        for row in lines_of(data / "math" / "gsm8k_test.jsonl")
    ]
    return rows[:1019], rows[1019:]


def translations(data: Path) -> tuple[Rows, Rows]:
    """XQuAD's questions and paragraphs in two languages; the last 150 questions are held out."""
    rows = lines_of(data / "translation" / "xquad_en-es.jsonl")
    pairs = [{"en": row["en"], "es": row["es"], "kind": row["kind"]} for row in rows]
    questions = shuffled([row for row in pairs if row["kind"] == "question"])
    return questions[:-150], questions[-150:]


def abstracts(data: Path) -> tuple[Rows, Rows]:
    """SciTLDR: abstracts and their summaries in a sentence; the first of them is learned, each of the
    held-out ones counts."""
    rows = lines_of(data / "summarisation" / "scitldr_A_dev.jsonl")
    train = [{"source": row["source"], "target": row["target"][0]} for row in rows[:519]]
    return train, [{"source": row["source"], "target": row["target"]} for row in rows[519:]]


def functions(data: Path) -> tuple[Rows, Rows]:
    """MBPP by its own split: tasks 601 to 974 to train on, the first 100 of its tasks to test on."""
    rows = lines_of(data / "code" / "mbpp.jsonl")
    train = [row for row in rows if row["task_id"] > 600]
    return train, [row for row in rows if 11 <= row["task_id"] <= 110]


def articles(data: Path) -> tuple[Rows, Rows]:
    """XQuAD's 48 articles: questions on 30 to train on, on the last 8 to ask."""
    rows = json.loads((data / "qa" / "xquad.en.json").read_text())["data"]
    return rows[:30], rows[40:]


def chats(data: Path) -> tuple[Rows, Rows]:
    """FastChat's conversations about who the assistant is, ShareGPT's form."""
    rows = shuffled(json.loads((data / "chat" / "fastchat_dummy_conversation.json").read_text()))
    distinct = list({json.dumps(row["conversations"]): row for row in rows}.values())
    return distinct[:-100], distinct[-100:]


def pages(data: Path) -> tuple[Rows, Rows]:
    """C4: 270 pages of the web, and 30."""
    rows = lines_of(data / "pretrain" / "lf_c4_demo.jsonl")
    return rows[:-30], rows[-30:]


TASKS: dict[str, Task] = {
    "sentiment": Task(sentences, {}, {"train.epochs": 2}),
    "sentiment_head": Task(polarity, {"format": "classification"}, {"train.epochs": 2}),
    "multi_label": Task(
        operations,
        {"format": "classification"},
        {"model.head": {"problem": "multi_label", "labels": list(OPERATIONS)}},
    ),
    "regression": Task(step_counts, {"format": "regression"}, {"train.epochs": 1}),
    "translation": Task(
        translations, {"format": "translation", "columns": {"source": "en", "target": "es"}}, {}
    ),
    "summarisation": Task(abstracts, {"format": "summarisation"}, {}),
    "code": Task(functions, {"format": "code", "columns": {"task": "text"}}, {"train.epochs": 1}),
    "question_answering": Task(articles, {"format": "question_answer"}, {}),
    "dialogue": Task(chats, {"format": "sharegpt"}, {}),
    "continued_pretraining": Task(pages, {"format": "text"}, {}),
}


def main() -> None:
    """A line a task and metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which; all when absent"
    )
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that holds data/")
    parser.add_argument("--keep", type=Path, help="keep rows, recipes and runs in this folder")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every recipe")
    arguments = parser.parse_args()
    if not (arguments.shared / "data").is_dir():
        sys.exit(
            f"bench_tasks: there is no {arguments.shared / 'data'}; name the folder of the small data sets "
            "with --shared"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        print(row("task", "metric", "base", "tuned", "95 %", "difference", "95 %", "minutes", "tokens/s"))
        for name in arguments.tasks:
            for line in run(name, folder, arguments.shared / "data", arguments.overrides):
                print(line, flush=True)


def run(name: str, folder: Path, data: Path, overrides: list[str]) -> list[str]:
    """Train and evaluate one task; a line a metric."""
    recipe = write_recipe(name, folder, data)
    # What is measured afterwards, with the base beside it, needn't be measured when the training ends as
    # well.
    trained = folder / f"{name}-training.yaml"
    trained.write_text(f"extends: {recipe.name}\nevaluate: {{metrics: [], labels: []}}\n")
    summary = finetune(folder, "train", trained.name, *overrides)
    figures = finetune(folder, "evaluate", summary["run"], recipe.name, *overrides, "--compare", "base")
    minutes = summary["tokens"] / summary["tokens_per_second"] / 60
    speed = (f"{minutes:.1f}", f"{summary['tokens_per_second']:,.0f}")
    lines = []
    for metric, found in figures["metrics"].items():
        change = found["difference"]
        tuned, base = f"{found['value']:.4f}", f"{found['base']['value']:.4f}"
        ranges = (
            f"{found['low']:.4f} to {found['high']:.4f}",
            f"{change['low']:+.4f} to {change['high']:+.4f}",
        )
        lines.append(row(name, metric, base, tuned, ranges[0], f"{change['value']:+.4f}", ranges[1], *speed))
    return [*lines, *(f"{name:<22} note: {note}" for note in figures["notes"])]


def row(*cells: str) -> str:
    """A line of the table."""
    widths = (22, 20, -9, -9, 20, -10, 22, -7, -8)
    return "  ".join(
        f"{cell:>{-width}}" if width < 0 else f"{cell:<{width}}"
        for cell, width in zip(cells, widths, strict=True)
    )


def write_recipe(name: str, folder: Path, data: Path) -> Path:
    """The shipped recipe with local rows in place of its hub data set."""
    task = TASKS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    yaml = YAML(typ="safe", pure=True)
    shipped = Path(__file__).resolve().parents[1] / "recipes" / "tasks" / f"{name}.yaml"
    recipe = yaml.load(shipped.read_text())
    (was,) = recipe["data"]["train"]
    source = task.source or {"format": was["format"], "template": was["template"]}
    places = {}
    for use, rows in zip(("train", "held_out"), task.rows(data), strict=True):
        places[use] = folder / name / f"{use}.jsonl"
        places[use].write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["data"]["train"] = [{"path": str(places["train"]), **source}]
    recipe["data"]["evaluation"] = {"sources": [{"path": str(places["held_out"]), **source}]}
    recipe["tracking"] = recipe.get("tracking", {}) | {"tracker": "none"}
    recipe["output"] = {"folder": str(folder / "runs")}
    for path, value in task.changes.items():
        section, knob = path.split(".")
        recipe[section][knob] = value
    file = folder / f"{name}.yaml"
    with file.open("w") as stream:
        YAML(typ="safe", pure=True).dump(recipe, stream)
    return file


def finetune(folder: Path, *words: str) -> dict[str, Any]:
    """What a command says in JSON."""
    command = [sys.executable, "-m", "finetune", *words, "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"bench_tasks: {' '.join(command)} ended with {done.returncode}\n{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
