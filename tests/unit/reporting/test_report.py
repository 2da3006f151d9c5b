"""The page of a run, and of several side by side, as a browser shows it."""

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finetune
from data_prep.text import printable
from finetune.run import Run
from finetune.runs.folder import RunFolder
from tests.support.browser import needs_browser, open_page, opened_tab
from tests.support.cli import Says
from tests.support.runs import make_run
from tests.unit.data_prep.page_elements import Element, page_of

HOSTILE = "</div></script><script>document.body.dataset.ran = 'yes'</script><img src=x onerror=alert(1)> \u202eabc &lt;"


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run with metrics and samples, one of them hostile, merged. Never write to it."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"instruction": f"Say {n}.", "output": "blue " * (n % 5 + 1)} for n in range(1, 25)]
    (folder / "rows.json").write_text(
        json.dumps([*rows, {"instruction": "It is long.", "output": "word " * 300}])
    )
    recipe = {
        "model": {"base": str(tiny_base)},
        "adapter": {"rank": 4},
        "data": {
            "train": [{"path": str(folder / "rows.json"), "format": "alpaca"}],
            "evaluation": {"fraction": 0.2},
            "max_length_tokens": 128,
        },
        "train": {"micro_batch_size": 2, "global_batch_size": 2, "max_steps": 6, "precision": "fp32", "evaluate_every": 3},
        "evaluate": {"metrics": ["loss", "exact_match"], "max_new_tokens": 8},
        "tracking": {"tracker": "none", "samples": {"prompts": ["Say 3.", HOSTILE], "every_steps": 3, "max_new_tokens": 8}},
        "output": {"folder": str(folder / "runs")},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    trained = finetune.train(folder / "recipe.yaml")
    trained.merge()
    return trained


@pytest.fixture(scope="module")
def path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.report(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def page(path: Path) -> Element:
    return page_of(path.read_text())


def titles(page: Element) -> list[str]:
    return [title.flat for title in page.of_tag("h2")]


def missing(page: Element) -> str:
    return "\n".join(line.flat for line in page.of_class("missing"))


def report(*runs: RunFolder | Run, file: Path) -> Element:
    folders = [run.path if isinstance(run, RunFolder) else run.folder for run in runs]
    return page_of(finetune.report(folders, file, overwrite=True).read_text())


def test_a_run_has_all_parts(page: Element) -> None:
    """What was trained on what, curves, metrics, samples, worst answers, data, merge, plan and environment."""
    assert titles(page) == [
        "Finished", "What was trained on what", "Curves", "Metrics", "Samples, before and after",
        "Worst answers", "Data audit", "Merge", "Plan against measured", "Environment",
    ]  # fmt: skip


def test_the_curves_are_what_was_logged(run: Run, page: Element) -> None:
    """A line a metric, through a point a log; the loss of training and of evaluation in one chart."""
    charts = {chart.of_tag("strong")[0].text: chart for chart in page.of_tag("figure")}
    assert list(charts)[:5] == ["Loss", "Learning rate", "Gradient norm", "Speed", "Memory"]
    lines = {line.attributes["data-name"]: line for line in charts["Loss"].of_tag("polyline")}
    logged = {
        label: sum(name in entry for entry in run.curves())
        for label, name in (("training", "train/loss"), ("evaluation", "eval/loss"))
    }
    drawn = {label: len((line.attributes["points"] or "").split()) for label, line in lines.items()}
    assert drawn == logged == {"training": 6, "evaluation": 3}


def test_samples_before_and_after(run: Run, page: Element) -> None:
    """Each prompt with its first and its last answer, as they stand in samples.jsonl."""
    (part,) = (one for one in page.of_tag("section") if one.attributes["aria-labelledby"] == "samples")
    entries = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    shown = [[text.text for text in card.of_class("text")] for card in part.of_tag("article")]
    for prompt, texts in zip(("Say 3.", HOSTILE), shown, strict=True):
        answers = [entry["answer"] for entry in entries if entry["prompt"] == prompt]
        assert texts == [printable(prompt), printable(answers[0]), printable(answers[-1])]


def test_the_data_audit_is_that_of_the_data(run: Run, page: Element) -> None:
    """A run keeps what became of each row, as an audit of its recipe says it."""
    audit = finetune.audit(run.folder / "recipe.lock.yaml")
    kept = json.loads((run.folder / "data.json").read_text())
    assert kept == json.loads(json.dumps(audit.report.as_dict()))
    assert "Dropped: 1 of 25 rows" in page.of_class("source")[0].flat


def test_the_plan_is_compared_with_what_was_measured(run: Run, page: Element) -> None:
    """The formulas say steps and trained parameters before the first step as they are counted later."""
    plan = json.loads((run.folder / "plan.json").read_text())
    for name in ("steps", "trainable_parameters"):
        assert plan[name] == run.summary[name], name
    assert plan["tokens"] == pytest.approx(run.summary["tokens"], rel=0.2)  # steps of a mean length
    assert plan["memory_bytes"] == pytest.approx(sum(plan["memory"].values()))
    (part,) = (one for one in page.of_tag("section") if one.attributes["aria-labelledby"] == "plan")
    assert [row.of_tag("th")[0].text for row in part.of_tag("tr")[1:]] == [
        "steps", "tokens", "parameters that train", "peak memory of a process",
    ]  # fmt: skip


def test_structure(page: Element) -> None:
    """One h1, no heading level left out, every id once, and each label's id is there."""
    levels = [int(element.tag[1]) for element in page.of_tag("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    ids = [element.attributes["id"] for element in page.inside if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    labels = " ".join(element.attributes.get("aria-labelledby") or "" for element in page.inside).split()
    assert set(labels) <= set(ids)


@needs_browser
def test_in_a_browser_text_stays_text(path: Path, tmp_path: Path) -> None:
    """A sample that is a script does not run, an image of it is not asked for, and the console is empty."""
    opened = open_page(path, tmp_path)
    found = page_of(opened.document)
    assert opened.console == []
    assert "data-ran" not in found.of_tag("body")[0].attributes
    assert found.of_tag("img") == []
    assert any("<script>document.body.dataset.ran" in text.text for text in found.of_class("text"))


@needs_browser
def test_another_script_than_the_page_s_would_be_refused(path: Path, tmp_path: Path) -> None:
    """The policy knows the page's script by its hash."""
    smuggled = tmp_path / "page.html"
    script = "<script>document.body.dataset.ran = 'yes'</script></body>"
    smuggled.write_text(path.read_text().replace("</body>", script))
    opened = open_page(smuggled, tmp_path / "profile")
    assert "data-ran" not in page_of(opened.document).of_tag("body")[0].attributes
    assert "Content Security Policy" in "\n".join(opened.console)


@needs_browser
def test_the_page_fits_400_pixels_in_light_and_dark(path: Path, run: Run, tmp_path: Path) -> None:
    """Nothing is wider than the window, of one run and of several, and the ground follows the reader's
    choice."""
    both = finetune.report([run, make_run(tmp_path, "other", loss=2.0).path], tmp_path / "both.html")
    grounds = set()
    for number, file in enumerate((path, both)):
        with opened_tab(file.as_uri(), tmp_path / f"profile-{number}") as tab:
            for scheme in ("light", "dark"):
                size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
                tab.call("Emulation.setDeviceMetricsOverride", **size)
                scheme_of = {"name": "prefers-color-scheme", "value": scheme}
                tab.call("Emulation.setEmulatedMedia", features=[scheme_of])
                assert tab.run("document.documentElement.scrollWidth") <= 400
                grounds.add(tab.run("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


@needs_browser
def test_the_values_under_the_pointer_are_told(path: Path, run: Run, tmp_path: Path) -> None:
    """At the right end of the loss's chart stand the last step and its losses."""
    with opened_tab(path.as_uri(), tmp_path) as tab:
        tab.run("document.querySelector('svg.chart').scrollIntoView()")
        box = tab.run(
            "(box => [box.right, box.top + box.height / 2])(document.querySelector('svg.chart').getBoundingClientRect())"
        )
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] - 8, y=box[1])
        tab.wait_for("document.querySelector('.readout').textContent")
        told = tab.run("document.querySelector('.readout').textContent")
    found = re.fullmatch(r"step 6: training (\S+), evaluation (\S+)", told)
    assert found is not None, told
    last = [run.summary["train_loss"], run.summary["last_evaluation_loss"]]
    assert [float(text) for text in found.groups()] == pytest.approx(last, rel=2e-3)


@needs_browser
def test_printed_pages_hold_all(path: Path, tmp_path: Path) -> None:
    """On paper what is folded is there too, and nothing is wider than the paper."""
    with opened_tab(path.as_uri(), tmp_path) as tab:
        tab.run("document.querySelectorAll('details').forEach(one => one.open = false)")
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert tab.run("document.querySelector('details .facts').getBoundingClientRect().height") > 100
        assert tab.call("Page.printToPDF")["data"]


def test_several_runs_begin_with_what_differs(tmp_path: Path) -> None:
    """The first part is a table of what differs, a column a run; the curves lie over each other."""
    runs = [make_run(tmp_path, "a", loss=2.0, seed=1), make_run(tmp_path, "b", loss=4.0, seed=2)]
    runs.append(make_run(tmp_path, "c", loss=3.0, seed=1, max_steps=7))
    page = report(*runs, file=tmp_path / "page.html")
    assert titles(page)[:3] == ["What differs", "Metrics side by side", "Curves"]
    rows = [row.flat for row in page.of_class("wide")[0].of_tag("tr")]
    assert rows == ["a-001b-001c-001", "train.max_steps\N{EN DASH}\N{EN DASH}7"]
    assert page.of_class("wide")[1].of_tag("tr")[1].flat == "train.seed121"
    loss = page.of_tag("figure")[0]
    assert [line.attributes["data-name"] for line in loss.of_tag("polyline")] == ["a-001", "b-001", "c-001"]


def test_one_spike_in_a_million_points_is_found(tmp_path: Path) -> None:
    """The page stays under 3 MB, takes less than 2 s of the processor, and has the spike in the curve and in
    words."""
    draw = np.random.default_rng(20261130)
    steps, spike = 1_000_000, int(draw.integers(1, 1_000_000))
    values = 2 + draw.random(steps)
    values[spike - 1] = 73.25
    run = make_run(tmp_path, "long", loss=1.0)
    with run.metrics_path.open("w") as file:
        file.writelines(
            f'{{"step": {step}, "train/loss": {value}}}\n'
            for step, value in enumerate(values.tolist(), start=1)
        )
    began = time.process_time()
    page = report(run, file=tmp_path / "page.html")
    assert time.process_time() - began < 2 * SLOWER
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
    chart = page.of_tag("svg")[1]
    line = chart.of_tag("polyline")[0]
    places = [tuple(map(float, pair.split(","))) for pair in (line.attributes["points"] or "").split()]
    x, y = min(places, key=lambda place: place[1])
    low, high, height, width = (
        float(chart.attributes[f"data-{name}"] or 0) for name in ("low", "high", "height", "width")
    )
    assert chart.attributes["data-log"] == "1"
    assert low * (high / low) ** (1 - y / height) == pytest.approx(73.25, rel=1e-3)
    assert 1 + (steps - 1) * x / width == pytest.approx(spike, abs=steps / 1000)
    assert f"highest 73.25 at step {spike:,}" in page.flat


SLOWER = 3
"""How much slower than the machine that the figure is of another one may be."""


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A run without evaluation, samples and merge says so, each in a line, with what makes it."""
    run = make_run(tmp_path, "bare", loss=2.0)
    found = missing(report(run, file=tmp_path / "page.html"))
    for part in (
        "no samples",
        "no data audit",
        "no plan",
        "no run.log",
        "no metrics: finetune evaluate",
        "no merge",
    ):
        assert part in found


DAMAGES: dict[str, Callable[[RunFolder], object]] = {
    "lock": lambda run: run.lock_path.write_text("nonsense: ["),
    "outcome": lambda run: run.summary_path.write_text("[1]"),
    "outcome's metrics": lambda run: run.write_summary({"status": "finished", "metrics": {"loss": "low"}}),
    "curves": lambda run: run.metrics_path.write_text("{}\n{}\n"),
    "data audit": lambda run: run.data_path.write_text('{"sources": 5}'),
    "plan": lambda run: run.plan_path.write_text("5"),
    "samples": lambda run: run.samples_path.write_text('{"step": "first"}\n{}\n'),
    "merge": lambda run: _in(run.path / "merged", "verification.json", '{"verification": 5}'),
    "benchmarks": lambda run: _in(run.predictions, "benchmark-x.json", '{"tasks": 3}'),
    "metrics": lambda run: _in(run.predictions, "evaluate-x.json", '{"metrics": []}'),
}


def _in(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize("part", DAMAGES)
def test_what_is_damaged_is_named(part: str, tmp_path: Path) -> None:
    """One damaged file costs its own part of the page, which says so."""
    run = make_run(tmp_path, "damaged", loss=2.0)
    DAMAGES[part](run)
    page = report(run, file=tmp_path / "page.html")
    name = {"outcome's metrics": "metrics"}.get(part, part)
    assert f"the {name} can't be read: " in missing(page)
    assert "Curves" in titles(page)
    assert (page.of_tag("figure") != []) is (part != "curves")


@pytest.mark.parametrize(
    "file",
    [
        "predictions/benchmark-b.json",
        "merged/verification.json",
        "samples.jsonl",
        "predictions/evaluate-x.json",
    ],
)
def test_the_damaged_file_is_named_and_costs_no_other(file: str, tmp_path: Path) -> None:
    """A benchmark beside it is shown, and a merge that is there isn't said to be missing."""
    run = make_run(tmp_path, "damaged", loss=2.0)
    figure = {"task": "kept_task", "metric": "acc", "value": 0.5, "standard_error": 0.1}
    _in(run.predictions, "benchmark-a.json", json.dumps({"tasks": ["kept_task"], "figures": [figure]}))
    _in(run.path / "merged-2", "verification.json", '{"dtype": "bfloat16"}')
    _in((run.path / file).parent, Path(file).name, "[\n[\n")
    page = report(run, file=tmp_path / "page.html")
    assert f"{Path(file).name}" in missing(page)
    assert "kept_task" in page.flat
    assert "merged-2" in page.flat
    assert "no merge in the run's folder" not in missing(page)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    """The error stands beside the status, and warnings of its log in a list, each once."""
    run = make_run(tmp_path, "failed", loss=2.0)
    run.write_summary(
        {"status": "failed", "error": "TrainingError: the loss is not finite", "steps": 2, "total_steps": 9}
    )
    run.log_path.write_text(
        "2026-01-01 00:00:00,000 WARNING slow disk\n" * 3 + "2026-01-01 00:00:00,000 INFO step 1\n"
    )
    page = report(run, file=tmp_path / "page.html")
    assert "Failed" in page.of_class("fails")[0].flat
    assert "2 of 9 steps were taken. TrainingError: the loss is not finite" in page.of_class("fails")[0].flat
    assert [line.flat for line in page.of_class("warning")] == ["slow disk (3 times)"]


def test_an_interrupted_run_tells_its_last_step(tmp_path: Path) -> None:
    """Its summary is from its beginning; the curves know how far it came, and the page how to go on."""
    run = make_run(tmp_path, "killed", loss=2.0)
    run.write_summary({"status": "running", "steps": 0, "total_steps": 9})
    found = report(run, file=tmp_path / "page.html").of_class("open")[0].flat
    assert "Interrupted" in found
    assert "Of 9 steps the last that was logged is 3." in found
    assert f"finetune train --resume {run.path}" in found


def test_what_is_refused(tmp_path: Path, says: Says) -> None:
    """A folder that is no run, and a file that is there, are one message and exit code 2; nothing is written
    or left behind."""
    run, file = make_run(tmp_path, "a", loss=2.0), tmp_path / "page.html"
    code, said = says("report", str(tmp_path), "--html", str(file))
    assert (code, said) == (
        2,
        f"error: {tmp_path} is not a run folder: there is no recipe.lock.yaml in it.\n",
    )
    file.write_text("mine")
    code, said = says("report", str(run.path), "--html", str(file))
    assert (code, said) == (2, f"error: {file} exists; name a new file, or give --overwrite to replace it.\n")
    assert file.read_text() == "mine"
    code, said = says("report", str(run.path), "--html", str(tmp_path / "no" / "page.html"))
    assert (code, said.count("\n")) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-001", "page.html"]
    code, said = says("report", str(run.path), "--html", str(file), "--overwrite")
    assert (code, said) == (0, f"page {file}\n")
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that a run has met is not on its page."""
    monkeypatch.setenv("MY_TOKEN", "very-secret-value")
    run = make_run(tmp_path, "a", loss=2.0)
    run.summary_path.write_text(json.dumps({"status": "failed", "error": "no very-secret-value"}))
    run.samples_path.write_text(json.dumps({"step": 0, "prompt": "very-secret-value", "answer": ""}) + "\n")
    page = report(run, file=tmp_path / "page.html")
    assert "very-secret-value" not in (tmp_path / "page.html").read_text()
    assert "no <MY_TOKEN>" in page.flat


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [HOSTILE, "{{ 1 }}", "'\"&"]
)


@settings(max_examples=12, deadline=None)
@given(TEXTS)
def test_any_text_stays_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a prompt, an answer, a place or a name holds, the page has the same elements."""

    def elements(value: str) -> list[tuple[str, list[str]]]:
        folder = tmp_path_factory.mktemp("any")
        run = make_run(folder, "a", loss=2.0)
        run.samples_path.write_text(json.dumps({"step": 0, "prompt": value, "answer": value}) + "\n")
        score = {"value": 0.5, "low": 0.0, "high": 1.0, "rows": 1}
        summary = {
            "status": "failed",
            "error": f"x {value}",
            "metrics": {"exact_match": score},
            "notes": [f"x {value}"],
        }
        run.summary_path.write_text(json.dumps(summary))
        answer = {
            "place": value,
            "asked": value,
            "answer": value,
            "references": [value],
            "metrics": {"exact_match": 0.0},
        }
        _in(run.predictions, "final.jsonl", json.dumps(answer) + "\n")
        page = report(run, file=folder / "page.html")
        return [(element.tag, sorted(element.attributes)) for element in page.inside]

    assert elements(text) == elements("x")
