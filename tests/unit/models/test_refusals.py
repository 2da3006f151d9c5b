"""A base's config.json, tokenizer and an adapter's config are the user's input: one message, before data are
read."""

import builtins
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli import app as command_line
from finetune.errors import FinetuneError, ModelError
from finetune.merging.adapter import Adapter
from finetune.models.adapters.config_file import check_adapter_config
from finetune.models.bases.folder import read_config
from finetune.models.bases.inspection import describe
from finetune.models.bases.locate import Base, resolve_base
from finetune.models.load import load_model, skeleton
from finetune.models.stored_quantization import check_trainable
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CONFIGS: list[dict[str, Any]] = [
    {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_parameters": {"rope_type": "su", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": "ten"}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}},
    {"rope_parameters": {"rope_type": 5, "rope_theta": 1e4}},
    {"rope_parameters": [1]},
    {"rope_theta": -1.0},
    {"num_attention_heads": 7},
    {"num_key_value_heads": 3},
    {"num_hidden_layers": 100_000_000},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "2"},
    {"num_hidden_layers": 1},
    {"vocab_size": 2**40},
    {"vocab_size": 1000},
    {"hidden_size": 65},
    {"hidden_size": 10**20},
    {"intermediate_size": True},
    {"head_dim": 0},
    {"head_dim": 1, "num_attention_heads": 64, "num_key_value_heads": 32},
    {"hidden_act": "evil"},
    {"torch_dtype": "evil"},
    {"dtype": "os"},
    {"dtype": 5},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [1]},
    {"rms_norm_eps": float("nan")},
    {"attention_bias": True},
    {"quantization_config": []},
    {"quantization_config": "gptq"},
    {"quantization_config": {"bits": 4}},
    {"model_type": None},
    {"model_type": ["llama"]},
    {"layer_types": ["evil"]},
]


@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: json.dumps(values)[:60])
def test_a_config_that_is_wrong_is_one_message(base: Path, values: dict[str, Any]) -> None:
    """Found from config.json and headers, without loading a weight, in one line; inspect says it, or what it
    read, at once."""
    change(base / "config.json", **values)
    for look in (before_training, describe):
        started, error = time.perf_counter(), refusal_of(look, ModelSection(base=str(base)))
        assert error is not None or look is describe
        assert error is None or ("\n" not in error and (str(base) in error or "model.base" in error))
        assert time.perf_counter() - started < 20


def before_training(section: ModelSection) -> None:
    folder = resolve_base(section).folder
    check_trainable(read_config(folder), AdapterSection(), str(folder))
    skeleton(Base(folder, {}))


def refusal_of(look: Callable[[ModelSection], Any], section: ModelSection) -> str | None:
    try:
        look(section)
    except FinetuneError as error:
        return str(error)
    return None


def test_no_code_of_a_model_runs_whatever_is_answered(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with code of its own is refused, nobody is asked, and the code isn't run."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
    code += "class C(PretrainedConfig):\n    model_type = 'own'\n"
    (base / "own.py").write_text(code)
    change(
        base / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"},
    )

    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)
    section = ModelSection(base=str(base), allow_untested=True)
    found = resolve_base(section)
    with pytest.raises(ModelError, match="never run"):
        skeleton(found)
    change(base / "config.json", model_type="llama")
    load_model(resolve_base(section), dtype=torch.float32)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["a", "b"]]}}'),
        (
            "tokenizer.json",
            '{"added_tokens": [{"id": 4294967295, "content": "x", "special": true}], "model": null}',
        ),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("tokenizer_config.json", "nonsense"),
        ("tokenizer_config.json", '{"extra_special_tokens": 7}'),
    ],
)
def test_a_tokenizer_that_is_wrong_is_one_message(base: Path, name: str, content: str) -> None:
    """Whatever the library raises, Rust's panics included."""
    (base / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load_tokenizer(base)
    assert str(base) in str(caught.value)


@pytest.mark.parametrize(
    "found",
    [
        {"load_in_8bit": True},
        {"load_in_8bit": True, "quant_method": "bitsandbytes"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"},
    ],
)
def test_weights_that_are_not_quantised_as_config_says(base: Path, found: dict[str, Any]) -> None:
    """transformers would load some of them all the same, and fail at the first text."""
    change(base / "config.json", quantization_config=found)
    with pytest.raises(ModelError, match="quantization_config that bitsandbytes stored the weights"):
        resolve_base(ModelSection(base=str(base)))


@pytest.mark.parametrize(
    "words", [["check"], ["check", "--deep"], ["train"], ["plan"], ["inspect"], ["data"]]
)
def test_every_verb_says_it_before_the_data(
    words: list[str],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2 with the key of config.json, though the rows are unreadable too; only `data` doesn't look at the
    model."""
    change(base / "config.json", num_key_value_heads=3)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": 5}\n')
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{base: {base}}}\ndata: {{train: [{{path: {rows}, format: text}}]}}\ntracking: {{tracker: "
        f"none}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["finetune", words[0], str(recipe), *words[1:]])
    assert command_line.run() == 2
    printed = capsys.readouterr().err
    assert ("rows.jsonl:1" if words == ["data"] else "num_key_value_heads") in printed
    assert "Traceback" not in printed


EVIL = "((((a|[a-z_.0-9])+)+)+)+!"


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": EVIL},
        {"exclude_modules": EVIL},
        {"rank_pattern": {EVIL: 2}},
        {"modules_to_save": [EVIL]},
        {"modules_to_save": {EVIL: 0}},
        {"layers_pattern": EVIL},
    ],
    ids=lambda config: next(iter(config)),
)
def test_an_expression_that_never_ends_is_refused(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key whose texts peft matches as regular expressions; a plain pattern passes."""
    monkeypatch.setattr("finetune.models.adapters.config_file.LIMIT_SECONDS", 1)
    names = [f"model.layers.{index}.self_attn.q_proj" for index in range(4)]
    with pytest.raises(ModelError, match="takes more than 1 s"):
        check_adapter_config(config, names, tmp_path)
    check_adapter_config(
        {"target_modules": r".*\.layers\.[0-3]\.(self_attn\.[qv]_proj|mlp\.up_proj)"}, names, tmp_path
    )


def test_sizes_of_an_adapter_are_bounded(tmp_path: Path) -> None:
    """No matrix is built by a rank of a billion."""
    for config in ({"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}, {"num_virtual_tokens": 10**9}):
        with pytest.raises(ModelError, match="expected at most"):
            check_adapter_config(config, [], tmp_path)
    with pytest.raises(ModelError, match="no regular expression"):
        check_adapter_config({"target_modules": "(("}, [], tmp_path)
    with pytest.raises(ModelError, match="not an adapter folder"):
        Adapter(tmp_path)
