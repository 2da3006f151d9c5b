"""What lies in a folder: which files are the weights, and what keeps them from being loaded."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from finetune.errors import ModelError
from finetune.models.bases.folder import only_the_model, read_adapter_config, read_header, weight_files
from finetune.models.bases.locate import Base, folder_sha256, resolve_base
from finetune.models.bases.shapes import read_stored
from finetune.models.load import load_model
from finetune.models.safetensors import StoredWeights
from finetune.recipe.schema.model import ModelSection
from tests.support.models import save_tiny_llama

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def sharded(base: Path) -> Path:
    """The base in several files with their index."""
    LlamaForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="300KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert len(list(base.glob("model-*.safetensors"))) > 1
    return base


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: weight.clone()
        for name, weight in load_model(Base(folder, {}), dtype=torch.float32).state_dict().items()
    }


def test_stray_files_are_no_part_of_the_model(base: Path, tmp_path: Path) -> None:
    """Shards of an earlier save, an adapter, a second layout and a stray file change neither what is loaded,
    nor hashed, merged or counted; plain transformers loads the same without them."""
    before, sha256 = read_stored(base), folder_sha256(base)
    plain = LlamaForCausalLM.from_pretrained(base).state_dict()
    junk = {"model.embed_tokens.weight": torch.zeros(3, 3), "model.norm.weight": torch.zeros(64)}
    for name in (
        "model-00001-of-00002.safetensors",
        "consolidated.safetensors",
        "other.safetensors",
        "adapter_model.safetensors",
    ):
        save_file(junk, base / name)
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    assert weight_files(base) == [base / "model.safetensors"]
    assert (read_stored(base), folder_sha256(base)) == (before, sha256)
    assert StoredWeights.of_folder(base).tensors.keys() == read_header(base / "model.safetensors").keys()
    found = weights_of(resolve_base(ModelSection(base=str(base))).folder)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], weight) for name, weight in plain.items())


def test_the_whole_file_goes_before_the_shards(sharded: Path, tiny_base: Path) -> None:
    """As in transformers: where model.safetensors lies beside an index with other weights, it is the
    model."""
    shutil.copy(tiny_base / "model.safetensors", sharded)
    first = next(iter(sorted(sharded.glob("model-*.safetensors"))))
    save_file(
        {name: weight + 1 for name, weight in load_file(first).items()}, first, metadata={"format": "pt"}
    )
    theirs = LlamaForCausalLM.from_pretrained(sharded).state_dict()
    assert weight_files(sharded) == [sharded / "model.safetensors"]
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights_of(sharded).items())


def test_only_the_model_is_shown_to_transformers(sharded: Path) -> None:
    """Config, index and its shards: no adapter, no code, no other file."""
    for name in ("adapter_config.json", "modeling_evil.py", "model-9.safetensors"):
        (sharded / name).write_text("{}")
    (sharded / "custom_generate").mkdir()
    with only_the_model(sharded) as view:
        shown = {path.name for path in view.iterdir()}
    assert shown == {"config.json", "generation_config.json", "model.safetensors.index.json"} | {
        path.name for path in sharded.glob("model-0*.safetensors")
    }


def index_of(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            index_of(
                lambda index: index["weight_map"].update({"model.norm.weight": "../../outside.safetensors"})
            ),
            r"file '\.\./",
        ),
        (
            index_of(lambda index: index["weight_map"].update({"model.norm.weight": "/etc/passwd"})),
            r"same folder",
        ),
        (
            index_of(lambda index: index["weight_map"].update({"model.norm.weight": 3})),
            r"the file 3; expected the name",
        ),
        (index_of(lambda index: index["weight_map"].update({"model.norm.weight": None})), r"same folder"),
        (
            index_of(lambda index: index["weight_map"].update({"x": "gone.safetensors"})),
            r"lacks gone\.safetensors",
        ),
        (index_of(lambda index: index.update(weight_map=[])), r"weight_map is \[\]"),
        (index_of(lambda index: index.pop("weight_map")), r"weight_map is None"),
        (index_of(lambda index: index.pop("metadata")), r"metadata is None"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), r"not valid JSON"),
        (lambda folder: (folder / "model.safetensors.index.json").write_bytes(b"\xff{}"), r"not valid JSON"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("[" * 100_000),
            r"not valid JSON",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(POINTER),
            r"Git LFS pointer.*git lfs pull",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            r"there is no model\.safetensors\.index\.json",
        ),
        (lambda folder: next(folder.glob("model-*")).write_text(POINTER), r"Git LFS pointer.*git lfs pull"),
        (lambda folder: (folder / "config.json").write_text(POINTER), r"Git LFS pointer.*git lfs pull"),
    ],
)
def test_what_is_wrong_with_weights_is_said(
    sharded: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    """One message with the cause, before anything is loaded."""
    spoil(sharded)
    with pytest.raises(ModelError, match=expected):
        resolve_base(ModelSection(base=str(sharded)))


def test_links_of_a_hub_cache_are_no_way_out(sharded: Path, tmp_path: Path) -> None:
    """The hub's cache has links to files elsewhere; such a folder is loaded like any other."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in sharded.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert folder_sha256(snapshot) == folder_sha256(sharded)
    assert (
        weights_of(resolve_base(ModelSection(base=str(snapshot))).folder).keys() == weights_of(sharded).keys()
    )


def test_pickled_weights_come_with_a_conversion_that_works(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the message, run as it is printed, makes a base of the same weights."""
    whole = load_file(base / "model.safetensors")
    torch.save(whole, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled") as caught:
        resolve_base(ModelSection(base=str(base)))
    command = shlex.split(str(caught.value).split("convert them: ")[1].split(", and copy")[0])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(base.parent)
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    found = weights_of(base.parent / "CONVERTED")
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())


def test_a_pickled_adapter_comes_with_a_conversion_that_works(tmp_path: Path) -> None:
    """The same for adapter_model.bin."""
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(4, 64)}
    torch.save(weights, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"adapter_model\.bin") as caught:
        read_adapter_config(tmp_path)
    command = shlex.split(str(caught.value).split("convert them once: ")[1].removesuffix("."))
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert read_adapter_config(tmp_path) == {"peft_type": "LORA"}
    (held,) = load_file(tmp_path / "adapter_model.safetensors").values()
    assert torch.equal(held, next(iter(weights.values())))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": "evil"}, "no type, shape and place"),
        ({"dtype": None}, "no type, shape and place"),
        ({"shape": "64"}, "no type, shape and place"),
        ({"shape": [64.0]}, "no type, shape and place"),
        ({"shape": [-64]}, "no type, shape and place"),
        ({"data_offsets": [0]}, "no type, shape and place"),
        ({"shape": [2**80]}, "not where its header says"),
        ({"data_offsets": [2**60, 2**61]}, "not where its header says"),
        (None, "no type, shape and place"),
    ],
)
def test_a_header_that_lies_is_refused(base: Path, change: dict[str, object] | None, expected: str) -> None:
    """Types, shapes and places are checked against the format and the file, whoever reads them."""
    path = base / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"] = None if change is None else header["model.norm.weight"] | change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    for reader in (lambda: resolve_base(ModelSection(base=str(base))), lambda: StoredWeights.of_folder(base)):
        with pytest.raises(ModelError, match=expected):
            reader()


def test_bases_of_other_writers_are_taken(tmp_path: Path) -> None:
    """Rotary frequencies that old tools saved, a tied head that is stored, and names without `model.` are no
    contradiction."""
    save_tiny_llama(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, path, metadata={"format": "pt"})
    resolve_base(ModelSection(base=str(tmp_path)))
    save_file(
        {name.removeprefix("model."): weight for name, weight in weights.items()},
        path,
        metadata={"format": "pt"},
    )
    resolve_base(ModelSection(base=str(tmp_path)))
