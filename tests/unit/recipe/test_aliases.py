"""Names and values of other tools, written where their users would write them: what the message says."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.aliases import ALIASES, alias_of
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe

# Section, their name, and what the message has to say of it. The names are those of the study that counted
# 17 right hints of 92 (LLaMA-Factory, Axolotl, TRL, Unsloth, ms-swift, torchtune, LitGPT and others).
WITH_COUNTERPART = (
    ("model", "model_name_or_path", "base here"),
    ("model", "template", "chat_template"),
    ("model", "special_tokens", "new_tokens"),
    ("model", "torch_dtype", "train.precision"),
    ("adapter", "lora_r", "rank here"),
    ("adapter", "lora_rank", "rank here"),
    ("adapter", "r", "rank here"),
    ("adapter", "lora_alpha", "alpha here"),
    ("adapter", "lora_dropout", "dropout here"),
    ("adapter", "lora_target_modules", "target_modules here"),
    ("adapter", "load_in_4bit", "method here"),
    ("adapter", "quantization_bit", "method here"),
    ("adapter", "bits", None),
    ("data", "dataset", "train here"),
    ("data", "datasets", "train here"),
    ("data", "val_set_size", "evaluation"),
    ("data", "cutoff_len", "max_length_tokens here"),
    ("data", "sequence_len", "max_length_tokens here"),
    ("data", "max_seq_length", "max_length_tokens here"),
    ("data", "packing", "pack_length_tokens here"),
    ("data", "sample_packing", "pack_length_tokens here"),
    ("data", "train_on_inputs", "supervise here"),
    ("data", "truncation", "over_length here"),
    ("train", "lr", "learning_rate here"),
    ("train", "num_epochs", "epochs here"),
    ("train", "num_train_epochs", "epochs here"),
    ("train", "per_device_train_batch_size", "micro_batch_size here"),
    ("train", "batch_size", "micro_batch_size here"),
    ("train", "gradient_accumulation_steps", "global_batch_size here"),
    ("train", "lr_scheduler", "schedule here"),
    ("train", "lr_scheduler_type", "schedule here"),
    ("train", "optim", "optimizer here"),
    ("train", "max_grad_norm", "max_gradient_norm here"),
    ("train", "gradient_checkpointing", "activation_checkpointing here"),
    ("train", "save_steps", "save_every"),
    ("train", "eval_steps", "evaluate_every"),
    ("train", "logging_steps", "log_every"),
    ("train", "neftune_noise_alpha", "neftune_alpha here"),
    ("train", "bf16", "precision here"),
    ("train", "fp16", "precision here"),
    ("train", "save_total_limit", "keep_checkpoints here"),
    ("train", "load_best_model_at_end", "best_by here"),
    ("train", "metric_for_best_model", "best_by here"),
    ("train", "min_lr", "minimum_learning_rate_fraction here"),
    ("train", "min_lr_rate", "minimum_learning_rate_fraction here"),
    ("train", "resume_from_checkpoint", "finetune train --resume"),
    ("train", "deepspeed", "--launch"),
    ("train", "fsdp", "--launch"),
    ("tracking", "wandb_project", "project here"),
    ("tracking", "report_to", "tracker here"),
    ("tracking", "run_name", "output.name here"),
    ("output", "output_dir", "folder here"),
)
"""Names with a counterpart."""

WITHOUT_COUNTERPART = (
    ("model", "eos_token", "tokenizer"),
    ("model", "load_in_8bit", "quantization"),
    ("model", "trust_remote_code", "never run"),
    ("model", "flash_attn", "kernels"),
    ("adapter", "pissa_init", "init here"),
    ("adapter", "layers_to_transform", "layers here"),
    ("adapter", "loftq_config", "init here (method qlora"),
    ("adapter", "use_bnb_nested_quant", "double_quantization"),
    ("data", "samples", "tracking.samples"),
    ("data", "max_samples", "max_rows"),
    ("data", "streaming_dataset", "streaming"),
    ("data", "loss_scale", "loss_weights"),
    ("data", "dataset_num_proc", "isn't needed"),
    ("data", "group_by_length", "no counterpart"),
    ("train", "embedding_lr", "embedding_learning_rate"),
    ("train", "adam_beta1", "adam_betas"),
    ("train", "adam_beta2", "adam_betas"),
    ("train", "loraplus_lr_embedding", "no counterpart here: of an adapter on embed_tokens"),
    ("train", "use_galore", "no counterpart"),
    ("train", "use_badam", "no counterpart"),
    ("train", "relora_steps", "no counterpart"),
    ("train", "lisa_n_layers", "no counterpart"),
    ("train", "rl", "objective.kind here"),
    ("train", "push_to_hub", "no counterpart"),
    ("train", "loss_watchdog_threshold", "no counterpart"),
    ("train", "enable_activation_offloading", "activation_offloading"),
    ("train", "optimizer_in_bwd", "no counterpart"),
    ("train", "save_only_model", "no counterpart"),
    ("train", "context_parallel_size", "no counterpart"),
    ("train", "save_strategy", "save_every"),
    ("train", "evals_per_epoch", "evaluate_every"),
    ("train", "val_batches", "all evaluation rows"),
)
"""Names that had none when they were counted; some have one now."""

VALUES = (
    ("adapter", "method", "dora", "use_dora: true"),
    ("adapter", "target_modules", "all", "all-linear"),
    ("train", "schedule", "constant_with_warmup", "constant with warmup_ratio"),
    ("data.train.0", "format", "conversation", "messages"),
    ("data.train.1", "format", "completion", "text"),
    ("data.train.2", "format", "chat_template", "messages"),
    ("data.train.3", "weight", "3", "share here"),
    ("data.train.3", "name", "x", "config here"),
)
"""Values, and keys of a source."""


def said(tmp_path: Path, recipe: str) -> dict[str, str]:
    """The message of each place of a recipe."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    return {problem.path: problem.message for problem in error.value.problems}


def test_names_of_other_tools_get_the_right_hint(tmp_path: Path) -> None:
    """Of 92 names and values 85 or more are understood, and no message sends anybody to a wrong key."""
    sections: dict[str, list[str]] = {
        name: [] for name in ("model", "adapter", "data", "train", "tracking", "output")
    }
    for section, key, _ in (*WITH_COUNTERPART, *WITHOUT_COUNTERPART):
        sections[section].append(f"  {key}: 1")
    sections["model"].append("  base: owner/name")
    sections["data"].append(
        "  train: [{dataset: a/b, format: conversation}, {dataset: a/b, format: completion}, {dataset: a/b, format: "
        "chat_template}, {dataset: a/b, format: text, weight: 3, name: x}]"
    )
    sections["adapter"].append("  method: dora\n  target_modules: all")
    sections["train"].append("  schedule: constant_with_warmup")
    messages = said(tmp_path, "\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in sections.items()))
    asked = [
        (f"{section}.{key}", expected) for section, key, expected in (*WITH_COUNTERPART, *WITHOUT_COUNTERPART)
    ]
    asked += [(f"{section}.{key}", expected) for section, key, _, expected in VALUES]
    assert len(asked) == 92
    right = [path for path, expected in asked if expected is not None and expected in messages.get(path, "")]
    wrong = {path: messages.get(path) for path, expected in asked if path not in right}
    assert len(right) >= 85, wrong
    known = [path for path, expected in asked if expected is not None]
    assert not [path for path in known if path not in right], wrong
    assert not [message for message in wrong.values() if message and "did you mean" in message], wrong


def test_every_alias_names_a_key_that_exists() -> None:
    """What the table sends people to is in the schema."""
    for alias in ALIASES:
        node: object = Recipe
        for part in [] if not alias.ours else alias.ours.split("."):
            if part.isdecimal():
                continue
            fields = [form.model_fields for form in forms_of(node) if part in form.model_fields]
            assert fields, f"{alias.theirs.split()[0]} -> {alias.ours}"
            node = fields[0][part].annotation


def forms_of(node: object) -> list[type[Recipe]]:
    """The sections that an annotation may be."""
    from data_prep.config import sections_in
    from finetune.objectives import OBJECTIVES
    from finetune.recipe.schema.objective import ObjectiveSection

    if node is ObjectiveSection:  # whose other keys are those of each kind
        return [ObjectiveSection, *(objective.section for objective in OBJECTIVES)]  # type: ignore[list-item]
    return [Recipe] if node is Recipe else list(sections_in(node))  # type: ignore[list-item]


def test_no_name_means_two_things_to_one_tool() -> None:
    """A tool's key is in one line of the table."""
    seen: dict[tuple[str, str], str] = {}
    for alias in ALIASES:
        for name in alias.names:
            for tool in alias.tools:
                assert (tool, name) not in seen, f"{name}: {seen[tool, name]} and {alias.ours}"
                seen[tool, name] = alias.ours


def test_a_section_of_no_importance_is_known_by_its_name() -> None:
    """profiler.cpu is of the profiler, and lora_rank is found behind any section."""
    profiler, rank = alias_of("torchtune", "profiler.cpu"), alias_of("torchtune", "model.lora_rank")
    assert profiler is not None
    assert profiler.how == "spare"
    assert rank is not None
    assert rank.ours == "adapter.rank"


@pytest.mark.parametrize(("key", "message"), [("learning_rate", "did you mean train.learning_rate?")])
def test_our_own_names_keep_their_hint(tmp_path: Path, key: str, message: str) -> None:
    """A key of ours in another section is named with its section."""
    recipe = f"model: {{base: a/b, {key}: 1}}\ndata: {{train: [{{dataset: a/b, format: text}}]}}\n"
    assert message in said(tmp_path, recipe)[f"model.{key}"]
