"""The attention of CUDA's packed rows, with a plain kernel where torch has one for GPUs alone: what it is
handed is what padded rows compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.models.batch import packed_batch, shared_batch
from finetune.models.kernels import varlen as kernels
from finetune.models.kernels.attention import (
    PER_DOCUMENT,
    VARLEN,
    choose_attention,
    per_document_attention,
    varlen_attention,
)
from finetune.models.kernels.install import install_fast_path
from tests.support import varlen as plain_kernels  # noqa: F401 - importing it registers them
from tests.support.families import Row, loaded, rows, save_tiny_family, tiny_config, with_adapter

CUDA = torch.device("cuda", 0)
NO_DROPOUT = {"attention_dropout": 0.0}
PACKS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "documents": ((5, 1, 9), ()),
    "branches": ((9, 3, 6, 7, 2), (0, 5, 8, 0, 7)),
}
"""Lengths and prefixes."""


def drawn(heads: int, tokens: int, width: int = 8) -> torch.Tensor:
    """Random numbers, 1 x heads x tokens x width, in float64, in which a gradient is asked for."""
    return torch.randn(1, heads, tokens, width, dtype=torch.float64).requires_grad_()


def outcome(attention: Any, pack: str, heads: int, window: int | None) -> list[torch.Tensor]:
    """The output, and the gradients of queries, keys and values."""
    torch.manual_seed(0)
    documents, prefixes = PACKS[pack]
    inputs = [drawn(4, sum(documents)), drawn(heads, sum(documents)), drawn(heads, sum(documents))]
    found, _ = attention(
        torch.nn.Module(),
        *inputs,
        None,
        scaling=0.3,
        sliding_window=window,
        documents=list(documents),
        prefixes=list(prefixes) or None,
    )
    return [found, *torch.autograd.grad(found, inputs, torch.randn(found.shape, dtype=found.dtype))]


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("pack", PACKS)
def test_one_call_is_a_call_of_each_document(pack: str, heads: int, window: int | None) -> None:
    """With heads that share keys, branches of unequal lengths, and windows."""
    ours, theirs = (
        outcome(attention, pack, heads, window) for attention in (varlen_attention, per_document_attention)
    )
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "granite"])
def test_a_model_computes_what_padded_rows_do(family: str, tmp_path: Path) -> None:
    """Loss and gradients of a pack with LoRA and the fused layers, in float64; mistral's window is short."""
    folder = save_tiny_family(tmp_path / "base", family, **NO_DROPOUT | {"hidden_act": "silu"})
    model = with_adapter(loaded(folder).double())
    install_fast_path(model)
    batch = packed_batch(rows())
    found = []
    for name in (VARLEN, PER_DOCUMENT):
        model.set_attn_implementation(name)
        loss = model(**batch).loss
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, weights)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_branches_compute_what_whole_documents_do(tmp_path: Path) -> None:
    """Pairs whose prompt is there once, in a model with a window shorter than the prompt."""
    folder = save_tiny_family(tmp_path / "base", "mistral", **NO_DROPOUT | {"sliding_window": 4})
    model = loaded(folder).double()
    prompt = rows()[1].token_ids
    pairs = [Row([*prompt, 7, 8, 9]), Row([*prompt, 11, 12]), Row([5, 6, 7, 8]), Row([5, 6, 7, 20, 21])]
    model.set_attn_implementation(VARLEN)
    shared, whole = model(**shared_batch(pairs, 2)).loss, model(**packed_batch(pairs)).loss
    torch.testing.assert_close(shared, whole, atol=1e-12, rtol=1e-12)


def test_nothing_waits_for_the_device() -> None:
    """On fake tensors of a GPU, from which nothing can be read: bounds and longest lengths are the host's."""
    documents, prefixes = PACKS["branches"]
    kernels.layout_of.cache_clear()
    with FakeTensorMode():
        query, key, value = (
            torch.empty(1, heads, sum(documents), 64, dtype=torch.bfloat16, device=CUDA)
            for heads in (32, 8, 8)
        )
        found = kernels.varlen(query, key, value, documents, prefixes, None, None)
    kernels.layout_of.cache_clear()
    assert (found.shape, found.device, found.dtype) == ((1, 27, 32, 64), CUDA, torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "dtype", "changes", "expected"),
    [
        ((8, 0), torch.bfloat16, {}, VARLEN),
        ((9, 0), torch.float16, {}, VARLEN),
        ((8, 0), torch.float32, {}, PER_DOCUMENT),
        ((7, 5), torch.float16, {}, PER_DOCUMENT),
        ((9, 0), torch.bfloat16, {"head_dim": 20}, PER_DOCUMENT),
        ((9, 0), torch.bfloat16, {"head_dim": 320}, PER_DOCUMENT),
        ((9, 0), torch.bfloat16, {"attention_dropout": 0.1}, PER_DOCUMENT),
    ],
    ids=str,
)
def test_the_kernel_is_asked_for_what_it_takes(
    capability: tuple[int, int],
    dtype: torch.dtype,
    changes: dict[str, Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Types, generations of GPUs, widths of a head, and no dropout."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = tiny_config("llama", **{"head_dim": 64} | NO_DROPOUT | changes)
    assert choose_attention(CUDA, dtype, config) == expected


def test_a_package_for_another_torch_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason in the log."""
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernels.use_newest_kernels.cache_clear()
    assert kernels.use_newest_kernels(CUDA) == "FA2"
    kernels.use_newest_kernels.cache_clear()
    assert "undefined symbol" in caplog.text
