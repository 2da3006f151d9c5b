"""The exporter's seam: a format that is one class writes a merge tensor by tensor, and is checked."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import xxhash
from transformers import AutoModelForCausalLM

from finetune.export import EXPORTERS, Exporter, Written
from finetune.export.base import Description
from finetune.merging.inputs import read_parts
from finetune.merging.merge import merge
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.models.safetensors import Weights
from tests.support.adapters import make_adapter


class NumpyFiles(Exporter):
    """A file for each tensor, in float32."""

    name: ClassVar[str] = "numpy"

    def write(self, weights: Weights, description: Description, folder: Path, *, largest_file: int, workers: int) -> Written:
        hashes = {}
        for name in weights.names():
            whole = torch.cat([block.float() for _, block in weights.blocks(name)]).numpy()
            np.save(folder / f"{name}.npy", whole)
            hashes[name] = xxhash.xxh3_128(whole.tobytes()).hexdigest()
        (folder / "words.txt").write_text(str(len(description.tokenizer)))
        return Written(len(hashes), sum(path.stat().st_size for path in folder.iterdir()), hashes)

    def check(self, description: Description, folder: Path, *, for_version_4: bool = True) -> list[str]:
        found = (folder / "words.txt").read_text()
        expected = str(len(description.tokenizer))
        return [] if found == expected else [f"it has {found} words, and the tokenizer {expected}"]


def test_another_format_is_one_class(tiny_base: Path, tmp_path: Path) -> None:
    """Its numbers are those of the merged model, and its check finds what is wrong."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    parts = read_parts(target, [], None)
    updates = Updates(parts.stored, parts.config, parts.adapters)
    description = parts.description(parts.merged_config(vocabulary=updates.vocabulary, tied=updates.stays_tied))
    folder, exporter = tmp_path / "numpy", NumpyFiles()
    folder.mkdir()
    written = exporter.write(
        MergedWeights(parts.stored, updates, torch.float32), description, folder, largest_file=2**30, workers=1
    )
    merge(target, tmp_path / "merged", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert written.files == len(written.xxh3_128) > 10
    for name in written.xxh3_128:
        assert np.array_equal(np.load(folder / f"{name}.npy"), weights[name].detach().numpy()), name
    assert exporter.check(description, folder) == []
    (folder / "words.txt").write_text("7")
    assert exporter.check(description, folder) == [f"it has 7 words, and the tokenizer {len(description.tokenizer)}"]


def test_each_format_has_a_name_of_its_own() -> None:
    """By which it is asked for."""
    names = [exporter.name for exporter in EXPORTERS]
    assert len(set(names)) == len(names)
    assert names[0] == "safetensors"
