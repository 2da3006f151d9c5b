"""The Python API: the command line's verbs as functions, the run and the model as objects. Nothing but calls
into rooms."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from finetune.errors import CheckpointError, FinetuneError
from finetune.loaded_model import Chat, LogLikelihood, Model
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.load import load_recipe as _load_recipe
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.reading.overrides import as_overrides
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.runs.compare import is_metric
from finetune.runs.folder import list_summaries, open_run
from finetune.runs.listing import chosen, parse_condition, value_of
from finetune.runs.target import Target, resolve_target
from finetune.scoring.metrics import lower_is_better
from finetune.training.start import Trained, start

if TYPE_CHECKING:
    from data_prep.audit.audit import Audit
    from finetune.evaluation.predictions import OnProgress
    from finetune.evaluation.report import Report
    from finetune.merging.merge import MergeReport

__all__ = [
    "Chat", "LogLikelihood", "Model", "Run", "audit", "evaluate", "list_runs", "load", "load_recipe", "merge",
    "resume", "train",
]  # fmt: skip
logger = logging.getLogger(__name__)

AnyRecipe: TypeAlias = str | Path | LoadedRecipe
"""A recipe's file, the name of a shipped one, or what load_recipe returned."""
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""{"train.max_steps": 50}, or as typed on the command line: ["train.max_steps=50"]."""
AnyModel: TypeAlias = "str | Path | Run"
"""A run, a checkpoint of one, an adapter, a model (each a folder), or a hub id."""


# --- Recipes and data


def load_recipe(recipe: AnyRecipe, overrides: Overrides = ()) -> LoadedRecipe:
    """Load a recipe, with overrides on top. Its values are in `.recipe`, and where each was written in
    `.origins`.

    Raises RecipeError with every problem that was found.
    """
    if isinstance(recipe, LoadedRecipe):
        if not overrides:
            return recipe
        return _load_recipe(recipe.path, [*recipe.overrides, *as_overrides(overrides)])
    return _load_recipe(recipe, as_overrides(overrides))


def audit(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    first_rows: int | None = None,
    samples: int = 0,
    allow_code: Collection[str] = (),
) -> "Audit":
    """Prepare a recipe's data and say what becomes of every row: figures, findings, and `samples` documents
    to look at.

    `first_rows` of each source are read, all where it is None; of a streamed one at most its buffer.
    `allow_code` has the SHA-256 of the files that format python may run. Findings that fail the audit are in
    `.failed`; nothing is raised for them.
    """
    for name, value, least in (("first_rows", first_rows, 1), ("samples", samples, 0)):
        if value is not None and value < least:
            raise FinetuneError(f"{name} is {value}; expected a whole number from {least}.")
    loaded = load_recipe(recipe, overrides)
    section = loaded.recipe.data

    from data_prep.audit.audit import audit_of
    from finetune.data import prepare_data, tokenizer_for
    from finetune.models.bases.locate import tokenizer_folder
    from finetune.objectives import objective_of

    tokenizer = tokenizer_for(loaded.recipe.model, None, tokenizer_folder(loaded.recipe.model))
    if section.streaming is not None and first_rows is None:
        first_rows = section.streaming.buffer_rows
    if first_rows is not None:
        logger.info(f"only the first {first_rows:,} rows of each source are read")
    prepared = prepare_data(
        loaded.recipe, tokenizer, audit=True, allow_code=_lowered(allow_code), first_rows=first_rows
    )
    if prepared.from_cache:
        logger.info("from the cache: these data were prepared before")
    seed = loaded.recipe.train.seed
    return audit_of(
        section,
        prepared,
        tokenizer,
        seed=seed,
        samples=samples,
        encoding=objective_of(loaded.recipe).encoding,
    )


# --- Training


def train(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    launch: str | None = None,
    processes: int | None = None,
    max_restarts: int | None = None,
    timeout_minutes: float | None = None,
    allow_code: Collection[str] = (),
) -> "Run":
    """Train a recipe in this process, or in several with `launch` (ddp, zero2, zero3, fsdp2 ..., or an
    accelerate file).

    Returns the run, finished or, after Ctrl-C or a signal, stopped with a checkpoint. Raises
    KeyboardInterrupt only where there is nothing yet to resume, and the errors of finetune.errors and
    data_prep.errors.
    """
    options = _given(processes=processes, max_restarts=max_restarts, timeout_minutes=timeout_minutes)
    loaded = load_recipe(recipe, overrides)
    return _run_of(start(loaded, None, launch=launch, options=options, allow_code=allow_code))


def resume(
    run: "str | Path | Run",
    *,
    launch: str | None = None,
    processes: int | None = None,
    max_restarts: int | None = None,
    timeout_minutes: float | None = None,
    allow_code: Collection[str] = (),
    trust_checkpoint: bool = False,
) -> "Run":
    """Resume a run that was stopped or interrupted from its newest whole checkpoint; see train.

    `trust_checkpoint` loads a DeepSpeed checkpoint that somebody else wrote, which can run code.
    """
    options = _given(processes=processes, max_restarts=max_restarts, timeout_minutes=timeout_minutes)
    return _run_of(
        start(
            None,
            Path(_path(run)).expanduser(),
            launch=launch,
            options=options,
            allow_code=allow_code,
            trust_checkpoint=trust_checkpoint,
        )
    )


def _run_of(trained: "Trained | None") -> "Run":
    assert trained is not None  # noqa: S101 - these are launches of one machine
    return Run(trained.folder)


# --- Runs


class Run:
    """A run folder: what was trained, and what became of it.

    Raises CheckpointError where the folder isn't one.
    """

    def __init__(self, folder: str | Path):
        self._run = open_run(Path(folder).expanduser().resolve())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.status!r})"

    @property
    def folder(self) -> Path:
        """Where everything of the run is."""
        return self._run.path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._run.name

    @property
    def status(self) -> str:
        """running, finished, stopped (resume it), failed, or interrupted (killed; resume it)."""
        return str(self._run.outcome()["status"])

    @property
    def summary(self) -> dict[str, Any]:
        """What became of it: summary.json."""
        return self._run.outcome()

    @property
    def lock(self) -> Lock:
        """What it was made of: recipe, base, data, versions, machine."""
        return read_lock(self._run.lock_path)

    @property
    def recipe(self) -> Recipe:
        """What was trained."""
        return self.lock.recipe

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the summary alone: evaluation_loss, tokens_per_second, final/exact_match ..."""
        found = self.summary.items()
        return {name: value for name, value in found if is_metric(name) and isinstance(value, int | float)}

    def curves(self) -> list[dict[str, Any]]:
        """What was logged in training, an entry a logged step, each with its `step`: metrics.jsonl."""
        from finetune.runs.plot import read_metrics

        return read_metrics(self._run)

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, which peft loads; of a run that trained all weights there is
        `model/`."""
        return self._run.adapter

    def merge(self, output: str | Path | None = None, **options: Any) -> "MergeReport":
        """Merge the adapter into full weights, in RUN/merged where no output is given; see finetune.merge."""
        return merge(self, output if output is not None else self.folder / "merged", **options)

    def resume(self, **options: Any) -> "Run":
        """Resume the run; see finetune.resume."""
        return resume(self, **options)

    def load(self, **options: Any) -> "Model":
        """The trained model, to generate with; see finetune.load."""
        return load(self, **options)

    def evaluate(self, **options: Any) -> "Report":
        """Its metrics on its recipe's evaluation rows; see finetune.evaluate."""
        return evaluate(self, **options)


def list_runs(
    folder: str | Path = "runs",
    *,
    where: str | Sequence[str] = (),
    best: str | None = None,
    sort: str | None = None,
) -> list[Run]:
    """The runs in a folder that fulfil all conditions ("status=finished", "train.learning_rate>=1e-4"), the
    oldest first.

    With `best` those that have this metric, the best first; with `sort` by any metric or recipe value,
    upwards. Runs whose files are damaged are left out, with a warning. Raises CheckpointError for a folder
    that is none, and for a condition or metric that no run knows.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder: expected one that holds run folders.")
    if best is not None and sort is not None:
        raise CheckpointError("got best and sort; expected one of them.")
    conditions = [parse_condition(text) for text in ([where] if isinstance(where, str) else where)]
    order = best or sort
    summaries = list_summaries(path)
    for summary in summaries:
        if summary["status"] in ("damaged", "unreadable"):
            logger.warning(f"{path / summary['name']} is {summary['status']}; it is left out")
    readable = [summary for summary in summaries if summary["status"] not in ("damaged", "unreadable")]
    found = chosen(readable, conditions, order=order, reverse=best is not None and not _lower_is_better(best))
    if best is not None:
        found = [summary for summary in found if _is_figure(value_of(summary, best))]
    return [Run(path / summary["name"]) for summary in found]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lower_is_better(metric: str) -> bool:
    name = metric.rpartition("/")[2]
    return lower_is_better(name) or "loss" in name or name in ("seconds", "peak_memory_bytes")


# --- Merging and evaluation


def merge(
    model: AnyModel,
    output: str | Path,
    *,
    more: "Sequence[AnyModel]" = (),
    base: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    verify: str = "full",
    qlora_base: str = "auto",
) -> "MergeReport":
    """Merge an adapter, and then those in `more`, into its base's weights, and check the result against base
    + adapter.

    See finetune.merging.merge.merge for the options. Raises MergeError where they can't be merged, and
    CheckFailed where the merged model isn't the base with its adapter.
    """
    from finetune.merging import merge as merging
    from finetune.merging.targets import choose_more, choose_target

    other = None if base is None else str(base)
    first = choose_target(str(_path(model)), other)
    return merging.merge(
        first,
        Path(output),
        more=choose_more([str(_path(another)) for another in more], other, first),
        dtype=dtype,
        max_shard_size=max_shard_size,
        check=verify,
        qlora_base=qlora_base,
    )


def evaluate(
    model: "AnyModel | Model",
    recipe: AnyRecipe | None = None,
    overrides: Overrides = (),
    *,
    base: str | Path | None = None,
    allow_code: Collection[str] = (),
    progress: "OnProgress | None" = None,
) -> "Report":
    """A model's metrics on a recipe's evaluation rows, with their 95 % intervals; on its own recipe's where
    none is given.

    `.values` has the metrics alone, `.scores` them with their intervals, `.measured` each row's answer.
    Raises FinetuneError where the model has no recipe, or it, the recipe and its rows don't fit together.
    """
    from finetune.evaluation.evaluation import Evaluation
    from finetune.models.device import choose_precision

    if recipe is None and overrides:
        raise FinetuneError("got overrides without a recipe: name the recipe that they change.")
    loaded = load_recipe(recipe, overrides) if recipe is not None else None
    given = with_evaluation(loaded.recipe, loaded.path) if loaded is not None else None
    target = model.target if isinstance(model, Model) else resolve_target(str(_path(model)), base)
    scored = given or own_recipe(target)
    precision = choose_precision(scored.train.precision)
    evaluation = Evaluation(scored, precision, allow_code=_lowered(allow_code), progress=progress)
    return (
        evaluation.of_loaded(target, model.model, model.tokenizer)
        if isinstance(model, Model)
        else evaluation.of(target)
    )


def own_recipe(target: Target) -> Recipe:
    """The recipe of a model's run. Raises FinetuneError where it has none, or no evaluation rows are in
    it."""
    if target.recipe is None:
        raise FinetuneError(
            f"{target.description} has no recipe of its own: name one (finetune evaluate MODEL_OR_RUN "
            "RECIPE)."
        )
    return with_evaluation(target.recipe, target.description)


def with_evaluation(recipe: Recipe, name: str | Path) -> Recipe:
    """The recipe. Raises FinetuneError where it has no evaluation rows."""
    if recipe.data.evaluation is None:
        raise FinetuneError(
            f"{name} has no data.evaluation, so there is nothing to score on: add a fraction or sources."
        )
    return recipe


# --- Models


def load(model: AnyModel, *, base: str | Path | None = None) -> "Model":
    """Load a run, a checkpoint, an adapter or a model, on the device, to generate or to score with.

    `base` takes the place of the base that an adapter names. Raises ModelError, CheckpointError or DataError
    where it can't be loaded.
    """
    target = resolve_target(str(_path(model)), base)

    from finetune.generation.loading import load_ready
    from finetune.models.device import choose_precision

    loaded, tokenizer = load_ready(target, dtype=choose_precision("auto").dtype)
    options = target.recipe.evaluate if target.recipe is not None else EvaluateSection()
    return Model(target, loaded, tokenizer, options)


# --- What arguments may be


def _path(model: AnyModel) -> Path | str:
    return model.folder if isinstance(model, Run) else model


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _lowered(allow_code: Collection[str]) -> frozenset[str]:
    return frozenset(sha256.lower() for sha256 in allow_code)
