"""Names that have a counterpart, in the order of a recipe's sections."""

from finetune.recipe.aliases.base import Alias

MODEL = (
    Alias(
        "model_name_or_path base_model model_id pretrained_model_name_or_path base_model_name_or_path "
        "model.model_name",
        "model.base",
        "base",
    ),
    Alias("model", "model.base", "base", tools=("ms-swift", "mlx_lm", "llamafactory_v1")),
    Alias(
        "checkpoint_dir checkpointer.checkpoint_dir",
        "model.base",
        "base",
        tools=("litgpt", "torchtune"),
    ),
    Alias("model_revision base_model_revision revision_of_model", "model.revision", "revision"),
    Alias("chat_template_path", "model.chat_template", "path"),
    Alias("template custom_chat_template chat_template_jinja", "model.chat_template", "template"),
    Alias("chat_template", "model.chat_template", "template"),
    Alias(
        "tokenizer_pad_token special_tokens.pad_token tokenizer_kwargs.pad_token pad_token", "model.pad_token"
    ),
    Alias(
        "special_tokens new_special_tokens additional_special_tokens add_tokens",
        "model.new_tokens",
        "names",
    ),
    Alias("tokens", "model.new_tokens", "names", tools=("axolotl",)),
    Alias("rope_scaling.factor", "model.rope_scaling.factor"),
    Alias("rope_scaling.type rope_scaling.rope_type", "model.rope_scaling.type"),
)

ADAPTER = (
    Alias(
        "finetuning_type tuner_type train_type fine_tune_type lora_type use_peft q_lora",
        "adapter.method", "method", "lora, qlora or full",
    ),
    Alias(
        "load_in_4bit quantization_bit quant_bits",
        "adapter.method", "bits", "method qlora is LoRA on a 4-bit base",
    ),
    Alias("load_in_8bit", "adapter.quantization", "bits", "method qlora with quantization int8"),
    Alias("lora_r lora_rank r peft.dim lora_parameters.rank", "adapter.rank"),
    Alias("lora_alpha peft.alpha", "adapter.alpha"),
    Alias("lora_dropout peft.dropout lora_parameters.dropout", "adapter.dropout"),
    Alias(
        "lora_target_modules lora_target target_module target_modules targets",
        "adapter.target_modules", "targets",
    ),
    Alias("exclude_modules lora_exclude_modules", "adapter.exclude_modules", "modules"),
    Alias("lora_target_linear match_all_linear", "adapter.target_modules", "all_linear", "all-linear"),
    Alias("peft_use_rslora", "adapter.use_rslora", "yes"),
    Alias("use_rslora", "adapter.use_rslora", "yes"),
    Alias("peft_use_dora use_dora", "adapter.use_dora", "yes"),
    Alias(
        "init_lora_weights peft_init_lora_weights lora_init_weights init_weights",
        "adapter.init", "init",
    ),
    Alias("pissa_init pissa_iter", "adapter.init", "pissa", "pissa, or pissa_niter_N"),
    Alias(
        "loftq_config loftq_config.* loftq loftq_bits loftq_iter",
        "adapter.init", "loftq", "method qlora with init loftq",
    ),
    Alias("layers_to_transform peft_layers_to_transform", "adapter.layers", "layers"),
    Alias("lora_layers num_layers", "adapter.layers", "layers", "last N"),
    Alias("lora_modules_to_save modules_to_save additional_target", "adapter.modules_to_save", "names"),
    Alias(
        "adapter_name_or_path lora_model_dir resume_adapter_file adapters adapter_model",
        "adapter.continue_from", "start",
    ),
    Alias(
        "use_bnb_nested_quant bnb_4bit_use_double_quant double_quantization",
        "adapter.double_quantization", "double",
    ),
)  # fmt: skip

OBJECTIVE = (
    Alias(
        "rl rlhf_type pref_loss dpo_loss_type",
        "objective.kind", "unread", "dpo, ipo, hinge, robust, orpo, simpo, cpo, kto or reward",
    ),
    Alias("loss_type", "objective.kind", "loss", "supervised is the cross-entropy"),
    Alias("pref_beta rl_beta dpo_beta beta", "objective.beta", "unread"),
    Alias("orpo_alpha", "objective.odds_weight", "unread"),
    Alias("simpo_gamma", "objective.margin", "unread"),
    Alias(
        "pref_ftx rpo_alpha cpo_alpha",
        "objective.supervised_weight", "unread", "of the chosen answer's cross-entropy per token",
    ),
    Alias("kto_chosen_weight kto_desirable_weight desirable_weight", "objective.good_weight", "unread"),
    Alias("kto_rejected_weight kto_undesirable_weight undesirable_weight", "objective.bad_weight", "unread"),
    Alias("center_rewards_coefficient", "objective.centering", "unread"),
    Alias("dpo_label_smoothing", "objective.label_smoothing", "unread"),
    Alias("dpo_norm_loss", "objective.length_normalized", "unread"),
    Alias("reference_free", "objective.reference", "unread", "none"),
    Alias(
        "ref_model ref_model_adapters ref_adapters ref_model_quantization_bit rl_adapter_ref_model",
        "objective.reference", "unread", "start: the model as it is before step 1, or none",
    ),
)  # fmt: skip
"""What learning from preferences reads, which each tool's own file puts together."""

DATA = (
    Alias(
        "datasets train_dataset train_files data_path training_data",
        "data.train", "dataset", "a list of sources",
    ),
    Alias(
        "dataset",
        "data.train",
        "dataset",
        "a list of sources: {path: FILE, format: NAME} or {dataset: OWNER/NAME, format: NAME}",
    ),
    Alias(
        "eval_dataset validation_dataset val_dataset eval_data test_datasets validation_data",
        "data.evaluation.sources", "held_out_sources",
    ),
    Alias(
        "val_size val_set_size split_dataset_ratio test_split_size validation_split val_split_fraction",
        "data.evaluation.fraction", "held_out", "a number of rows is data.evaluation.rows",
    ),
    Alias(
        "tokenizer.max_seq_len cutoff_len sequence_len max_seq_length max_seq_len max_length seq_length "
        "model_max_length",
        "data.max_length_tokens", "length",
    ),
    Alias(
        "packing sample_packing neat_packing pack packed",
        "data.pack_length_tokens", "packing", "packs of so many tokens; absent, nothing is packed",
    ),
    Alias("packing_length packed_sequence_size pack_length", "data.pack_length_tokens", "pack_length"),
    Alias(
        "train_on_inputs train_on_input train_on_prompt",
        "data.supervise", "on_inputs", "true is supervise: all",
    ),
    Alias(
        "mask_prompt assistant_only_loss completion_only_loss answer_only_loss_mask "
        "train_on_responses_only",
        "data.supervise", "masked", "assistant learns the answers alone, all everything",
    ),
    Alias("mask_history", "data.supervise", "mask_history", "true is supervise: last"),
    Alias(
        "truncation truncation_strategy truncation_mode excess_length_strategy",
        "data.over_length", "over_length",
    ),
    Alias("shuffle", "data.shuffle", "yes"),
    Alias(
        "shuffle_dataset dataset_shuffle shuffle_merged_datasets train_dataloader_shuffle",
        "data.shuffle", "chosen", "rows are drawn in random order, there and here",
    ),
    Alias("disable_shuffling curriculum_sampling", "data.shuffle", "no"),
    Alias("system system_prompt default_system new_system_prompt", "data.system"),
    Alias(
        "dataset_streaming stream streaming",
        "data.streaming", "streaming", "a section; a stream needs train.max_steps",
    ),
    Alias(
        "max_samples num_samples num_samples_limit limit_dataset_samples sample_count",
        "data.train.0.max_rows", "max_rows", "the first so many rows of a source",
    ),
    Alias(
        "weight interleave_prob probabilities mixture_proportion",
        "data.train.0.share", "shares", "a source's share of an epoch, or repeat",
    ),
    Alias("name subset", "data.train.0.config", "same", "a data set's configuration", ("the hub",)),
    Alias("data_files file", "data.train.0.path", "same", "", ("the hub",)),
    Alias("type formatting", "data.train.0.format", "same", "", ("the hub",)),
    Alias("dataset_exact_deduplication", "data.clean.duplicates", "deduplicate", "drop"),
    Alias(
        "enable_thinking",
        "data.reasoning", "thinking", "learn, read or drop", ("llamafactory", "llamafactory_v1"),
    ),
    Alias("loss_scale", "data.loss_weights", "loss_scale"),
)  # fmt: skip

TRAIN = (
    Alias("lr learning_rate", "train.learning_rate"),
    Alias("num_train_epochs num_epochs n_epochs max_epochs epochs", "train.epochs"),
    Alias("iters max_iters max_train_steps num_steps max_steps", "train.max_steps", "max_steps"),
    Alias(
        "per_device_train_batch_size micro_batch_size local_batch_size",
        "train.micro_batch_size", "micro",
    ),
    Alias(
        "batch_size train_batch_size",
        "train.micro_batch_size", "micro", "per process; global_batch_size is the whole of a step",
    ),
    Alias(
        "gradient_accumulation_steps grad_accumulation_steps accumulate_grad_batches",
        "train.global_batch_size", "accumulation", "micro batch x accumulation x processes",
    ),
    Alias("global_batch_size", "train.global_batch_size", "whole_batch"),
    Alias("optim optimizer", "train.optimizer", "optimizer"),
    Alias(
        "lr_scheduler_type lr_scheduler lr_schedule lr_decay_style scheduler",
        "train.schedule", "schedule",
    ),
    Alias("warmup_ratio warmup_fraction lr_warmup_fraction", "train.warmup_ratio", "warmup"),
    Alias("warmup_steps num_warmup_steps lr_warmup_steps", "train.warmup_steps", "warmup"),
    Alias(
        "min_lr_rate cosine_min_lr_ratio min_lr_ratio",
        "train.minimum_learning_rate_fraction", "minimum_ratio", "with schedule cosine_with_minimum",
    ),
    Alias(
        "min_lr eta_min",
        "train.minimum_learning_rate_fraction",
        "minimum_rate",
        "as a fraction of learning_rate, with schedule cosine_with_minimum",
    ),
    Alias(
        "max_grad_norm clip_grad_norm max_norm gradient_clipping gradient_clip_val",
        "train.max_gradient_norm", "clip",
    ),
    Alias("weight_decay", "train.weight_decay"),
    Alias("adam_beta1", "train.adam_betas", "beta1", "a list of two: [0.9, 0.999]"),
    Alias("adam_beta2", "train.adam_betas", "beta2", "a list of two: [0.9, 0.999]"),
    Alias("betas", "train.adam_betas", "betas"),
    Alias("adam_epsilon adam_eps eps", "train.adam_epsilon"),
    Alias("bias_correction", "train.adam_bias_correction"),
    Alias("loraplus_lr_ratio lorap_lr_ratio", "train.loraplus_lr_ratio"),
    Alias(
        "embedding_learning_rate embedding_lr",
        "train.embedding_learning_rate", "embedding_rate",
    ),
    Alias("label_smoothing_factor label_smoothing", "train.label_smoothing"),
    Alias(
        "neftune_noise_alpha neftune.noise_alpha noise_alpha noisy_embedding_alpha neftune_alpha",
        "train.neftune_alpha",
    ),
    Alias(
        "gradient_checkpointing enable_gradient_checkpointing grad_checkpoint "
        "enable_activation_checkpointing use_gradient_checkpointing activation_checkpointing",
        "train.activation_checkpointing", "checkpointing",
    ),
    Alias(
        "activation_offloading enable_activation_offloading offload_activations use_unsloth_gc",
        "train.activation_offloading", "offloading", "with train.activation_checkpointing: true",
    ),
    Alias("tiled_mlp", "train.mlp_tile_tokens", "tiled_mlp", "the tokens of a tile"),
    Alias("tiled_mlp_num_shards", "train.mlp_tile_tokens", "tiled_mlp_shards", "the tokens of a tile"),
    Alias("disable_gradient_checkpointing", "train.activation_checkpointing", "no"),
    Alias("seed", "train.seed", "seed"),
    Alias("full_determinism", "train.deterministic"),
    Alias("data_seed", "train.seed", "data_seed", "one seed for the order of rows and all else"),
    Alias(
        "torch_dtype dtype torch_dtype_str precision mixed_precision mixed_precision_dtype",
        "train.precision", "precision",
    ),
    Alias("bf16 bfloat16", "train.precision", "bf16", "bf16: true is precision: bf16"),
    Alias("fp16 float16", "train.precision", "fp16", "fp16: true is precision: fp16"),
    Alias("pure_bf16", "train.weights_dtype", "pure_bf16", "bf16, with method full"),
    Alias("bnb_4bit_compute_dtype", "train.precision", "compute", "the arithmetic's type is the base's"),
    Alias(
        "logging_steps log_every_n_steps log_interval steps_per_report log_remote_every_steps "
        "log_every_steps",
        "train.log_every", "log_every",
    ),
    Alias(
        "eval_steps evals_per_epoch val_every_steps run_val_every_n_steps steps_per_eval eval.interval "
        "evaluate_every_steps",
        "train.evaluate_every", "evaluate_every", 'steps, or "1 epoch", or "10%"',
    ),
    Alias(
        "eval_strategy evaluation_strategy",
        "train.evaluate_every", "evaluate_when", 'steps, or "1 epoch", or never',
    ),
    Alias(
        "save_steps saves_per_epoch ckpt_every_steps save_interval save_every save_every_steps",
        "train.save_every", "save_every", 'steps, or "1 epoch", or "10%"',
    ),
    Alias(
        "save_strategy save_epochs save_epoch",
        "train.save_every", "save_when", 'steps, or "1 epoch", or never',
    ),
    Alias("save_total_limit", "train.keep_checkpoints", "keep"),
    Alias(
        "load_best_model_at_end",
        "train.best_by", "best", "the metric by which the best checkpoint becomes the result",
    ),
    Alias("metric_for_best_model", "train.best_by", "best_metric", "loss, or one of evaluate.metrics"),
    Alias(
        "early_stopping_patience early_stop_interval early_stopping_steps",
        "train.early_stopping.patience_evaluations", "unless_none",
    ),
)  # fmt: skip

REST = (
    Alias(
        "per_device_eval_batch_size eval_batch_size batch_size_val",
        "evaluate.batch_size", "evaluation_batch",
    ),
    Alias(
        "val_batches max_eval_batches eval.max_iters",
        "evaluate.max_rows", "spare", "the loss is measured on all evaluation rows",
    ),
    Alias("report_to logger_name use_wandb enable_wandb", "tracking.tracker", "tracker"),
    Alias(
        "wandb_project project_name wandb.project trackio_project_name",
        "tracking.project", "unless_none",
    ),
    Alias("wandb_run_group", "tracking.group", "unless_none"),
    Alias("wandb_mode", "tracking.wandb_mode", "unless_none"),
    Alias("run_name wandb_name wandb_run_name wandb.name", "output.name", "run_name"),
    Alias("output_dir out_dir adapter_path save_dir", "output.folder", "folder"),
    Alias("checkpoint.checkpoint_dir", "output.folder", "folder", tools=("automodel",)),
)  # fmt: skip

KEYS = (*MODEL, *ADAPTER, *OBJECTIVE, *DATA, *TRAIN, *REST)
