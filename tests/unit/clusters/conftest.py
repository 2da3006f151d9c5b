"""A recipe whose job is rendered."""

from pathlib import Path

import pytest

from tests.support.cli import FinetuneHere
from tests.support.clusters import Rendering

RECIPE = """\
model: {{base: {base}}}
data: {{train: [{{path: {rows}, format: alpaca}}], max_length_tokens: 128}}
train: {{learning_rate: 1e-2, micro_batch_size: 1, global_batch_size: 8, precision: fp32, max_steps: 6}}
tracking: {{tracker: none}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, alpaca_file: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=alpaca_file))
    return path


@pytest.fixture
def rendered(recipe: Path, finetune_here: FinetuneHere) -> Rendering:
    return Rendering(finetune_here)
