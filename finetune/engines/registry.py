"""The engines there are, and which one runs here. A new one is a file and a word in ENGINES. Torch-free."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetune import environment
from finetune.engines.base import Engine
from finetune.engines.ddp import DDP
from finetune.engines.deepspeed import STAGES
from finetune.engines.fsdp2 import FSDP2
from finetune.engines.single import SINGLE

ENGINES: tuple[Engine, ...] = (SINGLE, DDP, *STAGES, FSDP2)
"""In the order of the tables."""


def of_several() -> tuple[Engine, ...]:
    """The engines of several processes."""
    return tuple(engine for engine in ENGINES if engine.several)


def beside_frozen(engine: Engine) -> Engine:
    """What trains adapters beside a base that the engine's processes share out, and that is frozen: each has
    the adapters whole. An engine that can't do that, or need not, is itself."""
    return DDP if engine.shares_out_frozen else engine


def named(name: str) -> Engine | None:
    """The engine of that name."""
    return next((engine for engine in ENGINES if engine.name == name), None)


@contextmanager
def frozen_shared_out() -> Iterator[bool]:
    """While this lasts the current engine is what trains beside a frozen base; whether that is another one,
    whose processes share the base out."""
    engine = current()
    if beside_frozen(engine) is engine:
        yield False
        return
    switched = os.environ.pop(engine.switch)
    try:
        yield True
    finally:
        os.environ[engine.switch] = switched


def current() -> Engine:
    """The engine that the launcher asks for. The only reader of what it says of one. Raises LaunchError as
    `world` does."""
    if environment.world().size == 1:
        return SINGLE
    return next((engine for engine in of_several() if engine.runs_here(os.environ)), DDP)
