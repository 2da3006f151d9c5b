"""The exporter's seam: a format that is one class writes a merge tensor by tensor, and is checked."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune.exporters import EXPORTERS, GGUF
from finetune.exporters.gguf.described import origin_of
from finetune.exporting.inputs import read_inputs
from finetune.merging.inputs import read_parts
from finetune.merging.merge import merge
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.models.bases.card import licence_in
from tests.support.adapters import make_adapter
from tests.support.exports import whole, write_gguf
from tests.support.manual import module_of


def test_another_format_is_one_class(tiny_base: Path, tmp_path: Path) -> None:
    """Its numbers are those of the merged model, and its check finds what is wrong."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    parts = read_parts(target, [], None)
    updates = Updates(parts.stored, parts.config, parts.adapters)
    description = parts.description(
        parts.merged_config(vocabulary=updates.vocabulary, tied=updates.stays_tied)
    )
    folder, exporter = tmp_path / "numpy", module_of("extending_exporters").NumpyFiles()
    folder.mkdir()
    written = exporter.write(
        MergedWeights(parts.stored, updates, torch.float32),
        description,
        folder,
        workers=1,
    )
    merge(target, tmp_path / "merged", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert written.files == len(written.xxh3_128) > 10
    for name in written.xxh3_128:
        assert np.array_equal(np.load(folder / f"{name}.npy"), weights[name].detach().numpy()), name
    assert exporter.check(description, folder) == []
    (folder / "words.txt").write_text("7")
    assert exporter.check(description, folder) == [
        f"it has 7 words, and the tokenizer {len(description.tokenizer)}"
    ]


def test_a_gguf_file_is_checked_by_its_header(tiny_base: Path, tmp_path: Path) -> None:
    """What it says of the model is compared with the model."""
    inputs = read_inputs(whole(tiny_base))
    file = write_gguf(inputs, tmp_path)
    assert GGUF.check(inputs.description, tmp_path) == []
    other = replace(inputs.description, name="another")
    assert GGUF.check(other, tmp_path) == [f"general.name is {tiny_base.name}, and another was exported"]
    assert file.name == "model.gguf"


def test_a_gguf_file_names_its_base_and_the_licence(tiny_base: Path, tmp_path: Path) -> None:
    """As the hub and the base's card have them; nothing where nobody knows."""
    assert origin_of(read_inputs(whole(tiny_base)).description) == {}
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# A base\n")
    description = replace(read_inputs(whole(base)).description, base="acme/tiny")
    assert origin_of(description) == {
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "tiny",
        "general.base_model.0.organization": "acme",
        "general.base_model.0.repo_url": "https://huggingface.co/acme/tiny",
    }


@pytest.mark.parametrize(
    "card", ["", "# A base", "---\n: [\n---\n", "---\nlicense: [a, b]\n---\n", "---\n- a\n---\n"]
)
def test_a_card_without_a_licence_names_none(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_in(tmp_path) is None


def test_each_format_has_a_name_of_its_own() -> None:
    """By which it is asked for."""
    names = [exporter.name for exporter in EXPORTERS]
    assert len(set(names)) == len(names)
    assert names[0] == "safetensors"
