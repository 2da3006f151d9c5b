"""Configurations of our own that learn from preferences, and what the recipe has to say. No tool's file is
copied."""

from typing import Any, NamedTuple


class Pairs(NamedTuple):
    """A file, the objective that it becomes, other values, and the keys whose lines say that the result
    changes."""

    name: str
    file: str
    text: str
    objective: dict[str, Any]
    changes: tuple[str, ...] = ()
    values: dict[str, Any] = {}  # noqa: RUF012
    tool: str | None = None


RANKED = """\
{"turns": {"hf_hub_url": "a/turns", "ranking": true, "formatting": "sharegpt",
           "columns": {"messages": "dialogue", "chosen": "chosen", "rejected": "worse"}},
 "answers": {"hf_hub_url": "a/answers", "ranking": true,
             "columns": {"prompt": "ask", "query": "", "chosen": "good", "rejected": "rejected"}},
 "plain": {"hf_hub_url": "a/plain"}}
"""
LLAMAFACTORY = """\
model_name_or_path: owner/base
stage: dpo
finetuning_type: lora
lora_dropout: 0.2
dataset: turns, answers
train_on_prompt: false
"""
AXOLOTL = """\
base_model: owner/base
adapter: lora
lora_r: 4
lora_dropout: 0.2
sequence_len: 300
micro_batch_size: 2
datasets: [{path: a/pairs, type: chat_template.default}]
"""
TRL = """\
model_name_or_path: owner/base
dataset_name: a/pairs
use_peft: true
per_device_train_batch_size: 2
"""
SWIFT = "swift rlhf --model owner/base --use_hf true --dataset a/pairs --tuner_type lora --max_length 500"
TORCHTUNE = """\
model: {_component_: torchtune.models.llama3_2.lora_llama3_2_1b, lora_attn_modules: [q_proj]}
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 400}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: owner/base}
dataset: {_component_: torchtune.datasets.stack_exchange_paired_dataset}
"""
OUMI = """\
model: {model_name: owner/base, model_max_length: 600}
data: {train: {datasets: [{dataset_name: a/pairs}]}}
training: {trainer_type: TRL_DPO, use_peft: true, trainer_kwargs: {loss_type: hinge, beta: 0.4}}
"""

DPO = {
    "kind": "dpo", "reference": "start", "beta": 0.1, "length_normalized": False, "supervised_weight": 0,
    "label_smoothing": 0,
}  # fmt: skip
IPO = {"kind": "ipo", "reference": "start", "beta": 0.1, "length_normalized": True, "supervised_weight": 0}
HINGE = IPO | {"kind": "hinge", "length_normalized": False}
SIMPO = {"kind": "simpo", "beta": 2, "margin": 0.5, "label_smoothing": 0, "supervised_weight": 0}

CASES = (
    Pairs(
        "llamafactory, defaults", "lf.yaml", LLAMAFACTORY, DPO,
        values={
            "adapter.dropout": 0,  # its trainer switches it off
            "data.train.0.columns": {"conversations": "dialogue", "rejected": "worse"},
            "data.train.1.columns": {"instruction": "ask", "chosen": "good"},
        },
    ),
    Pairs(
        "llamafactory, ipo by length, with the chosen answer's mean", "lf.yaml",
        LLAMAFACTORY + "pref_loss: ipo\npref_beta: 0.3\npref_ftx: 0.2\nper_device_train_batch_size: 4\n",
        IPO | {"beta": 0.3, "supervised_weight": 0.2},
    ),
    Pairs(
        "llamafactory, simpo with its small beta", "lf.yaml", LLAMAFACTORY + "pref_loss: simpo\n",
        SIMPO | {"beta": 0.1},
    ),
    Pairs(
        "llamafactory, orpo without the prompt", "lf.yaml",
        LLAMAFACTORY + "pref_loss: orpo\npref_beta: 0.25\n", {"kind": "orpo", "odds_weight": 0.25, "learns_prompt": False},
    ),
    Pairs(
        "llamafactory, its reference is the base", "lf.yaml",
        LLAMAFACTORY + "adapter_name_or_path: there\ndpo_label_smoothing: 0.1\n",
        DPO | {"label_smoothing": 0.1, "reference": "base"},

    ),
    Pairs(
        "llamafactory, a reference that is the start", "lf.yaml",
        LLAMAFACTORY + "adapter_name_or_path: there\nref_model: owner/base\nref_model_adapters: there\n", DPO,
    ),
    Pairs(
        "llamafactory, another reference", "lf.yaml", LLAMAFACTORY + "ref_model: other/base\nld_alpha: 0.5\n",
        DPO, changes=("ref_model", "ld_alpha"),
    ),
    Pairs(
        "llamafactory v1", "v1.yaml",
        "model: owner/base\nmodel_class: llm\npeft_config: {name: lora}\ntrain_dataset: a/pairs\n"
        "pref_loss: sigmoid\npref_beta: 0.2\n",
        DPO | {"beta": 0.2}, values={"adapter.dropout": 0.05, "data.train.0.format": "preference"},
    ),
    Pairs(
        "axolotl, dpo", "ax.yml", AXOLOTL + "rl: dpo\nrl_beta: 0.2\n", DPO | {"beta": 0.2},
        values={"adapter.dropout": 0, "data.train.0.columns": {"prompt": "messages"}},
    ),
    Pairs(
        "axolotl, per token, with RPO's loss", "ax.yml",
        AXOLOTL + "rl: dpo\ndpo_norm_loss: true\nrpo_alpha: 0.5\ndpo_label_smoothing: 0.1\n",
        DPO | {"length_normalized": True, "supervised_weight": 0.5, "label_smoothing": 0.1},
        changes=("rpo_alpha",),  # over the tokens of a micro batch of 2 there
    ),
    Pairs("axolotl, ipo", "ax.yml", AXOLOTL + "rl: ipo\n", IPO),
    Pairs(
        "axolotl, orpo learns prompts", "ax.yml",
        AXOLOTL.replace("default", "argilla") + "rl: orpo\norpo_alpha: 0.3\n",
        {"kind": "orpo", "odds_weight": 0.3, "learns_prompt": True}, changes=("rl",),  # micro batches of 2
    ),
    Pairs(
        "axolotl, simpo has CPO's loss beside it", "ax.yml",
        AXOLOTL + "rl: simpo\nrl_beta: 1.5\nsimpo_gamma: 0.7\n",
        SIMPO | {"beta": 1.5, "margin": 0.7, "supervised_weight": 1}, changes=("cpo_alpha (default 1.0)",),
    ),
    Pairs(
        "axolotl, a type with a template of its own", "ax.yml",
        AXOLOTL.replace("chat_template.default", "chatml.intel") + "rl: dpo\nchat_template: llama3\n", DPO,
        values={"model.chat_template": "chatml", "data.train.0.columns": {"prompt": "question"}},
    ),
    Pairs(
        "axolotl, texts around the turns", "ax.yml",
        AXOLOTL.replace(
            "chat_template.default", '{field_prompt: ask, field_chosen: good, prompt_format: "[{prompt}]"}'
        ) + "rl: dpo\n",
        DPO, changes=("datasets.0.type.prompt_format",),
        values={"data.train.0.columns": {"prompt": "ask", "chosen": "good"}},
    ),
    Pairs(
        "trl, the loss of a list", "trl.yaml",
        TRL + "loss_type: [sigmoid_norm, sft]\nloss_weights: [1.0, 0.4]\nld_alpha: 0.5\n",
        DPO | {"length_normalized": True, "supervised_weight": 0.4}, changes=("loss_type", "ld_alpha"),
        values={"train.learning_rate": 1e-6, "adapter.dropout": 0, "data.over_length": "truncate_end"},
    ),
    Pairs(
        "trl, a loss of half weight", "trl.yaml",
        TRL.replace("batch_size: 2", "batch_size: 1") + "loss_type: [sigmoid, sft]\nloss_weights: [0.5, 0.2]\n",
        DPO | {"supervised_weight": 0.4}, changes=("loss_weights",),
    ),
    Pairs(
        "trl before 0.29", "trl.yaml",
        TRL + "beta: 0.3\nreference_free: true\nlabel_smoothing: 0.2\nmax_prompt_length: 300\n",
        DPO | {"beta": 0.3, "reference": "none", "label_smoothing": 0.2}, changes=("max_prompt_length",),
        values={"data.over_length": "truncate_start"},
    ),
    Pairs(
        "trl from 0.29 on doesn't smooth", "trl.yaml",
        TRL + "loss_type: sigmoid\nlabel_smoothing: 0.2\nprecompute_ref_log_probs: true\n",
        DPO | {"label_smoothing": 0.2}, changes=("label_smoothing",),
    ),
    Pairs(
        "trl, robust without its own default", "trl.yaml", TRL + "loss_type: robust\n",
        DPO | {"kind": "robust"},
    ),
    Pairs(
        "trl, dropout kept", "trl.sh",
        "trl dpo --model_name_or_path owner/base --dataset_name a/pairs --use_peft --disable_dropout false",
        DPO, values={"adapter.dropout": 0.05},
    ),
    Pairs(
        "trl, streamed, the best by accuracy", "trl.yaml",
        TRL + "beta: 0.1\ndataset_streaming: true\nmax_steps: 30\neval_strategy: steps\neval_steps: 10\n"
        "load_best_model_at_end: true\nmetric_for_best_model: eval_rewards/accuracies\n",
        DPO, values={"data.streaming": None, "train.best_by": "reward_accuracy"},
    ),
    Pairs(
        "trl, simpo of CPO", "trl.yaml", TRL + "loss_type: simpo\ncpo_alpha: 0.0\nbeta: 2.5\n",
        SIMPO | {"beta": 2.5},
    ),
    Pairs(
        "trl, the hinge of CPO has no reference", "trl.yaml",
        TRL.replace("batch_size: 2", "batch_size: 1") + "loss_type: hinge\ncpo_alpha: 0.5\n",
        HINGE | {"reference": "none", "supervised_weight": 0.5},
    ),
    Pairs(
        "trl, a trainer that --from names", "trl.yaml", TRL + "beta: 0.2\n",
        {"kind": "orpo", "odds_weight": 0.2, "learns_prompt": True}, changes=("beta",), tool="trl orpo",
    ),
    Pairs(
        "trl, a script of CPO", "cpo.sh",
        "python examples/scripts/cpo.py --model_name_or_path owner/base --dataset_name a/pairs "
        "--per_device_train_batch_size 1",
        {"kind": "cpo", "beta": 0.1, "label_smoothing": 0, "supervised_weight": 1},
    ),
    Pairs(
        "handbook's mixer", "handbook.yaml",
        "model_name_or_path: owner/base\ndataset_mixer: {a/pairs: 0.5}\nbeta: 0.01\n"
        "dataset_splits: [train_prefs, test_prefs]\nmax_prompt_length: 2000\n",
        DPO | {"beta": 0.01},
        values={"data.train.0.split": "train_prefs", "data.train.0.repeat": 0.5,
                "data.evaluation.sources.0.split": "test_prefs"},
    ),
    Pairs(
        "ms-swift, dpo", "swift.sh",
        SWIFT + " --rpo_alpha 0.1 --per_device_train_batch_size 1 --label_smoothing 0.1 --adapters there",
        DPO | {"supervised_weight": 0.1, "label_smoothing": 0.1, "reference": "base"},
        values={"data.over_length": "drop", "adapter.dropout": 0},
    ),
    Pairs(
        "ms-swift, simpo is CPO-SimPO; its packs hold pairs", "swift.sh",
        SWIFT + " --rlhf_type simpo --packing true", SIMPO | {"margin": 1, "supervised_weight": 1},
        changes=("packing",), values={"data.pack_length_tokens": 1000},
    ),
    Pairs(
        "ms-swift, orpo without the prompt", "swift.yaml",
        "rlhf_type: orpo\nmodel: owner/base\nuse_hf: true\ndataset: [a/pairs]\nmax_length: 400\n",
        {"kind": "orpo", "odds_weight": 0.1, "learns_prompt": False},
    ),
    Pairs(
        "ms-swift, another reference adapter", "swift.sh", SWIFT + " --ref_adapters owner/other", DPO |
        {"reference": "owner/other"},
    ),
    Pairs(
        "ms-swift, a reference adapter that is the start", "swift.sh",
        SWIFT + " --adapters there --ref_adapters there --loss_type ipo", IPO,
    ),
    Pairs(
        "torchtune, RSO is the hinge", "tune.yaml",
        TORCHTUNE + "loss: {_component_: torchtune.rlhf.loss.RSOLoss, gamma: 0.2}\n", HINGE | {"beta": 0.2},
        values={"data.train.0.columns": {"prompt": "question", "chosen": "response_j",
                                         "rejected": "response_k"}},
    ),
    Pairs(
        "torchtune, another reference", "tune.yaml",
        TORCHTUNE + "loss: {_component_: torchtune.rlhf.loss.DPOLoss, beta: 0.05, label_smoothing: 0}\n"
        "ref_checkpointer: {_component_: x, checkpoint_dir: other/base}\n",
        DPO | {"beta": 0.05}, changes=("ref_checkpointer.checkpoint_dir",),
    ),
    Pairs(
        "torchtune, simpo", "tune.yaml",
        TORCHTUNE + "loss: {_component_: torchtune.rlhf.loss.SimPOLoss}\n", SIMPO,
    ),
    Pairs(
        "oumi", "oumi.yaml", OUMI, HINGE | {"beta": 0.4},
        values={"data.train.0.format": "preference", "train.learning_rate": 5e-5, "adapter.dropout": 0},
    ),
)  # fmt: skip
