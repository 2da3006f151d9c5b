"""Merges that can be undone: the base comes back, bit for bit."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import finetune
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import CheckFailed, FinetuneError, MergeError
from finetune.merging.merge import merge
from finetune.merging.plan import plan_merge
from finetune.merging.undo import LARGEST_GAP, UNDO_FILE
from finetune.merging.unmerge import unmerge
from finetune.models.bases.locate import folder_sha256
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.disk import files_up_to
from tests.support.models import save_tiny_llama


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "float32"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, in files of at most 100 kB."""
    return _base(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _base(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


def _base(folder: Path, dtype: torch.dtype, **changes: object) -> Path:
    save_tiny_llama(folder, **changes)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


def undoable(base: Path, folder: Path, *, merging: dict[str, Any] | None = None, **options: Any) -> Target:
    """A random adapter in folder/adapter, merged into folder/merged."""
    target = make_adapter(base, folder / "adapter", **options)
    merge(target, folder / "merged", check="none", undoable=True, **merging or {})
    return target


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
    ],
    ids=["lora", "dora", "modules to save", "embedding and head", "patterns"],
)
def test_the_base_comes_back_bit_for_bit(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """For each kind of adapter, every file that describes the base or holds its weights is the same again."""
    undoable(base, tmp_path, **options)
    found = unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert content(tmp_path / "out") == content(base)
    assert folder_sha256(tmp_path / "out") == folder_sha256(base)
    assert set(found.files) == set(content(base))


def test_new_tokens_and_a_tied_head_come_back(tmp_path: Path) -> None:
    """Rows that the merge added are gone again."""
    base = tmp_path / "base"
    base.mkdir()
    _base(base, torch.bfloat16, tie_word_embeddings=True)
    first = len(load_tokenizer(base))
    undoable(
        base,
        tmp_path,
        new_tokens=("<|order|>", "<|end|>"),
        trainable_token_indices={"embed_tokens": [first, first + 1]},
    )
    unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert content(tmp_path / "out") == content(base)


@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_a_merge_into_a_quantised_base_comes_back(stored: str, bf16_base: Path, tmp_path: Path) -> None:
    """The 16-bit base, though the adapter was merged into what its NF4 or int8 weights are."""
    undoable(bf16_base, tmp_path, merging={"qlora_base": stored})
    unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert content(tmp_path / "out") == content(bf16_base)


@pytest.mark.parametrize(("rounding", "share"), [("nearest", 0.08), (None, 2)])
def test_the_plan_bounds_the_undo_file(
    rounding: str | None, share: float, bf16_base: Path, tmp_path: Path
) -> None:
    """By the bytes of the changed weights: those of 2 % of them rounded to the nearest, else of all."""
    undoable(bf16_base, tmp_path, merging={"rounding": rounding}, lora_alpha=0.1)
    plan = plan_merge(
        str(tmp_path / "adapter"),
        base=None,
        dtype=None,
        output=tmp_path / "m",
        rounding=rounding,
        undoable=True,
    )
    undo = load_file(tmp_path / "merged" / UNDO_FILE)
    kept = sum(
        values.nbytes for name, values in undo.items() if name.startswith(("bits/", "gaps/", "whole/"))
    )
    linear = [shape for shape in _linear_shapes(bf16_base) if len(shape) == 2]
    assert 0 < kept <= plan.undo_bytes == int(share * sum(map(math.prod, linear)))
    assert "more for undo.safetensors" in dict(plan.lines())["disk"]


def _linear_shapes(base: Path) -> list[tuple[int, ...]]:
    return [
        tuple(values.shape)
        for path in base.glob("*.safetensors")
        for name, values in load_file(path).items()
        if "_proj." in name
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_merge_in_another_type_comes_back(dtype: str, bf16_base: Path, tmp_path: Path) -> None:
    """Also where the merged model's numbers are wider or narrower than the base's."""
    undoable(bf16_base, tmp_path, merging={"dtype": dtype})
    unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert content(tmp_path / "out") == content(bf16_base)


def test_several_adapters_come_off_in_the_order_of_the_merge(bf16_base: Path, tmp_path: Path) -> None:
    """Both are named; one alone, or the other way round, is refused."""
    target, names = make_adapter(bf16_base, tmp_path / "a"), [str(tmp_path / "a"), str(tmp_path / "b")]
    make_adapter(bf16_base, tmp_path / "b", r=6)
    merge(target, tmp_path / "merged", more=[tmp_path / "b"], check="none", undoable=True)
    for wrong, expected in (
        (names[:1], "got 1 adapters, and 2 were merged"),
        (names[::-1], "is not the one"),
    ):
        with pytest.raises(MergeError, match=expected):
            unmerge(tmp_path / "merged", wrong, tmp_path / "out")
    finetune.unmerge(tmp_path / "merged", tmp_path / "out", adapters=names)
    assert content(tmp_path / "out") == content(bf16_base)


@pytest.mark.parametrize(("rounding", "most"), [("nearest", 0.02), ("stochastic", 0.5)])
def test_a_rounded_merge_keeps_little(bf16_base: Path, tmp_path: Path, rounding: str, most: float) -> None:
    """Of a bf16 base and an update of a hundredth of it, less than 2 % of the numbers are kept where they were
    rounded to the nearest, in 16 bits each and 16 of a gap; of drawn ones more."""
    undoable(bf16_base, tmp_path, merging={"rounding": rounding}, lora_alpha=0.1)
    undo = load_file(tmp_path / "merged" / UNDO_FILE)
    assert not [name for name in undo if name.startswith("whole/")]
    kept = sum(values.numel() for name, values in undo.items() if name.startswith("bits/"))
    changed = [name for name in undo if name.startswith("bits/")]
    numbers = sum(
        values.numel()
        for path in bf16_base.glob("*.safetensors")
        for name, values in load_file(path).items()
        if f"bits/{name}" in changed
    )
    assert 0 < kept < most * numbers
    assert all(int(undo[name.replace("bits/", "gaps/")].min()) >= 0 for name in changed)


def test_places_far_apart_are_found_again(bf16_base: Path, tmp_path: Path) -> None:
    """A gap beyond 16 bits is bridged: one number of an embedding's last row comes back."""
    wide = tmp_path / "base"
    shutil.copytree(bf16_base, wide)
    adapter = tmp_path / "adapter"
    target = make_adapter(wide, adapter, target_modules=["v_proj"], modules_to_save=["embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if "embed_tokens" in name)
    model = LlamaForCausalLM.from_pretrained(wide, dtype=torch.bfloat16)
    trained = model.get_input_embeddings().weight.detach().clone()
    assert trained.numel() > LARGEST_GAP / 2
    trained[-1, -1] += 1
    save_file(tensors | {name: trained}, path, {"format": "pt"})
    merge(target, tmp_path / "merged", check="none", undoable=True)
    gaps = load_file(tmp_path / "merged" / UNDO_FILE)["gaps/model.embed_tokens.weight"]
    assert int(gaps.long().sum()) == trained.numel() - 1
    unmerge(tmp_path / "merged", [str(adapter)], tmp_path / "out")
    assert content(tmp_path / "out") == content(wide)


def _without_undo(merged: Path) -> None:
    (merged / UNDO_FILE).unlink()


def _damaged_undo(merged: Path) -> None:
    path = merged / UNDO_FILE
    save_file(load_file(path) | {"record": torch.zeros(8, dtype=torch.uint8)}, path)


def _truncated_undo(merged: Path) -> None:
    path = merged / UNDO_FILE
    path.write_bytes(path.read_bytes()[:-3])


def _disordered_places(merged: Path) -> None:
    path = merged / UNDO_FILE
    undo = load_file(path)
    name = next(name for name in undo if name.startswith("gaps/"))
    save_file(undo | {name: undo[name].flip(0)}, path)


def _places_without_numbers(merged: Path) -> None:
    path = merged / UNDO_FILE
    undo = load_file(path)
    undo.pop(next(name for name in undo if name.startswith("bits/")))
    save_file(undo, path)


def _damaged_config(merged: Path) -> None:
    path = merged / UNDO_FILE
    save_file(load_file(path) | {"file/config.json": torch.zeros(8, dtype=torch.uint8)}, path)


def _changed_weight(merged: Path) -> None:
    path = merged / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path, {"format": "pt"})


def _changed_file(merged: Path) -> None:
    path = merged / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (_without_undo, MergeError, "holds no undo.safetensors, and rounding can't be undone without it"),
        (_damaged_undo, MergeError, "undo.safetensors is damaged"),
        (_truncated_undo, FinetuneError, "undo.safetensors is truncated"),
        (_disordered_places, MergeError, "undo.safetensors is damaged .what it holds of .* is no list of"),
        (_places_without_numbers, MergeError, "undo.safetensors is damaged .what it holds of .* is no list"),
        (_damaged_config, MergeError, "undo.safetensors is damaged .error: "),
        (_changed_weight, CheckFailed, "model.norm.weight does not come back as it was .1 of 21 tensors"),
        (_changed_file, CheckFailed, "tokenizer.json does not come back as it was .1 of"),
    ],
    ids=["no file", "damaged", "truncated", "disordered", "no numbers", "config", "weight", "file"],
)
def test_what_does_not_come_back_is_not_written(
    change: Callable[[Path], None],
    error: type[Exception],
    expected: str,
    bf16_base: Path,
    tmp_path: Path,
) -> None:
    """One message, and no folder."""
    undoable(bf16_base, tmp_path, lora_alpha=0.1, merging={"rounding": "nearest"})
    if change is _changed_file:  # of which the merged folder has the base's own
        shutil.copyfile(bf16_base / "tokenizer.json", tmp_path / "merged" / "tokenizer.json")
    change(tmp_path / "merged")
    with pytest.raises(error, match=expected):
        unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_another_adapter_is_refused(bf16_base: Path, tmp_path: Path) -> None:
    """By its hash; the message has both."""
    undoable(bf16_base, tmp_path)
    make_adapter(bf16_base, tmp_path / "other", r=2)
    with pytest.raises(MergeError, match="is not the one that was merged: its SHA-256 is"):
        unmerge(tmp_path / "merged", [str(tmp_path / "other")], tmp_path / "out")


def test_an_index_says_that_the_undo_file_is_no_weights(bf16_base: Path, tmp_path: Path) -> None:
    """Servers that take every safetensors file where there is no index load the model alone."""
    undoable(bf16_base, tmp_path)
    merged = tmp_path / "merged"
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    expected = dict.fromkeys(load_file(merged / "model.safetensors"), "model.safetensors")
    assert index["weight_map"] == expected
    assert index["metadata"]["total_size"] == sum(
        v.nbytes for v in load_file(merged / "model.safetensors").values()
    )


def test_a_whole_model_is_no_adapter_to_take_away(bf16_base: Path, tmp_path: Path) -> None:
    """The message says so, and names no option that wasn't given."""
    undoable(bf16_base, tmp_path)
    with pytest.raises(MergeError, match="is whole weights already"):
        unmerge(tmp_path / "merged", [str(bf16_base)], tmp_path / "out")


def test_the_base_is_written_into_folders_that_are_not_there_yet(bf16_base: Path, tmp_path: Path) -> None:
    """They are made, as a merge makes them."""
    undoable(bf16_base, tmp_path)
    unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "a" / "new folder" / "out")
    assert content(tmp_path / "a" / "new folder" / "out") == content(bf16_base)


def test_what_peft_merges_is_not_undoable(bf16_base: Path, tmp_path: Path) -> None:
    """The option is refused, and nothing written."""
    target = make_adapter(bf16_base, tmp_path / "adapter", init_lora_weights="olora")
    with pytest.raises(MergeError, match="--undoable can't be honoured: peft itself must merge"):
        merge(target, tmp_path / "merged", undoable=True)
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_leaves_nothing(bf16_base: Path, tmp_path: Path) -> None:
    """Neither a merge whose undo.safetensors has no room, nor half a base."""
    target = make_adapter(bf16_base, tmp_path / "adapter", use_dora=True)
    options: dict[str, Any] = {"check": "none", "undoable": True, "max_shard_size": "100KB"}
    with pytest.raises(OSError, match="too large"), files_up_to(120_000):
        merge(target, tmp_path / "merged", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    merge(target, tmp_path / "merged", **options)
    with pytest.raises(OSError, match="too large"), files_up_to(60_000):
        unmerge(tmp_path / "merged", [str(tmp_path / "adapter")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


KILLED = """
import os, signal, sys
from finetune.exporters import safetensors as stream
write = stream._write_tensor
stream._write_tensor = lambda *one: write(*one) and os.kill(os.getpid(), signal.SIGKILL)
sys.argv[0] = "finetune"
from finetune.cli.app import main
main()
"""
"""The command line, whose process is killed (kill -9) once a tensor is written."""


@pytest.mark.parametrize(
    "words",
    [
        ["unmerge", "merged", "--adapter", "adapter", "--output", "out"],
        pytest.param(
            ["extract", "merged", "--base", "{base}", "--rank", "4", "--output", "out"],
            marks=pytest.mark.long,
        ),
    ],
    ids=["unmerge", "extract"],
)
def test_what_is_killed_leaves_no_folder(
    words: list[str], bf16_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """After kill -9 in the middle nothing stands under the final name, and the next time it goes through."""
    undoable(bf16_base, tmp_path)
    words = [word.format(base=bf16_base) for word in words]
    program = [sys.executable, "-c", KILLED, *words]
    assert subprocess.run(program, cwd=tmp_path, check=False, capture_output=True).returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "adapter", "merged"]
    finetune_here(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "out"]


def test_the_commands_print_sizes_and_hashes(
    bf16_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """merge says how large undo.safetensors is, and verify holds beside it; unmerge --json names each
    file's hash."""
    make_adapter(bf16_base, tmp_path / "adapter")
    words = ["merge", "adapter", "--base", str(bf16_base), "--output", "merged", "--undoable"]
    done = finetune_here(*words, "--dtype", "float32")
    size = (tmp_path / "merged" / UNDO_FILE).stat().st_size
    assert f"{size / 1e6:,.2f} MB" in next(line for line in done.lines if line.startswith("undo"))
    assert json.loads((tmp_path / "merged" / "verification.json").read_text())["undo_bytes"] == size
    assert finetune_here("verify", "merged").lines[-1] == "holds"
    found = finetune_here("unmerge", "merged", "--adapter", "adapter", "--output", "out", "--json").json
    assert found["files"].keys() == content(bf16_base).keys()
