"""Names without a counterpart: what the toolkit chooses by itself, and what it lacks."""

from finetune.recipe.aliases.base import Alias

KERNELS = "the toolkit chooses its kernels"
SHARDING = (
    "sharding is --launch zero2, zero3 or fsdp2 of finetune train, with its file in accelerate_configs/"
)
PREPARED = "rows are prepared once, before training, and cached"
FAMILY = "the base's own files say it"

CHOSEN = (
    Alias(
        "flash_attn flash_attention attn_implementation attn_impl xformers_attention sdp_attention "
        "eager_attention sdpa_attention use_flash_attention_2 use_unsloth enable_liger_kernel "
        "use_liger_kernel liger_glu_activation liger_rms_norm liger_layer_norm liger_rope "
        "liger_fused_linear_cross_entropy liger_cross_entropy liger_rms_norm_gated cut_cross_entropy "
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum use_kernels "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel fused_attn_kernel use_v1_kernels kernel_config.* "
        "use_triton use_memory_efficient_lora compile compile.* torch_compile model.backend.* "
        "flex_attn_compile_kwargs.* fused foreach tf32 tf32_mode float32_matmul_precision "
        "use_logits_to_keep experts_implementation flex_attention unsloth_*",
        "", "chosen", KERNELS,
    ),
    Alias(
        "dataloader_num_workers dataloader_prefetch_factor dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_main_process_only preprocessing_num_workers "
        "preprocessing_batch_size dataset_num_proc dataset_processes num_workers transform_num_workers "
        "use_torchdata batching_workers dataloader.* dataloader._target_ validation_dataloader.* "
        "collate_fn collator_name data_collator remove_unused_columns pad_to_sequence_len "
        "pad_to_max_length padding padding_side pad_to_multiple_of pad_seq_len_divisible "
        "eval_sample_packing eval_packing padding_free lazy_tokenize packing_num_proc "
        "data.init_args.download_dir shuffle_buffer_size return_tensors",
        "", "chosen", PREPARED,
    ),
    Alias(
        "overwrite_cache load_from_cache_file dataset_prepared_path tokenized_path overwrite_output_dir "
        "skip_prepare_dataset dataset_keep_in_memory download_dir cache_dir logging_dir "
        "metric_logger.log_dir include_num_input_tokens_seen plot_loss log_level log_level_replica "
        "log_peak_memory_stats log_model_summary include_performance_metrics logging_first_step "
        "logging_strategy disable_tqdm dataset_cache_dir profile_logging include_tokens_per_second "
        "empty_device_cache_steps torch_empty_cache_steps gc_every_steps gc_steps "
        "checkpoint.save_consolidated checkpoint.model_save_format model_save_format safe_serialization "
        "save_safetensors save_final_model final_validation initial_validation checkpoint.enabled "
        "save_adapter_weights_only checkpointer.* recipe_checkpoint metric_logger._component_ add_version "
        "rng._target_ rng.ranked ranked loss_average_window_steps save_ckpt_as_hf telemetry.*",
        "",
        "chosen",
        "a run's folder has its log, metrics, checkpoints and result; data are cached by content",
    ),
    Alias(
        "model_class model_type is_llama_derived_model is_mistral_derived_model "
        "is_falcon_derived_model is_qwen_derived_model tokenizer_type tokenizer_config processor_type "
        "type_of_model lora_task_type task_type peft_type load_pretrained_weights tokenizer._component_ "
        "tokenizer.path tokenizer.merges_file tokenizer.vocab_path tokenizer.merges_path tokenizer.* "
        "tokenizer_name tokenizer_name_or_path auto_mapping inference_mode base_model_config peft_version "
        "corda_config eva_config load_base_model force_hf trainer_type tuner_backend use_hf "
        "load_tokenizer recipe recipe.* dataset.tokenizer.* validation_dataset.tokenizer.* "
        "dataset.shuffle_seed",
        "", "chosen", FAMILY,
    ),
    Alias(
        "precompute_ref_log_probs precompute_ref_batch_size force_use_ref_model ref_model_mixup_alpha "
        "ref_model_sync_steps model_adapter_name ref_adapter_name f_alpha_divergence_coef discopop_tau "
        "dpo_use_logits_to_keep dpo_use_liger_kernel dpo_padding_free use_liger_loss label_pad_token_id "
        "padding_value max_completion_length max_target_length is_encoder_decoder generate_during_eval "
        "dpo_generate_during_eval is_reference_free ref_model_type ref_model_revision",
        "", "chosen",
        "the reference's values are computed once, before step 1; the rest is the trainer's own",
    ),
    Alias("do_train train do_predict predict_with_generate", "", "chosen", "`finetune train` trains"),
    Alias("do_eval", "", "chosen", "evaluation rows are evaluated as often as train.evaluate_every says"),
    Alias(
        "trust_remote_code trust_remote_code_model",
        "", "chosen", "code that comes with a model is never run",
    ),
    Alias(
        "special_tokens.eos_token special_tokens.bos_token special_tokens.unk_token tokens.bos_token "
        "tokens.eos_token tokens.unk_token eot_tokens eos_token bos_token unk_token add_bos_token "
        "add_eos_token eos_tokens add_special_tokens append_concat_token tokenizer_use_mistral_common",
        "", "chosen", "the tokenizer and its template say which tokens begin and end a text",
    ),
    Alias(
        "deepspeed deepspeed.* fsdp fsdp.* fsdp_config fsdp_config.* fsdp_version "
        "fsdp_final_state_dict_type dist_config.* distributed.* dist_env.* ddp_timeout "
        "ddp_find_unused_parameters ddp_backend ddp ddp_bucket_cap_mb dist_timeout device device_map "
        "devices_per_node distributed_type local_rank timeout_minutes nccl_default_timeout_minutes "
        "dp_shard_size dp_replicate_size dp_size cp_size tp_size pp_size ep_size init_config.* "
        "fsdp_cpu_offload custom_sharded_layers low_cpu_ram low_cpu_mem_usage qlora_sharded_model_loading "
        "data_parallel_shard_dim data_parallel_replicate_dim torchdistx_path "
        "experimental_skip_move_to_device zero_hpz_partition_size parallelizer.*",
        "", "chosen", SHARDING,
    ),
    Alias(
        "gradient_checkpointing_kwargs gradient_checkpointing_kwargs.* use_reentrant_gc use_reentrant",
        "", "chosen", "how activations are recomputed is the toolkit's, with the same result",
    ),
    Alias(
        "resume_from_checkpoint auto_resume_from_checkpoints resume try_resume_from_last_checkpoint",
        "", "resume", "resuming is a command: finetune train --resume RUN",
    ),
    Alias(
        "average_tokens_across_devices acc_strategy loss.* loss_fn.* ignore_index "
        "data.init_args.ignore_index label_ignore_index num_output_chunks",
        "", "chosen", "a step's loss is divided by the tokens learned in it, over all processes",
    ),
    Alias(
        "optimizer._component_ optimizer._target_ optimizer.class_path optim_config.name",
        "train.optimizer", "optimizer",
    ),
    Alias(
        "lr_scheduler._component_ lr_scheduler._target_ lr_scheduler_config.name",
        "train.schedule", "schedule",
    ),
    Alias(
        "hub_token hf_use_auth_token access_token token",
        "", "chosen", "the hub's token is HF_TOKEN, or that of `hf auth login`; a recipe holds no secret",
    ),
    Alias(
        "sample_packing_sequentially output_hidden_states dequantize_base_checkpoint",
        "",
        "chosen",
        "packs keep the order of rows with data.shuffle: false; a base is loaded as training needs it",
    ),
    Alias("strict debug", "", "chosen", "a recipe's unknown keys are always refused"),
    Alias(
        "max_new_tokens infer_dtype sample_backend eval.max_new_tokens infer_backend temperature top_p",
        "", "chosen", "answers are generated by finetune generate and evaluate, not while it trains",
    ),
    Alias(
        "ci.* envs.* working_dir setup run file_mounts.* resources.* skypilot.* user name num_nodes "
        "slurm.* nproc_per_node nvtx",
        "", "chosen", "how a job is started is not a recipe's",
    ),
    Alias(
        "freeze_vit freeze_aligner freeze_vision_tower freeze_multi_modal_projector freeze_language_model "
        "freeze_llm train_mm_proj_only image_max_pixels video_max_pixels max_pixels image_size "
        "image_resize_algorithm",
        "", "chosen", "for models that see; ours read text alone",
    ),
    Alias(
        "quantize_moe_experts use_scattermoe use_sonicmoe router_aux_loss_coef expert_parallel_size "
        "llama4_linearized_experts model_config.output_router_logits",
        "", "off", "mixtures of experts are not supported",
    ),
)  # fmt: skip

LACKING = (
    Alias(
        "use_swanlab use_mlflow mlflow_* use_comet comet_* "
        "profiler.* profiler wandb_watch wandb_entity wandb_run_id wandb_log_model swanlab_* "
        "trackio_space_id trackio_run_name wandb_api_key wandb.dir wandb.entity wandb.enable wandb.mode "
        "label_names push_dataset_to_hub",
        "", "spare", "not here",
    ),
    Alias(
        "save_only_model",
        "", "spare", "checkpoints keep the optimizer's state, so that a run can be resumed",
    ),
    Alias(
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_model_revision hub_revision",
        "", "spare", "push the result after training",
    ),
    Alias(
        "loss_watchdog_threshold loss_watchdog_patience",
        "", "spare", "a loss that is not finite stops a run; no other does",
    ),
    Alias(
        "layer_offloading optimizer_in_bwd offload_optimizer",
        "", "spare", "less memory at the same result; take train.activation_checkpointing",
    ),
    Alias(
        "use_galore use_apollo optim_target_modules use_badam use_adam_mini use_muon optim_args",
        "", "off", "the optimizers are those of train.optimizer",
    ),
    Alias(
        "lora_ga_* create_new_adapter",
        "", "off", "how an adapter starts is one of adapter.init",
    ),
    Alias(
        "relora relora_steps layers_pattern layer_replication "
        "unfrozen_parameters "
        "freeze_parameters trainable_parameters num_layer_trainable use_llama_pro "
        "lora_target_parameters target_parameters trainable_token_indices "
        "megatron_config megatron_core lora_fan_in_fan_out fan_in_fan_out freeze_layers",
        "", "off", "an adapter of one rank on the modules of adapter.target_modules",
    ),
    Alias("bias lora_bias", "", "bias", "biases are not trained"),
    Alias(
        "use_dft_loss use_eaft_loss enable_dft_loss asft_alpha kd_trainer kd_ce_alpha reward_model "
        "pref_bco_weight",
        "", "off", "objectives are those of objective.kind",
    ),
    Alias(
        "ld_alpha use_weighting dpo_use_weighting f_divergence_type sync_ref_model",
        "", "off", "log-ratios to one reference count alike, the reverse KL's",
    ),
    Alias(
        "max_prompt_length max_prompt_len",
        "", "off", "rows have one limit, data.max_length_tokens",
    ),
    Alias(
        "gptq gptq_groupsize gptq_model_v1 quantizer quantizer.* qat qat.* fp8 fp8.* fp8_config.* "
        "quant_config model_quantization_config model_quantization_config_kwargs.* load_in_fp8",
        "", "off", "a base is trained in 16 bits, NF4 or int8; train.base_arithmetic: fp8 multiplies in FP8",
    ),
    Alias(
        "sequence_parallel_size context_parallel_size tensor_parallel_size sequence_parallel "
        "tensor_parallel_dim tensor_parallel_plan.* shift_attn use_shift_attn s2_attention",
        "", "parallel", "packs are shared by train.sequence_parallel_size; layers are not cut",
    ),
    Alias(
        "group_by_length train_sampling_strategy",
        "", "off", "rows are shuffled; packing removes the padding",
    ),
    Alias(
        "max_tokens max_time max_steps_per_epoch tie_embeddings early_stopping_threshold sgd_momentum",
        "", "off", "not here",
    ),
    Alias(
        "bnb_4bit_quant_type quantization_type quantization_method quant_method",
        "", "quant_type", "4 bits are NF4, of bitsandbytes",
    ),
    Alias(
        "bnb_4bit_quant_storage bnb_config_kwargs.bnb_4bit_quant_storage "
        "llm_int8_skip_modules llm_int8_threshold",
        "", "chosen", "how 4 bits are stored is bitsandbytes'",
    ),
    Alias(
        "resize_token_embeddings_to_32x resize_vocab shrink_embeddings mean_resizing_embeddings",
        "", "spare", "an embedding has the size of its vocabulary",
    ),
    Alias("samples", "", "off", "texts written while it trains are tracking.samples, with prompts"),
    Alias("pissa_convert", "", "chosen", "what is saved is an adapter of the base as it is"),
    Alias("greater_is_better", "", "chosen", "a metric says itself which way is better"),
    Alias(
        "plugins callbacks external_plugins custom_register_path trainer_cls",
        "", "plugins", "no code of a recipe's is run",
    ),
)  # fmt: skip
