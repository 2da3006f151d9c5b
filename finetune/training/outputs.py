"""What a run leaves behind: the trained weights, and the summary."""

import json
import secrets
from pathlib import Path
from typing import Any

import torch

from data_prep.disk import PARTIAL, follow_umask
from data_prep.temporary import remove_tree
from finetune.engines.group import Group
from finetune.engines.memory import peak_memory_bytes
from finetune.engines.sharded import gathered_weights, hash_of
from finetune.errors import CheckFailed
from finetune.evaluation.report import Report
from finetune.evaluation.report_tables import as_dict, predictions
from finetune.models.adapters.adapter import count_parameters, save_adapter
from finetune.recipe.lock import Lock, tokenizer_facts
from finetune.recipe.schema import Recipe
from finetune.runs.checkpoint import PREFIX, complete_checkpoints
from finetune.runs.compare import FINAL
from finetune.runs.folder import ADAPTER_NOTES, RunFolder, finite_or_null, sync_files, whole_entries, write_entries
from finetune.training.build import Inputs
from finetune.training.read_back import described, read_back, write_beside
from finetune.training.trainer import ExactTrainer


def best_checkpoint(trainer: ExactTrainer, checkpoints: Path) -> Path | None:
    """The checkpoint with the best evaluation. By its number: a run folder may have been moved since."""
    best = checkpoints / f"{PREFIX}{trainer.state.best_global_step}"
    return best if best in complete_checkpoints(checkpoints) else None


def write_result(run: RunFolder, lock: Lock, inputs: Inputs, trainer: ExactTrainer, group: Group) -> str:
    """Save the trained weights and the tokenizer: adapter/, or model/ where all weights were trained. Returns their hash.

    The folder appears whole. One that is there from an interrupted end of this run is replaced. All processes gather what
    each holds a share of; the main one writes.
    """
    weights = gathered_weights(trainer)
    if group.is_main:
        _write(run, lock, inputs, trainer, weights)
    group.wait()
    return hash_of(weights.items(), written_type(lock.recipe, inputs))


def written_type(recipe: Recipe, inputs: Inputs) -> torch.dtype | None:
    """The type in which trained weights are written; None: an adapter's are as they are."""
    return inputs.precision.dtype if recipe.adapter.method == "full" else None


def _write(run: RunFolder, lock: Lock, inputs: Inputs, trainer: ExactTrainer, weights: dict[str, torch.Tensor]) -> None:
    full = lock.recipe.adapter.method == "full"
    final = run.model if full else run.adapter
    partial, old = (final.with_name(f".{final.name}.{secrets.token_hex(4)}{PARTIAL}") for _ in range(2))
    partial.mkdir()
    config = described(lock.recipe, inputs, trainer.model, inputs.precision.dtype)
    if full:
        weights = {name: weight.to(inputs.precision.dtype) for name, weight in weights.items()}
        trainer.model.save_pretrained(partial, state_dict=weights)
    else:
        hub = inputs.base.identity["kind"] == "hub"
        name = inputs.base.identity["name"] if hub else str(inputs.base.folder)
        save_adapter(trainer.model, partial, name, inputs.base.identity.get("commit"), weights)
        kept = lock.without_secrets()
        notes = {"model": kept["recipe"]["model"], "method": lock.recipe.adapter.method, "base": kept["base"]}
        notes |= {"tokenizer": tokenizer_facts(lock)}
        (partial / ADAPTER_NOTES).write_text(json.dumps(notes, indent=2) + "\n")
    write_beside(partial, lock.recipe, inputs, config if full else None)
    with trainer.engine.building_unsharded():
        wrong = read_back(partial, lock.recipe, inputs, trainer, weights, config)
    follow_umask(partial)
    sync_files(partial)
    if wrong:
        failed = final.with_name(f"{final.name}.failed")
        if failed.exists():
            remove_tree(failed)
        partial.rename(failed)
        raise CheckFailed(
            f"what was written is not what was trained: {'; '.join(wrong[:5])}. It is in {failed}; `finetune train --resume "
            f"{run.path}` writes the result again, from the last checkpoint."
        )
    if final.exists():
        final.rename(old)
    partial.rename(final)
    if old.exists():
        remove_tree(old)


def write_metrics(run: RunFolder, report: Report, step: int) -> None:
    """What was measured of the result: a line of metrics.jsonl, and predictions/final.jsonl."""
    values = finite_or_null({"step": step} | {f"{FINAL}{name}": value for name, value in report.values.items()})
    # A run that was killed after this and went on measures its result again.
    before = [entry for entry in whole_entries(run.metrics_path) if not any(name.startswith(FINAL) for name in entry)]
    write_entries(run.metrics_path, [*before, values])
    if report.measured.answers:
        write_entries(run.make_predictions() / "final.jsonl", predictions(report))


def summary_of(
    lock: Lock,
    trainer: ExactTrainer,
    *,
    name: str,
    status: str,
    error: str | None,
    changed: bool | None,
    report: Report | None = None,
) -> dict[str, Any]:
    """The outcome, for lists and tables. `changed`: whether any weight of the result differs from before the first step."""
    state, recipe = trainer.state, lock.recipe
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    last = evaluations[-1] if evaluations else None
    # Where the result is the best checkpoint, its loss is the one that a later evaluation finds.
    at_best = [
        entry["eval_loss"] for entry in state.log_history if entry["step"] == state.best_global_step and "eval_loss" in entry
    ]
    keeps_best = recipe.train.keeps_best and bool(at_best)
    trainable, total = count_parameters(trainer.model, trainer.engine)
    counters = trainer.counters()
    return {
        "status": status,
        "error": error,
        "name": name,
        "created": lock.created,
        "base": lock.base.get("name", ""),
        "method": recipe.adapter.method,
        "steps": state.global_step,
        "total_steps": trainer.args.max_steps,
        "tokens": counters["tokens"],
        "supervised_tokens": counters["supervised_tokens"],
        "seconds": round(counters["seconds"], 1),
        "tokens_per_second": round(counters["tokens"] / counters["step_seconds"], 1) if counters["step_seconds"] else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "weights_changed": changed,
        "trainable_parameters": trainable,
        "parameters": total,
        "train_loss": losses[-1] if losses else None,
        "evaluation_loss_before": evaluations[0] if evaluations else None,
        "evaluation_loss": at_best[-1] if keeps_best else last,
        "last_evaluation_loss": last,
        "best_evaluation_loss": min(evaluations[1:] or evaluations, default=None),
        "best_step": state.best_global_step,
        "tracker": recipe.tracking.tracker,
        "tracker_id": lock.tracker_id,
        "torch": torch.__version__,
        **({} if report is None else {f"{FINAL}{name}": value for name, value in report.values.items()}),
        **({} if report is None else {"metrics": as_dict(report)["metrics"], "notes": list(report.notes)}),
        "recipe": recipe.model_dump(mode="json"),
    }
