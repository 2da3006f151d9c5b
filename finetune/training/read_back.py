"""What stands beside trained weights, and whether a folder that was written holds what was trained.

Weights are compared bit for bit with those in memory, as peft or transformers finds them in the files; the base is the same, so
equal weights, scales and names have equal logits. What is read is no larger than what was written.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data_prep.chat.chat_templates import asks_for_date, rendering_of, templates_of
from finetune.models.adapters.alone import load_alone, read_otherwise
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
from finetune.recipe.heads import described_head
from finetune.recipe.schema import Recipe
from finetune.training.build import Inputs
from finetune.training.trainer import ExactTrainer


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
        write_beside(checkpoint, recipe, inputs, described(recipe, inputs, model, next(model.parameters()).dtype))


def notes_on_result(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """What is to be known of the folder before somebody else serves it."""
    tokenizer = inputs.tokenizer
    if recipe.adapter.method == "full" and not recipe.model.classifies:
        yield from (f"note: {line}" for line in generation_notes(inputs.base.folder))
    if any(map(asks_for_date, templates_of(tokenizer).values())):
        yield (
            f"note: the chat template writes a date. In what is saved it is {rendering_of(tokenizer).date_string}, as in "
            "training, and not today's; model.date_string names another"
        )
    adapter = recipe.adapter
    beyond = {
        "rows of new tokens": recipe.model.new_tokens,
        "whole modules": adapter.modules_to_save,
        "DoRA's magnitudes": adapter.use_dora,
        "a classification head": recipe.model.head,
    }
    held = [what for what, there in beyond.items() if there]
    if adapter.method != "full" and held:
        yield (
            f"note: the adapter holds {' and '.join(held)}, which vLLM doesn't read from adapters: to serve it there, merge it"
        )


def _other_weights(folder: Path, weights: Mapping[str, torch.Tensor], *, classifies: bool) -> Iterator[str]:
    """Weights in the files that are not the trained ones, and those that plain transformers would look for in vain."""
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
