"""Distributed data parallel: each process has the whole model, and gradients are averaged. Li et al. 2020,
arXiv:2006.15704."""

from finetune.engines.base import Engine, Guide


class Ddp(Engine):
    """torch's DistributedDataParallel."""

    kinds = ("MULTI_GPU", "MULTI_CPU")
    splits_rows = True


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
