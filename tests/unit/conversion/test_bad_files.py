"""Files that can't be converted: one located message each, and nothing written."""

from pathlib import Path

import pytest

import finetune
from finetune.conversion import ConvertError
from finetune.conversion.tools import TOOLS
from finetune.errors import FinetuneError
from tests.support.cli import FinetuneHere

AXOLOTL = "base_model: a/b\nadapter: lora\nsequence_len: 64\ndatasets: [{path: c/d, type: alpaca}]\n"
SWIFT = "swift sft --model a/b --dataset c/d --tuner_type lora "

BAD = {
    "another kind": ("a.py", "print(1)\n", "got a file of kind .py"),
    "empty": ("a.yaml", "", "empty"),
    "a list": ("a.yaml", "- 1\n- 2\n", "expected keys with values"),
    "half a file": ("a.yaml", AXOLOTL + "test_datasets: [{path:\n", "a.yaml:6"),
    "half JSON": ("a.json", '{"base_model": "a/b", ', "a.json:1"),
    "half TOML": ("a.toml", 'base_model = "a/b', "not TOML"),
    "an anchor": ("a.yaml", AXOLOTL + "seed: &s 3\ndata_seed: *s\n", "a.yaml:5:7: &s"),
    "a merge": ("a.yaml", AXOLOTL + "<<: {seed: 1}\n", "a.yaml:5"),
    "an include": ("a.yaml", AXOLOTL + "more: !include other.yaml\n", "a.yaml:5:7: the YAML tag !include"),
    "code in a tag": ("a.yaml", "a: !!python/object/apply:os.system [ls]\n", "the YAML tag"),
    "a variable": ("a.yaml", AXOLOTL + "output_dir: ${HOME}/out\n", "a.yaml:5: output_dir: got ${HOME}/out"),
    "a shell variable": ("a.sh", SWIFT + "--learning_rate $LR\n", "variable LR has no plain value"),
    "a command in a script": ("a.sh", SWIFT + "--output_dir `pwd`\n", "no command of a script is run"),
    "a division by nothing": ("a.sh", SWIFT + "--seed $(expr 3 / 0)\n", "no command of a script is run"),
    "a recipe of ours": ("a.yaml", "model: {base: a/b}\ndata: {train: [{dataset: c/d}]}\n", "this is a recipe already; --to"),
    "two commands": ("a.sh", SWIFT + "\n" + SWIFT + "\n", "2 training commands, on lines 1, 2; convert reads one"),
    "a word that is no option": ("a.sh", SWIFT.replace("--model", "a/c --model"), "a.sh:1: got the word a/c, expected an option"),
    "options in a variable": ("a.sh", f'ARGS="--seed 3"\n{SWIFT.strip()} --seed 1\n'.replace("sft", "sft $ARGS"), "a.sh:2: got $ARGS"),
    "a file of options": ("a.sh", "trl sft --model_name_or_path a/b --dataset_name c/d --config x.yaml\n", "reads x.yaml: convert that"),
    "a file of options by one letter": ("a.sh", "mlx_lm.lora --model a/b --data c/d --iters 5 -c x.yaml\n", "reads x.yaml: convert that"),
    "a command that reads a file": ("a.sh", "axolotl train conf/x.yml --seed 4\n", "a.sh:1: the command reads conf/x.yml: convert that"),
    "no command": ("a.sh", "echo hello\n", "no training command"),
    "an open quote": ("a.sh", SWIFT + "--system 'You\n", "quotation mark"),
    "two tools": ("a.yaml", AXOLOTL + "finetuning_type: lora\ntemplate: llama3\n", "keys of 2 tools are mixed"),
    "no tool": ("a.yaml", "learning_rate: 1e-4\n", "no tool is known by these keys"),
    "an accelerate file": ("a.yaml", "compute_environment: LOCAL_MACHINE\n", "--launch takes an accelerate file"),
    "a multimodal base": ("a.yaml", AXOLOTL.replace("a/b", "Qwen/Qwen2-VL-7B"), "a.yaml:1: base_model: Qwen/Qwen2-VL-7B"),
    "a mixture of experts": ("a.yaml", AXOLOTL.replace("a/b", "mistralai/Mixtral-8x7B-v0.1"), "mixture of experts"),
    "text for a number": ("a.yaml", AXOLOTL + "learning_rate: fast\n", "a.yaml:5: learning_rate: got the text 'fast'"),
    "a number for text": ("a.yaml", AXOLOTL + "adapter: 3\n", "duplicate key"),
    "a list for a switch": ("a.yaml", AXOLOTL + "bf16: [1]\n", "a.yaml:5: bf16: got [1], expected true or false"),
    "a switch for a number": ("a.yaml", AXOLOTL + "lora_r: true\n", "a.yaml:5: lora_r"),
    "out of bounds": ("a.yaml", AXOLOTL + "lora_dropout: 1.5\n", "a.yaml:5: lora_dropout: got 1.5, expected less than 1"),
    "another objective": ("a.yaml", AXOLOTL + "rl: grpo\n", "a.yaml:5: rl: files of grpo are not converted: write objective.kind: grpo"),
    "another adapter": ("a.yaml", AXOLOTL.replace("adapter: lora", "adapter: ia3"), "a.yaml:2: adapter: got 'ia3'"),
    "a word for how often": ("a.yaml", AXOLOTL + "val_set_size: 0.1\neval_strategy: sometimes\n", "a.yaml:6: eval_strategy: got the text 'sometimes', expected no, steps"),
    "half a section": ("a.yaml", AXOLOTL + "rope_scaling: {factor: 2.0}\n", "a.yaml:5: rope_scaling.factor: missing: The method"),
    "no data": ("a.yaml", "base_model: a/b\nsequence_len: 64\n", "no data set is named"),
    "no base": ("a.yaml", "sequence_len: 64\ndatasets: [{path: c/d, type: alpaca}]\n", "no base model is named"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_located_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the place and what is wrong; no recipe is written."""
    monkeypatch.chdir(tmp_path)
    file, text, message = BAD[name]
    Path(file).write_text(text)
    with pytest.raises(ConvertError) as error:
        finetune.convert(file, output="recipe.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("a.")
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize("tool", [tool.name for tool in TOOLS])
def test_an_empty_and_a_foreign_file_are_refused_for_every_tool(tool: str, tmp_path: Path) -> None:
    """--from doesn't make a file of another tool one of this."""
    file = tmp_path / "a.yaml"
    file.write_text("some_key: 1\nother_key: 2\n")
    with pytest.raises(ConvertError):
        finetune.convert(file, tool)


def test_an_existing_recipe_is_not_overwritten(tmp_path: Path) -> None:
    """--output names a new file."""
    (tmp_path / "a.yaml").write_text(AXOLOTL)
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(FinetuneError, match="exists"):
        finetune.convert(tmp_path / "a.yaml", output=tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_the_exit_code_says_whether_all_was_carried(tmp_path: Path, finetune_here: FinetuneHere) -> None:
    """0 where the training is the same, 3 where something that changes it is lost, 2 for a bad file."""
    (tmp_path / "a.yaml").write_text(AXOLOTL + "val_set_size: 0\n")
    (tmp_path / "b.yaml").write_text(AXOLOTL + "optimizer: muon\n")
    (tmp_path / "c.yaml").write_text("- 1\n")
    done = finetune_here("convert", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "ours.yaml"))
    assert "not carried (0)" in done.stdout
    finetune_here("check", str(tmp_path / "ours.yaml"))
    lost = finetune_here("convert", str(tmp_path / "b.yaml"), "--json", code=3)
    assert [line["key"] for line in lost.json["dropped"]] == ["optimizer"]
    finetune_here("convert", str(tmp_path / "c.yaml"), code=2)
    finetune_here("convert", str(tmp_path / "absent.yaml"), code=2)


@pytest.mark.parametrize(("schedule", "lost"), [("cosine", ["optimizer"]), ("constant", [])])
def test_averages_go_with_a_constant_schedule(tmp_path: Path, schedule: str, lost: list[str]) -> None:
    """Beside a decay schedule_free_adamw isn't carried, and is one line of the report."""
    text = AXOLOTL + f"optimizer: schedule_free_adamw\nlr_scheduler: {schedule}\n"
    (tmp_path / "a.yaml").write_text(text)
    found = finetune.convert(tmp_path / "a.yaml")
    assert [line.key for line in found.dropped if line.key == "optimizer"] == lost
    assert ("optimizer" in {line.key for line in found.carried}) == (not lost)
