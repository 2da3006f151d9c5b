"""Around the merge: its plan, the base of a QLoRA adapter, models read from the disk, verifying again,
combining."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import finetune
from finetune.errors import CheckFailed, MergeError
from finetune.exporters import safetensors
from finetune.merging.adapter import Adapter
from finetune.merging.combine import combine
from finetune.merging.merge import merge
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.plan import plan_merge
from finetune.merging.qlora import DequantizedWeights
from finetune.merging.verification import lazy_model as models
from finetune.merging.verification.distance import logits_of
from finetune.merging.verification.lazy_model import model_of
from finetune.merging.verification.reverify import verify_again
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import resolve_base
from finetune.models.safetensors import StoredWeights
from finetune.models.stored_quantization import DEQUANTIZABLE
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import make_adapter, unmerged_logits
from tests.support.cli import FinetuneHere
from tests.support.disk import files_up_to
from tests.support.messages import hearing
from tests.support.models import save_tiny_llama

ROWS = [list(range(3, 43))]


def read(target: Target) -> tuple[StoredWeights, Updates]:
    assert target.adapter is not None
    base = resolve_base(target.model)
    stored = StoredWeights.of_folder(base.folder)
    return stored, Updates(stored, load_config(base).to_dict(), [Adapter(target.adapter)])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_model_read_from_the_disk_computes_the_same(
    options: dict[str, object], tied: bool, tmp_path: Path
) -> None:
    """Layer by layer, base + adapter and the base alone have the logits that peft and transformers have in
    memory."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, tie_word_embeddings=tied, attention_bias=True)
    target = make_adapter(base, tmp_path / "adapter", **options)
    stored, updates = read(target)
    config = load_config(resolve_base(target.model))
    expected = unmerged_logits(target, 0)[0]
    config.tie_word_embeddings = updates.stays_tied
    found = logits_of(model_of(MergedWeights(stored, updates, torch.float32), config, streamed=True), ROWS)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    config.tie_word_embeddings = tied
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), ROWS)[0]
    for streamed_from_disk in (True, False):
        torch.testing.assert_close(
            logits_of(model_of(stored, config, streamed=streamed_from_disk), ROWS)[0],
            plain,
            rtol=0,
            atol=1e-5,
        )


def test_a_model_larger_than_the_memory_is_verified_layer_by_layer(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model in float32 doesn't fit, the report says how it was verified, and a wrong merge still
    fails."""
    monkeypatch.setattr(models, "fits_in_memory", lambda _: False)
    target = make_adapter(tiny_base, tmp_path / "adapter")
    report = merge(target, tmp_path / "merged", dtype="bfloat16")
    assert report.verification is not None
    assert report.verification.layer_by_layer
    assert report.verification.holds
    assert report.verification.mean_kl < 1e-3
    honest = safetensors.write_weights

    def careless(weights: MergedWeights, folder: Path, largest: int, workers: int) -> object:
        other = AutoModelForCausalLM.from_pretrained(tiny_base)
        other.model.layers[0].mlp.up_proj.weight.data *= 5
        written = honest(weights, folder, largest, workers)
        other.save_pretrained(folder)
        return written

    monkeypatch.setattr(safetensors, "write_weights", careless)
    with pytest.raises(CheckFailed, match="logits differ"):
        merge(target, tmp_path / "wrong")


@pytest.fixture
def qlora(tmp_path: Path, alpaca_file: Path) -> Target:
    """An adapter of a QLoRA run, on a bf16 base."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    recipe = Recipe.model_validate(
        {
            "model": {"base": str(base)},
            "adapter": {"method": "qlora", "rank": 4},
            "data": {
                "train": [{"path": str(alpaca_file), "format": "alpaca"}],
                "evaluation": {"fraction": 0.2},
            },
        }
    )
    made = make_adapter(base, tmp_path / "adapter")
    return Target(made.model, made.adapter, recipe, "a run")


def test_the_base_of_a_qlora_adapter_is_measured(qlora: Target, tmp_path: Path) -> None:
    """Both bases are scored on held-out rows against NF4 base + adapter; on a random base the dequantised one
    is closer."""
    said: list[str] = []
    with hearing(said.append):
        report = merge(qlora, tmp_path / "merged", rounding="nearest")
    assert report.qlora is not None
    assert report.qlora.taken == "nf4"
    assert report.qlora.scores["nf4"].kl < report.qlora.scores["16bit"].kl
    assert report.qlora.scores["nf4"].loss == pytest.approx(report.qlora.trained_loss, rel=1e-3)
    assert any("Taken: nf4, the closer one" in line for line in said)
    assert report.verification is not None
    assert report.verification.holds
    assert report.tensors is not None
    assert report.tensors.largest_error_ulps <= 0.51
    stored, found = (
        load_file(Path(qlora.model.base) / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    assert torch.equal(found["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    forced = merge(qlora, tmp_path / "forced", qlora_base="16bit")
    assert forced.qlora is not None
    assert (forced.qlora.taken, forced.qlora.forced) == ("16bit", True)
    plain = Target(qlora.model, qlora.adapter, None, "x", method="lora")
    with pytest.raises(MergeError, match="trained on a base in 16 bit, not in NF4"):
        merge(plain, tmp_path / "other", qlora_base="nf4")


def test_an_int8_base_is_measured_as_one_in_nf4_is(qlora: Target, tmp_path: Path) -> None:
    """The merged linear layers are base + update of the weights rounded to 127ths of their row's largest,
    each rounded once to bf16; `finetune verify` repeats it from the record; --qlora-base nf4 is refused."""
    assert qlora.recipe is not None
    tree = qlora.recipe.model_dump(mode="json", exclude_unset=True)
    tree["adapter"]["quantization"] = "int8"
    target = replace(qlora, recipe=Recipe.model_validate(tree))
    report = merge(target, tmp_path / "merged", rounding="nearest")
    assert report.qlora is not None
    assert (report.qlora.taken, set(report.qlora.scores)) == ("int8", {"16bit", "int8"})
    assert report.qlora.scores["int8"].loss == pytest.approx(report.qlora.trained_loss, rel=1e-3)
    assert "int8 base + adapter has loss" in report.qlora.lines()[0]
    stored = load_file(Path(str(qlora.model.base)) / "model.safetensors")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert qlora.adapter is not None
    lora = load_file(qlora.adapter / "adapter_model.safetensors")
    config = json.loads((qlora.adapter / "adapter_config.json").read_text())
    for name in [name for name in stored if "_proj" in name]:
        weight = stored[name].double()
        largest = weight.abs().amax(dim=1, keepdim=True)
        units = weight * 127 / largest
        rounded, ties = torch.round(units) * largest / 127, ((units - units.floor()) - 0.5).abs() < 1e-4
        matrices = [
            lora[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"].double()
            for part in "BA"
        ]
        expected = rounded + config["lora_alpha"] / config["r"] * matrices[0] @ matrices[1]
        error = (found[name].double() - expected).abs()
        assert ties.double().mean() < 0.02
        # Half a unit of bf16, which has 8 bits, and a hundredth for the scale's float32.
        assert torch.all((error <= 0.51 * 2**-7 * expected.abs() + 1e-6) | ties)
    again = verify_again(tmp_path / "merged", seed=3)
    assert (again.failures, again.left_out) == ([], None)
    with pytest.raises(MergeError, match="trained on a base in int8, not in NF4"):
        merge(target, tmp_path / "other", qlora_base="nf4")


@pytest.mark.parametrize("quantization", DEQUANTIZABLE)
def test_the_dequantised_base_is_the_one_that_bitsandbytes_computes_with(
    qlora: Target, quantization: str
) -> None:
    """Its linear layers have the values that a quantised model multiplies with; head and embedding are the
    stored ones."""
    from finetune.models.kernels.base_products import base_weight
    from finetune.models.load import load_model

    base = resolve_base(qlora.model)
    rounded = DequantizedWeights(StoredWeights.of_folder(base.folder), quantization)
    quantized = load_model(base, dtype=torch.float32, quantization=quantization)
    for name, module in quantized.named_modules():
        changed = type(module).__name__ in ("Linear4bit", "Linear8bitLt")
        if changed:
            found = torch.cat([block for _, block in rounded.blocks(f"{name}.weight")])
            assert torch.equal(found, base_weight(module, torch.float32)), name
        assert rounded.is_rounded(f"{name}.weight") is changed if hasattr(module, "weight") else True


def test_verifying_again_finds_a_flipped_bit(
    tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """`finetune verify` repeats the checks on a sample of its own; a flipped bit is found by its tensor's
    name, exit 3."""
    make_adapter(tiny_base, tmp_path / "adapter")
    merged = tmp_path / "merged"
    finetune_here("merge", str(tmp_path / "adapter"), "--base", str(tiny_base), "--output", str(merged))
    whole = verify_again(merged, seed=5)
    assert (whole.failures, whole.left_out, whole.tensors) == ([], None, 21)
    assert whole.check is not None
    assert whole.verification is not None
    path = merged / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    done = finetune_here("verify", str(merged), code=3)
    assert "is not what was written" in done.stderr
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    gone = verify_again(merged, seed=5)
    assert gone.left_out is not None
    assert len(gone.changed) == 1
    with pytest.raises(MergeError, match=r"holds no verification\.json"):
        verify_again(tmp_path, seed=0)


def test_a_card_says_what_was_merged(tiny_base: Path, tmp_path: Path) -> None:
    """README.md names base, adapter and the figures of the checks, and no folder of this machine;
    verification.json holds each tensor's hash."""
    merge(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    for part in (
        f"- base: {tiny_base.name}",
        f"- adapter: {tmp_path.name}/adapter",
        "recomputed in float64",
        "predictions: holds on 8 rows",
        "greedy",
    ):
        assert part in card
    assert str(tmp_path.parent) not in card
    assert len(json.loads((tmp_path / "merged" / "verification.json").read_text())["xxh3_128"]) == 21


def test_a_plan_of_405_billion_parameters_takes_headers_only(tmp_path: Path) -> None:
    """Time, disk and memory come from headers, in a process that loads no torch."""
    base, width, layers, inner, vocabulary = tmp_path / "base", 16384, 126, 53248, 128256
    base.mkdir()
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (1024, width),
        "self_attn.v_proj": (1024, width),
    }
    shapes |= {
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
    }
    shapes |= {
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    for layer in range(layers):
        _sparse(
            base / f"model-{layer:05d}.safetensors",
            {f"model.layers.{layer}.{name}.weight": s for name, s in shapes.items()},
        )
    ends = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    _sparse(base / "model-ends.safetensors", ends)
    (base / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
                "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": vocabulary,
                "max_position_embeddings": 131072,
            }
        )
    )  # fmt: skip
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    _sparse(adapter / "adapter_model.safetensors", {"base_model.model.lm_head.lora_A.weight": (16, width)})
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
    )
    words = ["merge", str(adapter), "--plan", "--json", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *words], check=True, capture_output=True, text=True
    )
    plan = json.loads(done.stdout)
    assert plan["parameters"] == 405_853_388_800
    assert plan["written_bytes"] == 2 * plan["parameters"]
    assert plan["memory_bytes"] < 800_000_000
    assert plan["layer_by_layer"] is True
    check = (
        f"import sys\nsys.argv = {['finetune', *words]!r}\nfrom finetune.cli.app import run\n"
        "assert run() == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
    narrow = plan_merge(str(adapter), base=None, dtype="float32", output=None)
    assert narrow.written_bytes == 4 * plan["parameters"]


def _sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bf16 file whose numbers take no room on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rounding", "near"], "--rounding is 'near'; expected one of auto"),
        (["--rounding", "nearest", "--seed", "3"], "--seed with --rounding nearest: it draws nothing"),
        (["--verify", "all"], "--verify is 'all'; expected one of full"),
        (["--qlora-base", "nf5"], "--qlora-base is 'nf5'; expected one of auto"),
        (["--max-shard-size", "5"], "--max-shard-size is '5'; expected a number and a unit"),
        (["--calibration", "nowhere.yaml"], "no such recipe"),
    ],
    ids=["rounding", "seed", "verify", "qlora base", "shard size", "calibration"],
)
def test_a_plan_refuses_what_the_merge_would(
    words: list[str], expected: str, tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """No option is left out of account."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter").adapter
    assert expected in finetune_here("merge", str(adapter), "--plan", *words, code=2).stderr


def test_a_plan_counts_every_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """What the second changes beside the first is in undo.safetensors, too, and what both change once."""
    for name, modules in (("a", ["q_proj"]), ("b", ["q_proj", "up_proj"])):
        make_adapter(tiny_base, tmp_path / name, target_modules=modules)
    names, options = (
        [str(tmp_path / name) for name in "ab"],
        {"dtype": None, "output": None, "undoable": True},
    )
    both = plan_merge(names[0], names[1:], base=tiny_base, **options)  # type: ignore[arg-type]
    second = plan_merge(names[1], base=tiny_base, **options)  # type: ignore[arg-type]
    assert both.adapter == ", ".join(names)
    assert both.undo_bytes == second.undo_bytes


@pytest.mark.parametrize(
    ("method", "options", "exact"),
    [
        ("cat", {}, True),
        ("svd", {"rank": 10}, True),
        ("svd", {}, False),
        ("linear", {}, None),
        ("ties", {"density": 0.5}, None),
    ],
)
def test_combined_adapters_are_their_weighted_sum(
    method: str, options: dict[str, float], exact: bool | None, tiny_base: Path, tmp_path: Path
) -> None:
    """cat, and svd of the parts' ranks together, are the sum to float32's rounding, rsLoRA among the
    parts."""
    same = exact is None
    make_adapter(tiny_base, tmp_path / "a", use_rslora=True)
    make_adapter(tiny_base, tmp_path / "b", r=4 if same else 6, lora_alpha=3)
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = combine(names, tmp_path / "out", method=method, weights=[0.7, -0.3], base=tiny_base, **options)  # type: ignore[arg-type]
    if exact is not None:
        assert (found.distance < 1e-5) is exact
    assert f"{names[1]}, weight -0.3" in (tmp_path / "out" / "README.md").read_text()
    stored = StoredWeights.of_folder(tiny_base)
    config = load_config(resolve_base(ModelSection(base=str(tiny_base)))).to_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    base = stored.whole(name).double()
    parts = [
        MergedWeights(stored, Updates(stored, config, [Adapter(Path(text))]), torch.float64)
        for text in (*names, found.output)
    ]
    first, second, combined = (part.rows(name, 0, 128) - base for part in parts)
    wanted = 0.7 * first - 0.3 * second
    distance = float((combined - wanted).norm() / wanted.norm())
    assert distance < 1e-5 if exact else distance < 1.5


@pytest.mark.parametrize("method", ["linear", "ties", "cat", "svd"])
@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"v_proj": 2}},
        {
            "rank_pattern": {"v_proj": 6, r"layers\.1\.self_attn\.q_proj": 2},
            "alpha_pattern": {"q_proj": 3, "v_proj": 32},
        },
        {"alpha_pattern": {"layers.0.self_attn.v_proj": 1}, "use_rslora": True},
    ],
    ids=["narrower", "by layer", "alpha"],
)
def test_what_combines_adapters_with_patterns_loads_in_peft(
    method: str, patterns: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """Ranks and scales differ between layers: the folder gives, in plain peft, what its add_weighted_adapter
    computes."""
    names, weights, density = ["a", "b"], [0.7, -0.3], 0.5 if method == "ties" else None
    for name in names:
        make_adapter(tiny_base, tmp_path / name, target_modules=["q_proj", "v_proj"], **patterns)
    path = tmp_path / "b" / "adapter_model.safetensors"
    save_file(
        {name: torch.randn_like(weight) * 0.05 for name, weight in load_file(path).items()},
        path,
        {"format": "pt"},
    )
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "a", adapter_name="a"
    )
    model.load_adapter(tmp_path / "b", adapter_name="b")
    for config in model.peft_config.values():
        config.r = 6  # peft makes its room by this, and not by what a pattern has above it
    rslora = model.peft_config["a"].use_rslora
    model.peft_config["a"].use_rslora = False
    model.add_weighted_adapter(
        names, weights, "c", combination_type=method, density=density, svd_full_matrices=False
    )
    model.peft_config["a"].use_rslora = rslora
    found = combine(
        [str(tmp_path / name) for name in names], tmp_path / "out", method=method, weights=weights,
        base=tiny_base, density=density,
    )  # fmt: skip
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "out")
    layers = dict(plain.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            expected = layer.get_delta_weight("c")
            if method in ("cat", "svd"):
                exact = 0.7 * layer.get_delta_weight("a") - 0.3 * layer.get_delta_weight("b")
                if method == "cat":
                    expected = exact
                else:  # the nearest of its rank
                    left, values, right = torch.linalg.svd(exact)
                    rank = layers[name].lora_A["default"].weight.shape[0]
                    expected = left[:, :rank] * values[:rank] @ right[:rank]
            torch.testing.assert_close(layers[name].get_delta_weight("default"), expected, rtol=0, atol=1e-5)
    assert found.changes_nothing is False
    merge(
        Target(ModelSection(base=str(tiny_base)), tmp_path / "out", None, ""),
        tmp_path / "merged",
        check="tensors",
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "mean"}, "expected one of cat, linear, ties, svd, slerp, dare"),
        ({"weights": [1.0]}, "a weight for each"),
        ({"weights": [1.0, float("nan")]}, "expected finite numbers"),
        ({"rank": 3}, "--rank is for --method svd, slerp and dare"),
        ({"method": "svd", "rank": 0}, "--rank is 0; expected a whole number from 1"),
        ({"method": "svd", "rank": 33}, "--rank is 33, and the narrowest of the adapted matrices has 32"),
        ({"method": "ties"}, "ties needs it"),
        ({"method": "dare"}, "dare needs it"),
        ({"density": 0.5}, "cat has none of it"),
        ({"method": "dare", "density": 0.0}, "--density is 0; expected a share above 0, up to 1"),
        ({"method": "svd", "seed": 3}, "--seed is for --method dare; svd draws nothing"),
        ({"method": "dare", "density": 0.5, "seed": -1}, "--seed is -1; expected a whole number from 0"),
        ({"method": "slerp", "weights": [0.5, 0.6]}, "expected two, from 0, whose sum is 1"),
        ({"method": "linear"}, "same r value"),
    ],
)
def test_what_can_not_be_combined_is_refused(
    options: dict[str, object], expected: str, tiny_base: Path, tmp_path: Path
) -> None:
    """One message, and nothing written."""
    make_adapter(tiny_base, tmp_path / "a")
    make_adapter(tiny_base, tmp_path / "b", r=6)
    asked: dict[str, object] = {"method": "cat", "weights": [0.5, 0.5]} | options
    with pytest.raises(MergeError, match=expected):
        combine([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", base=tiny_base, **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_a_part_with_nan_is_named(method: str, tiny_base: Path, tmp_path: Path) -> None:
    """Whoever computes the combination: by its file and its tensor."""
    make_adapter(tiny_base, tmp_path / "a")
    make_adapter(tiny_base, tmp_path / "b")
    path = tmp_path / "b" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(MergeError, match=f"b/adapter_model.safetensors: {name} contains NaN"):
        combine([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", method=method, base=tiny_base)


def test_parts_on_bases_of_other_names_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """In a merge of both and in a combination, where no hash says that the bases are one; --base does."""
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    folders = [str(make_adapter(base, tmp_path / f"of-{base.name}").adapter) for base in (tiny_base, copy)]
    expected = f"was trained on another base than .*: {copy}, and {tiny_base}. Name the base that both"
    with pytest.raises(MergeError, match=expected):
        combine(folders, tmp_path / "out", method="cat")
    with pytest.raises(MergeError, match=expected):
        finetune.merge(folders[0], tmp_path / "out", more=folders[1:])
    finetune.merge(folders[0], tmp_path / "out", more=folders[1:], base=tiny_base, verify="none")


def test_a_full_disk_is_said_whichever_library_finds_it(
    tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """safetensors and tokenizers, written in Rust, have errors of their own for it."""
    for name in ("a", "b"):
        make_adapter(tiny_base, tmp_path / name)
    for words, size in ((["combine", "a", "b"], 30_000), (["merge", "a", "--verify", "none"], 2_000)):
        with files_up_to(size):
            found = finetune_here(*words, "--base", str(tiny_base), "--output", "out", code=2)
        assert "the disk is full" in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_is_no_place_for_an_output(tiny_base: Path, tmp_path: Path) -> None:
    """One message, before anything is computed."""
    target = make_adapter(tiny_base, tmp_path / "a")
    (tmp_path / "notes").write_text("")
    with pytest.raises(MergeError, match=r"notes is a file, so nothing can be written to .*notes/x/merged"):
        merge(target, tmp_path / "notes" / "x" / "merged")


def test_parts_beyond_low_rank_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """peft would leave out what else an adapter holds."""
    make_adapter(tiny_base, tmp_path / "a")
    make_adapter(tiny_base, tmp_path / "b", use_dora=True)
    with pytest.raises(MergeError, match="uses use_dora, which a combination"):
        combine(
            [str(tmp_path / "a"), str(tmp_path / "b")],
            tmp_path / "out",
            method="cat",
            weights=[1, 1],
            base=tiny_base,
        )
