"""Combinations of updates B A: dare, slerp, and the average of a run's checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune
from finetune.errors import FinetuneError, MergeError
from finetune.merging.combine import combine
from finetune.merging.combine_by_peft import updates_by_peft
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import resolve_base
from finetune.recipe.schema.model import ModelSection
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere

RECIPE = """
model: {{base: {base}}}
adapter: {{rank: 4}}
data: {{train: [{{path: {rows}, format: alpaca}}], evaluation: {{fraction: 0.1}}, max_length_tokens: 128}}
train: {{micro_batch_size: 4, precision: fp32, learning_rate: 1e-2, max_steps: 6, save_every: 2,
  keep_checkpoints: 3, rehearsal: false}}
evaluate: {{metrics: [loss]}}
tracking: {{tracker: none}}
output: {{folder: {runs}}}
"""


def updates(base: Path, folder: Path | str) -> dict[str, torch.Tensor]:
    """Module -> B A, as peft reads it."""
    return updates_by_peft(load_config(resolve_base(ModelSection(base=str(base)))), Path(folder))


@pytest.fixture(scope="module")
def pair(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two adapters with other numbers, ranks and scales."""
    folder = tmp_path_factory.mktemp("pair")
    make_adapter(tiny_base, folder / "a", use_rslora=True)
    make_adapter(tiny_base, folder / "b", r=6, lora_alpha=3)
    path = folder / "b" / "adapter_model.safetensors"
    torch.manual_seed(11)
    tensors = {name: torch.randn_like(values) * 0.05 for name, values in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return str(folder / "a"), str(folder / "b")


def test_slerp_goes_along_the_arc(pair: tuple[str, str], tiny_base: Path, tmp_path: Path) -> None:
    """Layer by layer (sin((1 - t) x) U + sin(t x) V) / sin(x) at the angle x between U and V, exactly where
    the rank is that of both together; at its ends it is the one and the other."""
    first, second = (updates(tiny_base, name) for name in pair)
    for share in (0.25, 1.0):
        found = combine(
            pair, tmp_path / f"{share}", method="slerp", weights=[1 - share, share], base=tiny_base, rank=10
        )
        assert found.residual is not None
        assert found.residual < 1e-6
        for name, update in updates(tiny_base, found.output).items():
            u, v = first[name], second[name]
            angle = math.acos(float((u * v).sum() / (u.norm() * v.norm())))
            along = (math.sin((1 - share) * angle), math.sin(share * angle))
            expected = (along[0] * u + along[1] * v) / math.sin(angle)
            assert float((update - expected).norm() / expected.norm()) < 1e-5, name


def test_slerp_of_an_adapter_with_itself_is_the_adapter(
    pair: tuple[str, str], tiny_base: Path, tmp_path: Path
) -> None:
    """Where there is no angle, the arc is a line."""
    found = combine([pair[0]] * 2, tmp_path / "out", method="slerp", weights=[0.3, 0.7], base=tiny_base)
    assert found.distance < 1e-6
    assert found.rank == 4


def test_dare_drops_a_share_and_keeps_the_mean(
    pair: tuple[str, str], tiny_base: Path, tmp_path: Path
) -> None:
    """At full rank, each number is 0 or 1 / density of what it was, a density's share of them not 0."""
    weights, density = [1.0, 0.0], 0.25
    found = combine(
        pair, tmp_path / "out", method="dare", weights=weights, base=tiny_base, density=density, rank=32
    )
    kept = numbers = 0
    first = updates(tiny_base, pair[0])
    for name, update in updates(tiny_base, found.output).items():
        if min(update.shape) > 32:  # beyond the rank
            continue
        ratio = update / first[name]
        is_kept, is_dropped = (ratio - 1 / density).abs() < 0.1, ratio.abs() < 0.1
        assert float((is_kept | is_dropped).double().mean()) > 0.99
        kept, numbers = kept + int(is_kept.sum()), numbers + ratio.numel()
    assert kept / numbers == pytest.approx(density, abs=0.02)
    assert found.residual is not None
    assert found.residual > 0.1


def test_a_seed_gives_the_same_bytes(pair: tuple[str, str], tiny_base: Path, tmp_path: Path) -> None:
    """Whatever torch drew before, and another seed gives others."""
    options: dict[str, Any] = {"method": "dare", "base": tiny_base, "density": 0.5}
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        combine(pair, tmp_path / f"{number}", seed=seed, **options)
    first, again, other = (
        (tmp_path / f"{number}" / "adapter_model.safetensors").read_bytes() for number in range(3)
    )
    assert first == again
    assert first != other
    assert "dare, density 0.5, seed 3" in (tmp_path / "0" / "README.md").read_text()


def test_an_embedding_s_update_is_combined(tiny_base: Path, tmp_path: Path) -> None:
    """LoRA on embedding and head: the sum is theirs."""
    for name in ("a", "b"):
        make_adapter(tiny_base, tmp_path / name, target_modules=["embed_tokens", "lm_head", "v_proj"])
    names = [str(tmp_path / name) for name in ("a", "b")]
    found = combine(names, tmp_path / "out", method="svd", weights=[0.5, 0.25], base=tiny_base)
    assert found.distance < 1e-6
    first, combined = updates(tiny_base, names[0]), updates(tiny_base, found.output)
    assert set(combined) == set(first)
    for name, update in combined.items():
        torch.testing.assert_close(update, 0.75 * first[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file; its runs go beside it."""
    folder = tmp_path_factory.mktemp("averages")
    rows = [
        {"instruction": f"Say blue {i} times.", "output": " ".join(["blue"] * (i % 5))} for i in range(1, 30)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    path = folder / "words.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=folder / "rows.json", runs=folder / "runs"))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> finetune.Run:
    """A finished run with checkpoints after 2, 4 and 6 steps."""
    return finetune.train(recipe)


def test_an_average_of_checkpoints_is_of_products(
    run: finetune.Run, recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """The nearest of the run's rank to the mean of B A, and not the mean of A and B; scored beside its
    parts."""
    found = finetune.combine(run, tmp_path / "out", checkpoints="last:3", evaluate=recipe)
    parts = [updates(tiny_base, part) for part in found.parts]
    for name, update in updates(tiny_base, found.output).items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        u, values, v = torch.linalg.svd(mean)
        expected = (u[:, :4] * values[:4]) @ v[:4]
        assert float((update - expected).norm() / expected.norm()) < 1e-4, name
    assert found.method == "svd"
    assert found.residual == pytest.approx(found.distance, rel=1e-3)
    assert list(found.scores) == [*found.parts, found.output]
    alone = finetune.evaluate(found.output, recipe).scores["loss"].interval
    assert found.scores[found.output]["loss"] == alone


def test_a_run_and_an_adapter_that_only_names_its_base_are_combined(
    run: finetune.Run, tiny_base: Path, tmp_path: Path
) -> None:
    """Of one of them the base's hash is known, of the other its folder: it is the same."""
    make_adapter(tiny_base, tmp_path / "a")
    found = finetune.combine([run, tmp_path / "a"], tmp_path / "out")
    assert found.rank == 8


@pytest.mark.parametrize(
    ("asked", "error", "expected"),
    [
        ("last:5", MergeError, r"has 3 whole checkpoints \(checkpoint-2, checkpoint-4, checkpoint-6\)"),
        ("last:1", MergeError, "expected last:N with N from 2"),
        ("all", MergeError, "--checkpoints is 'all'; expected last:N"),
    ],
)
def test_checkpoints_that_are_not_there_are_refused(
    asked: str, error: type[Exception], expected: str, run: finetune.Run, tmp_path: Path
) -> None:
    """One message, and nothing written."""
    with pytest.raises(error, match=expected):
        finetune.combine(run, tmp_path / "out", checkpoints=asked)
    assert not (tmp_path / "out").exists()


def test_checkpoints_are_of_one_run(run: finetune.Run, tmp_path: Path) -> None:
    """Several runs, or an adapter, are refused."""
    with pytest.raises(FinetuneError, match="--checkpoints is for one run, and 2 are named"):
        finetune.combine([run, run], tmp_path / "out", checkpoints="last:2")
    with pytest.raises(FinetuneError, match="is not a run folder: there is no"):
        finetune.combine(run.adapter, tmp_path / "out", checkpoints="last:2")


def test_a_recipe_without_rows_leaves_nothing(run: finetune.Run, tiny_base: Path, tmp_path: Path) -> None:
    """What --evaluate refuses is refused before anything is written."""
    recipe = tmp_path / "bare.yaml"
    recipe.write_text(
        f"model: {{base: {tiny_base}}}\ndata: {{train: [{{generated: orders}}]}}\nadapter: {{rank: 4}}\n"
    )
    with pytest.raises(FinetuneError, match=r"has no data\.evaluation, so there is nothing to score on"):
        finetune.combine([run, run.adapter], tmp_path / "out", evaluate=recipe)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_is_left_and_the_scores(
    run: finetune.Run, recipe: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """The residual of the SVD, and a line for each part and the combination."""
    words = ["combine", str(run.folder), "--checkpoints", "last:2", "--output", "out"]
    done = finetune_here(*words, "--evaluate", str(recipe))
    assert any(line.startswith("left") and "beyond the rank" in line for line in done.lines)
    scores = [line for line in done.lines if " loss " in line]
    assert [line.split()[0].rpartition("/")[2] for line in scores] == ["checkpoint-4", "checkpoint-6", "out"]
