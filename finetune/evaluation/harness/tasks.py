"""Tasks of the LM Evaluation Harness (lm-eval) on a live model, with or without an adapter. Imports lm-eval
only when used.

The figures are lm-eval's own: its prompts, seeds, few-shot examples and metrics, so that they compare with
published ones. What differs: nothing is printed, log-likelihoods are summed in float32, the bootstrap draws
fewer samples, no second BOS is scored, and answers follow the task's options alone, not the model's
generation_config.json.
"""

import gc
import importlib.metadata
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.disk import NOTES_BYTES, read_regular
from data_prep.text import one_line
from finetune.errors import FinetuneError
from finetune.evaluation.harness.lm_eval import check_installed, harness_model, quiet, task_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "few_shot": 1234}
"""lm-eval's own defaults, which draw the few-shot examples of published figures."""

BOOTSTRAP_DRAWS = 1000
"""For the standard error of a metric that is no mean (F1, MCC, perplexity), known to 2 % then. lm-eval's
100,000 take minutes: 1,000 draws of F1 over 1,000 answers are 2 s on one core."""

NAMES_LISTED = 10
"""Tasks of a folder that a message lists."""

FigureKey = tuple[str, str, str]
"""Task, metric and filter."""


@dataclass(frozen=True)
class Figure:
    """One metric of one task, or of a group of tasks."""

    task: str
    metric: str
    filter: str
    """How answers were read out of what was generated; "none" where they were taken as they are."""
    shots: int | None
    """Solved examples before each question; None for a group whose tasks differ."""
    questions: int | None
    higher_is_better: bool | None
    value: float | None
    """None where the metric is no finite number."""
    standard_error: float | None

    @property
    def key(self) -> FigureKey:
        """What tells it from the other figures of its run."""
        return self.task, self.metric, self.filter

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class ScoreDelta:
    """The same metric of two models."""

    base: Figure
    tuned: Figure
    difference: float | None
    standard_error: float | None
    """Of the mean difference, question by question: both models answered the same ones. None where the metric
    is no mean."""

    def as_dict(self) -> dict[str, Any]:
        """The tuned model's figure, with the base's and the difference beside it."""
        return self.tuned.as_dict() | {
            "base": {"value": self.base.value, "standard_error": self.base.standard_error},
            "difference": self.difference,
            "difference_standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class Scores:
    """What a model reached on the tasks."""

    figures: list[Figure]
    notes: list[str]
    """What the reader of the figures should know."""
    seconds: float
    by_question: dict[FigureKey, dict[int, float]] = field(repr=False)
    """A metric's value for each question, where it is a number; empty unless asked for."""


@dataclass(frozen=True)
class Tasks:
    """Tasks that are loaded with their data, their first prompts tried."""

    names: list[str]
    """As they were asked for."""
    loaded: dict[str, Any]
    """lm-eval's tasks and groups, as its evaluate takes them."""
    notes: list[str]
    """What the reader of the figures should know."""


def settings() -> dict[str, Any]:
    """What the figures depend on beside model and tasks: lm-eval's version, the seeds, the bootstrap's
    size."""
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "seeds": SEEDS,
        "bootstrap_draws": BOOTSTRAP_DRAWS,
    }


def load_tasks(names: Sequence[str], folder: Path | None = None, few_shot: int | None = None) -> Tasks:
    """lm-eval's tasks, groups and tags of these names, and those of a folder of task files, with their data.

    Needs no model: what is wrong with a task shows before one is loaded. Raises FinetuneError for a name that
    is none, a task file that can't be read, data that can't be had, and a prompt that can't be built.
    """
    check_installed()
    if folder is not None:
        _check_task_files(folder)
    names = list(dict.fromkeys(names))
    with quiet():
        manager = _manager_for(names, folder)
        parts = [part for name in names for part in _load(manager, name)]
        with task_errors(f"the tasks {', '.join(names)} can't be run together"):
            loaded = manager.load(parts)
        notes = [note for name, task in loaded["tasks"].items() for note in _prepare(name, task, few_shot)]
    return Tasks(names, loaded, notes)


def run_tasks(
    tasks: Tasks,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    *,
    batch_size: int,
    limit: int | None = None,
    chat: bool = False,
    keep_questions: bool = False,
) -> Scores:
    """The tasks' figures for a model, whose adapter stays an adapter; of the first `limit` questions of each
    task where given.

    `chat` puts each prompt into the chat template. Raises FinetuneError where a task can't be run on this
    model.
    """
    from lm_eval import evaluate

    from finetune.generation.base_options import unused_options
    from finetune.models.kernels.rope import looks_at_length

    if chat and tokenizer.chat_template is None:
        raise FinetuneError(
            "this model's tokenizer has no chat template to put the prompts into: leave --chat out."
        )
    # lm-eval pads without a mask, so how long a row is could not be seen.
    alone = looks_at_length(model.config)
    started = time.perf_counter()
    _seed(tasks)
    # torch's own errors come through as they are.
    what = f"lm-eval can't run {', '.join(tasks.names)} on this model"
    with quiet() as warnings, task_errors(what, passed=(RuntimeError,)):
        # Not simple_evaluate: that starts git and other programs to describe the machine, and these print.
        results = evaluate(
            harness_model(model, tokenizer, 1 if alone else batch_size, chat),
            tasks.loaded,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_DRAWS,
            log_samples=keep_questions,
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
        )
    gc.collect()  # lm-eval's parts refer to each other in circles, and one of them to the model
    figures = _figures(results)
    notes = _run_notes(tasks, figures, warnings)
    if any(task.OUTPUT_TYPE == "generate_until" for task in tasks.loaded["tasks"].values()):
        notes += [f"{line}." for line in unused_options(model, tokenizer)]
    if alone and batch_size > 1:
        notes.append(
            "prompts went one by one: this base's RoPE scaling looks at the length of a row, padding "
            "included."
        )
    return Scores(figures, notes, time.perf_counter() - started, _by_question(results.get("samples") or {}))


def _seed(tasks: Tasks) -> None:
    """Begin every draw anew, as lm-eval's simple_evaluate does: two models see the same examples."""
    import numpy
    import torch

    random.seed(SEEDS["random"])
    numpy.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])
    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["few_shot"])


def _run_notes(tasks: Tasks, figures: list[Figure], warnings: list[str]) -> list[str]:
    """What lm-eval passes over in silence, or only warns of: cut prompts, wrong labels, metrics that it
    doesn't know."""
    notes = []
    if any("truncat" in warning.lower() for warning in warnings):
        notes.append("prompts longer than the model's context lost their beginning.")
    if unlabelled := sum("was not in within range" in warning for warning in warnings):
        notes.append(
            f"{unlabelled:,} questions name a right answer that is none of their choices; they count as "
            "wrong."
        )
    found = {(figure.task, figure.metric) for figure in figures}
    for name, task in tasks.loaded["tasks"].items():
        asked = [entry["metric"] for entry in task.config.metric_list or []]
        absent = [str(metric) for metric in asked if (name, getattr(metric, "__name__", metric)) not in found]
        if absent:
            notes.append(
                f"{name}: no figure for its metric {', '.join(absent)}, which lm-eval doesn't know or can't "
                "compute."
            )
    return notes


def compare(base: Scores, tuned: Scores) -> list[ScoreDelta]:
    """The figures of two models side by side, in the tuned model's order."""
    before = {figure.key: figure for figure in base.figures}
    return [
        _difference(
            before[figure.key],
            figure,
            base.by_question.get(figure.key, {}),
            tuned.by_question.get(figure.key, {}),
        )
        for figure in tuned.figures
        if figure.key in before
    ]


def _difference(base: Figure, tuned: Figure, before: dict[int, float], after: dict[int, float]) -> ScoreDelta:
    if base.value is None or tuned.value is None:
        return ScoreDelta(base, tuned, None, None)
    error = None
    means = len(after) > 1 and before.keys() == after.keys()
    for figure, values in ((base, before), (tuned, after)):
        means = means and math.isclose(
            statistics.fmean(values.values()), float(figure.value or 0), abs_tol=1e-9
        )
    if means:
        changes = [after[question] - before[question] for question in after]
        error = statistics.stdev(changes) / math.sqrt(len(changes))
    return ScoreDelta(base, tuned, tuned.value - base.value, error)


def _check_task_files(folder: Path) -> None:
    """Read every task file of a folder: lm-eval passes over those that it can't read, and says that there is
    no such task."""
    import yaml

    # YAML's plain types, and lm-eval's !function, which stays a name here.
    loader: Any = type("TaskLoader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda _, node: str(node.value))
    if not folder.is_dir():
        raise FinetuneError(
            f"--task-folder {folder} is not a folder: name the one that holds the tasks' YAML files."
        )
    files = sorted(folder.glob("**/*.yaml"))
    if not files:
        raise FinetuneError(
            f"--task-folder {folder} holds no task file: expected NAME.yaml, as lm-eval reads them."
        )
    named: dict[str, Path] = {}
    for path in files:
        try:
            content = yaml.load(read_regular(path, NOTES_BYTES).decode(), loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, OSError, ValueError) as error:
            raise FinetuneError(f"the task file {path} can't be read: {one_line(str(error))}") from error
        if not isinstance(content, dict):
            raise FinetuneError(
                f"the task file {path} holds a {type(content).__name__}; expected keys, `task` among them."
            )
        task = content.get("task")
        if isinstance(task, str) and "group" not in content and named.setdefault(task, path) != path:
            raise FinetuneError(
                f"two task files are named {task}: {named[task]} and {path}. Rename one in its line `task:`."
            )
        included = content.get("include") or []
        for name in included if isinstance(included, list) else [included]:
            if not (path.parent / str(name)).is_file():
                raise FinetuneError(
                    f"the task file {path} includes {name}, and there is no such file beside it."
                )


def _manager_for(names: Sequence[str], folder: Path | None) -> Any:
    """What finds lm-eval's tasks. Raises FinetuneError for a name that is none."""
    from lm_eval.tasks import TaskManager

    held: list[str] = []
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        held = own.all_tasks
        # lm-eval's own 14,000 tasks take seconds to list. A group of the folder may name some of them; a task
        # doesn't.
        if set(names) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=str(folder) if folder is not None else None)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise FinetuneError(_unknown(unknown, manager.all_tasks, folder, held))
    return manager


def _unknown(unknown: list[str], known: list[str], folder: Path | None, held: list[str]) -> str:
    sentences = []
    for name in unknown:
        close = get_close_matches(name[:100], known, n=4)
        sentences.append(f"there is no task {name!r}" + (f"; near it: {', '.join(close)}." if close else "."))
    if folder is not None:
        listed = ", ".join(held[:NAMES_LISTED]) + (", ..." if len(held) > NAMES_LISTED else "")
        sentences.append(f"{folder} holds {listed or 'no file with a task in it'}.")
    elif any(name.endswith((".yaml", ".yml")) for name in unknown):
        sentences.append(
            "For a task file, give its folder with --task-folder and the task's name with --task."
        )
    return " ".join(sentences)


def _load(manager: Any, name: str) -> list[Any]:
    """The task or group of that name, or the tasks of that tag."""
    from huggingface_hub.errors import HfHubHTTPError

    path = manager.task_index[name].yaml_path
    try:
        with task_errors(f"task {name} can't be loaded", f"Its file is {path}." if path else ""):
            found = manager.load([name])
    except FinetuneError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError):
            raise FinetuneError(
                f"task {name} needs the Python package {cause.name}, which is not installed: install it, or "
                "name another task."
            ) from cause
        if isinstance(cause, ConnectionError | HfHubHTTPError):
            raise FinetuneError(
                f"task {name}: its data are on the hub, which can't be reached, and not in the local cache "
                f"({one_line(str(cause))}). Check the connection and HF_HUB_OFFLINE, or write a task file "
                "with local data "
                "(dataset_path: json, dataset_kwargs: {data_files: ...}) and name its folder with "
                "--task-folder."
            ) from cause
        raise
    unsafe = [task for task in found["tasks"] if getattr(found["tasks"][task], "UNSAFE_CODE", False)]
    if unsafe:
        raise FinetuneError(
            f"task {unsafe[0]} runs code that the model writes, which this toolkit doesn't do: leave it out."
        )
    return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())


def _prepare(name: str, task: Any, few_shot: int | None) -> list[str]:
    """Settle a task's number of examples, and build its first prompt; what the reader of its figures should
    know."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    notes = []
    for metric, aggregation in task.aggregation().items():
        if aggregation is None:  # lm-eval would call it, once every question is answered
            known = ", ".join(AGGREGATION_REGISTRY)
            raise FinetuneError(
                f"task {name}: the aggregation of its metric {metric} is unknown; lm-eval has {known}."
            )
    shots = task.get_config("num_fewshot")
    if few_shot and shots == 0:
        notes.append(f"{name}: its file says num_fewshot: 0, so --few-shot {few_shot} is not used.")
    elif few_shot is not None:
        shots = few_shot
    shots = shots or 0
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed=SEEDS["few_shot"])
    with task_errors(
        f"task {name}: its first prompt, with {shots} solved examples, can't be built",
        "Lower --few-shot." * bool(few_shot),
    ):
        task.build_all_requests(limit=1)
    if shots and _shows_its_own_answers(task.config):
        notes.append(
            f"{name}: the solved examples are drawn from the questions themselves, so a prompt may hold its "
            "answer."
        )
    return notes


def _shows_its_own_answers(config: Any) -> bool:
    """Whether a question may be among its own solved examples: lm-eval leaves it out only where both splits
    are named alike."""
    examples = config.fewshot_config
    if examples.split == config.test_split or (examples.split is None and examples.samples is not None):
        return False
    drawn_from = examples.split or config.training_split or config.validation_split or config.test_split
    return bool(drawn_from == (config.test_split or config.validation_split))


def _figures(results: dict[str, Any]) -> list[Figure]:
    """Every metric of lm-eval's results, groups before their tasks."""
    groups = results.get("group_subtasks") or {}
    figures = []
    for name, metrics in sorted(results["results"].items(), key=lambda entry: entry[0] not in groups):
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            shots = results["n-shot"].get(name)
            figures.append(
                Figure(
                    task=name,
                    metric=metric,
                    filter=filter_name,
                    shots=shots if isinstance(shots, int) else None,
                    questions=metrics.get("sample_len"),
                    higher_is_better=(results["higher_is_better"].get(name) or {}).get(metric),
                    value=_number(value),
                    standard_error=_number(metrics.get(f"{metric}_stderr,{filter_name}")),
                )
            )
    if not figures:
        raise FinetuneError(f"the tasks {', '.join(results['results'])} gave no figure: they name no metric.")
    return figures


def _by_question(samples: dict[str, list[dict[str, Any]]]) -> dict[FigureKey, dict[int, float]]:
    found: dict[FigureKey, dict[int, float]] = {}
    for task, answers in samples.items():
        for answer in answers:
            for metric in answer["metrics"]:
                value = _number(answer[metric])
                if value is not None:
                    found.setdefault((task, metric, answer["filter"]), {})[answer["doc_id"]] = value
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
