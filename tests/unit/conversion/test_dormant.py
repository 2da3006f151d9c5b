"""Whole lists of arguments, most of them with the tool's defaults: what asks for nothing changes nothing."""

from pathlib import Path

import pytest

import finetune
from finetune.recipe.aliases import ALIASES, alias_of

LLAMAFACTORY = "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\ndataset: rows\nval_size: 0.1\n"
AXOLOTL = "base_model: a/b\nadapter: lora\nsequence_len: 64\ndatasets: [{path: c/d, type: chat_template}]\n"
TRL = "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\n"
SWIFT = "model: a/b\ndataset: c/d\nuse_hf: true\ntuner_type: lora\n"


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dataset_info.json").write_text('{"rows": {"hf_hub_url": "c/d"}}')


def changes(text: str) -> list[str]:
    """The keys of a file whose lines say that the result changes."""
    Path("a.yaml").write_text(text)
    conversion = finetune.convert("a.yaml")
    return [line.key for line in (*conversion.otherwise, *conversion.dropped) if line.changes]


@pytest.mark.parametrize(
    "text",
    [
        LLAMAFACTORY + "galore_rank: 16\ngalore_target: all\nbadam_mode: layer\nuse_galore: false\n",
        LLAMAFACTORY + "ppo_epochs: 4\npref_beta: 0.1\nfreeze_trainable_layers: 2\n",
        LLAMAFACTORY + "mix_strategy: concat\nbuffer_size: 16384\nlength_column_name: length\n",
        LLAMAFACTORY + "loraplus_lr_embedding: 1.0e-6\nloraplus_lr_ratio: 16\nuse_fast_tokenizer: true\n",
        AXOLOTL + "relora_prune_ratio: 0.9\nrelora_steps:\nsample_packing_bin_size: 200\nmin_sample_len: 2\n",
        AXOLOTL + "eval_max_new_tokens: 128\nembedding_lr: 1.0e-6\n",
        TRL
        + "ray_scope: last\npast_index: -1\naccelerator_config: {even_batches: true}\nshuffle_dataset: false\n",
        TRL + "optim: lion_32bit\nadam_epsilon: 1.0e-8\nadam_beta1: 0.9\n",
        AXOLOTL + "qat: {enabled: false, group_size: 32}\nuse_swanlab: true\n",
        SWIFT + "reft_rank: 4\nboft_block_size: 4\nmetric: acc\ndataset_shuffle: false\n",
    ],
    ids=range(10),
)
def test_what_asks_for_nothing_changes_nothing(text: str) -> None:
    """Defaults that are written out, and arguments of what is switched off, lose nothing."""
    assert changes(text) == []


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (LLAMAFACTORY + "use_galore: true\ngalore_rank: 16\n", ["use_galore", "galore_rank"]),
        (LLAMAFACTORY.replace("rows", "rows,rows") + "mix_strategy: interleave_under\n", ["mix_strategy"]),
        (LLAMAFACTORY + "ignore_pad_token_for_loss: false\nuse_fast_tokenizer: false\n", []),
        (
            LLAMAFACTORY + "lora_target: embed_tokens,q_proj\nloraplus_lr_ratio: 4\nloraplus_lr_embedding: 1e-6\n",
            ["loraplus_lr_embedding"],
        ),
        (AXOLOTL + "min_sample_len: 30\n", ["min_sample_len"]),
        (SWIFT + "train_dataloader_shuffle: false\n", ["train_dataloader_shuffle"]),
    ],
    ids=range(6),
)  # fmt: skip
def test_what_is_asked_for_and_not_here_is_named(text: str, keys: list[str]) -> None:
    """The same keys, where something is asked: the switch is on, or the value is another."""
    assert changes(text) == keys


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (AXOLOTL + "shuffle_merged_datasets: false\n", True),
        (AXOLOTL + "curriculum_sampling: true\n", False),
        (TRL + "shuffle_dataset: false\n", True),
        (SWIFT + "dataset_shuffle: false\n", True),
        (SWIFT + "dataset_shuffle: false\ntrain_dataloader_shuffle: false\n", False),
        (LLAMAFACTORY + "disable_shuffling: true\n", False),
    ],
    ids=range(6),
)
def test_rows_keep_their_order_only_where_the_sampler_keeps_it(text: str, order: bool) -> None:
    """A data set that isn't shuffled before training is still drawn in random order by the trainer."""
    Path("a.yaml").write_text(text)
    assert ("shuffle: false" not in finetune.convert("a.yaml").recipe) == order


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LLAMAFACTORY + "warmup_ratio: 0.1\nwarmup_steps: 0\n", "warmup_ratio: 0.1 "),
        (LLAMAFACTORY + "warmup_steps: 0\nwarmup_ratio: 0.1\n", "warmup_ratio: 0.1 "),
        (LLAMAFACTORY + "warmup_steps: 20\nwarmup_ratio: 0.1\n", "warmup_steps: 20 "),
        (LLAMAFACTORY + "warmup_ratio: 0.1\nwarmup_steps: 20\n", "warmup_steps: 20 "),
        (TRL + "max_length: null\nmax_seq_length: 300\n", "max_length_tokens: 300 "),
        (AXOLOTL + "micro_batch_size: 4\nbatch_size: 16\n", "global_batch_size: 16 "),
        (AXOLOTL + "micro_batch_size: 4\nbatch_size: 16\ngradient_accumulation_steps: 2\n", "global_batch_size: 8 "),
        (AXOLOTL + "bf16: false\nfp16: true\n", "precision: fp16 "),
        (AXOLOTL + "bf16: false\nfp16: false\n", "precision: fp32 "),
        (TRL + "bf16: false\ndtype: bfloat16\n", "precision: bf16 "),
    ],
    ids=range(10),
)  # fmt: skip
def test_of_two_keys_of_one_thing_the_one_that_is_read_there_counts(text: str, expected: str) -> None:
    """What is on goes before what is off, and steps before a fraction, in whichever order they stand."""
    Path("a.yaml").write_text(text)
    assert expected in finetune.convert("a.yaml").recipe


def test_names_with_an_open_end_are_found() -> None:
    """swanlab_* and its like stand for all names that begin so."""
    alias = alias_of("llamafactory", "swanlab_project")
    assert alias is not None
    assert alias.how == "spare"
    assert all("*" not in name.rstrip("*") for known in ALIASES for name in known.names)
