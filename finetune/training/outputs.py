"""What a run leaves behind: the trained weights, read back and compared bit for bit with those in memory, and
the summary.

Weights are compared as peft or transformers finds them in the files; the base is the same, so equal weights,
scales and names have equal logits. What is read is no larger than what was written.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data_prep.chat.chat_templates import asks_for_date, rendering_of, templates_of
from data_prep.disk import PARTIAL, follow_umask
from data_prep.temporary import remove_tree
from finetune.engines.base import Engine
from finetune.engines.group import Group
from finetune.engines.memory import peak_memory_bytes, reserved_memory_bytes
from finetune.engines.sharded import gathered_weights, hash_of
from finetune.errors import CheckFailed
from finetune.evaluation.report import Report
from finetune.evaluation.report_tables import as_dict, predictions
from finetune.models.adapters.adapter import count_parameters, save_adapter
from finetune.models.adapters.alone import load_alone, read_otherwise
from finetune.models.adapters.masked import masked_card
from finetune.models.adapters.start import as_saved
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config, weight_files
from finetune.models.description import (
    CONFIG,
    ModelConfig,
    generation_notes,
    head_values,
    read_generation_config,
    write_description,
)
from finetune.models.description_check import differences
from finetune.models.device import choose_device
from finetune.planning.foreseen import foresee
from finetune.recipe.heads import described_head
from finetune.recipe.lock import Lock, tokenizer_facts
from finetune.recipe.schema import Recipe
from finetune.runs.checkpoint import PREFIX, complete_checkpoints
from finetune.runs.compare import FINAL
from finetune.runs.folder import (
    ADAPTER_NOTES,
    RunFolder,
    finite_or_null,
    sync_files,
    whole_entries,
    write_entries,
    write_json,
)
from finetune.training.inputs import Inputs
from finetune.training.trainer import ExactTrainer


def best_checkpoint(trainer: ExactTrainer, checkpoints: Path) -> Path | None:
    """The checkpoint with the best evaluation. By its number: a run folder may have been moved since."""
    best = checkpoints / f"{PREFIX}{trainer.state.best_global_step}"
    return best if best in complete_checkpoints(checkpoints) else None


def write_result(run: RunFolder, lock: Lock, inputs: Inputs, trainer: ExactTrainer, group: Group) -> str:
    """Save the trained weights and the tokenizer: adapter/, or model/ where all weights were trained. Returns
    their hash.

    The folder appears whole. One that is there from an interrupted end of this run is replaced. All processes
    gather what each holds a share of; the main one writes.
    """
    weights, found = gathered_weights(trainer, keep=group.is_main), ""
    if group.is_main:
        _write(run, lock, inputs, trainer, weights)
        found = hash_of(weights.items(), written_type(lock.recipe, inputs))
    return group.text_of_main(found)


def written_type(recipe: Recipe, inputs: Inputs) -> torch.dtype | None:
    """The type in which trained weights are written; None: an adapter's are as they are."""
    return inputs.precision.dtype if recipe.adapter.method == "full" else None


def _write(
    run: RunFolder, lock: Lock, inputs: Inputs, trainer: ExactTrainer, weights: dict[str, torch.Tensor]
) -> None:
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
        weights = as_saved(trainer.accelerator.unwrap_model(trainer.model), weights)
        save_adapter(trainer.model, partial, name, inputs.base.identity.get("commit"), weights)
        if inputs.base.mask is not None:
            (partial / "README.md").write_text(masked_card(name))
        kept = lock.without_secrets()
        notes = {"model": kept["recipe"]["model"], "method": lock.recipe.adapter.method, "base": kept["base"]}
        if lock.recipe.adapter.base_quantization is not None:
            notes["quantization"] = lock.recipe.adapter.base_quantization
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
            f"what was written is not what was trained: {'; '.join(wrong[:5])}. It is in {failed}; `finetune "
            f"train --resume {run.path}` writes the result again, from the last checkpoint."
        )
    if final.exists():
        final.rename(old)
    partial.rename(final)
    if old.exists():
        remove_tree(old)


def write_foreseen(run: RunFolder, recipe: Recipe, inputs: Inputs, engine: Engine, group: Group) -> None:
    """What is known before the first step: data.json, what became of each row, and plan.json, what the plan's
    formulas say."""
    write_json(run.data_path, inputs.data.report.as_dict())
    plan = foresee(
        recipe,
        inputs.base.folder,
        inputs.data,
        precision=inputs.precision.name,
        engine=engine,
        processes=group.world_size,
        device="cpu" if choose_device().type == "cpu" else "gpu",
    )
    write_json(run.plan_path, plan)


def write_metrics(run: RunFolder, report: Report, step: int) -> None:
    """What was measured of the result: a line of metrics.jsonl, and predictions/final.jsonl."""
    values = finite_or_null(
        {"step": step} | {f"{FINAL}{name}": value for name, value in report.values.items()}
    )
    # A run that was killed after this and went on measures its result again.
    before = [
        entry
        for entry in whole_entries(run.metrics_path)
        if not any(name.startswith(FINAL) for name in entry)
    ]
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
    """The outcome, for lists and tables. `changed`: whether any weight of the result differs from before the
    first step."""
    state, recipe = trainer.state, lock.recipe
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    last = evaluations[-1] if evaluations else None
    # Where the result is the best checkpoint, its loss is the one that a later evaluation finds.
    at_best = [
        entry["eval_loss"]
        for entry in state.log_history
        if entry["step"] == state.best_global_step and "eval_loss" in entry
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
        "tokens_per_second": round(counters["tokens"] / counters["step_seconds"], 1)
        if counters["step_seconds"]
        else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "reserved_memory_bytes": reserved_memory_bytes(),
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


def described(recipe: Recipe, inputs: Inputs, model: Any, dtype: torch.dtype) -> ModelConfig:
    """The configuration of the model that was trained, its weights stored in `dtype`."""
    own, trained = read_config(inputs.base.folder), load_config(inputs.base, recipe.model.rope_scaling)
    changes: dict[str, Any] = {"vocab_size": model.config.vocab_size, "dtype": dtype}
    if recipe.model.head:
        head = described_head(recipe.model.head)
        changes |= head_values(head, str(own.get("model_type")), inputs.tokenizer.pad_token_id)
    return ModelConfig(own, trained, changes)


def write_beside(folder: Path, recipe: Recipe, inputs: Inputs, config: ModelConfig | None) -> None:
    """The tokenizer, and where the folder is a model's its configurations."""
    generates = config is not None and not recipe.model.classifies
    generation = read_generation_config(inputs.base.folder) if generates else None
    write_description(folder, inputs.tokenizer, [inputs.base.folder], config=config, generation=generation)


def read_back(
    folder: Path,
    recipe: Recipe,
    inputs: Inputs,
    trainer: ExactTrainer,
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
) -> list[str]:
    """What is read from the folder otherwise than it was trained, in words; `config` is that of the model."""
    classifies = recipe.model.classifies
    if recipe.adapter.method == "full":
        wrong = differences(folder, inputs.tokenizer, config.expected())
        return wrong + list(_other_weights(folder, weights, classifies=classifies))
    trained = cast(PeftModel, trainer.accelerator.unwrap_model(trainer.model))
    again = load_alone(config.expected(), folder, classifies=classifies)
    return differences(folder, inputs.tokenizer, None) + list(read_otherwise(again, trained, weights))


def describe_checkpoint(checkpoint: Path, recipe: Recipe, inputs: Inputs, model: Any) -> None:
    """Let a checkpoint that is a whole model say what the result will say: others load it as it is."""
    if (checkpoint / CONFIG).is_file():
        write_beside(
            checkpoint, recipe, inputs, described(recipe, inputs, model, next(model.parameters()).dtype)
        )


def notes_on_result(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """What is to be known of the folder before somebody else serves it."""
    tokenizer = inputs.tokenizer
    if recipe.adapter.method == "full" and not recipe.model.classifies:
        yield from (f"note: {line}" for line in generation_notes(inputs.base.folder))
    if any(map(asks_for_date, templates_of(tokenizer).values())):
        yield (
            "note: the chat template writes a date. In what is saved it is "
            f"{rendering_of(tokenizer).date_string}, as in training, and not today's; model.date_string "
            "names another"
        )
    if inputs.base.mask is not None:
        yield (
            "note: the base is pruned, and the update masked as its weights are: plain peft, and what serves "
            "adapters, knows no mask. Merge the adapter first (finetune merge), which keeps the zeros"
        )
    adapter = recipe.adapter
    beyond = {
        "rows of new tokens": recipe.model.new_tokens,
        "whole modules": adapter.modules_to_save,
        "DoRA's magnitudes": adapter.use_dora,
        f"{adapter.method}'s own tensors": adapter.by_peft,
        "a classification head": recipe.model.head,
    }
    held = [what for what, there in beyond.items() if there]
    if adapter.method != "full" and held:
        yield (
            f"note: the adapter holds {' and '.join(held)}, which vLLM doesn't read from adapters: to serve "
            "it there, merge it"
        )


def _other_weights(folder: Path, weights: Mapping[str, torch.Tensor], *, classifies: bool) -> Iterator[str]:
    """Weights in the files that are not the trained ones, and those that plain transformers would look for in
    vain."""
    kind: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with torch.device("meta"):
        wanted = {name for name, _ in kind.from_config(AutoConfig.from_pretrained(folder)).named_parameters()}
    found = set[str]()
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                found.add(name)
                if name not in weights or not torch.equal(file.get_tensor(name), weights[name]):
                    yield f"{name} on the disk is not what was trained"
    if odd := sorted(found ^ wanted):
        yield f"the files hold other weights than the model has, such as {odd[0]} ({len(odd)} in all)"
