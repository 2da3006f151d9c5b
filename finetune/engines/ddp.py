"""Distributed data parallel: each process has the whole model, and gradients are averaged. Li et al. 2020,
arXiv:2006.15704."""

import logging
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from finetune.engines.base import Engine, Guide

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Ddp(Engine):
    """torch's DistributedDataParallel."""

    kinds = ("MULTI_GPU", "MULTI_CPU")
    splits_rows = True

    def adapt(self, accelerator: Any) -> None:
        """The base isn't sent where each process has the same: on a CPU its pages stay in memory once for all
        processes, unless they are written to."""
        from torch.nn.parallel import DistributedDataParallel

        from finetune.engines.group import this_group

        prepare_model = accelerator.prepare_model

        def prepared(model: "torch.nn.Module", **options: Any) -> Any:
            if options.get("evaluation_mode"):  # nothing is sent then, and not all of the model need be here
                return prepare_model(model, **options)
            frozen = _frozen_base(model)
            others = this_group().those_that_differ(_sums(frozen.values()))
            if others:
                logger.warning(
                    f"the base of process {', '.join(map(str, others))} isn't the main process's to the bit, "
                    "and is replaced by it"
                )
            else:
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(frozen))
            return prepare_model(model, **options)

        accelerator.prepare_model = prepared


def _frozen_base(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """The weights that an adapter found there, and their names; the adapter's own, where it has frozen some,
    are none of them."""
    own = getattr(getattr(model, "base_model", None), "prefix", None)
    if own is None:
        return {}
    everything = chain(model.named_parameters(), model.named_buffers())
    return {name: weight for name, weight in everything if not weight.requires_grad and own not in name}


def _sums(weights: "Iterable[torch.Tensor]") -> str:
    """A number for each, by which other bits are known."""
    import torch

    found = []
    for weight in weights:
        held = weight.detach().flatten().view(torch.uint8)
        if held.storage_offset() % 8:
            held = held.clone()
        # In the width in which they are added up: converted one by one it takes ten times as long.
        odd = held.numel() % 8
        found.append(held[: held.numel() - odd].view(torch.int64).sum() + held[held.numel() - odd :].sum())
    if not found:
        return ""
    return " ".join(map(str, torch.stack([one.to(found[0].device) for one in found]).tolist()))


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
