"""Files of KTO and of reward models become recipes with the same loss, and go back."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

import finetune
from finetune.conversion.reading import read
from finetune.recipe.load import load_recipe
from tests.unit.conversion.configurations import value_at
from tests.unit.conversion.preferences import AXOLOTL, LLAMAFACTORY, OUMI, RANKED, SWIFT, TRL

JUDGED = """\
{"thumbs": {"hf_hub_url": "a/thumbs", "formatting": "sharegpt",
            "columns": {"messages": "turns", "kto_tag": "liked"},
            "tags": {"role_tag": "role", "content_tag": "content"}},
 "marks": {"hf_hub_url": "a/marks", "columns": {"prompt": "ask", "response": "reply", "kto_tag": "kto_tag"}},
"""
LF_KTO = LLAMAFACTORY.replace("stage: dpo", "stage: kto").replace("turns, answers", "thumbs, marks")
AX_KTO = AXOLOTL.replace("chat_template.default", "chatml.argilla")
AX_REWARD = AXOLOTL.replace("chat_template.default", "bradley_terry.chat_template") + "reward_model: true\n"
STEPS = "gradient_accumulation_steps: 4\n"
KTO = {"kind": "kto", "beta": 0.1, "good_weight": 1, "bad_weight": 1, "reference": "start"}
REWARD = {"kind": "reward", "label_smoothing": 0, "centering": 0}


class Judged(NamedTuple):
    """A file, the objective that it becomes, other values, and the keys that change the result."""

    name: str
    file: str
    text: str
    objective: dict[str, Any]
    changes: tuple[str, ...] = ()
    values: dict[str, Any] = {}  # noqa: RUF012
    tool: str | None = None


CASES = (
    Judged(
        "llamafactory's kto", "lf.yaml", LF_KTO + "pref_beta: 0.2\nkto_rejected_weight: 1.5\n",
        KTO | {"beta": 0.2, "bad_weight": 1.5},
        values={
            "data.train.0.format": "feedback", "adapter.dropout": 0,
            "data.train.0.columns": {"messages": "turns", "label": "liked"},
            "data.train.1.columns": {"instruction": "ask", "output": "reply", "label": "kto_tag"},
        },
    ),
    Judged("llamafactory's kto in several micro batches", "lf.yaml", LF_KTO + STEPS, KTO, changes=("stage",)),
    Judged(
        "llamafactory's kto with more beside it", "lf.yaml", LF_KTO + "pref_ftx: 0.1\n", KTO, changes=("pref_ftx",),
    ),
    Judged(
        "llamafactory's reward model", "lf.yaml", LLAMAFACTORY.replace("stage: dpo", "stage: rm"), REWARD,
        changes=("stage",), values={"data.train.0.format": "preference", "data.over_length": "truncate_end"},
    ),
    Judged(
        "axolotl's kto", "ax.yml", AX_KTO + "rl: kto\nrl_beta: 0.3\nkto_desirable_weight: 0.2\n",
        KTO | {"beta": 0.3, "good_weight": 0.2},
        values={"data.train.0.format": "feedback", "model.chat_template": "chatml", "adapter.dropout": 0},
    ),
    Judged(
        "axolotl's kto with its own columns", "ax.yml", AX_KTO.replace("argilla", "intel") + "rl: kto\n", KTO,
        values={"data.train.0.columns": {"prompt": "question"}},
    ),
    Judged(
        "axolotl's reward model", "ax.yml", AX_REWARD + "center_rewards_coefficient: 0.01\nnum_labels: 1\n",
        REWARD | {"centering": 0.01},
        values={"data.train.0.format": "preference", "data.train.0.columns": {"prompt": "input"}},
    ),
    Judged(
        "trl's kto by its keys", "trl.yaml", TRL + "desirable_weight: 1.0\nundesirable_weight: 1.2\nbeta: 0.05\n",
        KTO | {"beta": 0.05, "bad_weight": 1.2},
        values={"data.train.0.format": "feedback", "train.learning_rate": 1e-6, "adapter.dropout": 0},
    ),
    Judged(
        "trl's kto by its command", "trl.sh",
        "trl kto --model_name_or_path owner/base --dataset_name a/thumbs --gradient_accumulation_steps 2", KTO,
        changes=("beta (default 0.1)",),
    ),
    Judged("trl's kto by --from", "trl.yaml", TRL + "beta: 0.4\n", KTO | {"beta": 0.4}, tool="trl kto"),
    Judged(
        "trl's reward model by its key", "trl.yaml", TRL + "center_rewards_coefficient: 0.02\n",
        REWARD | {"centering": 0.02},
        values={"data.over_length": "drop", "train.learning_rate": 1e-4, "data.train.0.format": "preference"},
    ),
    Judged(
        "trl's reward model by a script", "trl.sh",
        "python examples/scripts/reward_modeling.py --model_name_or_path owner/base --dataset_name a/pairs "
        "--load_best_model_at_end true --metric_for_best_model accuracy --eval_strategy epoch",
        REWARD, values={"train.best_by": "reward_accuracy"},
    ),
    Judged(
        "ms-swift's kto", "swift.sh", SWIFT + " --rlhf_type kto --desirable_weight 0.5 --per_device_train_batch_size 16",
        KTO | {"good_weight": 0.5}, values={"data.train.0.format": "feedback"},
    ),
    Judged(
        "ms-swift's reward model", "swift.sh", SWIFT + " --rlhf_type rm --center_rewards_coefficient 0.1",
        REWARD | {"centering": 0.1}, values={"data.train.0.format": "preference"},
    ),
    Judged(
        "oumi's kto", "oumi.yaml",
        OUMI.replace("TRL_DPO", "TRL_KTO").replace("loss_type: hinge", "desirable_weight: 0.7"),
        KTO | {"beta": 0.4, "good_weight": 0.7}, values={"data.train.0.format": "feedback"},
    ),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data sets that the files name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_info.json").write_text(JUDGED + RANKED.removeprefix("{"))
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loss_is_theirs(case: Judged, folder: Path) -> None:
    """The objective has their numbers; what changes the result is named, and no key is without a line."""
    Path(case.file).write_text(case.text)
    conversion = finetune.convert(case.file, case.tool, output="recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml").recipe.model_dump(mode="json")
    assert recipe["objective"] == case.objective
    assert {path: value_at(recipe, path) for path in case.values} == case.values
    lines = (*conversion.carried, *conversion.otherwise, *conversion.dropped)
    assert sorted({line.key for line in lines if line.changes}) == sorted(case.changes)
    keys = {line.key for line in lines}
    assert [key for key in read(folder / case.file, "").entries if key not in keys and key != "(tool)"] == []


RECIPE = """\
model: {base: owner/base, chat_template: chatml}
adapter: {rank: 4}
objective: {OBJECTIVE}
data:
  train: [{dataset: a/thumbs, format: FORMAT}]
  max_length_tokens: 256
  over_length: LONG
train: {global_batch_size: 8, micro_batch_size: 8, learning_rate: 0.00001}
"""


def test_a_template_that_axolotls_types_dont_write_is_named(folder: Path) -> None:
    """Its judged answers are written with ChatML or Llama 3's template."""
    text = RECIPE.replace("{OBJECTIVE}", "{kind: kto}").replace("FORMAT", "feedback").replace("LONG", "drop")
    Path("mine.yaml").write_text(text.replace(", chat_template: chatml", ""))
    there = finetune.convert("mine.yaml", to="axolotl")
    assert [line.key for line in there.otherwise if line.changes] == ["model.chat_template (default)"]


BACK: tuple[tuple[str, str, list[str]], ...] = (
    ("llamafactory", "kind: kto, beta: 0.3, good_weight: 2, bad_weight: 1.5", []),
    ("axolotl", "kind: kto, beta: 0.3, good_weight: 2, bad_weight: 1.5", []),
    ("trl", "kind: kto, beta: 0.3, good_weight: 2, bad_weight: 1.5", []),
    ("llamafactory", "kind: reward", ["objective.kind"]),
    ("axolotl", "kind: reward, centering: 0.05", []),
    ("trl", "kind: reward", []),
    ("trl", "kind: reward, centering: 0.05", []),
)


@pytest.mark.parametrize(("tool", "objective", "changes"), BACK)
def test_there_and_back_is_the_same_objective(
    tool: str, objective: str, changes: list[str], folder: Path
) -> None:
    """A recipe's objective and the form of its rows survive the way to another tool's file and back."""
    form = "feedback" if "kto" in objective else "preference"
    if form == "preference":
        (folder / "dataset_info.json").write_text('{"thumbs": {"hf_hub_url": "a/thumbs", "ranking": true}}')
    columns = ", columns: {prompt: input}" if (tool, form) == ("axolotl", "preference") else ""
    text = RECIPE.replace("{OBJECTIVE}", f"{{{objective}}}").replace("FORMAT", form + columns)
    text = text.replace("LONG", "drop" if (tool, form) == ("trl", "preference") else "truncate_end")
    Path("mine.yaml").write_text(text.replace("chatml", "llama3") if tool == "axolotl" else text)
    there = finetune.convert("mine.yaml", to=tool, output="theirs.yaml")
    assert [line.key for line in (*there.otherwise, *there.dropped) if line.changes] == (
        changes if tool != "trl" else ["model.chat_template"]
    )
    finetune.convert("theirs.yaml", output="back.yaml")
    mine, back = (load_recipe(folder / name).recipe for name in ("mine.yaml", "back.yaml"))
    assert back.objective == mine.objective
    assert back.data.train[0].format == form
