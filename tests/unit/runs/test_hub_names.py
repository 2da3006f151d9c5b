"""owner/name: adapters and models of the hub, out of a cache that is made here; and names that are
nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_prep.errors import DataError
from finetune.errors import FinetuneError, MergeError, ModelError
from finetune.generation.loading import load_ready
from finetune.merging.merge import merge
from finetune.merging.targets import choose_more, choose_target
from finetune.models.adapters.adapter import continued_folder
from finetune.models.bases.locate import resolve_base
from finetune.recipe.load import load_recipe
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import resolve_target

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, with no hub behind it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def publish(cache: Path, name: str, folder: Path) -> None:
    """Put a folder into the cache as a repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    """An adapter by plain peft, which names the base by its hub id."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "me/tiny"}))
    return tmp_path / "adapter"


def test_an_adapter_of_the_hub_is_one(cache: Path, adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    """generate, merge, a further adapter of a merge, and continue_from take it, on its own base of the hub or
    on --base."""
    publish(cache, "me/tiny", tiny_base)
    publish(cache, "me/tiny-lora", adapter)
    found = resolve_target("me/tiny-lora")
    assert (found.model.base, found.description) == ("me/tiny", "the adapter me/tiny-lora of the hub")
    ids = torch.arange(3, 23)[None]
    local = resolve_target(str(adapter), tiny_base)
    with torch.no_grad():
        logits = [
            load_ready(target, dtype=torch.float32)[0](input_ids=ids).logits for target in (found, local)
        ]
    assert torch.equal(*logits)
    report = merge(choose_target("me/tiny-lora", None), tmp_path / "merged", check="tensors")
    assert report.base == "me/tiny"
    assert choose_more(["me/tiny-lora"], None, found) == [found.adapter]
    assert continued_folder(AdapterSection(continue_from="me/tiny-lora")) == found.adapter


def test_a_model_of_the_hub_is_pinned_and_has_no_adapter(cache: Path, tiny_base: Path, adapter: Path) -> None:
    """With an adapter beside it, it is the model alone; merging it says what it is, having looked."""
    both = cache.parent / "both"
    shutil.copytree(tiny_base, both)
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    publish(cache, "me/both", both)
    found = resolve_target("me/both")
    assert (found.adapter, found.model.base, found.model.revision) == (None, "me/both", COMMIT)
    assert resolve_target(str(both)).adapter is None
    plain = resolve_base(ModelSection(base=str(tiny_base)))
    assert load_ready(found, dtype=torch.float32)[0].num_parameters() == 119_360
    assert plain.folder == tiny_base
    with pytest.raises(MergeError, match="has no adapter: it is whole weights already"):
        choose_target("me/both", None)
    with pytest.raises(MergeError, match="a folder of their own"):
        choose_target(str(both), None)


def test_a_name_that_is_nothing_claims_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped run is said to be no folder, with what is near it, and what the hub says."""
    (tmp_path / "runs" / "tiny-001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/tiny-01", "./runs/tiny-01"):
        with pytest.raises(ModelError, match=r"Did you mean (\./)?runs/tiny-001") as caught:
            choose_target(name, None)
        assert "whole weights" not in str(caught.value)
    with pytest.raises(ModelError, match=r"no folder here .* As a hub id: .*could not be fetched"):
        resolve_target("me/gone")


@pytest.mark.parametrize("token", ["tökén", "hf_a\u200bb", "hf_a\x1bb"])
def test_a_token_that_cannot_be_sent_is_one_message(
    cache: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Before any request, though the base is in the cache."""
    publish(cache, "me/tiny", tiny_base)
    monkeypatch.setenv("HF_TOKEN", token)
    for look in (lambda: resolve_target("me/tiny"), lambda: resolve_base(ModelSection(base="me/tiny"))):
        with pytest.raises((ModelError, DataError), match=r"HF_TOKEN holds .*copy it again"):
            look()


@pytest.mark.parametrize(
    "named",
    ["/home/somebody/models/llama", "C:\\Users\\me\\llama", "../elsewhere", "a b", "unsloth/x-bnb-4bit"],
)
def test_a_base_of_another_machine_is_named_with_its_file(
    cache: Path, adapter: Path, tiny_base: Path, named: str
) -> None:
    """adapter_config.json and --base are in the message; with --base it is loaded."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    with pytest.raises(FinetuneError, match=r"adapter_config\.json.*--base") as caught:
        load_ready(resolve_target(str(adapter)), dtype=torch.float32)
    assert named in str(caught.value)
    found = resolve_target(str(adapter), tiny_base)
    assert found.quantized is ("bnb-4bit" in named)
    load_ready(found, dtype=torch.float32)


def test_continue_from_takes_a_run_and_a_hub_id(tmp_path: Path) -> None:
    """In a recipe, beside a folder: a run stands for its adapter; a text that is neither is a problem of the
    recipe."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "recipe.lock.yaml").touch()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    text = (
        "model: {base: me/tiny}\nadapter: {continue_from: NAME}\ndata: {train: [{path: rows.jsonl, format: "
        "text}]}\n"
    )
    for name, expected in (("run", str(tmp_path / "run" / "adapter")), ("me/lora", "me/lora")):
        (tmp_path / "r.yaml").write_text(text.replace("NAME", name))
        assert load_recipe(tmp_path / "r.yaml").recipe.adapter.continue_from == expected
    (tmp_path / "r.yaml").write_text(text.replace("NAME", "./gone"))
    with pytest.raises(FinetuneError, match="no such adapter folder"):
        load_recipe(tmp_path / "r.yaml")


def test_half_an_adapter_is_refused_by_all_that_load_it(adapter: Path, tiny_base: Path) -> None:
    """Weights that the config describes and the file lacks would be drawn at random."""
    weights = load_file(adapter / "adapter_model.safetensors")
    half = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(half, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"does not fit this base.*no weights for model\.layers\.1"):
        load_ready(resolve_target(str(adapter), tiny_base), dtype=torch.float32)


def test_qlora_base_is_honoured_for_a_foreign_adapter(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Nothing says how it was trained: --qlora-base nf4 does, and the merge measures and notes it."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    report = merge(
        choose_target(str(adapter), tiny_base), tmp_path / "merged", check="tensors", qlora_base="nf4"
    )
    assert report.qlora is not None
    assert report.qlora.taken == "nf4"
    assert any("NF4" in note for note in report.notes)
