"""How merged weights become 16-bit ones, what is left of the update, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from finetune.errors import MergeError
from finetune.merging.merge import MergeReport, merge
from finetune.merging.plan import plan_merge
from finetune.merging.rounding.calibrated import with_feedback
from finetune.merging.rounding.stochastic import Stochastic, bits
from finetune.merging.verification.distance import Distance
from finetune.merging.verification.predictions import failures_of
from finetune.merging.verification.reverify import verify_again
from finetune.merging.verification.tensors import is_decided
from finetune.recipe.schema import Recipe
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.models import save_tiny_llama

TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in bf16."""
    folder = tmp_path_factory.mktemp("rounding") / "base"
    folder.mkdir()
    save_tiny_llama(folder)
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def faint(bases: Path) -> Target:
    """An adapter whose update is far below half a unit in the last place, on rows of its own."""
    folder = bases.parent / "adapter"
    target = make_adapter(bases, folder)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: part * (0.0005 if "lora_B" in name else 1) for name, part in weights.items()}, file)
    return replace(target, recipe=recipe_of(bases, bases.parent / "rows.json", 40))


def recipe_of(base: Path, path: Path, rows: int) -> Recipe:
    row = "Say {} {} times.", "Well: {}."
    path.write_text(
        json.dumps(
            [
                {
                    "instruction": row[0].format(colour, count),
                    "input": "",
                    "output": row[1].format(colour * count),
                }
                for count in range(1, 1 + (rows + 3) // 4)
                for colour in ("blue", "red", "green", "grey")
            ][:rows]
        )
    )
    return Recipe.model_validate(
        {"model": {"base": str(base)}, "data": {"train": [{"path": str(path), "format": "alpaca"}]}}
    )


def merged(target: Target, output: Path, **options: Any) -> tuple[MergeReport, dict[str, str]]:
    report = merge(target, output, **options)
    return report, json.loads((output / "verification.json").read_text())["xxh3_128"]


@TYPES
def test_stochastic_rounding_is_exact_in_the_mean(dtype: torch.dtype) -> None:
    """Over many seeds the mean of a rounded number is the number, within three standard errors of a unit."""
    exact = torch.randn(4, 33, generator=torch.Generator().manual_seed(3))
    seeds = 400
    mean = sum(Stochastic(seed).rounded("w", exact, 0, dtype).double() for seed in range(seeds)) / seeds
    unit = torch.finfo(dtype).eps * exact.abs()
    assert float(((mean - exact).abs() / unit).mean()) < 3 * 0.5 / seeds**0.5


@TYPES
def test_a_stochastically_rounded_number_is_a_neighbour(dtype: torch.dtype) -> None:
    """It is less than a unit away, and a number of the type stays what it is."""
    exact = torch.randn(64, 65, generator=torch.Generator().manual_seed(4)) * 0.1
    rounded = Stochastic(1).rounded("w", exact, 0, dtype)
    assert bool(((rounded.float() - exact).abs() < torch.finfo(dtype).eps * exact.abs() + 1e-7).all())
    assert torch.equal(Stochastic(2).rounded("w", rounded.float(), 0, dtype), rounded)


def test_what_is_drawn_depends_on_seed_name_and_place_alone() -> None:
    """Rows drawn by themselves are those of the whole; another seed and another name draw other bits."""
    whole = bits(5, "a", 0, 50, 7)
    assert torch.equal(torch.cat([bits(5, "a", 0, 13, 7), bits(5, "a", 13, 37, 7)]), whole)
    for other in (bits(6, "a", 0, 50, 7), bits(5, "b", 0, 50, 7)):
        assert float((other == whole).float().mean()) < 0.02
    assert (int(whole.min()) >= 0, int(whole.max()) < 65536) == (True, True)


def test_one_seed_gives_the_same_bytes(faint: Target, tmp_path: Path) -> None:
    """In one file or several, on one thread or two; another seed gives other ones."""
    _, first = merged(faint, tmp_path / "one", rounding="stochastic", seed=7, check="none")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, again = merged(
            faint, tmp_path / "two", rounding="stochastic", seed=7, check="none", max_shard_size="50KB"
        )
    finally:
        torch.set_num_threads(threads)
    _, other = merged(faint, tmp_path / "three", rounding="stochastic", seed=8, check="none")
    assert first == again
    assert first != other


def test_the_other_neighbour_is_not_what_the_seed_decides() -> None:
    """Rows that are rounded by another seed are within a unit, and are found out."""
    truth = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mine, other = (Stochastic(seed).rounded("w", truth.float(), 8, torch.bfloat16) for seed in (1, 2))
    assert is_decided(mine, truth, Stochastic(1), "w", 8)
    assert not is_decided(other, truth, Stochastic(1), "w", 8)


def test_feedback_keeps_a_layers_output_closer() -> None:
    """On inputs with a few strong directions, the squared error of the output is less than half of that of
    the nearest."""
    draw = torch.Generator().manual_seed(6)
    inputs = torch.randn(400, 8, generator=draw) @ torch.randn(8, 96, generator=draw)
    weight = torch.randn(40, 96, generator=draw)
    rounded = with_feedback(weight, inputs.T @ inputs, torch.bfloat16)
    mine, nearest = (
        float((inputs @ (found.float() - weight).T).square().sum())
        for found in (rounded, weight.to(torch.bfloat16))
    )
    assert mine < 0.5 * nearest


def test_auto_is_never_further_than_the_nearest(faint: Target, tmp_path: Path) -> None:
    """The roundings are compared as a whole, what is written is the closest, and the record says so."""
    report, _ = merged(faint, tmp_path / "merged")
    assert report.rounding is not None
    assert report.verification is not None
    assert set(report.rounding.kl) == {"nearest", "stochastic", "by tensors"}
    assert report.verification.mean_kl == pytest.approx(min(report.rounding.kl.values()), rel=0.1, abs=1e-8)
    assert "- rounding: " in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "calibrated", "auto"])
def test_each_rounding_is_verified_again(rounding: str, faint: Target, tmp_path: Path) -> None:
    """finetune verify recomputes a merge by the rounding that its record names."""
    merge(faint, tmp_path / "merged", rounding=rounding, dtype="float16")
    again = verify_again(tmp_path / "merged", seed=1)
    assert (again.failures, again.left_out) == ([], None)


def test_a_merge_of_an_earlier_version_is_verified_again(faint: Target, tmp_path: Path) -> None:
    """A record that says nothing of the rounding is of a merge to the nearest."""
    merge(faint, tmp_path / "merged", rounding="nearest", dtype="float16")
    path = tmp_path / "merged" / "verification.json"
    record = json.loads(path.read_text())
    del record["rounding"], record["left"]
    path.write_text(json.dumps(record))
    assert verify_again(tmp_path / "merged", seed=1).failures == []


def test_what_is_left_of_the_update_is_said(faint: Target, tmp_path: Path) -> None:
    """To the nearest, little of a faint update is left, which is a warning; stochastically, nearly all."""
    little, _ = merged(faint, tmp_path / "nearest", rounding="nearest", check="tensors")
    much, _ = merged(faint, tmp_path / "stochastic", rounding="stochastic", check="tensors")
    assert little.left is not None
    assert much.left is not None
    assert little.left.kept < 0.5
    assert much.left.kept == pytest.approx(1.0, abs=0.2)
    assert [("--rounding stochastic" in note, "--dtype float32" in note) for note in little.notes] == [
        (True, True)
    ]
    assert much.notes == ()


def test_a_merge_that_is_nearer_to_the_base_fails() -> None:
    """A KL of more than half the base's own is a failure below the absolute bound, too."""
    logits = torch.eye(4) * 5
    close = Distance()
    close.add(logits, logits)

    def at(kl: float) -> Distance:
        return replace(close, kl_sum=kl * close.positions)

    assert list(failures_of(at(3e-4), close, at(1e-4), 5.0, torch.bfloat16)) == []
    (line,) = failures_of(at(3e-4), close, at(2e-4), 5.0, torch.bfloat16)
    assert "the base alone differs by 3.00e-04" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "--rounding is 'up'; expected one of"),
        ({"rounding": "nearest", "seed": 1}, "--seed with --rounding nearest: it draws nothing"),
        ({"seed": -1}, "--seed is -1; expected 0 or more"),
        ({"rounding": "stochastic", "dtype": "float32"}, "nothing to choose"),
        ({"seed": 1, "dtype": "float32"}, "--seed with --dtype float32"),
    ],
    ids=["name", "seed nearest", "seed negative", "float32", "seed float32"],
)
def test_what_contradicts_itself_is_refused(
    options: dict[str, Any], message: str, faint: Target, tmp_path: Path
) -> None:
    """One message, before anything is written."""
    with pytest.raises(MergeError, match=message):
        merge(faint, tmp_path / "out" / "merged", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_calibration_that_nobody_looks_at_is_refused(rounding: str, faint: Target, tmp_path: Path) -> None:
    """--calibration goes with calibrated and auto alone."""
    with pytest.raises(MergeError, match=f"--calibration with --rounding {rounding}"):
        merge(faint, tmp_path / "merged", rounding=rounding, calibration=faint.recipe)


def test_rounding_a_float32_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Where the base's own weights are in float32 there is no rounding to choose; the default asks nothing."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    with pytest.raises(MergeError, match="with weights that are stored in float32"):
        merge(target, tmp_path / "merged", rounding="stochastic", check="none")
    assert merge(target, tmp_path / "merged", check="none").rounding is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [(None, "no recipe says what the model was trained on"), (12, "4 rows to calibrate on, of at least 10")],
    ids=["no rows", "too few"],
)
def test_rows_that_are_too_few_are_refused(
    rows: int | None, message: str, faint: Target, bases: Path, tmp_path: Path
) -> None:
    """A calibration needs rows beside those that the merge is verified on; auto goes by the updates' sizes
    without them, and says so."""
    recipe = None if rows is None else recipe_of(bases, tmp_path / "rows.json", rows)
    target = replace(faint, recipe=recipe)
    with pytest.raises(MergeError, match=message):
        merge(target, tmp_path / "merged", rounding="calibrated")
    assert not (tmp_path / "merged").exists()
    report = merge(target, tmp_path / "merged", dtype="float16")
    assert report.rounding is not None
    assert message in report.rounding.note


def test_what_is_not_finite_calibrates_nothing(tmp_path: Path) -> None:
    """A base with NaN in a norm is refused, by the layer that reads it (its second moments have no factor)."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][3] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    target = replace(make_adapter(base, tmp_path / "a"), recipe=recipe_of(base, tmp_path / "rows.json", 40))
    with pytest.raises(MergeError, match=r"what model\.layers\.1\.self_attn\.q_proj reads .* is not finite"):
        merge(target, tmp_path / "merged", dtype="bfloat16", rounding="calibrated", check="none")


def test_rows_for_another_tokenizer_are_refused(faint: Target, tmp_path: Path) -> None:
    """A recipe on a base with other tokens can't calibrate this one."""
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_llama(other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 999, "content": "<another>"})
    path.write_text(json.dumps(content))
    with pytest.raises(MergeError, match="--calibration names a recipe for another tokenizer"):
        merge(faint, tmp_path / "merged", calibration=recipe_of(other, tmp_path / "rows.json", 40))


def test_what_peft_merges_is_rounded_to_the_nearest(bases: Path, tmp_path: Path) -> None:
    """A rounding that can't be honoured there is refused; the default is said to be the nearest."""
    target = make_adapter(bases, tmp_path / "adapter", init_lora_weights="pissa")
    with pytest.raises(MergeError, match="--rounding stochastic can't be honoured: peft itself must merge"):
        merge(target, tmp_path / "merged", rounding="stochastic", check="none")
    report = merge(target, tmp_path / "merged", check="none")
    assert "rounded to the nearest" in report.notes[0]


def test_the_plan_counts_the_calibration(faint: Target) -> None:
    """Its memory and time where there will be one, which --rounding stochastic spares."""
    assert faint.adapter is not None
    plan = plan_merge(
        str(faint.adapter), base=faint.model.base, dtype=None, output=None, calibration=faint.recipe
    )
    assert plan.calibration_bytes > 0
    assert "calibration" in dict(plan.lines())
    spared = plan_merge(
        str(faint.adapter), base=faint.model.base, dtype=None, output=None, rounding="stochastic"
    )
    assert spared.calibration_bytes == 0
