"""finetune inspect as it prints."""

import json
from pathlib import Path

import pytest

from finetune.cli.inspect import inspect
from finetune.errors import FinetuneError

RECIPE = """
model: {{base: {base}}}
adapter: {{rank: 4}}
data: {{train: [{{path: {rows}, format: alpaca}}]}}
"""


@pytest.fixture
def recipe(tiny_base: Path, alpaca_file: Path, tmp_path: Path) -> Path:
    """A recipe on the tiny base."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=alpaca_file))
    return path


def test_a_folder_is_described_line_by_line(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report names heads, cache, RoPE, RMSNorm and parameters; nothing trains without a recipe."""
    inspect(str(tiny_base))
    printed = capsys.readouterr().out
    assert "4 heads share 2 key-value heads, 2 each (grouped-query)" in printed
    assert "256 bytes a token in 16 bit" in printed
    assert "default, theta 10,000" in printed
    assert "RMSNorm eps        1e-05" in printed
    assert "which agree" in printed
    assert "trainable" not in printed


def test_a_recipe_adds_what_trains(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a recipe and an override, the trainable parameters under both are reported."""
    inspect(str(recipe), ["adapter.rank=2"], as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["rank"] == 2
    # R (inputs + outputs) of q, k, v, o, gate, up and down, in two layers
    assert facts["trainable_parameters"] == 2 * 2 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    inspect(str(recipe))
    assert "lora, rank 4, all-linear" in capsys.readouterr().out


def test_overrides_need_a_recipe(tiny_base: Path) -> None:
    """key=value beside a model folder is refused, for there is nothing that it could change."""
    with pytest.raises(FinetuneError, match="not a recipe"):
        inspect(str(tiny_base), ["adapter.rank=2"])
