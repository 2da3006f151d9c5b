"""The loss at supervised positions equals plain cross-entropy."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from finetune.models import sizes
from finetune.models.head_loss import FrozenHeadLoss, TrainedHeadLoss, cross_entropy, positions_that_fit
from finetune.models.loss import IGNORE_INDEX, LossInputs, next_token_labels, supervised_cross_entropy
from tests.support.losses import install_supervised_loss


def plain_loss(
    model: torch.nn.Module, ids: torch.Tensor, shift_labels: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    logits = model(input_ids=ids).logits
    return functional.cross_entropy(
        logits.flatten(0, 1),
        shift_labels.flatten(),
        reduction="sum",
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
    )


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 300, (3, 20), generator=generator)
    labels = torch.where(torch.rand(3, 20, generator=generator) < 0.4, ids.roll(-1, 1), IGNORE_INDEX)
    return ids, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_loss_and_gradients_equal_plain_cross_entropy(
    tiny_base: Path,
    example: tuple[torch.Tensor, torch.Tensor],
    smoothing: float,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp64, loss and every gradient equal plain cross-entropy over all logits, chunked or not, to
    1e-12."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", chunk)
    ids, labels = example
    ours = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()
    theirs = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()
    install_supervised_loss(ours, smoothing)
    got = ours(input_ids=ids, shift_labels=labels).loss
    expected = plain_loss(theirs, ids, labels, smoothing)
    got.backward()
    expected.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_frozen_head_gives_the_same_loss_and_gradients(
    tiny_base: Path,
    example: tuple[torch.Tensor, torch.Tensor],
    smoothing: float,
    chunk: int,
    weighted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp64, with a head that isn't trained, loss and gradients equal plain weighted cross-entropy to
    1e-12."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", chunk)
    ids, labels = example
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for ours in (True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()
        model.lm_head.requires_grad_(False)
        if ours:
            install_supervised_loss(model, smoothing)
            extra = {"shift_weights": weights} if weighted else {}
            loss = model(input_ids=ids, shift_labels=labels, num_items_in_batch=7, **extra).loss
        else:
            losses = torch.nn.functional.cross_entropy(
                model(input_ids=ids).logits.flatten(0, 1),
                labels.flatten(),
                reduction="none",
                ignore_index=IGNORE_INDEX,
                label_smoothing=smoothing,
            )
            loss = (losses * weights.flatten() if weighted else losses).sum() / 7
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.model.parameters()])))
    (got, gradient), (expected, plain) = results
    assert got == pytest.approx(expected, rel=1e-12)
    assert (gradient - plain).norm() / plain.norm() < 1e-12


def test_label_smoothing_is_for_training_only(
    tiny_base: Path, example: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """In eval mode the loss is the plain cross-entropy, whatever the label smoothing."""
    ids, labels = example
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    expected = plain_loss(model, ids, labels)
    install_supervised_loss(model, 0.3)
    assert model(input_ids=ids, shift_labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("supervised", [60, 9, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_head_is_called_as_often_as_in_another_process(
    monkeypatch: pytest.MonkeyPatch, supervised: int, weighted: bool
) -> None:
    """Calls that are added give no loss and no gradient; there are none where this process has the most to
    learn."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", 4)
    hidden = torch.randn(
        3, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    labels = torch.arange(60).reshape(3, 20) % 11
    labels.flatten()[supervised:] = IGNORE_INDEX
    weights = torch.linspace(0.5, 2, 60).reshape(3, 20) if weighted else None
    found = []
    for most_chunks in (None, lambda count: max(count, 15)):
        head = torch.nn.Linear(8, 11, bias=False, dtype=torch.float64)
        torch.nn.init.constant_(head.weight, 0.1)
        calls: list[int] = []
        head.register_forward_hook(lambda _, inputs, __, calls=calls: calls.append(len(inputs[0])))
        inputs = LossInputs(labels, labels, weights, most_chunks=most_chunks)
        loss = supervised_cross_entropy(hidden, inputs, head, 0.1)
        called = len(calls)
        found.append((loss.detach(), *torch.autograd.grad(loss, [hidden, head.weight])))
    assert called == 15
    for plain, padded in zip(*found, strict=True):
        assert torch.equal(plain, padded)


def test_a_batch_without_labels_has_a_zero_loss_with_a_gradient(tiny_base: Path) -> None:
    """Without any supervised position the loss is 0 and its backward pass runs."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    install_supervised_loss(model)
    ids = torch.ones((1, 4), dtype=torch.long)
    loss = model(input_ids=ids, shift_labels=torch.full_like(ids, IGNORE_INDEX)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert model.lm_head.weight.grad.abs().max() == 0.0


def test_loss_never_makes_logits_for_all_positions() -> None:
    """The head sees supervised positions only, CHUNK_POSITIONS at a time."""
    seen: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[0])
        return states.repeat(1, 4)

    hidden = torch.randn(2, 1500, 8, requires_grad=True)
    labels = torch.full((2, 1500), IGNORE_INDEX)
    labels[:, :600] = 3
    supervised_cross_entropy(hidden, LossInputs(labels, labels), head)
    assert seen == [512, 512, 176]


def test_labels_are_the_next_supervised_token() -> None:
    """Position t is labelled with token t + 1 where that token is supervised; the last position never is."""
    labels, weights = next_token_labels(torch.tensor([5, 6, 7, 8]), [0, 0, 1, 0.5])
    assert labels.tolist() == [IGNORE_INDEX, 7, 8, IGNORE_INDEX]
    assert weights.tolist() == [0, 1, 0.5, 0]


@pytest.mark.parametrize("chunk", [4, 1024])
def test_weights_multiply_each_positions_loss(
    tiny_base: Path, example: tuple[torch.Tensor, torch.Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64, loss and gradients equal the weighted sum of plain cross-entropies, chunked or not, to
    1e-12."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", chunk)
    ids, labels = example
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()
    theirs = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()
    install_supervised_loss(ours)
    got = ours(
        input_ids=ids, shift_labels=labels, shift_weights=weights, num_items_in_batch=weights.sum()
    ).loss
    logits = theirs(input_ids=ids).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE_INDEX
    )
    expected = (losses * weights.flatten()).sum() / weights.sum()
    got.backward()
    expected.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name


def test_generation_goes_through_the_models_own_forward(tiny_base: Path) -> None:
    """Without labels the output has logits, as before."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.ones((1, 4), dtype=torch.long)
    before = model(input_ids=ids).logits
    install_supervised_loss(model)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_trained_heads_gradients_are_exact(weighted: bool, smoothing: float) -> None:
    """In fp64, over chunks, those of states and head are those of numeric differences."""
    torch.manual_seed(0)
    states, weight = (torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for rows in (5, 7))
    labels, factors = torch.tensor([3, 0, 6, 6, 1]), torch.rand(5, dtype=torch.float64) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "CHUNK_POSITIONS", 2)
        assert torch.autograd.gradcheck(
            lambda *both: TrainedHeadLoss.apply(
                *both, cross_entropy(labels, smoothing), factors, None, torch.float64
            ),
            (states, weight),
        )


def kept_head(base: Path) -> tuple[PeftModel, torch.Tensor]:
    """The tiny base with a head that peft keeps a trained copy of, which isn't the base's, and a row."""
    model: PeftModel = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    return model.train(), torch.arange(3, 23)[None]


def test_a_head_that_is_trained_is_used_in_one_pass(tiny_base: Path) -> None:
    """peft's copy of a head makes its logits once, has plain cross-entropy's gradient, and is left alone
    where the adapter is off."""
    model, ids = kept_head(tiny_base)
    labels = ids.roll(-1, 1)
    copy = model.base_model.model.lm_head.modules_to_save["default"].weight
    expected = [plain_loss(model, ids, labels)]
    with model.disable_adapter():
        expected.append(plain_loss(model, ids, labels))
    (plain,) = torch.autograd.grad(expected[0], copy)
    install_supervised_loss(model.base_model.model)
    got = model(input_ids=ids, shift_labels=labels).loss
    assert type(got.grad_fn).__name__ == "TrainedHeadLossBackward"
    torch.testing.assert_close(torch.autograd.grad(got, copy)[0], plain, rtol=1e-10, atol=1e-12)
    with model.disable_adapter():
        without = model(input_ids=ids, shift_labels=labels).loss
    assert [got.item(), without.item()] == pytest.approx([loss.item() for loss in expected], rel=1e-12)


def test_a_trained_heads_gradient_is_summed_in_float32() -> None:
    """Of a head in bf16 over 64 chunks, it is 3e-3 from exact (relative L2): not more than one chunk's own
    rounding."""
    torch.manual_seed(0)
    states, labels = torch.randn(128, 16), torch.randint(0, 40, (128,))
    head = torch.nn.Linear(16, 40, bias=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "CHUNK_POSITIONS", 2)
        loss = TrainedHeadLoss.apply(states, head.weight, cross_entropy(labels), None, None, torch.bfloat16)
    wide = states.bfloat16().double() @ head.weight.bfloat16().double().T
    (exact,) = torch.autograd.grad(functional.cross_entropy(wide, labels, reduction="sum"), head.weight)
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert (gradient - exact).norm() < 3e-3 * exact.norm()


@pytest.mark.parametrize(("free", "positions"), [(10**8, 512), (8 * 10**9, 2048), (10**11, 8192)])
def test_free_memory_decides_how_much_is_computed_at_once(free: int, positions: int) -> None:
    """Of a head of LLaMA 3's size in bf16, between 512 positions and 8,192."""
    weight = torch.empty(128_256, 4096, dtype=torch.bfloat16, device="meta")
    assert positions_that_fit(free, weight) == positions


@pytest.mark.parametrize("items", [929, 941, 12_345])
def test_one_over_a_number_of_tokens_is_not_rounded_to_bf16(items: int) -> None:
    """Rounded, it would change each gradient by up to 0.4 %: of 929 tokens by 0.07 %, of 941 by 0.21 %. Beside a
    power of two, which bf16 holds, the gradients' sum has the exact ratio."""
    torch.manual_seed(0)
    weight = torch.randn(300, 64).bfloat16()
    states = (4 * torch.randn(400, 64)).bfloat16()
    labels = torch.randint(300, (400,))

    def gradients(divisor: float) -> torch.Tensor:
        ours = states.clone().requires_grad_()
        losses = FrozenHeadLoss.apply(ours, weight, cross_entropy(labels))
        (losses.sum() / divisor).backward()
        assert ours.grad is not None
        return ours.grad.double()

    found, exact = gradients(items), gradients(1024)
    assert float(found.abs().sum() / exact.abs().sum()) * items / 1024 == pytest.approx(1.0, abs=2e-4)
