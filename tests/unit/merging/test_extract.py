"""Adapters that are extracted from two models of full weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import finetune
from finetune.errors import CheckFailed, MergeError
from finetune.merging import low_rank
from finetune.merging.extract import extract
from finetune.merging.low_rank import Size, nearest, nearest_to_sum
from finetune.merging.merge import merge
from finetune.runs.target import resolve_target
from tests.support.adapters import TOKENS, make_adapter, merged_logits
from tests.support.cli import FinetuneHere
from tests.support.disk import files_up_to
from tests.support.models import save_tiny_llama

Change = Callable[[dict[str, torch.Tensor]], object]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, stored in bf16."""
    folder = tmp_path_factory.mktemp("bf16")
    save_tiny_llama(folder)
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def tuned_from(base: Path, folder: Path, change: Change) -> Path:
    """A copy of a base whose tensors were changed."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def by_low_rank(weights: dict[str, torch.Tensor], *names: str) -> None:
    """Add a product of rank 3 to each of these weights."""
    torch.manual_seed(5)
    for name in names or (UP,):
        rows, columns = weights[name].shape
        weights[name] += 0.02 * torch.randn(rows, 3) @ torch.randn(3, columns)


def logits_by_peft(base: Path, adapter: Path, vocabulary: int | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, adapter).eval()(TOKENS).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 1},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}, "r": 4},
    ],
    ids=["plain", "faint", "patterns"],
)
def test_what_comes_out_of_a_merge_is_nearly_what_went_in(
    options: dict[str, Any], bf16_base: Path, tmp_path: Path
) -> None:
    """Tensor by tensor, |extracted - s B A| <= 2 |M - W - s B A| in Frobenius norm at the adapter's rank."""
    target = make_adapter(bf16_base, tmp_path / "adapter", **options)
    merge(target, tmp_path / "merged", check="none")
    found = extract(str(tmp_path / "merged"), tmp_path / "out", base=bf16_base, rank=4)
    assert len(found.tensors) == 14
    base, merged = (load_file(folder / "model.safetensors") for folder in (bf16_base, tmp_path / "merged"))
    merge(target, tmp_path / "wide", dtype="float32", check="none")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    extracted = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for tensor in found.tensors:
        module = tensor.name.removesuffix(".weight")
        a, b = (extracted[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        original = base[tensor.name].double()
        update = wide[tensor.name].double() - original
        rounding = float((merged[tensor.name].double() - original - update).norm())
        assert float((b @ a - update).norm()) <= 2 * rounding, tensor.name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_plain_peft_and_a_merge_give_the_tuned_model(tied: bool, tmp_path: Path) -> None:
    """Differences of low rank in linear layers, others in norms, embedding and head: base + adapter has the
    tuned model's logits, in plain peft and merged."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, tie_word_embeddings=tied)

    def change(weights: dict[str, torch.Tensor]) -> None:
        by_low_rank(weights, UP, "model.layers.0.self_attn.k_proj.weight")
        for name in ("model.norm.weight", "model.layers.1.input_layernorm.weight"):
            weights[name] += 0.1 * torch.randn_like(weights[name])
        for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
            weights[name] += 0.01 * torch.randn_like(weights[name])

    tuned = tuned_from(base, tmp_path / "tuned", change)
    found = extract(str(tuned), tmp_path / "out", base=base, rank=3)
    expected = merged_logits(tuned)
    assert (expected - merged_logits(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits_by_peft(base, tmp_path / "out"), expected, rtol=0, atol=1e-5)
    merge(resolve_target(str(tmp_path / "out")), tmp_path / "merged")
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [UP.removesuffix(".weight"), "model.layers.0.self_attn.k_proj"][::-1]
    assert found.whole[:2] == ("model.embed_tokens.weight", "model.layers.1.input_layernorm.weight")
    assert found.verification.mean_kl < 1e-9


def test_energy_decides_the_rank_of_each_layer(tiny_base: Path, tmp_path: Path) -> None:
    """The smallest rank that keeps the share: 3 for a product of rank 3, 1 where one direction has it all."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        by_low_rank(weights)
        weights["model.layers.0.mlp.up_proj.weight"] += 0.1

    tuned = tuned_from(tiny_base, tmp_path / "tuned", change)
    found = extract(str(tuned), tmp_path / "out", base=tiny_base, energy=0.9999)
    assert {tensor.name: tensor.rank for tensor in found.tensors} == {
        "model.layers.0.mlp.up_proj.weight": 1,
        UP: 3,
    }
    assert found.ranks == (1, 3)
    torch.testing.assert_close(
        logits_by_peft(tiny_base, tmp_path / "out"), merged_logits(tuned), rtol=0, atol=1e-4
    )


def test_new_tokens_are_whole(tiny_base: Path, tmp_path: Path) -> None:
    """Rows that the base lacks come with embedding and head; rows of no token are left out, and said so."""
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_base, tuned)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.add_tokens(["<|order|>", "<|end|>"])
    tokenizer.save_pretrained(tuned)
    model = LlamaForCausalLM.from_pretrained(tuned)
    model.resize_token_embeddings(len(tokenizer) + 6)
    model.get_parameter(UP).data += 0.01
    model.save_pretrained(tuned)
    found = extract(str(tuned), tmp_path / "out", base=tiny_base, rank=1)
    assert found.notes[0].startswith("6 rows of the tuned embedding belong to no token")
    assert found.whole == ("model.embed_tokens.weight", "lm_head.weight")
    report = merge(resolve_target(str(tmp_path / "out")), tmp_path / "merged")
    assert report.verification is not None
    expected = merged_logits(tuned)[..., : len(tokenizer)]
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=0, atol=1e-5)
    by_peft = logits_by_peft(tiny_base, tmp_path / "out", len(tokenizer))
    torch.testing.assert_close(by_peft, expected, rtol=0, atol=1e-5)


def test_biases_of_linear_layers_come_along(tmp_path: Path) -> None:
    """A bias that differs is in the adapter, beside an update of its layer or without one."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, attention_bias=True)

    def change(weights: dict[str, torch.Tensor]) -> None:
        by_low_rank(weights, "model.layers.0.self_attn.q_proj.weight")
        for name in ("q_proj", "o_proj"):
            weights[f"model.layers.0.self_attn.{name}.bias"] += 0.3

    tuned = tuned_from(base, tmp_path / "tuned", change)
    extract(str(tuned), tmp_path / "out", base=base, rank=3)
    expected = merged_logits(tuned)
    torch.testing.assert_close(logits_by_peft(base, tmp_path / "out"), expected, rtol=0, atol=1e-5)
    merge(resolve_target(str(tmp_path / "out")), tmp_path / "merged", check="tensors")
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=0, atol=1e-5)


def _other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))


def _in_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _damage(folder: Path) -> None:
    tuned = load_file(folder / "model.safetensors")
    tuned[UP][0, 0] = float("nan")
    save_file(tuned, folder / "model.safetensors", {"format": "pt"})


def _damage_norm(folder: Path) -> None:
    tuned = load_file(folder / "model.safetensors")
    tuned["model.norm.weight"][0] = float("nan")
    save_file(tuned, folder / "model.safetensors", {"format": "pt"})


def _as_int8(folder: Path) -> None:
    tuned = load_file(folder / "model.safetensors")
    tuned[UP] = tuned[UP].to(torch.int8)
    save_file(tuned, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (None, {"rank": None}, "got neither of --rank and --energy"),
        (None, {"energy": 0.5}, "got both of --rank and --energy"),
        (None, {"rank": 0}, "--rank is 0; expected a whole number from 1"),
        (None, {"rank": None, "energy": 1.5}, "--energy is 1.5; expected a share above 0, up to 1"),
        (None, {"rank": 65}, "--rank is 65, and model.layers.1.mlp.up_proj has 64 rows or columns"),
        (None, {"base": None}, "does not say what it was made from: name its base with --base"),
        (_other_tokenizer, {}, "have different tokenizers: the token '.' is"),
        (_in_config(rms_norm_eps=0.1), {}, "compute differently .rms_norm_eps is 0.1 and 1e-05"),
        (_in_config(rope_theta=5.0, rope_parameters={"rope_theta": 5.0}), {}, "compute differently"),
        (_damage, {}, "contains NaN or infinity"),
        (_damage_norm, {}, "^model.norm.weight contains NaN or infinity in .*tuned or .*: one of the two"),
        (_as_int8, {}, f"is stored quantised .{UP} is I8."),
    ],
    ids=[
        "neither", "both", "rank 0", "energy", "large rank", "no base", "tokenizer", "norm", "rope", "damaged",
        "damaged norm", "int8",
    ],
)  # fmt: skip
def test_what_can_not_be_extracted_is_refused(
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
    expected: str,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    """One message, and nothing written."""
    tuned = tuned_from(tiny_base, tmp_path / "tuned", by_low_rank)
    if change is not None:
        change(tuned)
    with pytest.raises(MergeError, match=expected):
        extract(str(tuned), tmp_path / "out", **{"base": tiny_base, "rank": 2} | options)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_models_of_different_shapes_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """The message names each size, of both."""
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_llama(other, intermediate_size=96, num_hidden_layers=1)
    with pytest.raises(MergeError, match=r"layers 1 and 2; feed_forward_width 96 and 128"):
        extract(str(other), tmp_path / "out", base=tiny_base, rank=2)


@pytest.mark.parametrize("names", [(), ("model.norm.weight",)], ids=["the same", "a norm"])
def test_without_a_difference_in_a_linear_layer_there_is_no_adapter(
    names: tuple[str, ...], tiny_base: Path, tmp_path: Path
) -> None:
    """peft has no adapter without a low-rank update; the message names what differs."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in names:
            weights[name] += 1

    tuned = tuned_from(tiny_base, tmp_path / "tuned", change)
    with pytest.raises(MergeError, match=f"no linear layer of .* differs from .*{''.join(names)}"):
        extract(str(tuned), tmp_path / "out", base=tiny_base, rank=2)


def test_what_float32_rounds_is_not_taken_for_a_wrong_adapter(bf16_base: Path, tmp_path: Path) -> None:
    """A difference of a hundredth of a unit of bf16, in the float32 weights of a layer, comes out as computed."""
    tuned = shutil.copytree(bf16_base, tmp_path / "tuned")
    weights = {name: values.float() for name, values in load_file(tuned / "model.safetensors").items()}
    torch.manual_seed(2)
    weights[UP] += weights[UP] * 2e-5 * torch.randn(weights[UP].shape)
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    found = extract(str(tuned), tmp_path / "out", base=bf16_base, rank=2)
    difference = weights[UP].double() - load_file(bf16_base / "model.safetensors")[UP].double()
    left = torch.linalg.svdvals(difference)[2:].norm()
    assert found.tensors[0].left == pytest.approx(float(left), rel=1e-4)


def test_an_adapter_is_no_tuned_model(tiny_base: Path, tmp_path: Path) -> None:
    """It is one already, and the message says what to do."""
    make_adapter(tiny_base, tmp_path / "adapter")
    with pytest.raises(MergeError, match=r"has an adapter already: expected full weights\. Merge it first"):
        extract(str(tmp_path / "adapter"), tmp_path / "out", base=tiny_base, rank=2)


def test_what_was_written_otherwise_than_computed_is_not_kept(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong number in the file is found by its tensor, and no folder appears."""
    from finetune.merging import extract as module

    write = module.write_adapter

    def damaged(folder: Path, *arguments: Any, **options: Any) -> None:
        write(folder, *arguments, **options)
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        weights[f"base_model.model.{UP.removesuffix('weight')}lora_B.weight"][0] *= 2
        save_file(weights, path, {"format": "pt"})

    monkeypatch.setattr(module, "write_adapter", damaged)
    tuned = tuned_from(tiny_base, tmp_path / "tuned", by_low_rank)
    with pytest.raises(CheckFailed, match=f"{UP} is .* from the tuned model's, and was computed"):
        extract(str(tuned), tmp_path / "out", base=tiny_base, rank=3)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_a_full_disk_leaves_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter that has no room is not there."""
    tuned = tuned_from(tiny_base, tmp_path / "tuned", by_low_rank)
    with pytest.raises(OSError, match="too large"), files_up_to(1_000):
        extract(str(tuned), tmp_path / "out", base=tiny_base, rank=3)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_the_command_prints_each_layer_and_the_whole(
    tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """A line a layer, then the total; the same is in extraction.json, and in Python's value."""
    tuned = tuned_from(tiny_base, tmp_path / "tuned", by_low_rank)
    words = ["extract", str(tuned), "--base", str(tiny_base), "--rank", "2"]
    done = finetune_here(*words, "--output", "out")
    assert done.lines[1].startswith(UP)
    found = finetune.extract(tuned, tmp_path / "again", base=tiny_base, rank=2)
    record = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert record["tensors"][0]["left"] == found.tensors[0].left > 0
    assert f"{found.residual:.2%} of the difference" in done.stdout
    finetune_here("merge", "out", "--output", "merged", "--verify", "tensors")


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_the_nearest_product_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    """Of any matrix, wide or tall, and of a sum of products."""
    torch.manual_seed(3)
    parts = [(0.5, torch.randn(shape[0], 6), torch.randn(6, shape[1])) for _ in range(2)]
    matrix = torch.stack([scale * b @ a for scale, b, a in parts]).sum(0)
    u, values, v = torch.linalg.svd(matrix.double())
    expected = (u[:, :4] * values[:4]) @ v[:4]
    for found in (nearest(matrix, Size(rank=4)), nearest_to_sum(parts, Size(rank=4))):
        torch.testing.assert_close((found.b @ found.a).double(), expected, rtol=0, atol=1e-5)
        assert found.left == pytest.approx(float(values[4:].norm()), rel=1e-5)


def test_large_matrices_go_through_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside noise, its rank-8 product is as near as the exact one to a millionth; a share of the energy
    gives the exact one's rank."""
    monkeypatch.setattr(low_rank, "EXACT_SIDE", 64)
    torch.manual_seed(3)
    matrix = torch.randn(300, 8) @ torch.randn(8, 400) + 0.05 * torch.randn(300, 400)
    values = torch.linalg.svdvals(matrix.double())
    assert nearest(matrix, Size(rank=8)).left == pytest.approx(float(values[8:].norm()), rel=1e-6)
    for share in (0.9, 0.9999):
        exact = int((values.square().cumsum(0) < share * values.square().sum()).sum()) + 1
        assert nearest(matrix, Size(energy=share)).rank == exact
