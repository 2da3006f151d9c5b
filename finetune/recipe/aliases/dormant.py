"""Names without a counterpart that are written with the default, or beside a switch that is off: people copy
whole lists of arguments, and ask for nothing by them."""

from finetune.recipe.aliases.base import Alias

OPTIMIZERS = "the optimizers are those of train.optimizer"
ADAPTERS = "an adapter is LoRA"

DORMANT = (
    Alias("galore_*", "", "off", OPTIMIZERS, beside="use_galore"),
    Alias("apollo_*", "", "off", OPTIMIZERS, beside="use_apollo"),
    Alias("badam_*", "", "off", OPTIMIZERS, beside="use_badam"),
    Alias("lisa_*", "", "off", "all layers are trained", beside="lisa_activated_layers lisa_n_layers"),
    Alias("relora_*", "", "off", "an adapter is made once", beside="relora relora_steps"),
    Alias("reft_* vera_* boft_* oft_* fourier_* adalora_* llamapro_* module_dropout", "", "unread", ADAPTERS),
    Alias(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules",
        "", "unread", ADAPTERS, tools=("llamafactory",),
    ),
    Alias("ppo_* reward_model_*", "", "unread", "objectives are those of objective.kind"),
    Alias(
        "loraplus_lr_embedding",
        "", "embedding_adapter", "of an adapter on embed_tokens, which has the base's own rate here",
    ),
    Alias("interleave_probs mix_strategy", "", "mixed", "a source's share of an epoch is `share`, or repeat"),
    Alias("length_column_name", "", "off", "rows are shuffled", beside="group_by_length"),
    Alias("min_sample_len", "", "off", "rows of any length are learned", default=2),
    Alias("dataloader_drop_last", "", "off", "the last rows of an epoch are learned too"),
    Alias("ignore_pad_token_for_loss", "", "off", "padding is not learned", default=True),
    Alias("use_fast_tokenizer use_fast tokenizer_use_fast", "", "off", "tokenizers are fast", default=True),
    Alias("split_special_tokens", "", "off", "special tokens are whole; data.special_tokens_in_text"),
    Alias(
        "sample_packing_* multipack_real_batches total_num_tokens total_supervised_tokens",
        "", "chosen", "how packs are filled is the toolkit's",
    ),
    Alias(
        "eval_max_new_tokens eval_table_* eval_causal_lm_metrics do_causal_lm_eval do_bench_eval bench_* "
        "compute_accuracy eval_num_beams metric metric_warmup_step prediction_loss_only",
        "", "chosen", "what is measured is evaluate.metrics",
    ),
    Alias(
        "logging_nan_inf_filter log_on_each_node skip_memory_metrics past_index fp16_opt_level "
        "half_precision_backend accelerator_config.* ray_* use_ray include_for_metrics no_cuda use_cpu "
        "use_mps_device use_ipex jit_mode_eval torchdynamo torch_compile_* ddp_* fsdp_* save_on_each_node "
        "eval_do_concat_batches eval_accumulation_steps eval_use_gather_object batch_eval_metrics "
        "hub_always_push restore_callback_states_from_checkpoint mp_parameters "
        "vllm_* sglang_* export_* template_backend create_checkpoint_symlink peft_save_mode "
        "use_async_dataset buffer_size print_param_status eval_delay eval_on_start",
        "", "chosen", "how a job is run and reported is the toolkit's",
    ),
    Alias("rope_scaling rope_theta", "", "off", "write model.rope_scaling, with its type and factor"),
)  # fmt: skip
