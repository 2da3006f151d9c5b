"""Files that learn from preferences become recipes with the same loss, and say where it differs."""

from pathlib import Path

import pytest

import finetune
from finetune import objectives
from finetune.conversion import ConvertError
from finetune.conversion.reading import read
from finetune.objectives import OBJECTIVES, Objective
from finetune.recipe.load import load_recipe
from tests.unit.conversion.configurations import value_at
from tests.unit.conversion.preferences import (
    AXOLOTL,
    CASES,
    LLAMAFACTORY,
    OUMI,
    RANKED,
    SWIFT,
    TORCHTUNE,
    TRL,
    Pairs,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data sets and the adapter that the files name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_info.json").write_text(RANKED)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "adapter_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loss_is_theirs(case: Pairs, folder: Path) -> None:
    """The objective has their numbers, their defaults too; what changes the result is named, and no key is
    without a line."""
    (folder / case.file).write_text(case.text)
    conversion = finetune.convert(case.file, case.tool, output="recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml").recipe.model_dump(mode="json")
    assert recipe["objective"] == case.objective
    assert {path: value_at(recipe, path) for path in case.values} == case.values
    lines = (*conversion.carried, *conversion.otherwise, *conversion.dropped)
    assert sorted({line.key for line in lines if line.changes}) == sorted(case.changes)
    keys = {line.key for line in lines}
    assert [key for key in read(folder / case.file, "").entries if key not in keys] == []


def test_every_kind_of_pairs_is_reached() -> None:
    """Each objective that compares pairs of texts is what some tool's file becomes."""
    pairs = {objective.kind for objective in OBJECTIVES if objective.encoding.documents_per_row == 2}
    pairs -= {"reward"}  # whose files are those of test_judged.py
    assert pairs == {case.objective["kind"] for case in CASES}


REFUSED = {
    "llamafactory's kto_pair": ("a.yaml", LLAMAFACTORY + "pref_loss: kto_pair\n", "a.yaml:7: pref_loss: kto_pair is none of the objectives here"),
    "pairs where judgements are read": ("a.yaml", LLAMAFACTORY.replace("stage: dpo", "stage: kto"), "holds preferences (ranking: true), and this training learns from judged answers"),
    "two losses at once": ("a.yaml", LLAMAFACTORY + "pref_bco_weight: 0.5\n", "sigmoid + bco"),
    "rows without pairs": ("a.yaml", LLAMAFACTORY.replace("turns, answers", "plain"), "holds no preferences (ranking: true), and this training learns from pairs"),
    "axolotl's reward of steps": ("a.yml", AXOLOTL + "process_reward_model: true\n", "the nearest is reward"),
    "trl's other loss of judgements": ("a.yaml", TRL + "loss_type: apo_zero_unpaired\n", "the nearest is kto"),
    "trl's apo": ("a.yaml", TRL + "loss_type: apo_zero\n", "a.yaml:5: loss_type: apo_zero is none"),
    "trl's sppo": ("a.yaml", TRL + "loss_type: sppo_hard\n", "the nearest is ipo"),
    "trl's exo": ("a.yaml", TRL + "loss_type: exo_pair\n", "the nearest is robust"),
    "trl's mixture": ("a.yaml", TRL + "loss_type: [sigmoid, bco_pair, sft]\n", "sigmoid + bco_pair + sft is none"),
    "trl's alphapo": ("a.yaml", TRL + "loss_type: simpo\nalpha: 0.2\n", "alphapo is none"),
    "trl's grpo": ("a.sh", "trl grpo --model_name_or_path a/b --dataset_name c/d", "a.sh: files of grpo are not converted: write objective.kind: grpo by hand"),
    "weights for other losses": ("a.yaml", TRL + "loss_type: [sigmoid]\nloss_weights: [1, 2]\n", "2 weights for 1"),
    "swift's ppo": ("a.sh", SWIFT + " --rlhf_type ppo", "ppo is none of the objectives here"),
    "torchtune's other losses": ("a.yaml", TORCHTUNE + "loss: {_component_: x.PPOLoss}\n", "PPOLoss is none"),
    "torchtune's rows": (
        "a.yaml",
        TORCHTUNE.replace("stack_exchange_paired", "alpaca") + "loss: {_component_: x.DPOLoss}\n",
        "don't go with a preference loss",
    ),
    "oumi's grpo": ("a.yaml", OUMI.replace("TRL_DPO", "TRL_GRPO"), "files of GRPO are not converted"),
    "beta 0": ("a.yaml", TRL + "beta: 0\n", "a.yaml:5: beta: got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_objective_is_refused_by_name(name: str, folder: Path) -> None:
    """One message has the place and what is asked for; of an objective, which are here and the nearest."""
    file, text, message = REFUSED[name]
    Path(file).write_text(text)
    with pytest.raises(ConvertError) as error:
        finetune.convert(file, output="recipe.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("recipe.yaml").exists()


def test_the_nearest_objective_is_looked_up_when_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective that a program adds is among those that the message knows."""

    class Exo(Objective):
        kind = "exo_pair"

    Path("a.yaml").write_text(TRL + "loss_type: exo_pair\n")
    monkeypatch.setattr(objectives, "OBJECTIVES", (*OBJECTIVES, Exo))
    with pytest.raises(ConvertError, match="files of exo_pair are not converted"):
        finetune.convert("a.yaml")


def test_a_trainer_behind_a_tool_that_has_none_is_refused(folder: Path) -> None:
    """--from names trainers of the tools whose files don't say them."""
    Path("a.yml").write_text(AXOLOTL)
    with pytest.raises(ConvertError, match='--from "axolotl orpo": expected nothing behind axolotl'):
        finetune.convert("a.yml", "axolotl orpo")
    Path("a.yaml").write_text(TRL)
    with pytest.raises(ConvertError, match="expected one of sft, dpo, orpo, cpo, kto, reward"):
        finetune.convert("a.yaml", "trl ppo")


RECIPE = """\
model: {base: owner/base}
adapter: {rank: 4}
objective: {OBJECTIVE}
data:
  train: [{dataset: a/turns, format: preference, columns: {conversations: dialogue, rejected: worse}}]
  max_length_tokens: 256
  over_length: truncate_end
train: {global_batch_size: 8, micro_batch_size: 1, learning_rate: 0.00001}
"""
BACK = (
    ("axolotl", "kind: dpo, beta: 0.3, supervised_weight: 0.5"),
    ("axolotl", "kind: ipo, beta: 0.3, length_normalized: true"),
    ("axolotl", "kind: hinge, beta: 0.3"),
    ("axolotl", "kind: robust, label_smoothing: 0.2"),
    ("axolotl", "kind: simpo, beta: 1.5, margin: 0.7"),
    ("llamafactory", "kind: dpo, beta: 0.3, supervised_weight: 0.5, label_smoothing: 0.1"),
    ("llamafactory", "kind: ipo, beta: 0.3, length_normalized: true"),
    ("llamafactory", "kind: hinge, beta: 0.3"),
    ("llamafactory", "kind: orpo, odds_weight: 0.2"),
    ("llamafactory", "kind: simpo, beta: 1.5, margin: 0.7"),
    ("trl", "kind: dpo, length_normalized: true, supervised_weight: 0.5"),
    ("trl", "kind: robust, label_smoothing: 0.2"),
    ("trl cpo", "kind: cpo, beta: 0.3, label_smoothing: 0.1, supervised_weight: 0.5"),
    ("trl", "kind: simpo, beta: 1.5, margin: 0.7, label_smoothing: 0.1"),
)


@pytest.mark.parametrize(("tool", "objective"), BACK)
def test_there_and_back_is_the_same_objective(tool: str, objective: str, folder: Path) -> None:
    """A recipe's objective and pairs survive the way to another tool's file and back."""
    Path("mine.yaml").write_text(RECIPE.replace("{OBJECTIVE}", f"{{{objective}}}"))
    there = finetune.convert("mine.yaml", to=tool.split()[0], output="theirs.yaml")
    assert [str(line) for line in there.otherwise if line.changes] == []
    assert [line.key for line in there.dropped] == (
        [] if tool == "axolotl" else ["data.train.0.columns.conversations", "data.train.0.columns.rejected"]
    )
    finetune.convert("theirs.yaml", tool, output="back.yaml")
    mine, back = (load_recipe(folder / name).recipe for name in ("mine.yaml", "back.yaml"))
    assert back.objective == mine.objective
    assert back.data.train[0].format == "preference"
    assert back.train.global_batch_size == 8
