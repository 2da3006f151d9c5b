"""Merges beside PEFT's own, number by number, for what peft can have trained."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import MergeError
from finetune.merging.merge import MergeReport, merge
from finetune.merging.verification.tensors import largest_error
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.models import save_tiny_llama

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 6},
    "dora": {"use_dora": True},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
    "regular expression": {"target_modules": r".*layers\.0\.mlp\.(up|gate)_proj"},
}


def base_of(folder: Path, dtype: torch.dtype, **changes: object) -> Path:
    """A tiny base, stored in a type."""
    folder.mkdir()
    save_tiny_llama(folder, **changes)
    LlamaForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def by_peft(target: Target, *, rows: int | None = None) -> dict[str, torch.Tensor]:
    """What peft merges in float32."""
    model = AutoModelForCausalLM.from_pretrained(target.model.base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model, str(target.adapter)).merge_and_unload()
    return dict(merged.state_dict())


def ours(target: Target, output: Path, **options: Any) -> tuple[MergeReport, dict[str, torch.Tensor]]:
    report = merge(target, output, **options)
    return report, {
        name: tensor
        for path in sorted(output.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Float32 numbers are within 2 ulp of peft's (at the row's largest); bf16 ones are peft's, rounded once,
    or next to it."""
    for name, tensor in found.items():
        truth = expected[name]
        assert tensor.shape == truth.shape, name
        if tensor.dtype == torch.float32:
            ulp = torch.finfo(torch.float32).eps * truth.abs().amax(dim=-1, keepdim=True)
            assert bool(((tensor - truth).abs() <= 2 * ulp).all()), name
        else:
            rounded = truth.to(tensor.dtype)
            neighbours = (tensor.view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
            assert int(neighbours.max()) <= 1, name
            assert float((neighbours > 0).float().mean()) < 1e-3, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_number_is_pefts(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A merge, which is streamed, has peft's numbers, rounded once; none of its tensors is absent or too
    many."""
    base = base_of(tmp_path / "base", dtype)
    target = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    report, found = ours(target, tmp_path / "merged")
    assert not any("by peft" in note for note in report.notes)
    expected = by_peft(target)
    assert found.keys() == expected.keys()
    compare(found, expected)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_embedding_that_was_resized_by_another_tool(tied: bool, tmp_path: Path) -> None:
    """Saved whole, with rows for new tokens, it replaces the base's; a tied head stays tied to it."""
    base = base_of(tmp_path / "base", torch.bfloat16, tie_word_embeddings=tied)
    target = make_adapter(base, tmp_path / "adapter")
    grown = load_tokenizer(base, new_tokens=["<a>", "<b>"])
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(grown))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    extra = {
        "base_model.model.model.embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()
    }
    if not tied:
        extra["base_model.model.lm_head.weight"] = model.get_output_embeddings().weight.detach().clone()
    save_file(load_file(path) | extra, path)
    grown.save_pretrained(tmp_path / "adapter")
    _, found = ours(target, tmp_path / "merged", check="tensors")
    assert found["model.embed_tokens.weight"].shape[0] == len(grown)
    assert ("lm_head.weight" in found) is not tied
    compare({name: found[name] for name in found}, by_peft(target, rows=len(grown)))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.config.vocab_size == len(grown)
    assert plain.config.tie_word_embeddings is tied
    assert plain.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape[1] > 3


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_biases(options: dict[str, Any], tmp_path: Path) -> None:
    """Trained biases of the base, and a bias of LoRA's own B, go into the base's."""
    base = base_of(tmp_path / "base", torch.float32, attention_bias=True)
    target = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], **options)
    _, found = ours(target, tmp_path / "merged")
    name = "model.layers.1.self_attn.q_proj.bias"
    compare({name: found[name]}, by_peft(target))
    assert not torch.equal(found[name], load_file(base / "model.safetensors")[name])


def test_a_bias_without_a_place_is_refused(tmp_path: Path) -> None:
    """LoRA's own bias where the base has none can't go anywhere."""
    base = base_of(tmp_path / "base", torch.float32)
    target = make_adapter(base, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(MergeError, match=r"trained a bias of model.layers.0.*the base has none there"):
        merge(target, tmp_path / "merged")


def test_adapters_go_in_in_order(tmp_path: Path) -> None:
    """Two adapters at once are the first merged, and then the second into what came of it."""
    base = base_of(tmp_path / "base", torch.float32)
    first = make_adapter(base, tmp_path / "first")
    second = make_adapter(base, tmp_path / "second", r=3, use_dora=True)
    _, both = ours(first, tmp_path / "both", more=[tmp_path / "second"])
    merge(first, tmp_path / "once")
    _, apart = ours(
        Target(ModelSection(base=str(tmp_path / "once")), second.adapter, None, "x"), tmp_path / "twice"
    )
    compare(both, apart)


def test_what_takes_a_part_of_the_base_goes_through_peft(tmp_path: Path) -> None:
    """PiSSA leaves a residual in the base: peft itself merges it, the report says so, and the result is base
    + adapter."""
    base = base_of(tmp_path / "base", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(
        model, LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    load_tokenizer(base).save_pretrained(tmp_path / "adapter")
    target = Target(ModelSection(base=str(base)), tmp_path / "adapter", None, "x")
    report, found = ours(target, tmp_path / "merged")
    assert "merged by peft" in report.notes[0]
    assert "pissa" in report.notes[0]
    untouched = load_file(base / "model.safetensors")
    # Untrained, it is the base again.
    torch.testing.assert_close(
        found["model.layers.0.self_attn.q_proj.weight"], untouched["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda base: (base / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002"),
        (lambda base: _cut(base / "model-00001-of-00002.safetensors", 100), "truncated"),
        (lambda base: _flip(base / "model-00001-of-00002.safetensors", 9), "damaged"),
        (
            lambda base: shutil.copyfile(
                base / "model-00001-of-00002.safetensors", base / "model.safetensors"
            ),
            "describes",
        ),
    ],
    ids=["absent", "truncated", "flipped header", "a part under the name of the whole"],
)
def test_a_damaged_base_is_refused(spoil: Any, expected: str, tmp_path: Path) -> None:
    """One clear error that names the file, and nothing left."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    target = make_adapter(base, tmp_path / "adapter")
    LlamaForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="300KB")
    (base / "model.safetensors").unlink()
    spoil(base)
    with pytest.raises(Exception, match=expected) as caught:
        merge(target, tmp_path / "out" / "merged")
    assert getattr(caught.value, "exit_code", None) == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda held: held | {"base_model.model.model.layers.0.mlp.strange": torch.zeros(2)},
            "unknown meaning",
        ),
        (lambda held: {name: held[name] for name in list(held)[1:]}, "only one of"),
        (
            lambda held: {name: value[:2] if "lora_A" in name else value for name, value in held.items()},
            "an A of shape",
        ),
        (
            lambda held: {name: value for name, value in held.items() if "layers.1.mlp.up" not in name},
            "has no weights for",
        ),
    ],
    ids=["left over", "half", "rank", "absent"],
)
def test_an_adapter_whose_tensors_do_not_add_up_is_refused(
    change: Any, expected: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Every tensor has its place, and every target its tensors."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)
    with pytest.raises(MergeError, match=expected):
        merge(target, tmp_path / "merged")


def test_a_rank_that_the_config_denies_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Config and weights must agree on the rank: the scale follows from it."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(MergeError, match="has rank 8, and its weights have rank 4"):
        merge(target, tmp_path / "merged")


def test_a_killed_merge_leaves_nothing_and_the_next_one_ends_right(tiny_base: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle no output stands under its name; what it left is taken away by the next
    merge."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from finetune.exporters import safetensors as stream\n"
        "stream.write_index = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from finetune.merging.merge import merge\n"
        "from finetune.merging.targets import choose_target\n"
        "merge(choose_target(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[3]))\n"
    )
    words = [
        sys.executable,
        "-c",
        program,
        str(tmp_path / "adapter"),
        str(tiny_base),
        str(tmp_path / "out" / "merged"),
    ]
    assert subprocess.run(words, check=False, capture_output=True).returncode == -9
    assert not (tmp_path / "out" / "merged").exists()
    assert len(list((tmp_path / "out").iterdir())) == 1
    merge(target, tmp_path / "out" / "merged")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]


def test_a_disk_that_is_too_small_in_the_end(
    tiny_base: Path, tmp_path: Path, request: pytest.FixtureRequest, finetune_here: FinetuneHere
) -> None:
    """A disk that fills up while the weights are written is one message, and nothing is left on it."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(small)], check=True))
    make_adapter(tiny_base, tmp_path / "adapter")
    words = ["merge", str(tmp_path / "adapter"), "--base", str(tiny_base), "--output", str(small / "merged")]
    assert "GB free" in finetune_here(*words, code=2).stderr
    # The check before the work aside, as where another process takes the room meanwhile.
    program = (
        "import sys\n"
        "from finetune.merging.strategies import streaming as streamed\n"
        "streamed.refuse_small_disk = lambda *_: None\n"
        "from finetune.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert list(small.iterdir()) == []


def test_cancelling_terms_on_a_base_of_zero_are_no_false_alarm() -> None:
    """Where the base is 0, as many numbers of NF4 are, terms of B A cancel to numbers finer than float32's
    sums: that is no error, and a number that is off by a tenth of itself is one."""
    truth, zeros = torch.tensor([[1.0, 3e-8]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert largest_error(torch.tensor([[1.0, 8e-8]], dtype=torch.bfloat16), truth, zeros) <= 0.51
    truth[0, 1] = 1e-3
    assert largest_error(torch.tensor([[1.0, 1.1e-3]], dtype=torch.bfloat16), truth, zeros) > 0.51
