"""The Python API: the command line's verbs as functions, the run and the model as objects. Nothing but calls
into rooms."""

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from finetune.adapters import combine, extract, unmerge
from finetune.errors import CheckpointError, FinetuneError, ModelError
from finetune.loaded_model import Chat, LogLikelihood, Model
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.load import load_recipe as _load_recipe
from finetune.recipe.reading.overrides import as_overrides
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.run import Run
from finetune.runs.folder import list_summaries, open_run
from finetune.runs.listing import chosen, measured_speed, parse_condition, value_of
from finetune.runs.target import compared_with, own_recipe, resolve_target, with_rows
from finetune.scoring.metrics import lower_is_better
from finetune.training.start import Trained, start

if TYPE_CHECKING:
    from data_prep.audit.audit import Audit
    from finetune.conversion import Conversion
    from finetune.evaluation.harness.benchmark import Benchmark
    from finetune.evaluation.predictions import OnProgress
    from finetune.evaluation.report import Report
    from finetune.evaluation.sampled import SampledRows
    from finetune.exporting.report import ExportReport
    from finetune.exporting.vllm import VllmAdapter
    from finetune.hub.push import Pushed
    from finetune.machine import Fact
    from finetune.merging.merge import MergeReport
    from finetune.merging.verification.reverify import Again
    from finetune.planning.plan import Plan
    from finetune.pruning.output import Pruning
    from finetune.sweeping.results import Sweep

__all__ = [
    "Chat", "LogLikelihood", "Model", "Run", "audit", "benchmark", "combine", "convert", "doctor",
    "evaluate", "export", "extract", "inspect", "list_runs", "load", "load_recipe", "merge", "plan", "plot",
    "prune", "push", "report", "resume", "sample", "selftest", "serve", "sweep", "train", "train_many",
    "unmerge", "verify",
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


def convert(
    file: str | Path,
    tool: str | None = None,
    *,
    to: str | None = None,
    output: str | Path | None = None,
    processes: int = 1,
) -> "Conversion":
    """Another tool's configuration as a recipe (YAML, JSON, TOML, a shell script, or an adapter_config.json);
    with `to` a recipe as the file of axolotl, llamafactory or trl. Nothing is fetched, no code of it runs.

    `tool` is asked for where the file could be of two ("trl orpo" says the trainer as well). `output` is the
    file to write; paths in the recipe are relative to its folder. The three lists say what became of each
    key; `.complete` is false where something that changes the result was not carried. Raises ConvertError (a
    FinetuneError) for a file that can't be converted, and OSError for one that can't be read.
    """
    from finetune.conversion import convert_back, convert_file

    written = Path(output).expanduser() if output is not None else None
    if written is not None and written.exists():
        raise FinetuneError(f"{written} exists; name a new file, or remove it")
    if to is not None:
        conversion = convert_back(load_recipe(file), to, processes=processes)
    else:
        folder = written.absolute().parent if written is not None else None
        conversion = convert_file(Path(file).expanduser(), tool, folder=folder, processes=processes)
    if written is not None:
        written.write_text(conversion.recipe, encoding="utf-8")
    return conversion


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
        loaded.recipe, tokenizer, audit=True, allow_code=allow_code, first_rows=first_rows
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


def train_many(
    recipes: Sequence[AnyRecipe],
    overrides: Overrides = (),
    *,
    variants: Mapping[str, Overrides] | None = None,
    resume: "Sequence[str | Path | Run]" = (),
    max_adapters: int = 8,
    launch: str | None = None,
    processes: int | None = None,
    allow_code: Collection[str] = (),
) -> "dict[str, Run]":
    """Train adapters of one base together, in this process, or in several with `launch` (ddp, fsdp2): of
    several recipes, or of one in `variants`, and of runs to resume; at most `max_adapters` at a time. Returns
    the runs by name: finished, stopped or failed.

    One that fails leaves, and the others continue. Raises TrainingError, before anything is trained, where
    one of them can't share the base; and when all have ended, the error of the first that could not start
    (with `launch` a TrainingError that says the same).
    """
    from finetune.training.many import start_many

    if variants is None:
        loaded = [load_recipe(recipe, overrides) for recipe in recipes]
        names = [one.name for one in loaded]
    elif len(recipes) == 1:
        loaded = [load_recipe(load_recipe(recipes[0], overrides), changes) for changes in variants.values()]
        names = list(variants)
    else:
        raise FinetuneError(f"variants are of one recipe, and got {len(recipes)}: name one recipe.")
    resumed = [Path(_path(run)).expanduser() for run in resume]
    outcomes = start_many(
        loaded,
        resumed,
        names=names,
        most=max_adapters,
        launch=launch,
        processes=processes,
        allow_code=allow_code,
    )
    for outcome in outcomes:
        if outcome.folder is None and outcome.error is not None:
            raise outcome.error
    return {outcome.name: Run(outcome.folder) for outcome in outcomes if outcome.folder is not None}


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


def sweep(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    storage: str | None = None,
    max_adapters: int = 1,
    allow_code: Collection[str] = (),
) -> "Sweep":
    """Search the space of a recipe's sweep section, each trial a run in this process, at most `max_adapters`
    at a time over one base; go on where a sweep of its name was begun.

    `.best` has the best trials, `.trials` all, `.recipe` is a recipe of the best. With `storage`, a
    database's URL or a journal file, one of several workers. Raises SweepError where it can't be searched
    so, and KeyboardInterrupt where it was stopped.
    """
    from finetune.extras import refuse_without

    refuse_without("optuna", "finetune sweep")
    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.sweep is not None and loaded.recipe.sweep.sampler == "cma-es":
        refuse_without("cmaes", "sweep.sampler: cma-es")

    from finetune.sweeping.worker import run_sweep

    return run_sweep(loaded, storage=storage, most=max_adapters, allow_code=allow_code)


def _run_of(trained: "Trained | None") -> "Run":
    assert trained is not None  # noqa: S101 - these are launches of one machine
    return Run(trained.folder)


def plan(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    gpus: int = 1,
    gpu_memory: str | None = None,
    launch: str | None = None,
    tokens_per_second: float | None = None,
    cpu: bool = False,
    adapters: int = 1,
) -> "Plan":
    """Memory of a process for every way of sharding, steps, time and disk; from headers and lengths alone.
    Of several `adapters` it is what so many runs like this one take that train_many trains together.

    `gpu_memory` is a size, such as "80GiB"; `launch` the way of sharding that is asked for; with `cpu` it is
    about processes on the CPU. Time is told from `tokens_per_second`, else from the newest run of this base.
    Raises RecipeError, and ModelError where the base's config can't be found or the method has no formula.
    """
    from finetune.models.sizes import parse_size
    from finetune.planning.plan import plan as planned

    found = load_recipe(recipe, overrides).recipe
    return planned(
        found,
        gpus=gpus,
        gpu_memory=None if gpu_memory is None else parse_size(gpu_memory, "--gpu-memory"),
        engine=launch,
        tokens_per_second=tokens_per_second or measured_speed(found),
        device="cpu" if cpu else "gpu",
        adapters=adapters,
    )


def inspect(target: str | Path | Run, overrides: Overrides = ()) -> dict[str, Any]:
    """What a model is made of, and under a recipe or a run what trains of it; no weights are loaded.

    `target` is a recipe, a model folder, a hub id or a run. Raises ModelError where it can't be found, or its
    weights are not those that its config.json describes.
    """
    from finetune.models.bases.inspection import describe
    from finetune.recipe.shipped import shipped_recipes

    text = str(_path(target))
    if text.endswith((".yaml", ".yml")) or (text in shipped_recipes() and not Path(text).is_dir()):
        recipe = load_recipe(text, overrides).recipe
        return describe(recipe.model, recipe.adapter)
    changes = as_overrides(overrides)
    if changes:
        raise ModelError(f"{text} is not a recipe, so {changes[0]!r} can't change it.")
    found = resolve_target(text)
    return describe(found.model, found.recipe.adapter if found.recipe is not None else None)


# --- Runs


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


def plot(
    runs: Sequence[str | Path | Run], output: str | Path, *, metrics: Sequence[str] | None = None
) -> Path:
    """Draw curves of runs into a PNG: loss, evaluation loss, learning rate and more, or the `metrics` named.

    Raises CheckpointError for a metric that none of the runs has, FinetuneError without matplotlib.
    """
    from finetune.runs.plot import PLOTTED, read_curves, save_png

    curves = read_curves([open_run(Path(_path(run)).resolve()) for run in runs], metrics or PLOTTED)
    save_png(curves, Path(output))
    return Path(output)


def report(runs: "AnyModel | Sequence[AnyModel]", html: str | Path, *, overwrite: bool = False) -> Path:
    """Write a run, or several side by side, as one page into the file `html`; its path.

    What a run lacks, or has damaged, is named on the page. Raises CheckpointError for a folder that is no
    run, FinetuneError where the file exists and `overwrite` isn't given.
    """
    from finetune.reporting.page import write_report

    several = [runs] if isinstance(runs, str | Path | Run) else runs
    return write_report([Path(_path(run)) for run in several], Path(html), overwrite=overwrite)


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
    rounding: str | None = None,
    seed: int | None = None,
    calibration: "AnyRecipe | None" = None,
    undoable: bool = False,
) -> "MergeReport":
    """Merge an adapter, and then those in `more`, into its base's weights, and check the result against base
    + adapter.

    See finetune.merging.merge.merge for the options. Raises MergeError where they can't be merged, and
    CheckFailed where the merged model isn't the base with its adapter.
    """
    from finetune.hub.card import write_merged_card
    from finetune.merging import merge as merging
    from finetune.merging.targets import choose_more, choose_target
    from finetune.runs.folder import RunFolder

    other = None if base is None else str(base)
    first = choose_target(str(_path(model)), other)
    report = merging.merge(
        first,
        Path(output),
        more=choose_more([str(_path(another)) for another in more], other, first),
        dtype=dtype,
        max_shard_size=max_shard_size,
        check=verify,
        qlora_base=qlora_base,
        rounding=rounding,
        seed=seed,
        calibration=None if calibration is None else load_recipe(calibration).recipe,
        undoable=undoable,
    )
    if first.run is not None and not more:  # else it comes of several runs
        write_merged_card(Path(output), RunFolder(first.run))
    return report


def export(
    model: AnyModel,
    output: str | Path,
    *,
    format: str,
    quantize: str | None = None,
    adapter_only: bool = False,
    base: str | Path | None = None,
    verify: str = "full",
    max_kl: float | None = None,
    rank: int | None = None,
    rounding: str | None = None,
    seed: int | None = None,
    calibration: "AnyRecipe | None" = None,
    group_size: int | None = None,
) -> "ExportReport | VllmAdapter":
    """Write a run, an adapter on its base or a whole model as a file that other programs run, and check it
    there.

    `quantize` is the type of the weights (finetune.exporters.gguf.types); `adapter_only` writes the adapter
    alone, for llama.cpp's --lora. `verify` is full (the file in llama.cpp beside what was exported), tensors
    (read back and compared) or none; `max_kl` bounds the mean KL of the predictions, in nats a token. Format
    vllm writes an adapter as vLLM loads it: plain LoRA of one rank, a DoRA's nearest one of `rank`. Formats
    compressed (`quantize` is fp8, int8 or int4, `group_size` how many integers have a scale) and nf4 write
    folders for transformers, in which full compares the predictions. `rounding`, `seed` and `calibration` are
    merge's, for weights in bf16 and f16. Raises ExportError for what the format can't hold, and CheckFailed
    where a check doesn't hold.
    """
    from finetune.exporting.export import export as exporting
    from finetune.exporting.options import ExportOptions
    from finetune.merging.rounding.request import RoundingRequest

    target = resolve_target(str(_path(model)), None if base is None else str(base))
    rows = None if calibration is None else load_recipe(calibration).recipe
    asked = RoundingRequest(rounding, seed, rows)
    return exporting(
        target,
        Path(output),
        ExportOptions(format, quantize, adapter_only, verify, max_kl, rank, asked, group_size),
    )


def prune(
    recipe: AnyRecipe,
    output: str | Path,
    overrides: Overrides = (),
    *,
    sparsity: float | str | None = None,
    method: str | None = None,
    drop_layers: int | None = None,
) -> "Pruning":
    """Write a recipe's base with fewer weights, at a `sparsity` (0.5, "2:4") by wanda or magnitude, or with
    fewer layers; adapters that are trained on it keep to its mask.

    See finetune.pruning.prune.prune. Raises FinetuneError where it can't be pruned so.
    """
    from finetune.pruning.prune import prune as pruning

    return pruning(
        load_recipe(recipe, overrides).recipe,
        Path(output),
        sparsity=None if sparsity is None else str(sparsity),
        method=method,
        drop_layers=drop_layers,
    )


def push(result: AnyModel, name: str, *, private: bool = False, overwrite: bool = False) -> "Pushed":
    """Upload a run's result, or a folder with an adapter, a model or GGUF files, to the Hugging Face hub as
    OWNER/NAME, with a model card. The token is HF_TOKEN.

    A repository that holds other files is refused without `overwrite`. Raises ModelError where there is
    nothing to push or the hub refuses it, and CheckFailed where the hub has other content than was sent.
    """
    from finetune.hub import push as pushing

    return pushing.push(str(_path(result)), name, private=private, overwrite=overwrite)


def verify(folder: str | Path, *, seed: int | None = None) -> "Again":
    """Check a folder that `merge` wrote again: each tensor's hash, and base + adapter where they are there.

    `.failures` says what is not as it should be. `seed` draws the numbers that are recomputed, the clock's
    where it is None. Raises MergeError where the folder was not merged by this toolkit, or is damaged.
    """
    from finetune.merging.verification.reverify import verify_again

    return verify_again(Path(folder).expanduser(), seed=time.time_ns() if seed is None else seed)


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
    given = with_rows(loaded.recipe, loaded.path) if loaded is not None else None
    target = model.target if isinstance(model, Model) else resolve_target(str(_path(model)), base)
    scored = given or own_recipe(target)
    precision = choose_precision(scored.train.precision)
    evaluation = Evaluation(scored, precision, allow_code=allow_code, progress=progress)
    return (
        evaluation.of_loaded(target, model.model, model.tokenizer)
        if isinstance(model, Model)
        else evaluation.of(target)
    )


def sample(
    recipe: AnyRecipe,
    output: str | Path,
    overrides: Overrides = (),
    *,
    model: "AnyModel | None" = None,
    base: str | Path | None = None,
    scores: Sequence[str] | None = None,
    count: int = 8,
    keep: str = "best",
    at_least: float | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    allow_code: Collection[str] = (),
    progress: "OnProgress | None" = None,
) -> "SampledRows":
    """Answer the prompts of a recipe's training rows `count` times each, score the answers, and write those
    that `keep` says (best, all or pairs) as JSON lines to train on.

    The recipe's own base answers, or `model`. `scores` are kinds of rewards, each with weight 1; the recipe's
    objective.rewards where none are given. Called again with the same arguments after an interruption, it
    goes on. Raises FinetuneError where a score can't be had, the output exists, or nothing is asked.
    """
    from finetune.evaluation.sampled import options_of, sample_rows, table_of
    from finetune.runs.target import Target

    options = options_of(
        count=count, keep=keep, at_least=at_least, temperature=temperature, top_p=top_p, top_k=top_k,
        min_p=min_p, max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    loaded = load_recipe(recipe, overrides).recipe
    table, named = table_of(loaded, scores)
    if model is None:
        target = Target(loaded.model, None, loaded, f"the base {loaded.model.base}")
    else:
        target = resolve_target(str(_path(model)), None if base is None else str(base))
    return sample_rows(
        loaded,
        target,
        Path(output),
        table,
        options,
        named=named,
        allow_code=allow_code,
        progress=progress,
    )


def benchmark(
    model: AnyModel,
    tasks: Sequence[str],
    *,
    compare: "AnyModel | None" = None,
    base: str | Path | None = None,
    task_folder: str | Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
) -> "Benchmark":
    """Tasks of the LM Evaluation Harness on a model, and on `compare` ("base" is the model's own base); a
    run keeps the result.

    `limit` asks the first questions of each task alone. Raises FinetuneError where lm-eval is not installed,
    ModelError for a model that predicts labels.
    """
    from finetune.evaluation.harness.lm_eval import check_installed

    check_installed()
    tuned = resolve_target(str(_path(model)), base)
    compared = None if compare is None else compared_with(tuned, str(_path(compare)))

    from finetune.evaluation.harness.benchmark import run_benchmark

    return run_benchmark(
        tuned,
        compared,
        [tasks] if isinstance(tasks, str) else list(tasks),
        task_folder=None if task_folder is None else Path(task_folder),
        limit=limit,
        few_shot=few_shot,
        batch_size=batch_size,
        chat=chat,
    )


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


def serve(
    models: "AnyModel | Sequence[AnyModel]",
    *,
    base: str | Path | None = None,
    with_base: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 32,
    queue: int = 256,
) -> None:
    """Answer OpenAI's API until SIGTERM or Ctrl-C; see finetune.serving.server.serve.

    A model is what `load` takes, or "NAME=MODEL"; `with_base` is for what the first was trained from, too, as
    "base". Raises FinetuneError for an address that can't be had, and the errors of `load`."""
    from finetune.serving.server import serve as listen

    several = [models] if isinstance(models, str | Path | Run) else models
    listen(
        [str(_path(model)) for model in several],
        base=None if base is None else str(base),
        with_base=with_base,
        host=host,
        port=port,
        rows=rows,
        queue=queue,
    )


# --- This machine


def doctor() -> "list[Fact]":
    """What this machine offers, what will be used of it, and why."""
    from finetune.machine import examine

    return list(examine())


def selftest() -> dict[str, Any]:
    """Train a tiny model every way that this machine has, and compare each with one plain process; `holds`
    says whether all agree. It takes some six minutes on two cores."""
    from finetune.self_test import selftest as run

    return run()


# --- What arguments may be


def _path(model: AnyModel) -> Path | str:
    return model.folder if isinstance(model, Run) else model


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
