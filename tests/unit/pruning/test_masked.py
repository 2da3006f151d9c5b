"""An adapter of a pruned base: its update is masked wherever it counts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import finetune
from finetune.engines.fsdp2 import FSDP2
from finetune.errors import CheckFailed, MergeError, ModelError
from finetune.generation.loading import load_adapted
from finetune.merging.combine import combine
from finetune.merging.merged_weights import MergedWeights
from finetune.merging.undo import UNDO_FILE
from finetune.merging.verification import lazy_model
from finetune.models.adapters.adapter import attach
from finetune.models.adapters.masked import MaskedUpdate
from finetune.models.adapters.start import lora_layers
from finetune.models.bases.folder import MASK
from finetune.models.bases.locate import resolve_base
from finetune.models.bases.pruned import is_pruned
from finetune.models.load import load_model
from finetune.models.mask import Mask
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from finetune.run import Run
from tests.support.adapters import TOKENS, make_adapter, merged_logits, unmerged_logits
from tests.support.cli import FinetuneHere

RecipeOn = Callable[..., Path]


def masked_logits(base: Path, adapter: Path) -> torch.Tensor:
    """Base + adapter as this toolkit loads them."""
    section = ModelSection(base=str(base))
    model = load_adapted(resolve_base(section), section, adapter, vocabulary=0, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def zeros(folder: Path) -> int:
    """Weights of the decoder's linear layers that are 0."""
    weights = load_file(folder / "model.safetensors")
    return sum(int((weight == 0).sum()) for name, weight in weights.items() if "proj" in name)


def test_the_gradients_are_those_of_the_masked_weight() -> None:
    """In float64, x (m * s B A)^T has autograd's own output and gradients."""
    torch.manual_seed(0)
    x, a, b = (
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 5, 8), (3, 8), (6, 3))
    )
    kept = torch.rand(6, 8) < 0.5
    plain = x @ (0.7 * b @ a).masked_fill(~kept, 0).T
    ours = MaskedUpdate.apply(x, a, b, kept, 0.7)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), (x, a, b))
    found = torch.autograd.grad((ours * weights).sum(), (x, a, b))
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rounding", "verify"), [("stochastic", "tensors"), ("calibrated", "tensors"), ("auto", "full")]
)
def test_a_merge_keeps_the_zeros(rounding: str, verify: str, pruned: Path, run: Run, tmp_path: Path) -> None:
    """Whatever the rounding, and the mask; what was merged is checked, and can be again."""
    finetune.merge(run, tmp_path / "merged", rounding=rounding, verify=verify)
    mask = Mask.of_folder(tmp_path / "merged")
    assert mask is not None  # what is trained on it is masked again
    weights, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", pruned))
    for name in mask.names:
        assert not weights[name].masked_fill(mask.kept(name, tuple(weights[name].shape)), 0).any(), name
        assert not torch.equal(weights[name], base[name]), name
    if verify == "full":
        assert not finetune.verify(tmp_path / "merged").failures


def test_a_model_larger_than_the_memory_is_compared_masked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer from the disk, base + adapter is masked, too."""
    monkeypatch.setattr(lazy_model, "fits_in_memory", lambda _: False)
    report = finetune.merge(run, tmp_path / "merged", dtype="float32")
    assert report.verification is not None
    assert report.verification.layer_by_layer


def test_a_merge_that_fills_zeros_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers are looked at, and not a sample."""
    rounded = MergedWeights._rounded

    def fill(self: Any, name: str, exact: torch.Tensor, first: int) -> torch.Tensor:
        found = rounded(self, name, exact, first)
        if name.endswith("0.mlp.up_proj.weight") and self._dtype is None:
            found[5] = 1e-3
        return found

    monkeypatch.setattr(MergedWeights, "_rounded", fill)
    with pytest.raises(CheckFailed, match=r"0\.mlp\.up_proj\.weight has weights where its base is pruned"):
        finetune.merge(run, tmp_path / "merged", rounding="nearest", verify="tensors")


def test_in_float32_the_merge_has_the_masked_logits(pruned: Path, run: Run, tmp_path: Path) -> None:
    """To float32's rounding; plain peft, which knows no mask, has others."""
    finetune.merge(run, tmp_path / "merged", dtype="float32")
    merged = merged_logits(tmp_path / "merged")
    torch.testing.assert_close(masked_logits(pruned, run.adapter), merged, rtol=0, atol=1e-5)
    target = finetune.load(run).target
    assert float((unmerged_logits(target, 0) - merged).abs().max()) > 1e-2
    assert "Plain peft knows no mask" in (run.adapter / "README.md").read_text()


def test_training_and_evaluation_see_the_same_model(
    run: Run, pruned: Path, recipe_on: RecipeOn, tmp_path: Path
) -> None:
    """The loss at the end of the training is that of the run, and of its merge in float32."""
    finetune.merge(run, tmp_path / "merged", dtype="float32", verify="none")
    own = finetune.evaluate(run).values["loss"]
    assert own == pytest.approx(run.metrics["evaluation_loss"], rel=1e-4)
    merged = finetune.evaluate(tmp_path / "merged", recipe_on(pruned)).values["loss"]
    assert merged == pytest.approx(own, rel=1e-4)


def test_what_is_remembered_of_an_update_goes_with_it(pruned: Path, run: Run) -> None:
    """Without gradients the update is kept; a changed B counts at the next call."""
    section = ModelSection(base=str(pruned))
    model: Any = load_adapted(resolve_base(section), section, run.adapter, vocabulary=0, dtype=torch.float32)
    with torch.no_grad():
        before = model(TOKENS).logits
        assert torch.equal(model(TOKENS).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        torch.testing.assert_close(model(TOKENS).logits, merged_logits(pruned), rtol=0, atol=1e-5)


def test_an_adapter_that_was_trained_without_the_mask_is_refused(pruned: Path, tmp_path: Path) -> None:
    """To be merged, and to answer."""
    make_adapter(pruned, tmp_path / "adapter")
    expected = "is pruned .* was trained without its mask: its update would fill the zeros"
    with pytest.raises(ModelError, match=expected):
        finetune.merge(tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ModelError, match=expected):
        finetune.load(tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


def test_one_that_was_trained_with_it_belongs_to_no_other_base(
    dense: Path, pruned: Path, run: Run, tmp_path: Path
) -> None:
    """Neither to one without a mask, nor to one with another, nor beside an adapter without."""
    with pytest.raises(ModelError, match=f"its update masked .* has no {MASK}: name the pruned base"):
        finetune.merge(run, tmp_path / "out", base=dense)
    other = shutil.copytree(dense, tmp_path / "other")
    shutil.copyfile(pruned / MASK, other / MASK)
    with (other / MASK).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ModelError, match="was trained with another mask"):
        finetune.merge(run, tmp_path / "out", base=other)
    make_adapter(pruned, tmp_path / "adapter")
    with pytest.raises(
        MergeError, match=r"was trained with another mask of a pruned base than run .* without"
    ):
        finetune.merge(run, tmp_path / "out", more=[tmp_path / "adapter"])


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({"method": "full"}, "adapter.method full knows no mask"),
        ({"method": "qlora"}, "adapter.method qlora knows no mask"),
        ({"use_dora": True}, "adapter.use_dora knows no mask"),
        (
            {"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]},
            "down_proj is pruned, and it is tra",
        ),
    ],
    ids=["full", "qlora", "dora", "whole"],
)
def test_what_would_fill_the_zeros_is_not_trained(
    adapter: dict[str, Any], expected: str, pruned: Path, recipe_on: RecipeOn
) -> None:
    """One message, before the first step."""
    section = {"adapter": adapter} if adapter.get("method") == "full" else {"adapter": {"rank": 4} | adapter}
    path = recipe_on(pruned, **section)
    if adapter.get("method") == "full":
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(tree | {"adapter": adapter}))
    with pytest.raises(ModelError, match=expected):
        finetune.train(path)


def test_an_engine_that_cuts_weights_up_is_refused(pruned: Path) -> None:
    """The mask isn't cut up with them."""
    with pytest.raises(ModelError, match="fsdp2 cuts the weights up, and not their mask"):
        is_pruned(pruned, AdapterSection(), FSDP2)


@pytest.mark.parametrize(
    "adapter",
    [
        {"init": "pissa"},
        {"target_modules": ["q_proj", "lm_head"], "dropout": 0.3},
        {"layers": [1], "use_rslora": True},
    ],
    ids=["pissa", "head, dropout", "a layer"],
)
def test_what_is_masked_is_what_is_pruned(adapter: dict[str, Any], pruned: Path) -> None:
    """From a part of the base, beside a head, in one layer: base + adapter is W + m s B A, whatever trains."""
    model = load_model(resolve_base(ModelSection(base=str(pruned))), dtype=torch.float32)
    adapted = attach(model, AdapterSection.model_validate({"rank": 4} | adapter)).eval()
    plain = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    mask = Mask.of_folder(pruned)
    assert mask is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for path, layer in lora_layers(adapted):
            weight = plain.get_parameter(f"{path}.weight")
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            update = layer.scaling["default"] * b @ a
            if path != "lm_head":
                update *= mask.kept(f"{path}.weight", tuple(weight.shape))
            weight += update
        found, expected = adapted(TOKENS).logits, plain(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert float((found - merged_logits(pruned)).abs().max()) > 1e-2


def test_the_pruned_base_comes_back_from_an_undoable_merge(pruned: Path, run: Run, tmp_path: Path) -> None:
    """Bit for bit, its mask with it; no zero is kept but where a list of places begins."""
    finetune.merge(run, tmp_path / "merged", rounding="nearest", verify="none", undoable=True)
    undo = load_file(tmp_path / "merged" / UNDO_FILE)
    kept = [values for name, values in undo.items() if name.startswith(("bits/", "whole/"))]
    assert sum(int((values == 0).sum()) for values in kept) <= len(kept)
    finetune.unmerge(tmp_path / "merged", tmp_path / "base", adapters=run.adapter)
    for name in ("model.safetensors", "config.json", MASK):
        assert (tmp_path / "base" / name).read_bytes() == (pruned / name).read_bytes(), name


def test_a_combination_is_masked_too(run: Run, pruned: Path, tmp_path: Path) -> None:
    """Of a run with itself, half and half: the merge is that of the run."""
    combine([str(run.folder)] * 2, tmp_path / "both", method="cat", weights=[0.5, 0.5])
    for adapter, name in ((run, "one"), (tmp_path / "both", "two")):
        finetune.merge(adapter, tmp_path / name, dtype="float32", verify="tensors")
    torch.testing.assert_close(
        merged_logits(tmp_path / "one"), merged_logits(tmp_path / "two"), rtol=0, atol=1e-5
    )


def test_no_adapter_is_extracted_of_a_pruned_base(run: Run, pruned: Path, tmp_path: Path) -> None:
    """A masked update has no low rank."""
    finetune.merge(run, tmp_path / "merged", verify="none")
    with pytest.raises(MergeError, match="is pruned: a masked update has no low rank"):
        finetune.extract(tmp_path / "merged", tmp_path / "out", base=pruned, rank=4)


def test_the_plan_knows_the_mask(
    pruned: Path, dense: Path, recipe_on: RecipeOn, finetune_here: FinetuneHere
) -> None:
    """A byte a weight; and no way of sharding that would cut it up."""
    masked, plain = (finetune.plan(recipe_on(base), gpus=2) for base in (pruned, dense))
    assert {way.engine for way in plain.ways} - {way.engine for way in masked.ways} == {
        "zero3",
        "zero3_offload",
        "fsdp2",
    }


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_a_start_by_rows_is_masked(init: str, pruned: Path, recipe_on: Callable[..., Path]) -> None:
    """The run's merge keeps the zeros, and holds."""
    run = finetune.train(recipe_on(pruned, adapter={"init": init}))
    assert run.summary["weights_changed"]
    report = run.merge(run.folder / "merged")
    assert report.verification is not None
    assert report.verification.holds
    merged = load_file(run.folder / "merged" / "model.safetensors")
    before = load_file(pruned / "model.safetensors")
    assert any(bool((weight == 0).any()) for weight in before.values())
    assert all(bool((merged[name][weight == 0] == 0).all()) for name, weight in before.items())
