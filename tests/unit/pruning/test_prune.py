"""What finetune prune writes, and what it refuses."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import finetune
from finetune.errors import FinetuneError, ModelError
from finetune.models.adapters.adapter import attach
from finetune.models.bases.folder import MASK
from finetune.models.bases.locate import resolve_base
from finetune.models.load import load_model
from finetune.models.mask import Mask, hold_mask
from finetune.models.safetensors import StoredWeights
from finetune.pruning import output as writing
from finetune.pruning.depth import block_influence
from finetune.pruning.sparsity import Sparsity, kept_weights
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from tests.support.adapters import TOKENS, merged_logits
from tests.support.cli import FinetuneHere
from tests.support.disk import files_up_to
from tests.support.models import save_tiny_llama

RecipeOn = Callable[..., Path]


def linear(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the decoder's linear layers."""
    return {
        name: weight for name, weight in load_file(folder / "model.safetensors").items() if "proj" in name
    }


def test_wanda_keeps_what_weighs_most_by_size_and_input() -> None:
    """In each row the weights with the largest |W_ij| |X_j| stay, whatever the others' sizes are."""
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0]])
    inputs = torch.tensor([[3.0, 0.0, 1.0, 0.1], [4.0, 2.0, 0.0, 0.0]])  # norms 5, 2, 1, 0.1
    kept = kept_weights(weight, inputs, Sparsity.parse("0.5"))
    assert kept.tolist() == [[True, True, False, False], [True, True, False, False]]


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"sparsity": 0.5}, lambda kept: kept),
        ({"sparsity": 0.25, "method": "magnitude"}, lambda kept: kept.reshape(1, -1)),
        ({"sparsity": "2:4"}, lambda kept: kept.reshape(-1, 4)),
        ({"sparsity": "2:4", "method": "magnitude"}, lambda kept: kept.reshape(-1, 4)),
    ],
    ids=["wanda", "magnitude", "wanda 2:4", "magnitude 2:4"],
)
def test_each_group_loses_its_share(
    options: dict[str, Any],
    groups: Callable[[torch.Tensor], torch.Tensor],
    dense: Path,
    recipe_on: RecipeOn,
    tmp_path: Path,
) -> None:
    """By Wanda each row, by magnitude each layer, at 2:4 each four; what is kept has the base's bits, and
    everything else is the base's."""
    found = finetune.prune(recipe_on(dense), tmp_path / "out", **options)
    share = 0.25 if options["sparsity"] == 0.25 else 0.5
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, tmp_path / "out"))
    mask = Mask.of_folder(tmp_path / "out")
    assert mask is not None
    assert mask.names == set(linear(dense))
    for name, weight in before.items():
        if name not in mask.names:
            assert torch.equal(after[name], weight), name
            continue
        kept = mask.kept(name, tuple(weight.shape))
        assert torch.equal(after[name], weight.masked_fill(~kept, 0)), name
        assert ((~groups(kept)).float().mean(dim=1) == share).all(), name
    assert found.zero_share == share


def test_magnitude_takes_the_smallest(dense: Path, recipe_on: RecipeOn, tmp_path: Path) -> None:
    """No weight that goes is larger than one of its layer that stays."""
    finetune.prune(recipe_on(dense), tmp_path / "out", sparsity=0.3, method="magnitude")
    for name, weight in linear(tmp_path / "out").items():
        whole = linear(dense)[name].abs()
        assert whole[weight == 0].max() <= whole[weight != 0].min(), name


def test_the_losses_are_those_of_the_two_models(dense: Path, pruned: Path) -> None:
    """What is recorded is what plain transformers computes, on the same rows before and after."""
    record = json.loads((pruned / "pruning.json").read_text())
    assert record["loss_before"] != record["loss_after"]
    assert record["texts"] == "the run's data"
    difference = (merged_logits(pruned) - merged_logits(dense)).abs().max()
    assert float(difference) > 1e-3


def test_what_was_pruned_before_stays_so(pruned: Path, recipe_on: RecipeOn, tmp_path: Path) -> None:
    """A pruned base can be pruned further: its mask only shrinks."""
    finetune.prune(recipe_on(pruned), tmp_path / "more", sparsity=0.75)
    for name, weight in linear(tmp_path / "more").items():
        assert not weight[linear(pruned)[name] == 0].any(), name
        assert float((weight == 0).float().mean()) == 0.75, name


def test_the_layers_that_change_least_go(recipe_on: RecipeOn, tmp_path: Path) -> None:
    """A layer whose outputs are 0 has no influence: without it the model gives the same logits."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, num_hidden_layers=4)
    weights = load_file(base / "model.safetensors")
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{part}.weight"].zero_()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    found = finetune.prune(recipe_on(base), tmp_path / "out", drop_layers=1)
    assert found.dropped_layers == (1,)
    assert found.block_influence[1] == pytest.approx(0, abs=1e-6)
    assert found.loss_after == pytest.approx(found.loss_before, abs=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    torch.testing.assert_close(merged_logits(tmp_path / "out"), merged_logits(base), rtol=0, atol=1e-5)
    assert not (tmp_path / "out" / MASK).exists()


def test_block_influence_is_one_minus_the_cosine(dense: Path) -> None:
    """Of each layer's input and output, over tokens."""
    model = LlamaForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(TOKENS, output_hidden_states=True).hidden_states
    expected = 1 - torch.cosine_similarity(states[1][0], states[2][0], dim=-1).mean()
    assert block_influence(model, TOKENS.tolist())[1] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "got neither of --sparsity and --drop-layers"),
        ({"sparsity": "0.5", "drop_layers": 1}, "got both of --sparsity and --drop-layers"),
        ({"sparsity": "0"}, "--sparsity is '0'; expected the share"),
        ({"sparsity": "1"}, "--sparsity is '1'; expected the share"),
        ({"sparsity": "nan"}, "--sparsity is 'nan'; expected the share"),
        ({"sparsity": "4:2"}, "--sparsity is '4:2'; expected the share"),
        ({"sparsity": "2:7"}, "has rows of 64 weights, which 7 doesn't divide"),
        ({"sparsity": "0.00001"}, "prunes no weight of layers this small"),
        ({"sparsity": "0.9999"}, "leaves no weight of model.layers.0.self_attn.q_proj.weight: lower it"),
        ({"sparsity": "0.5", "method": "sparsegpt"}, "--method is 'sparsegpt'; expected one of wanda"),
        ({"drop_layers": 1, "method": "wanda"}, "--method is for --sparsity"),
        ({"drop_layers": 0}, "--drop-layers is 0, and the base has 4 layers: expected 1 to 3"),
        ({"drop_layers": 4}, "--drop-layers is 4, and the base has 4 layers: expected 1 to 3"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], expected: str, dense: Path, recipe_on: RecipeOn, tmp_path: Path
) -> None:
    """One message, and nothing written."""
    with pytest.raises(FinetuneError, match=expected):
        finetune.prune(recipe_on(dense), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_pruning_that_takes_nothing_more_is_refused(
    pruned: Path, recipe_on: RecipeOn, tmp_path: Path
) -> None:
    """A base of which half is gone has nothing to give at half."""
    with pytest.raises(FinetuneError, match="prunes no weight beyond those that the base lacks already"):
        finetune.prune(recipe_on(pruned), tmp_path / "out", sparsity=0.5, method="magnitude")


def test_a_base_with_nan_is_refused(dense: Path, recipe_on: RecipeOn, tmp_path: Path) -> None:
    """What is chosen by its numbers would be chosen by nothing."""
    base = shutil.copytree(dense, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for options in ({"sparsity": 0.5}, {"drop_layers": 1}):
        with pytest.raises(FinetuneError, match="base computes NaN or infinity on the recipe's rows"):
            finetune.prune(recipe_on(base), tmp_path / "out", **options)


def test_too_few_rows_are_refused(dense: Path, recipe_on: RecipeOn, tmp_path: Path) -> None:
    """Wanda needs rows, magnitude none."""
    recipe = recipe_on(dense, data={"evaluation": {"rows": 37}})
    with pytest.raises(FinetuneError, match=r"has 3 rows to calibrate on.*--method magnitude"):
        finetune.prune(recipe, tmp_path / "out", sparsity=0.5)
    finetune.prune(recipe, tmp_path / "out", sparsity=0.5, method="magnitude")


def test_an_output_that_exists_is_left_alone(
    dense: Path, recipe_on: RecipeOn, finetune_here: FinetuneHere, tmp_path: Path
) -> None:
    """Exit 2, and the folder is as it was."""
    (tmp_path / "out").mkdir()
    found = finetune_here("prune", str(recipe_on(dense)), "--sparsity", "0.5", "--output", "out", code=2)
    assert "out exists already, and nothing is ever written over" in found.stderr
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line_says_what_was_done(
    dense: Path, recipe_on: RecipeOn, finetune_here: FinetuneHere, tmp_path: Path
) -> None:
    """The share, the losses; inspect then knows the base for a pruned one."""
    words = ("prune", str(recipe_on(dense)), "--sparsity", "2:4", "--output", "out")
    lines = dict(line.split(None, 1) for line in finetune_here(*words).lines if " " in line)
    assert lines["pruned"].endswith("50.00% of the linear layers', by wanda at 2:4")
    assert finetune_here("inspect", "out", "--json").json["pruned"] == {"method": "wanda", "sparsity": "2:4"}


def test_a_full_disk_leaves_nothing(dense: Path, recipe_on: RecipeOn, tmp_path: Path) -> None:
    """Neither in the weights nor in the mask."""
    recipe = recipe_on(dense)
    size = (dense / "model.safetensors").stat().st_size
    with pytest.raises(OSError, match="too large"), files_up_to(size // 2):
        finetune.prune(recipe, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_what_is_killed_leaves_no_folder(
    dense: Path, recipe_on: RecipeOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9, weights without their mask don't stand under the final name; the next time it goes
    through."""
    recipe = recipe_on(dense)
    child = os.fork()
    if not child:  # a process of its own, without seconds of imports
        monkeypatch.setattr(writing, "write_mask", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        finetune.prune(recipe, tmp_path / "out", sparsity=0.5, method="magnitude")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    finetune.prune(recipe, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mask_that_is_not_that_of_the_weights_is_refused(pruned: Path, dense: Path, tmp_path: Path) -> None:
    """Damaged, or of other weights."""
    model = AutoModelForCausalLM.from_pretrained(dense)
    mask = Mask.of_folder(pruned)
    assert mask is not None
    hold_mask(model, mask)
    with pytest.raises(ModelError, match=r"is not the mask of the weights beside it: .* has numbers where"):
        attach(model, AdapterSection())
    (tmp_path / MASK).write_bytes((pruned / MASK).read_bytes()[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        Mask.of_folder(tmp_path)


def read_mask(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """All of it."""
    mask = Mask.of_folder(folder)
    assert mask is not None
    for name, weight in weights.items():
        mask.kept(name, tuple(weight.shape))


@pytest.mark.parametrize(("at", "bit"), [(8, 0), (6, 0), (8, 5)], ids=["compression", "encrypted", "patched"])
def test_a_mask_that_zip_refuses_is_damaged(at: int, bit: int, pruned: Path, tmp_path: Path) -> None:
    """Whatever the library raises of it: one message."""
    content = bytearray((pruned / MASK).read_bytes())
    entry = content.index(b"PK\x01\x02") + 2 + at  # in the list of the files at the end
    content[entry] ^= 1 << bit
    (tmp_path / MASK).write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: fetch it, or prune, again"):
        read_mask(tmp_path, linear(pruned))


def test_a_mask_of_other_tensors_is_refused(pruned: Path, tmp_path: Path) -> None:
    """Where the weights are read, and where they are loaded to be trained: what it doesn't name wouldn't be
    masked."""
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_llama(other, num_hidden_layers=2)
    shutil.copyfile(pruned / MASK, other / MASK)
    expected = r"it has model\.layers\.2\..*, which they lack \(14 of 28\)"
    with pytest.raises(ModelError, match=expected):
        StoredWeights.of_folder(other)
    with pytest.raises(ModelError, match=expected):
        load_model(resolve_base(ModelSection(base=str(other))), dtype=torch.float32)
