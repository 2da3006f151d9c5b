"""Configurations of our own in each tool's form, and what the recipe has to say. No tool's file is copied."""

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A file, and values of the recipe that it becomes."""

    tool: str
    file: str
    text: str
    expected: dict[str, Any]
    complete: bool = True
    processes: int = 1


def value_at(recipe: Any, path: str) -> Any:
    """A value of a recipe by its dotted key."""
    for part in path.split("."):
        recipe = recipe[int(part)] if isinstance(recipe, list) else recipe[part]
    return recipe


LLAMAFACTORY = """\
model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 12
lora_target: q_proj,v_proj
quantization_bit: 4
template: llama3
dataset: letters, jokes
cutoff_len: 700
max_samples: 300
train_on_prompt: false
val_size: 0.02
per_device_train_batch_size: 3
gradient_accumulation_steps: 4
learning_rate: 7.0e-5
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.05
bf16: true
eval_strategy: steps
eval_steps: 40
save_steps: 80
logging_steps: 5
output_dir: out/letters
report_to: none
loraplus_lr_ratio: 8.0
neat_packing: true
"""
DATASET_INFO = """\
{"letters": {"file_name": "letters.json", "columns": {"prompt": "ask", "response": "reply"}},
 "jokes": {"hf_hub_url": "someone/jokes", "formatting": "sharegpt"}}
"""
LLAMAFACTORY_EXPECTED = {
    "model.base": "meta-llama/Llama-3.2-1B-Instruct",
    "model.chat_template": "llama3",
    "adapter.method": "qlora",
    "adapter.rank": 12,
    "adapter.alpha": 24,  # twice the rank, LLaMA-Factory's default
    "adapter.target_modules": ["q_proj", "v_proj"],
    "data.max_length_tokens": 700,
    "data.pack_length_tokens": 700,
    "data.over_length": "truncate_end",
    "data.supervise": "assistant",
    "data.train.0.columns": {"instruction": "ask", "output": "reply"},
    "data.train.0.max_rows": 300,
    "data.train.1.dataset": "someone/jokes",
    "data.train.1.format": "sharegpt",
    "data.evaluation.fraction": 0.02,
    "train.global_batch_size": 24,  # 3 x 4 x 2 processes
    "train.micro_batch_size": 3,
    "train.learning_rate": 7e-5,
    "train.epochs": 2,
    "train.schedule": "cosine",
    "train.warmup_ratio": 0.05,
    "train.loraplus_lr_ratio": 8,
    "train.activation_checkpointing": True,  # its default
    "train.seed": 42,  # its default
    "train.precision": "bf16",
    "train.evaluate_every": 40,
    "train.save_every": 80,
    "train.log_every": 5,
    "tracking.tracker": "none",
}

LLAMAFACTORY_V1 = """\
model: Qwen/Qwen3-0.6B
model_class: llm
peft_config: {name: lora, r: 6, lora_alpha: 18, lora_dropout: 0.1, target_modules: all}
kernel_config: {name: auto}
quant_config: null
dist_config: {name: fsdp2, dcp_path: null}
train_dataset: rows.yaml
output_dir: out/v1
micro_batch_size: 2
global_batch_size: 16
cutoff_len: 900
learning_rate: 3.0e-5
max_steps: 70
bf16: true
"""
LLAMAFACTORY_V1_ROWS = "ours: {path: rows.jsonl, source: local, converter: alpaca, size: 40}\n"

AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
tokenizer_type: AutoTokenizer
load_in_8bit: true
adapter: lora
lora_r: 24
lora_alpha: 12
lora_dropout: 0.07
lora_target_linear: true
datasets:
  - path: someone/instructions
    type: alpaca
    split: train[:90%]
dataset_prepared_path: prepared
val_set_size: 0.03
output_dir: ./outputs/here
sequence_len: 640
sample_packing: true
pad_to_sequence_len: true
gradient_accumulation_steps: 2
micro_batch_size: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.00015
adam_beta2: 0.97
bf16: auto
tf32: false
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_steps: 12
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.01
wandb_project:
special_tokens:
  pad_token: <|end_of_text|>
"""
AXOLOTL_EXPECTED = {
    "model.chat_template": "alpaca",
    "model.pad_token": "<|end_of_text|>",
    "adapter.method": "qlora",
    "adapter.quantization": "int8",
    "adapter.rank": 24,
    "adapter.alpha": 12,
    "adapter.dropout": 0.07,
    "data.train.0.dataset": "someone/instructions",
    "data.train.0.split": "train[:90%]",
    "data.train.0.format": "alpaca",
    "data.evaluation.fraction": 0.03,
    "data.max_length_tokens": 640,
    "data.pack_length_tokens": 640,
    "train.global_batch_size": 8,
    "train.optimizer": "adamw_8bit",
    "train.adam_betas": [0.9, 0.97],
    "train.warmup_steps": 12,
    "train.evaluate_every": "0.25 epochs",
    "train.save_every": "1 epoch",
    "train.weight_decay": 0.01,
}
AXOLOTL_FULL = """\
base_model: mistralai/Mistral-7B-v0.1
datasets: [{path: someone/chats, type: chat_template, field_messages: conversations,
            message_property_mappings: {role: from, content: value}}]
sequence_len: 512
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.000005
optimizer: paged_adamw_8bit
lr_scheduler: constant
train_on_inputs: true
curriculum_sampling: true
val_set_size: 0
save_steps: 0.25
max_grad_norm: 0.0
"""

TRL = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dtype: bfloat16
dataset_name: someone/talk
dataset_config: small
dataset_train_split: train
dataset_test_split: validation
eval_strategy: epoch
max_length: 800
packing: true
attn_implementation: flash_attention_2
assistant_only_loss: true
use_peft: true
load_in_4bit: true
lora_r: 20
lora_alpha: 10
lora_target_modules: [q_proj, k_proj]
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 3.0e-4
num_train_epochs: 1
lr_scheduler_type: constant_with_warmup
warmup_ratio: 0.2
report_to: [tensorboard, wandb]
save_strategy: "no"
output_dir: out
seed: 7
"""
TRL_EXPECTED = {
    "adapter.method": "qlora",
    "adapter.double_quantization": False,  # TRL's default
    "adapter.rank": 20,
    "adapter.dropout": 0.05,  # its default
    "data.train.0.config": "small",
    "data.evaluation.sources.0.split": "validation",
    "data.pack_length_tokens": 800,
    "data.supervise": "assistant",
    "train.global_batch_size": 16,
    "train.schedule": "constant",
    "train.warmup_ratio": 0.2,
    "train.activation_checkpointing": True,  # its default
    "train.evaluate_every": "1 epoch",
    "train.save_every": "never",
    "train.seed": 7,
    "tracking.tracker": ["tensorboard", "wandb"],
}

HANDBOOK = """\
model_name_or_path: mistralai/Mistral-7B-v0.1
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
chat_template: "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
dataset_mixture:
  datasets:
    - {id: someone/chats, config: default, split: train_sft, columns: [messages], weight: 1.0}
    - {id: someone/more, split: train, columns: [messages], weight: 0.5}
  test_split_size: 200
  seed: 0
bf16: true
do_eval: true
eval_strategy: epoch
gradient_accumulation_steps: 2
gradient_checkpointing: true
learning_rate: 2.0e-05
lr_scheduler_type: cosine
max_length: 2048
num_train_epochs: 1
output_dir: data/ours
per_device_train_batch_size: 4
push_to_hub: true
save_strategy: epoch
seed: 42
warmup_ratio: 0.1
"""

TORCHTUNE = """\
output_dir: /tmp/ours
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 40
  lora_alpha: 80
  lora_dropout: 0.0
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /tmp/tok.model, max_seq_len: 1500}
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: meta-llama/Llama-3.2-1B-Instruct
  output_dir: ${output_dir}
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, packed: False}
seed: null
shuffle: True
batch_size: 4
optimizer: {_component_: torch.optim.AdamW, fused: True, weight_decay: 0.02, lr: 3e-4}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 50}
loss: {_component_: torchtune.modules.loss.LinearCrossEntropyLoss}
epochs: 2
max_steps_per_epoch: null
gradient_accumulation_steps: 4
clip_grad_norm: null
compile: False
metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger, log_dir: "${output_dir}/logs"}
log_every_n_steps: 3
device: cuda
dtype: bf16
enable_activation_checkpointing: True
profiler: {_component_: torchtune.training.setup_torch_profiler, enabled: False, cpu: True, wait_steps: 5}
"""
TORCHTUNE_EXPECTED = {
    "model.base": "meta-llama/Llama-3.2-1B-Instruct",
    "model.chat_template": "llama3",  # around the published prompt, as its tokenizer writes it
    "data.train.0.format": "template",
    "adapter.target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "adapter.rank": 40,
    "adapter.alpha": 80,
    "data.train.0.dataset": "yahma/alpaca-cleaned",
    "data.supervise": "all",  # the builder's default
    "data.max_length_tokens": 1500,
    "train.global_batch_size": 16,
    "train.warmup_steps": 50,
    "train.weight_decay": 0.02,
    "train.max_gradient_norm": None,
    "train.precision": "bf16",
    "train.save_every": "1 epoch",
}

LITGPT = """\
checkpoint_dir: meta-llama/Llama-3.2-1B
out_dir: out/ours
precision: bf16-true
quantize: bnb.nf4
devices: 1
num_nodes: 1
lora_r: 14
lora_alpha: 28
lora_dropout: 0.03
lora_query: true
lora_key: false
lora_value: true
lora_projection: false
lora_mlp: true
lora_head: false
data:
  class_path: litgpt.data.Alpaca2k
  init_args: {mask_prompt: false, val_split_fraction: 0.04, prompt_style: alpaca, ignore_index: -100, seed: 42, num_workers: 4}
train:
  save_interval: 150
  log_interval: 1
  global_batch_size: 12
  micro_batch_size: 3
  lr_warmup_steps: 30
  epochs: 2
  max_tokens:
  max_steps:
  max_seq_length: 500
  tie_embeddings:
  max_norm:
  min_lr: 6.0e-05
eval: {interval: 60, max_new_tokens: 100, max_iters: 100, initial_validation: false, final_validation: true}
logger_name: csv
seed: 1337
optimizer:
  class_path: torch.optim.AdamW
  init_args: {lr: 0.0002, weight_decay: 0.0, betas: [0.9, 0.95]}
"""
LITGPT_EXPECTED = {
    "model.base": "meta-llama/Llama-3.2-1B",
    "model.chat_template": "alpaca",
    "adapter.method": "qlora",
    "adapter.double_quantization": False,
    "adapter.target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
    "data.train.0.dataset": "mhenrichsen/alpaca_2k_test",
    "data.supervise": "all",
    "data.evaluation.fraction": 0.04,
    "train.global_batch_size": 12,
    "train.warmup_steps": 30,
    "train.adam_betas": [0.9, 0.95],
    "train.learning_rate": 2e-4,
    "train.evaluate_every": 60,
    "train.save_every": 150,
    "train.max_gradient_norm": None,
}

AUTOMODEL = """\
recipe: TrainFinetuneRecipeForNextTokenPrediction
step_scheduler: {global_batch_size: 32, local_batch_size: 4, ckpt_every_steps: 300, val_every_steps: 20, num_epochs: 1}
dist_env: {backend: nccl, timeout_minutes: 1}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1111, ranked: true}
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: meta-llama/Llama-3.2-1B
peft: {_target_: nemo_automodel.components._peft.lora.PeftConfig, target_modules: "*_proj", dim: 10, alpha: 30, use_triton: True}
distributed: {strategy: fsdp2, dp_size: none, tp_size: 1, cp_size: 1, sequence_parallel: false}
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
dataset: {_target_: nemo_automodel.components.datasets.llm.squad.make_squad_dataset, dataset_name: rajpurkar/squad, split: train}
packed_sequence: {packed_sequence_size: 0}
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: nemo_automodel.components.datasets.utils.default_collater
  shuffle: false
validation_dataset:
  _target_: nemo_automodel.components.datasets.llm.squad.make_squad_dataset
  dataset_name: rajpurkar/squad
  split: validation
  limit_dataset_samples: 50
optimizer: {_target_: torch.optim.Adam, betas: [0.9, 0.98], eps: 1e-7, lr: 2.0e-5, weight_decay: 0}
lr_scheduler: {lr_decay_style: cosine, min_lr: 2.0e-6}
"""
AUTOMODEL_EXPECTED = {
    "adapter.rank": 10,
    "adapter.alpha": 30,
    "data.shuffle": False,
    "data.train.0.format": "question_answer",
    "data.evaluation.sources.0.max_rows": 50,
    "train.global_batch_size": 32,
    "train.micro_batch_size": 4,
    "train.adam_betas": [0.9, 0.98],
    "train.adam_epsilon": 1e-7,
    "train.schedule": "cosine_with_minimum",
    "train.minimum_learning_rate_fraction": 0.1,
    "train.seed": 1111,
    "train.epochs": 1,
}

OUMI = """\
model: {model_name: HuggingFaceTB/SmolLM2-135M-Instruct, model_max_length: 1024, torch_dtype_str: bfloat16, trust_remote_code: False}
data:
  train:
    datasets:
      - {dataset_name: yahma/alpaca-cleaned, split: "train[:50%]"}
training:
  trainer_type: TRL_SFT
  use_peft: True
  output_dir: output/ours
  num_train_epochs: 2
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 2
  max_grad_norm: 0.0
  enable_gradient_checkpointing: True
  learning_rate: 1.0e-4
  optimizer: adamw_torch_fused
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs: {min_lr_rate: 0.2}
  warmup_steps: 15
  adam_beta1: 0.9
  adam_beta2: 0.95
  weight_decay: 0.01
  logging_steps: 25
  save_steps: 0
  enable_wandb: False
  dataloader_num_workers: "auto"
peft: {q_lora: False, lora_r: 18, lora_alpha: 36, lora_dropout: 0.1, lora_target_modules: [q_proj, o_proj]}
"""
OUMI_EXPECTED = {
    "adapter.rank": 18,
    "adapter.alpha": 36,
    "adapter.dropout": 0.1,
    "data.supervise": "all",
    "data.max_length_tokens": 1024,
    "data.train.0.split": "train[:50%]",
    "train.global_batch_size": 16,
    "train.max_gradient_norm": None,
    "train.schedule": "cosine_with_minimum",
    "train.minimum_learning_rate_fraction": 0.2,
    "train.warmup_steps": 15,
    "train.adam_betas": [0.9, 0.95],
    "train.save_every": "never",
}

MLX = """\
model: mlx-community/Llama-3.2-1B-Instruct-bf16
train: true
fine_tune_type: dora
optimizer: adamw
data: someone/rows
seed: 3
num_layers: -1
batch_size: 4
iters: 600
grad_accumulation_steps: 2
learning_rate: 2e-5
steps_per_report: 10
steps_per_eval: 200
save_every: 100
adapter_path: adapters
max_seq_length: 777
grad_checkpoint: true
mask_prompt: true
lora_parameters: {rank: 5, scale: 10.0, dropout: 0.1, keys: [self_attn.q_proj, self_attn.v_proj]}
"""
MLX_EXPECTED = {
    "adapter.use_dora": True,
    "adapter.rank": 5,
    "adapter.alpha": 50,
    "adapter.target_modules": ["q_proj", "v_proj"],
    "data.supervise": "completion",
    "data.max_length_tokens": 777,
    "train.max_steps": 300,
    "train.global_batch_size": 8,
    "train.schedule": "constant",
    "train.max_gradient_norm": None,
    "train.adam_bias_correction": False,
    "train.save_every": 50,
}

SWIFT = """\
# our own script
export CUDA_VISIBLE_DEVICES=0,1
MODEL=Qwen/Qwen2.5-1.5B-Instruct
NPROC_PER_NODE=2 \\
swift sft \\
    --model $MODEL \\
    --tuner_type lora \\
    --use_hf true \\
    --dataset 'someone/alpaca#600' \\
              'modelscope/self-cognition#50' \\
    --torch_dtype bfloat16 \\
    --num_train_epochs 1 \\
    --per_device_train_batch_size 2 \\
    --learning_rate 2e-4 \\
    --lora_rank 9 \\
    --lora_alpha 27 \\
    --target_modules all-linear \\
    --gradient_accumulation_steps 4 \\
    --split_dataset_ratio 0.01 \\
    --eval_steps 30 \\
    --save_steps 60 \\
    --save_total_limit 3 \\
    --logging_steps 5 \\
    --max_length 1800 \\
    --output_dir output \\
    --system 'You are brief.' \\
    --warmup_ratio 0.05 \\
    --dataloader_num_workers 4 \\
    --model_author ours \\
    --model_name botty
"""
SWIFT_EXPECTED = {
    "model.base": "Qwen/Qwen2.5-1.5B-Instruct",
    "adapter.rank": 9,
    "adapter.alpha": 27,
    "adapter.dropout": 0.05,  # its default
    "data.train.0.dataset": "someone/alpaca",
    "data.train.0.sample_rows": 600,
    "data.system": "You are brief.",
    "data.placeholders": {"{{NAME}}": "botty", "{{AUTHOR}}": "ours"},
    "data.max_length_tokens": 1800,
    "train.global_batch_size": 16,  # 2 x 4 x 2
    "train.adam_betas": [0.9, 0.95],  # its default
    "train.weight_decay": 0.1,  # its default
    "train.schedule": "cosine",
    "train.keep_checkpoints": 3,
}

PEFT = """\
{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 11,
 "lora_alpha": 22, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "bias": "none", "use_dora": false,
 "use_rslora": true, "modules_to_save": null, "init_lora_weights": true, "inference_mode": true, "rank_pattern": {}}
"""
PEFT_EXPECTED = {
    "model.base": "meta-llama/Llama-3.2-1B",
    "adapter.rank": 11,
    "adapter.alpha": 22,
    "adapter.use_rslora": True,
    "adapter.target_modules": ["q_proj", "v_proj"],
}

CASES = (
    Case("llamafactory", "sft.yaml", LLAMAFACTORY, LLAMAFACTORY_EXPECTED, processes=2),
    Case(
        "llamafactory_v1",
        "v1.yaml",
        LLAMAFACTORY_V1,
        {
            "adapter.rank": 6,
            "adapter.alpha": 18,
            "data.train.0.max_rows": 40,
            "train.global_batch_size": 16,
            "train.schedule": "constant",
            "train.max_steps": 70,
        },
    ),
    Case("axolotl", "axolotl.yml", AXOLOTL, AXOLOTL_EXPECTED),
    Case(
        "axolotl",
        "full.yml",
        AXOLOTL_FULL,
        {
            "adapter.method": "full",
            "data.train.0.format": "sharegpt",
            "data.supervise": "all",
            "data.shuffle": False,
            "train.schedule": "constant",
            "train.warmup_ratio": 0,
            "train.save_every": "25%",
            "train.max_gradient_norm": None,
            "train.optimizer": "paged_adamw_8bit",
        },
    ),
    Case("trl", "trl.yaml", TRL, TRL_EXPECTED),
    Case(
        "alignment-handbook",
        "handbook.yaml",
        HANDBOOK,
        {
            "adapter.method": "full",
            "data.train.1.repeat": 0.5,
            "data.evaluation.rows": 200,
            "data.supervise": "all",
            "train.evaluate_every": "1 epoch",
        },
    ),
    Case("torchtune", "torchtune.yaml", TORCHTUNE, TORCHTUNE_EXPECTED),
    Case("litgpt", "litgpt.yaml", LITGPT, LITGPT_EXPECTED),
    Case("automodel", "automodel.yaml", AUTOMODEL, AUTOMODEL_EXPECTED),
    Case("oumi", "oumi.yaml", OUMI, OUMI_EXPECTED),
    Case("mlx_lm", "mlx.yaml", MLX, MLX_EXPECTED),
    Case("ms-swift", "swift.sh", SWIFT, SWIFT_EXPECTED),
    Case("peft", "adapter_config.json", PEFT, PEFT_EXPECTED, complete=False),
)
