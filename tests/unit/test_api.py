"""The Python API: the same runs, figures and errors as the command line's, where a script or a notebook needs
them."""

import asyncio
import importlib
import inspect
import json
import logging
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.errors import CheckpointError, FinetuneError, LaunchError, ModelError, RecipeError
from finetune.recipe.reading.overrides import as_overrides
from tests.support.messages import hearing

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = """
model: {{base: {base}}}
adapter: {{rank: 4, dropout: 0.1}}
data:
  train: [{{path: {rows}, format: alpaca}}]
  evaluation: {{fraction: 0.1}}
  max_length_tokens: 128
train: {{micro_batch_size: 4, precision: fp32, learning_rate: 1e-2, max_steps: 6, save_every: 50}}
tracking: {{tracker: none}}
output: {{folder: {runs}}}
"""


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file; its runs go beside it."""
    folder = tmp_path_factory.mktemp("api")
    words = ["blue", "lamp", "seven", "Ada"] * 10
    rows = [
        {"instruction": f"Say {word} {i} times.", "output": " ".join([word] * (i % 5 + 1))}
        for i, word in enumerate(words)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    path = folder / "words.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=folder / "rows.json", runs=folder / "runs"))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> finetune.Run:
    """A finished run, which other tests look at."""
    return finetune.train(recipe)


def weights_of(run: finetune.Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def assert_same_weights(one: finetune.Run, other: finetune.Run) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- The package


def test_no_submodule_takes_a_function_s_name() -> None:
    """After every submodule was imported, the package's names are still its functions: `train` is no
    package."""
    for module in pkgutil.walk_packages(finetune.__path__, "finetune."):
        if module.name != "finetune.__main__":
            importlib.import_module(module.name)
    for name in set(finetune.__all__) - {"Chat", "LogLikelihood", "Model", "Run", "__version__"}:
        assert inspect.isfunction(getattr(finetune, name)), name
    with pytest.raises(RecipeError):
        finetune.train("no-such-recipe")
    with pytest.raises(FinetuneError):
        finetune.merge("no-such-run", "out")
    with pytest.raises(FinetuneError):
        finetune.evaluate("no-such-run")


def test_importing_it_loads_nothing_and_names_everything() -> None:
    """`import finetune` loads no pydantic; dir() has the public names; an unknown one is an
    AttributeError."""
    code = (
        "import sys, finetune\nassert 'pydantic' not in sys.modules\nprint(sorted(set(finetune.__all__) - "
        "set(dir(finetune))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert finetune.__version__[0].isdigit()
    assert (REPOSITORY / "finetune" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        finetune.trian  # noqa: B018


# --- Recipes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.learning_rate", 1e-5),
        ("train.max_steps", None),
        ("train.rehearsal", False),
        ("output.name", "true"),
        (
            "tracking.samples",
            {"prompts": ["a 'b' \"c\" # d: [e]", "naïve 🙂 日本", "null"], "every_steps": 5},
        ),
        ("adapter.target_modules", ["q_proj", "v_proj"]),
        ("model.new_tokens", ["<a>", "[1]", "null", "x\ty"]),
        ("data.evaluation", {"fraction": 0.25}),
    ],
)
def test_an_override_is_the_value_that_was_given(recipe: Path, key: str, value: Any) -> None:
    """Whatever Python value: none is read as something else, as a word of YAML in quotes would be."""
    extra = {"train.epochs": 1} if value is None else {}
    loaded = finetune.load_recipe(recipe, {key: value, **extra})
    found: Any = loaded.recipe.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    assert (found | value if isinstance(value, dict) else found) == (
        found if isinstance(value, dict) else value
    )
    again = finetune.load_recipe(loaded, {"train.seed": 3}).recipe
    assert again.train.seed == 3
    assert again.model_copy(update={"train": loaded.recipe.train}) == loaded.recipe


def test_what_is_no_value_is_refused_by_its_key() -> None:
    with pytest.raises(RecipeError) as error:
        as_overrides({"train.seed": object()})
    assert error.value.problems[0].path == "train.seed"
    with pytest.raises(RecipeError):
        as_overrides("train.seed=1")


def test_an_audit(recipe: Path, tmp_path: Path) -> None:
    """Figures, findings, documents to look at, and a page."""
    report = finetune.audit(recipe, samples=2)
    assert report.failed == []
    assert (len(report.samples), report.epoch.documents) == (2, 36)
    report.to_html(tmp_path / "audit.html", title="words")
    assert "words" in (tmp_path / "audit.html").read_text()


# --- Runs


def test_a_run_says_what_it_is(run: finetune.Run, recipe: Path) -> None:
    """Status, recipe, lock, figures and curves, from its folder alone."""
    again = finetune.Run(run.folder)
    assert again.status == "finished"
    assert again.recipe.train.max_steps == 6
    assert again.lock.command == f"finetune train {recipe}"
    assert again.lock.origins["train.max_steps"] == "words.yaml:8"
    assert again.metrics["steps"] == 6
    assert again.metrics["evaluation_loss"] < again.metrics["evaluation_loss_before"]
    assert "status" not in again.metrics
    assert [entry["step"] for entry in again.curves() if "train/loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert again.summary["name"] == again.name == "words-001"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        finetune.Run(tmp_path)


@pytest.mark.long
def test_a_second_training_is_a_fresh_process_s(run: finetune.Run, recipe: Path) -> None:
    """Bit for bit, in the process that has trained before, under a running event loop, beside the main
    thread, and alone."""

    async def in_a_notebook() -> finetune.Run:
        return finetune.train(recipe)

    found: list[finetune.Run] = []
    thread = threading.Thread(target=lambda: found.append(finetune.train(recipe)))
    thread.start()
    thread.join()
    code = f"import finetune\nprint(finetune.train({str(recipe)!r}).folder)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for other in (asyncio.run(in_a_notebook()), found[0], finetune.Run(done.stdout.splitlines()[-1])):
        assert_same_weights(run, other)


def test_a_stop_is_a_value_and_resumes(run: finetune.Run, recipe: Path) -> None:
    """Ctrl-C in a step: the run comes back as stopped, with a checkpoint; resumed, it is the uninterrupted
    one."""

    def interrupt(line: str) -> None:
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGINT)

    with hearing(interrupt):
        stopped = finetune.train(recipe)
    assert (stopped.status, stopped.summary["status"]) == ("stopped", "stopped")
    assert (stopped.folder / "checkpoints" / "checkpoint-3").is_dir()
    done = stopped.resume()
    assert (done.status, done.folder) == ("finished", stopped.folder)
    assert_same_weights(run, done)
    with pytest.raises(CheckpointError, match="is finished"):
        done.resume()


def test_a_second_interrupt_is_a_value_too(recipe: Path) -> None:
    """Ctrl-C twice saves nothing more, and what there is can be resumed."""

    def interrupt(line: str) -> None:
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with hearing(interrupt):
        stopped = finetune.train(recipe)
    assert stopped.status == "stopped"
    assert not list((stopped.folder / "checkpoints").iterdir())


def test_two_processes_train_the_same(run: finetune.Run, recipe: Path) -> None:
    """`launch` gives a run as one process does, and its messages are heard here."""
    lines: list[str] = []
    options = {"train.micro_batch_size": 2}
    with hearing(lines.append):
        shared = finetune.train(recipe, options, launch="ddp", processes=2)
    steps = shared.summary["steps"]
    assert [line for line in lines if line.startswith(f"step {steps}/")], lines
    assert len({line for line in lines if line.startswith("step 1/")}) == 1
    assert shared.status == "finished"
    assert shared.lock.device["processes"] == 2
    assert shared.metrics["evaluation_loss"] == pytest.approx(run.metrics["evaluation_loss"], rel=1e-2)
    with pytest.raises(LaunchError, match="need launch"):
        finetune.train(recipe, processes=2)


@pytest.mark.long
@pytest.mark.parametrize(("ctrl_c", "statuses"), [(1, {"stopped"}), (2, {"stopped", "interrupted"})])
def test_a_stop_reaches_the_processes_of_the_run_alone(recipe: Path, ctrl_c: int, statuses: set[str]) -> None:
    """Ctrl-C stops two launched processes, a second one at once; another child of the program goes on."""
    other = subprocess.Popen(["sleep", "600"])

    def interrupt(folder: Path) -> None:
        deadline = time.monotonic() + 60
        while (
            not any("step 0/" in log.read_text() for log in folder.glob("*/run.log"))
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        for _ in range(ctrl_c):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)

    folder = recipe.parent / f"stopped-{ctrl_c}"
    overrides = {"train.micro_batch_size": 2, "train.max_steps": 100_000, "output.folder": str(folder)}
    thread = threading.Thread(target=interrupt, args=(folder,))
    thread.start()
    try:
        run = finetune.train(recipe, overrides, launch="ddp", processes=2)
        thread.join()
        assert run.status in statuses
        assert other.poll() is None
    finally:
        other.kill()


def test_two_trainings_at_once_are_refused(recipe: Path) -> None:
    """One after the other is fine; beside each other they would share generators, signals and logs."""
    refused: list[BaseException] = []

    def second(line: str) -> None:
        if line.startswith("step 2/"):
            thread = threading.Thread(target=lambda: refused.append(caught(lambda: finetune.train(recipe))))
            thread.start()
            thread.join()

    with hearing(second):
        assert finetune.train(recipe).status == "finished"
    assert "another training is running in this process" in str(refused[0])


def caught(call: Any) -> BaseException:
    with pytest.raises(LaunchError) as error:
        call()
    return error.value


def test_a_renamed_run_and_one_without_a_figure_are_listed(run: finetune.Run, tmp_path: Path) -> None:
    """By their folders; what has no finite figure is no best."""
    for name, loss in (("kept", 2.0), ("lost", float("nan")), ("best", 1.0)):
        shutil.copytree(run.folder, tmp_path / name)
        summary = json.loads((tmp_path / name / "summary.json").read_text()) | {"evaluation_loss": loss}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    assert {found.name for found in finetune.list_runs(tmp_path)} == {"kept", "lost", "best"}
    assert [found.name for found in finetune.list_runs(tmp_path, best="evaluation_loss")] == ["best", "kept"]
    assert finetune.Run(tmp_path / "kept") == finetune.Run(tmp_path / "kept") != run


@pytest.mark.parametrize(
    "options",
    [
        {"processes": 0},
        {"processes": "2"},
        {"max_restarts": -1},
        {"timeout_minutes": 0},
        {"timeout_minutes": -1},
    ],
)
def test_a_number_that_an_option_does_not_have_is_refused(recipe: Path, options: dict[str, Any]) -> None:
    with pytest.raises(LaunchError, match=f"{next(iter(options))} is .*; expected a number from"):
        finetune.train(recipe, launch="ddp", **options)


def test_runs_are_listed_and_chosen(run: finetune.Run, recipe: Path, tmp_path: Path) -> None:
    """By conditions, and the best by a metric first."""
    worse = finetune.train(
        recipe, {"train.learning_rate": 1e-6, "train.max_steps": 2, "output.folder": str(tmp_path)}
    )
    better = finetune.train(recipe, {"train.max_steps": 2, "output.folder": str(tmp_path)})
    assert [found.name for found in finetune.list_runs(tmp_path)] == [worse.name, better.name]
    assert [found.folder for found in finetune.list_runs(tmp_path, best="evaluation_loss")] == [
        better.folder,
        worse.folder,
    ]
    only = finetune.list_runs(tmp_path, where=["train.learning_rate<1e-3", "status=finished"])
    assert [found.folder for found in only] == [worse.folder]
    with pytest.raises(CheckpointError, match="no run has a value 'loss'"):
        finetune.list_runs(tmp_path, best="loss")
    with pytest.raises(CheckpointError, match="is no folder"):
        finetune.list_runs(tmp_path / "none")


# --- Models


def test_a_merge_answers_as_its_run(run: finetune.Run, tmp_path: Path) -> None:
    """merge() gives the report of its checks; run and merged model give the same texts and figures."""
    report = run.merge(tmp_path / "merged")
    assert report.verification is not None
    assert report.verification.verdict.startswith("holds")
    tuned, merged = run.load(), finetune.load(tmp_path / "merged")
    prompts = ["Say blue 0 times.", "Say lamp 1 times."]
    assert tuned.generate(prompts, max_new_tokens=8) == merged.generate(prompts, max_new_tokens=8)
    pairs = [("Say blue 0 times.", "blue"), ("Say lamp 1 times.", "lamp lamp")]
    for one, other in zip(tuned.score(pairs), merged.score(pairs), strict=True):
        assert one.tokens == other.tokens
        assert one.log_probability == pytest.approx(
            other.log_probability, abs=0.05
        )  # bf16 where it is native
    values = finetune.evaluate(merged, run.folder / "recipe.lock.yaml").values
    assert values["loss"] == pytest.approx(run.metrics["evaluation_loss"], abs=0.01)


def test_one_answer_however_it_is_asked(run: finetune.Run) -> None:
    """A text is a conversation of one turn; a stream's pieces are the answer; a chat remembers its turns."""
    model = run.load()
    text = "Say seven 2 times."
    turns = [{"role": "user", "content": text}]
    (answer,) = model.generate([text], max_new_tokens=6)
    assert model.generate([turns], max_new_tokens=6) == [answer]
    assert "".join(model.stream(text, max_new_tokens=6)) == answer
    chat = model.chat()
    assert chat(text, max_new_tokens=6) == answer
    second = chat("And again.", max_new_tokens=6)
    both = [*turns, {"role": "assistant", "content": answer}, {"role": "user", "content": "And again."}]
    assert model.generate([both], max_new_tokens=6) == [second]
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 2


def test_a_cut_answer_is_told(run: finetune.Run) -> None:
    said: list[str] = []
    with hearing(said.append):
        run.load().generate(["Say blue 0 times."], max_new_tokens=1)
    assert "warning: 1 of 1 answers were cut at max_new_tokens (1)" in said


def test_a_score_is_what_plain_torch_computes(tiny_base: Path) -> None:
    """The sum of the answer's log-probabilities, its end of turn included, from transformers' logits."""
    model = finetune.load(tiny_base)
    prompt, answer = "How many lamps?", "two brass lamps"
    (found,) = model.score([(prompt, answer)])
    tokenizer = model.tokenizer
    start = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    after = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False).input_ids
    ids = torch.tensor([[*start, *after]])
    with torch.no_grad():
        logits = model.model(ids).logits.float().log_softmax(-1)[0]
    expected = sum(float(logits[len(start) - 1 + index, token]) for index, token in enumerate(after))
    assert found.tokens == len(after)
    assert found.log_probability == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.generate("one text"), "got one text"),
        (lambda model: model.score("one text"), "got one text"),
        (lambda model: model.score(["text"]), r"item 0 is 'text'; expected a pair of texts"),
        (
            lambda model: model.generate([[{"role": "assistant", "content": "x"}]]),
            "ends with a turn of the assistant",
        ),
        (lambda model: model.generate([[]]), "the conversation has no turn"),
        (lambda model: model.generate([[{"role": "user"}]]), r"messages\[0\]"),
        (lambda model: model.generate(["x"], max_new_tokens=8, system="y" * 5000), "positions"),
        (lambda model: model.score([("x", "y" * 5000)]), "positions"),
        (lambda model: model.generate(["x"], max_new_tokens=0), "max_new_tokens is 0"),
        (lambda model: model.generate(["x"], batch_size=-1), "batch_size is -1"),
        (lambda model: model.generate(["x"], temperature=float("nan")), "temperature is nan"),
        (lambda model: model.generate(["x"], temperature=-1), "temperature is -1"),
        (lambda model: model.generate(["x"], how="loudly"), "how is 'loudly'"),
        (lambda model: model.stream("x", max_new_tokens=-1), "max_new_tokens is -1"),
    ],
)
def test_what_is_no_prompt_is_refused(tiny_base: Path, call: Any, words: str) -> None:
    with pytest.raises(FinetuneError, match=words):
        call(finetune.load(tiny_base))


def test_a_head_scores_texts(tiny_base: Path, tmp_path: Path) -> None:
    """Its outputs are those of plain transformers' class on the same ids; it writes nothing."""
    rows = [
        {"text": f"{colour} {index}", "label": colour} for index in range(8) for colour in ("red", "green")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "head.yaml"
    path.write_text(
        f"""
model: {{base: {tiny_base}, head: {{problem: single_label, labels: [red, green]}}}}
data: {{train: [{{path: rows.jsonl, format: classification}}], max_length_tokens: 64}}
train: {{precision: fp32, learning_rate: 1e-2, max_steps: 2}}
tracking: {{tracker: none}}
output: {{folder: {tmp_path / "runs"}}}
"""
    )
    run = finetune.train(path)
    model = run.load()
    (outputs,) = model.score(["red 1"])
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "red 1"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        expected = model.model(torch.tensor([ids])).logits[0].float().tolist()
    assert outputs == pytest.approx(expected, abs=2e-2)
    with pytest.raises(FinetuneError, match="has a classification head and writes no text"):
        model.generate(["red 1"])


# --- Messages


def test_messages_go_where_the_caller_wants_them(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that wants warnings alone gets no others from a training, whose run.log has them all; its
    level stays."""
    toolkit = logging.getLogger("finetune")
    caplog.set_level(logging.WARNING)
    quiet = finetune.train(recipe, {"train.max_steps": 1})
    assert [record for record in caplog.records if record.levelno < logging.WARNING] == []
    assert "INFO step 1/1" in (quiet.folder / "run.log").read_text()
    assert toolkit.level == logging.NOTSET
    caplog.set_level(logging.INFO, logger="finetune")
    finetune.train(recipe, {"train.max_steps": 1})
    assert any(record.getMessage().startswith("step 1/1") for record in caplog.records)


# --- Planning, looking again, combining


def test_a_recipe_is_planned_and_a_model_inspected(recipe: Path, run: finetune.Run, tiny_base: Path) -> None:
    """The figures are the command line's; the speed is that of the newest run of the same base."""
    plan = finetune.plan(recipe, {"train.micro_batch_size": 2}, gpus=2, gpu_memory="24GB", launch="ddp")
    assert plan.asked == "ddp"
    speeds = [other.summary["tokens_per_second"] for other in finetune.list_runs(run.folder.parent)]
    assert plan.tokens_per_second in speeds
    assert all(way.fits for way in plan.ways)
    with pytest.raises(ModelError, match="is not a recipe, so"):
        finetune.inspect(tiny_base, ["train.max_steps=3"])
    facts = finetune.inspect(tiny_base)
    assert facts["parameters"] == finetune.inspect(run)["parameters"]
    assert finetune.inspect(run)["trainable_parameters"] == run.summary["trainable_parameters"]


def test_a_merged_folder_is_verified_again(run: finetune.Run, tmp_path: Path) -> None:
    """What was changed since is among the failures."""
    run.merge(tmp_path / "merged", verify="tensors")
    assert finetune.verify(tmp_path / "merged", seed=1).failures == []
    (tmp_path / "merged" / "config.json").write_text("{}")
    assert any("config.json" in failure for failure in finetune.verify(tmp_path / "merged").failures)


def test_adapters_are_combined(run: finetune.Run, tmp_path: Path) -> None:
    """Half of a run twice is the run."""
    found = finetune.combine([run, run.adapter], tmp_path / "both", weights=[0.5, 0.5])
    assert found.rank == 8
    assert found.distance < 1e-6
    answers = [finetune.load(model).generate(["Say blue 3 times."]) for model in (tmp_path / "both", run)]
    assert answers[0] == answers[1]


def test_runs_are_compared_and_reproduced(run: finetune.Run, recipe: Path, tmp_path: Path) -> None:
    """What differs between two runs is named; a run again is the same bit for bit."""
    other = finetune.train(recipe, {"train.learning_rate": 2e-2})
    found = run.compare(other)
    assert [line.name for line in found.differences if line.group == "recipe"] == ["train.learning_rate"]
    report = run.reproduce(tmp_path / "again")
    report.refuse_unlike()
    assert_same_weights(finetune.Run(report.new), run)


# --- This machine


def test_the_machine_is_described() -> None:
    """doctor() gives what `finetune doctor --json` prints."""
    facts = finetune.doctor()
    assert [fact.name for fact in facts[:3]] == ["device", "precision", "attention"]
    assert {"allocator", "cores", "memory", "python", "hub token"} <= {fact.name for fact in facts}


def test_curves_are_drawn_into_a_png(run: finetune.Run, tmp_path: Path) -> None:
    """plot() writes a PNG of runs' metrics, and refuses a metric that none has."""
    pytest.importorskip("matplotlib")
    drawn = finetune.plot([run], tmp_path / "curves.png", metrics=["train/loss"])
    assert drawn.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FinetuneError, match="none of the runs has train/lossy"):
        finetune.plot([run], tmp_path / "none.png", metrics=["train/lossy"])
