"""Keys of a recipe that are called something else in another tool's file, and mean the same."""

KEYS: dict[str, tuple[str, str, str]] = {
    # ours: Axolotl's, LLaMA-Factory's, TRL's
    "model.base": ("base_model", "model_name_or_path", "model_name_or_path"),
    "model.revision": ("revision_of_model", "model_revision", "model_revision"),
    "adapter.rank": ("lora_r", "lora_rank", "lora_r"),
    "adapter.alpha": ("lora_alpha", "lora_alpha", "lora_alpha"),
    "adapter.dropout": ("lora_dropout", "lora_dropout", "lora_dropout"),
    "adapter.use_rslora": ("peft_use_rslora", "use_rslora", "use_rslora"),
    "adapter.use_dora": ("peft_use_dora", "use_dora", "use_dora"),
    "adapter.modules_to_save": ("lora_modules_to_save", "additional_target", "lora_modules_to_save"),
    "model.pad_token": ("", "", "pad_token"),
    "data.system": ("", "default_system", ""),
    "adapter.continue_from": ("lora_model_dir", "adapter_name_or_path", ""),
    "data.max_length_tokens": ("sequence_len", "cutoff_len", "max_length"),
    "data.evaluation.fraction": ("val_set_size", "val_size", ""),
    "data.evaluation.rows": ("val_set_size", "val_size", ""),
    "train.learning_rate": ("learning_rate", "learning_rate", "learning_rate"),
    "train.epochs": ("num_epochs", "num_train_epochs", "num_train_epochs"),
    "train.max_steps": ("max_steps", "max_steps", "max_steps"),
    "train.micro_batch_size": (
        "micro_batch_size",
        "per_device_train_batch_size",
        "per_device_train_batch_size",
    ),
    "train.seed": ("seed", "seed", "seed"),
    "train.deterministic": ("", "full_determinism", "full_determinism"),
    "train.warmup_ratio": ("warmup_ratio", "warmup_ratio", "warmup_ratio"),
    "train.warmup_steps": ("warmup_steps", "warmup_steps", "warmup_steps"),
    "train.weight_decay": ("weight_decay", "weight_decay", "weight_decay"),
    "train.label_smoothing": ("label_smoothing_factor", "label_smoothing_factor", "label_smoothing_factor"),
    "train.loraplus_lr_ratio": ("loraplus_lr_ratio", "loraplus_lr_ratio", ""),
    "train.embedding_learning_rate": ("embedding_lr", "", ""),
    "train.activation_checkpointing": (
        "gradient_checkpointing",
        "gradient_checkpointing",
        "gradient_checkpointing",
    ),
    "train.keep_checkpoints": ("save_total_limit", "save_total_limit", "save_total_limit"),
    "evaluate.batch_size": ("eval_batch_size", "per_device_eval_batch_size", "per_device_eval_batch_size"),
    "train.early_stopping.patience_evaluations": ("early_stopping_patience", "early_stopping_steps", ""),
    "output.folder": ("output_dir", "output_dir", "output_dir"),
    "output.name": ("wandb_name", "run_name", "run_name"),
}
HERE_ONLY = (
    "tracking.",
    "evaluate.",
    "train.rehearsal",
    "data.on_bad_row",
    "data.allow_findings",
)
"""Keys that the training doesn't depend on."""
