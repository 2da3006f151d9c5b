"""Distributed data parallel: each process has the whole model, and gradients are averaged. Li et al. 2020,
arXiv:2006.15704."""

from typing import TYPE_CHECKING, Any

from finetune.engines.base import Engine, Guide

if TYPE_CHECKING:
    import torch


class Ddp(Engine):
    """torch's DistributedDataParallel."""

    kinds = ("MULTI_GPU", "MULTI_CPU")
    splits_rows = True

    def adapt(self, accelerator: Any) -> None:
        """The base isn't sent: each process has it from files of the same SHA-256, which on a CPU stay in
        memory once for all processes unless they are written to."""
        from torch.nn.parallel import DistributedDataParallel

        prepare_model = accelerator.prepare_model

        def prepared(model: "torch.nn.Module", **options: Any) -> Any:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, _frozen_base(model))
            return prepare_model(model, **options)

        accelerator.prepare_model = prepared


def _frozen_base(model: "torch.nn.Module") -> list[str]:
    """The weights that an adapter found there; what it froze itself, such as where it starts, is none."""
    own = getattr(getattr(model, "base_model", None), "prefix", None)
    if own is None:
        return []
    everything = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, weight in everything if not weight.requires_grad and own not in name]


DDP = Ddp(
    "ddp",
    guides=(
        Guide(
            "ddp",
            "the base fits on one GPU; it is the fastest",
            "fit a base that is larger than a GPU",
            "each process has the whole model",
        ),
    ),
)
