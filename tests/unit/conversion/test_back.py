"""A recipe as another tool's file, and through it to a recipe again."""

from pathlib import Path

import pytest

import finetune
from finetune.conversion import ConvertError
from finetune.conversion.back import BACK
from finetune.recipe.load import load_recipe

RECIPE = """\
model: {base: a/b}
adapter: {method: qlora, rank: 12, alpha: 30, dropout: 0.1, target_modules: [q_proj, v_proj]}
data:
  train: [{dataset: c/d, format: alpaca}]
  max_length_tokens: 512
  over_length: truncate_end
  supervise: assistant
train: {learning_rate: 0.0003, epochs: 2, global_batch_size: 16, micro_batch_size: 2, schedule: linear, seed: 5,
        weight_decay: 0.02, warmup_ratio: 0.1, precision: bf16, optimizer: adamw_8bit}
"""
SAME = (
    ("model", "base"), ("adapter", "method"), ("adapter", "rank"), ("adapter", "alpha"), ("adapter", "dropout"),
    ("adapter", "target_modules"), ("data", "max_length_tokens"), ("data", "supervise"),
    ("data", "pack_length_tokens"), ("train", "learning_rate"), ("train", "epochs"),
    ("train", "global_batch_size"), ("train", "micro_batch_size"), ("train", "schedule"), ("train", "seed"),
    ("train", "weight_decay"), ("train", "warmup_ratio"), ("train", "precision"), ("train", "optimizer"),
    ("train", "max_gradient_norm"),
)  # fmt: skip


@pytest.mark.parametrize("tool", BACK)
def test_there_and_back_is_the_same_training(tool: str, tmp_path: Path) -> None:
    """What a recipe decides survives the way to another tool's file and back."""
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("alpaca", "messages") if tool == "trl" else RECIPE)
    (tmp_path / "dataset_info.json").write_text('{"d": {"hf_hub_url": "c/d"}}')
    there = finetune.convert(tmp_path / "mine.yaml", to=tool, output=tmp_path / "theirs.yaml", processes=2)
    assert there.complete, [str(line) for line in there.dropped]
    finetune.convert(tmp_path / "theirs.yaml", output=tmp_path / "back.yaml", processes=2)
    mine, back = (load_recipe(tmp_path / name).recipe for name in ("mine.yaml", "back.yaml"))
    changed = [
        f"{section}.{key}: {getattr(getattr(mine, section), key)} {getattr(getattr(back, section), key)}"
        for section, key in SAME
        if getattr(getattr(mine, section), key) != getattr(getattr(back, section), key)
    ]
    assert changed == []


def test_what_another_tool_lacks_is_named(tmp_path: Path) -> None:
    """A key without a counterpart there is not carried, and says that the result changes."""
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("schedule: linear", "schedule: wsd"))
    there = finetune.convert(tmp_path / "mine.yaml", to="trl")
    assert not there.complete
    assert "train.schedule" in [line.key for line in there.dropped]


SOURCE = "{dataset: c/d, format: messages, config: small, split: test, revision: abc}"


@pytest.mark.parametrize(
    ("tool", "source", "written", "lost"),
    [
        ("axolotl", SOURCE, ["path: c/d", "name: small", "split: test", "revision: abc"], []),
        ("trl", SOURCE, ["dataset_config: small", "dataset_train_split: test"], ["revision"]),
        ("trl", f"{SOURCE}, {SOURCE}", ["name: small", "split: test"], ["revision", "revision"]),
        ("trl", "{dataset: c/d, format: alpaca}", [], ["format"]),
        ("axolotl", "{dataset: c/d, format: translation, columns: {source: de}}", [], ["format", "columns"]),
        ("llamafactory", "{dataset: c/d, format: alpaca, max_rows: 5}", [], ["max_rows"]),
    ],
    ids=range(6),
)
def test_keys_of_a_source_are_written_or_named(
    tool: str, source: str, written: list[str], lost: list[str], tmp_path: Path
) -> None:
    """None is said to be carried that isn't in the file, and rows of a form that the tool doesn't read are
    named."""
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("{dataset: c/d, format: alpaca}", source))
    there = finetune.convert(tmp_path / "mine.yaml", to=tool)
    assert [part for part in written if part not in there.recipe] == []
    keys = [line.key.split(".")[3] for line in there.dropped if line.key.startswith("data.train")]
    assert keys == lost


SECTIONS = {
    "model": "base: a/b",
    "data": "train: [{dataset: c/d, format: messages}], max_length_tokens: 512",
    "train": "global_batch_size: 2, micro_batch_size: 2",
}


@pytest.mark.parametrize(
    ("tool", "more", "written"),
    [
        ("trl", {"train": "max_gradient_norm: null"}, ["max_grad_norm: 0 "]),
        ("axolotl", {"train": "log_every: 10%"}, ["logging_steps: 0.1 "]),
        (
            "axolotl", {"adapter": "method: qlora, double_quantization: false"},
            ["bnb_config_kwargs: {bnb_4bit_use_double_quant: false}"],
        ),
        ("trl", {"train": "log_every: 1 epoch"}, ["logging_strategy: epoch "]),
        ("axolotl", {"tracking": "tracker: [wandb, tensorboard]"}, ["wandb_project: finetune "]),
        ("llamafactory", {"model": "new_tokens: [<a>, <b>]"}, ['add_tokens: "<a>,<b>"', "resize_vocab: true"]),
        ("axolotl", {"model": "new_tokens: [<a>], pad_token: p"}, ['tokens: ["<a>"]', "{pad_token: p}"]),
        ("llamafactory", {"data": "shuffle: false"}, ["disable_shuffling: true"]),
        ("axolotl", {"data": "shuffle: false"}, ["curriculum_sampling: true"]),
        ("llamafactory", {"data": "pack_length_tokens: 512, attention: leaky"}, ["packing: true"]),
        ("trl", {"data": "pack_length_tokens: 512"}, ["packing: true", "attn_implementation: flash_attention_2"]),
        (
            "trl", {"data": "evaluation: {fraction: 0.1}", "train": "best_by: loss, evaluate_every: 5"},
            ["eval_steps: 5", "save_steps: 5", "save_strategy: steps", "load_best_model_at_end: true"],
        ),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_a_recipe_says_is_written_as_they_say_it(
    tool: str, more: dict[str, str], written: list[str], tmp_path: Path
) -> None:
    """Values that have another form there, and defaults of theirs that would be another training."""
    sections = {
        name: ", ".join(filter(None, (SECTIONS.get(name), more.get(name)))) for name in SECTIONS | more
    }
    (tmp_path / "mine.yaml").write_text("".join(f"{name}: {{{keys}}}\n" for name, keys in sections.items()))
    there = finetune.convert(tmp_path / "mine.yaml", to=tool).recipe
    assert [part for part in written if part not in there] == []


@pytest.mark.parametrize("optimizer", ["lion", "sgd", "adafactor", "adamw"])
def test_an_optimizers_numbers_are_written_where_it_has_them(optimizer: str, tmp_path: Path) -> None:
    """Lion has betas and no epsilon, SGD neither; what is written is read again."""
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("adamw_8bit", optimizer))
    there = finetune.convert(tmp_path / "mine.yaml", to="axolotl", output=tmp_path / "theirs.yaml")
    finetune.convert(tmp_path / "theirs.yaml", output=tmp_path / "back.yaml")
    assert ("adam_epsilon" in there.recipe) == (optimizer == "adamw")
    assert ("adam_beta1" in there.recipe) == (optimizer in ("adamw", "lion"))


def test_a_default_of_ours_that_they_lack_is_named(tmp_path: Path) -> None:
    """Rows that are too long are dropped here, and cut by TRL: no key of the recipe, and another result."""
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("  over_length: truncate_end\n", ""))
    there = finetune.convert(tmp_path / "mine.yaml", to="trl")
    assert "data.over_length (default)" in [line.key for line in there.otherwise if line.changes]


def test_only_some_tools_are_written(tmp_path: Path) -> None:
    """--to names the three."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    with pytest.raises(ConvertError, match="expected axolotl, llamafactory or trl"):
        finetune.convert(tmp_path / "mine.yaml", to="torchtune")
    with pytest.raises(ConvertError, match="does not divide"):
        finetune.convert(tmp_path / "mine.yaml", to="trl", processes=3)
