"""A family that is added: docs/extending_families.md as it stands."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from finetune.engines.fsdp2 import SECTION
from finetune.errors import ModelError
from finetune.merging.merge import merge
from finetune.models import architectures
from finetune.models.architectures.base import ArchitectureSpec
from finetune.models.architectures.tables import families_table
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import check_architecture
from finetune.models.bases.shapes import count_parameters, read_shape
from finetune.models.batch import packed_batch, padded_batch
from finetune.models.kernels.install import install_fast_path
from finetune.runs.target import resolve_target
from tests.support.families import assert_same, loaded, rows, save_tiny_family, with_adapter
from tests.support.manual import module_of, table_of
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe

OPTIONS: dict[str, Any] = {
    "defaults": True, "logit_scale": 0.5, "use_qk_norm": True, "layer_norm_eps": 1e-2, "attention_bias": True,
}  # fmt: skip


@pytest.fixture
def cohere(monkeypatch: pytest.MonkeyPatch) -> ArchitectureSpec:
    """The page's family, in the registry."""
    family: ArchitectureSpec = module_of("extending_families").COHERE
    with pytest.raises(ModelError, match="tested are llama"):
        check_architecture({"model_type": "cohere"}, allow_untested=False)
    monkeypatch.setattr(architectures, "FAMILIES", (*architectures.FAMILIES, family))
    return family


def test_the_pages_family_is_one(cohere: ArchitectureSpec, tmp_path: Path) -> None:
    """It is allowed, named in messages and tables, wrapped by FSDP2 and counted; loss and gradients are
    transformers'."""
    check_architecture({"model_type": "cohere"}, allow_untested=False)
    assert "olmo2, cohere" in architectures.family_names()
    assert "| `cohere` | Command R |" in families_table()
    assert SECTION.keys["fsdp_transformer_layer_cls_to_wrap"].takes("CohereDecoderLayer")
    folder = save_tiny_family(tmp_path / "base", "cohere", **OPTIONS)
    theirs = with_adapter(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval())
    shape = read_shape(read_config(folder))
    assert count_parameters(shape) == sum(p.numel() for n, p in theirs.named_parameters() if "lora_" not in n)
    ours = with_adapter(loaded(folder))
    assert install_fast_path(ours) == 2 * len(cohere.linear_layers)
    for batch in (packed_batch(rows()), padded_batch(rows(), pad_token_id=2)):
        assert_same(ours, theirs, batch)


def test_the_pages_family_trains_and_merges(
    cohere: ArchitectureSpec, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A run on it, and a verified merge, without a line elsewhere."""
    base = save_tiny_family(tmp_path / "base", cohere.model_type, **OPTIONS)
    recipe = make_recipe(
        model={"base": str(base)},
        data={"pack_length_tokens": 128},
        train=EXACT | {"max_steps": 2, "save_every": None},
    )
    report = merge(resolve_target(str(start(recipe).path)), tmp_path / "merged")
    assert report.verification is not None
    assert report.verification.holds


def test_the_page_names_what_a_family_says() -> None:
    """Each field of ArchitectureSpec is in its table, and nothing else is."""
    table = table_of("extending_families")
    assert set(re.findall(r"`(\w+)`", table)) == {field.name for field in fields(ArchitectureSpec)}
