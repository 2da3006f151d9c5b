"""Muon for the layers' matrices, AdamW for all else: as torch's own two make it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune.training import run
from finetune.training.optimization.muon import layer_matrices
from tests.support.processes import EXACT, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe, found

FULL = {"adapter": {"method": "full"}}
TRAIN = EXACT | {"optimizer": "muon", "max_steps": 6, "weight_decay": 0.1, "embedding_learning_rate": 1e-3}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_step_is_torch_s_muon_and_torch_s_adamw(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The same bits after three steps; embedding (at its own rate), head and norms are AdamW's."""
    train = TRAIN | {"max_steps": 3, "schedule": "constant", "warmup_ratio": 0.0, "max_gradient_norm": None}
    trainer = trainer_of(make_recipe(**FULL, train=train), tmp_path)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    matrices = {names[id(weight)] for weight in layer_matrices(trainer.model)}
    assert {name.rpartition("layers.0.")[2] for name in matrices if "layers.0." in name} == {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    copies = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    def these(condition: Any) -> list[torch.Tensor]:
        return [copy for name, copy in copies.items() if name not in matrices and condition(name)]

    muon = torch.optim.Muon(
        [copies[name] for name in matrices], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": these(lambda name: "norm" in name), "lr": 1e-2, "weight_decay": 0.0},
            {"params": these(lambda name: "norm" not in name), "lr": 1e-3, "weight_decay": 0.1},
        ]
    )

    def beside(*_: Any) -> None:
        for name, weight in trainer.model.named_parameters():
            copies[name].grad = weight.grad.clone()
        muon.step()
        adamw.step()

    trainer.create_optimizer().register_step_pre_hook(beside)
    trainer.train()
    assert_equal(copies, {name: weight.detach() for name, weight in trainer.model.named_parameters()})


def test_a_resumed_run_is_the_same_bit_for_bit(make_recipe: MakeRecipe) -> None:
    """Momenta, means and both kinds of groups are in the checkpoint."""
    folder = start(make_recipe(**FULL, train=TRAIN))
    whole = weights_of(folder.path)
    folder.write_summary({"status": "running"})
    shutil.rmtree(folder.checkpoints / "checkpoint-6")
    run.resume(folder.path, recipe=None)
    assert_equal(whole, weights_of(folder.path))


def test_an_adapter_is_refused() -> None:
    """Muon is for the base's own matrices."""
    assert found("{train: {optimizer: muon}}") == [
        "train.optimizer  muon steps along the base's own matrices, and method lora trains an adapter beside "
        "them; take adamw, or adapter.method: full"
    ]
    assert not found("{train: {optimizer: muon}, adapter: {method: full}}")
