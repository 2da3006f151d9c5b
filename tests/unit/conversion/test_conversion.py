"""Other tools' configurations become recipes that pass the check and mean the same."""

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.conversion.reading import read
from finetune.recipe.load import load_recipe
from tests.unit.conversion.configurations import (
    CASES,
    DATASET_INFO,
    LLAMAFACTORY_V1_ROWS,
    Case,
    value_at,
)


def beside(folder: Path) -> None:
    """The files that the configurations name."""
    (folder / "dataset_info.json").write_text(DATASET_INFO)
    (folder / "rows.yaml").write_text(LLAMAFACTORY_V1_ROWS)
    (folder / "letters.json").write_text(json.dumps([{"ask": "a", "reply": "b"}]))
    (folder / "rows.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the files name."""
    monkeypatch.chdir(tmp_path)
    beside(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_a_configuration_becomes_a_recipe_that_means_the_same(case: Case, folder: Path) -> None:
    """It passes the check, has the values, and every key of the file is in one of the three lists."""
    file = folder / case.file
    file.write_text(case.text)
    conversion = finetune.convert(file, output=folder / "recipe.yaml", processes=case.processes)
    assert conversion.tool == case.tool
    recipe = load_recipe(folder / "recipe.yaml").recipe.model_dump(mode="json")
    assert {path: value_at(recipe, path) for path in case.expected} == case.expected
    said = [line.key for line in (*conversion.carried, *conversion.otherwise, *conversion.dropped)]
    assert [key for key in read(file, "").entries if key not in said and key != "(tool)"] == []
    assert conversion.complete == case.complete, [
        str(line) for line in (*conversion.otherwise, *conversion.dropped) if line.changes
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_each_line_says_where_it_comes_from(case: Case, folder: Path) -> None:
    """Behind every value is the key, or the tool's default, that it came from."""
    file = folder / case.file
    file.write_text(case.text)
    lines = finetune.convert(file).recipe.splitlines()
    bare = [line for line in lines if ": " in line and "  # " not in line and not line.startswith("#")]
    assert [line for line in bare if not line.strip().startswith("format: auto")] == []


def test_a_default_of_theirs_that_is_ours_too_is_not_written(folder: Path) -> None:
    """Weight decay 0 is everybody's default; Axolotl's length of 512 is its own."""
    file = folder / "few.yml"
    file.write_text(
        "base_model: a/b\nadapter: lora\ndatasets: [{path: a/c, type: alpaca}]\nval_set_size: 0\n"
    )
    recipe = finetune.convert(file).recipe
    assert "weight_decay" not in recipe
    assert "max_length_tokens: 512" in recipe
    assert "Axolotl's default of sequence_len" in recipe


def test_the_names_of_a_plugin_are_read_by_the_table(folder: Path) -> None:
    """LLaMA-Factory v1's scheduler and optimizer are the recipe's, with the warm-up; one that isn't here is
    named."""
    file = folder / "plugins.yaml"
    text = "model: owner/base\npeft_config: {name: lora}\ntrain_dataset: owner/name\nwarmup_ratio: 0.1\n"
    file.write_text(
        f"{text}lr_scheduler_config: {{name: cosine_with_min_lr}}\noptim_config: {{name: lion}}\n"
    )
    recipe = finetune.convert(file, "llamafactory_v1").recipe
    for value in ("schedule: cosine_with_minimum", "optimizer: lion", "warmup_ratio: 0.1"):
        assert value in recipe
    file.write_text(f"{text}lr_scheduler_config: {{name: polynomial}}\n")
    (line,) = finetune.convert(file, "llamafactory_v1").dropped
    assert "schedule polynomial is not here" in str(line)


def test_json_and_toml_are_read_as_well(folder: Path) -> None:
    """The same keys in JSON and TOML give the same recipe."""
    keys = {"tuner_type": "lora", "model": "a/b", "dataset": ["c/d#5"], "use_hf": True, "learning_rate": 3e-5}
    (folder / "a.json").write_text(json.dumps(keys, indent="\t"))
    toml = 'tuner_type = "lora"\nmodel = "a/b"\ndataset = ["c/d#5"]\nuse_hf = true\nlearning_rate = 3e-5\n'
    (folder / "a.toml").write_text(toml)
    first, second = (finetune.convert(folder / name).recipe.splitlines()[1:] for name in ("a.json", "a.toml"))
    assert first == second


def test_training_arguments_beside_an_adapter_are_read(folder: Path) -> None:
    """training_args.json gives the rate and the batch; the rows stay unnamed."""
    case = next(case for case in CASES if case.tool == "peft")
    (folder / "adapter_config.json").write_text(case.text)
    (folder / "training_args.json").write_text('{"learning_rate": 3e-05, "per_device_train_batch_size": 6}')
    conversion = finetune.convert(folder / "adapter_config.json")
    assert "learning_rate: 3e-05" in conversion.recipe
    assert "global_batch_size: 6" in conversion.recipe
    assert any("which rows" in line.how for line in conversion.dropped)


def test_a_pickled_file_beside_an_adapter_is_not_loaded(folder: Path) -> None:
    """training_args.bin would run code: it is named among what is not carried."""
    case = next(case for case in CASES if case.tool == "peft")
    (folder / "adapter_config.json").write_text(case.text)
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    conversion = finetune.convert(folder / "adapter_config.json")
    assert not (folder / "pwned").exists()
    assert any(line.key == "training_args.bin" for line in conversion.dropped)


def test_patterns_of_peft_are_names(tmp_path: Path) -> None:
    """Modules by any part of their names; an expression that is more than one is said, not carried."""
    config = {
        "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": "owner/name", "exclude_modules": ["layers.0.self_attn.q_proj"],
        "rank_pattern": {"q_proj": 4, r"^model\.layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {".*up.*": 4},
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    conversion = finetune.convert(tmp_path / "adapter_config.json")
    (tmp_path / "recipe.yaml").write_text(conversion.recipe)
    adapter = finetune.load_recipe(tmp_path / "recipe.yaml").recipe.adapter
    assert adapter.rank_pattern == {"q_proj": 4, "model.layers.1.mlp.up_proj": 2}
    assert adapter.exclude_modules == ("layers.0.self_attn.q_proj",)
    assert any(line.key == "alpha_pattern" and "not matched" in line.how for line in conversion.dropped)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("MISS", {"r": 8, "miss_dropout": 0.1}, {"rank": 8, "dropout": 0.1}),
        ("OFT", {"oft_block_size": 16}, {"block_size": 16}),
        ("VERA", {"r": 64}, {"rank": 64}),
        (
            "LOHA",
            {"r": 4, "alpha": 16, "rank_pattern": {"q_proj": 2}},
            {"rank": 4, "alpha": 16.0, "rank_pattern": {"q_proj": 2}},
        ),
    ],
)
def test_adapters_that_peft_computes_are_carried(
    tmp_path: Path, kind: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """As peft writes their config, with nothing lost but the rows, which no such file names."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    config(
        base_model_name_or_path="owner/name", task_type="CAUSAL_LM", target_modules=["q_proj"], **options
    ).save_pretrained(tmp_path)
    conversion = finetune.convert(tmp_path / "adapter_config.json")
    (tmp_path / "recipe.yaml").write_text(conversion.recipe)
    adapter = finetune.load_recipe(tmp_path / "recipe.yaml").recipe.adapter
    assert {"method": adapter.method} | {key: getattr(adapter, key) for key in expected} == {
        "method": kind.lower()
    } | expected
    assert [line.key for line in conversion.dropped] == ["data"]


def test_what_a_recipe_has_no_key_for_is_lost_by_name(tmp_path: Path) -> None:
    """Constrained OFT."""
    config = {
        "peft_type": "OFT",
        "base_model_name_or_path": "owner/name",
        "r": 0,
        "oft_block_size": 32,
        "coft": True,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert [line.key for line in finetune.convert(tmp_path / "adapter_config.json").dropped] == [
        "coft",
        "data",
    ]
