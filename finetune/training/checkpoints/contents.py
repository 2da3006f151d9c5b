"""What the files of a checkpoint hold. A file can be whole, its hash right, and still not be what the trainer
wrote: it is read here before anything is taken from it, without running code, so that a run can go on from an
earlier checkpoint.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import (
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)
from transformers.trainer_pt_utils import safe_globals

from finetune.errors import CheckpointError

COUNTERS = "counters.json"
"""What a checkpoint holds beside transformers' files: tokens and seconds up to it, and where the data
stand."""

RNG_STATES = "rng_state*.pth"

SHAPED_AS_ITS_WEIGHT = frozenset(
    {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "state1", "state2"}
)
"""What optimizers keep of each weight's own shape, by torch's and bitsandbytes' names."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counters(BaseModel):
    """The file COUNTERS."""

    tokens: Count
    supervised_tokens: Count
    step_seconds: Seconds
    seconds: Seconds
    feed: dict[str, Count]
    start: str = ""
    """The hash of the weights before the first step; empty in checkpoints of earlier versions."""
    values: str = ""
    """The hash of what the objective computed of the rows before the first step; empty where it computes
    nothing."""
    company_passes: Count = 0
    """How often the runs that train together were computed together; 0 for a run alone."""


class LoggedEntry(BaseModel, extra="allow"):
    """An entry of the trainer's log: numbers by name."""

    __pydantic_extra__: dict[str, float | None]
    step: Count


class SavedState(BaseModel):
    """What is read of trainer_state.json."""

    global_step: Count
    epoch: float | None
    log_history: list[LoggedEntry]
    best_global_step: Count | None = None
    best_metric: float | None = None
    total_flos: float = 0


Read = TypeVar("Read", bound=BaseModel)


def read_counters(checkpoint: Path) -> Counters:
    """The counters of a checkpoint. Raises CheckpointError where the file is none of counters."""
    return _read_json(checkpoint / COUNTERS, Counters)


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer's state when a checkpoint was taken. Raises CheckpointError where the file is none of a
    trainer's."""
    path = checkpoint / TRAINER_STATE_NAME
    _read_json(path, SavedState)
    try:
        return TrainerState.load_from_json(str(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise _strange(path, str(error)) from None


def check_contents(checkpoint: Path, step: int) -> None:
    """Raises CheckpointError where a file of this step's checkpoint is absent, or is not what its name
    says."""
    saved = read_state(checkpoint).global_step
    if saved != step:
        raise _strange(checkpoint / TRAINER_STATE_NAME, f"its global_step is {saved}")
    read_counters(checkpoint)
    generators = sorted(checkpoint.glob(RNG_STATES)) or [checkpoint / "rng_state.pth"]
    if not any(
        path.is_dir() for path in checkpoint.iterdir()
    ):  # where DeepSpeed and FSDP2 keep weights and optimizer in parts
        gathered = checkpoint / f"{FSDP_MODEL_NAME}.bin"
        if gathered.exists():
            _read_torch(gathered, lambda held: isinstance(held, dict) and bool(held))
        _read_torch(checkpoint / (OPTIMIZER_NAME_BIN if gathered.exists() else OPTIMIZER_NAME), _is_optimizer)
        for path in sorted(checkpoint.glob("*.safetensors")):
            _shapes_of(path)
    _read_torch(
        checkpoint / SCHEDULER_NAME,
        lambda held: isinstance(held["last_epoch"], int) and bool(held["base_lrs"]),
    )
    if (checkpoint / SCALER_NAME).exists():
        _read_torch(checkpoint / SCALER_NAME, lambda held: isinstance(held, dict))
    for path in generators:
        _read_torch(path, _is_generators, meta=False)


def check_fit(checkpoint: Path, trainer: Any) -> None:
    """Raises CheckpointError where data, weights or optimizer of the checkpoint are not those of the
    trainer."""
    feed, own = read_counters(checkpoint).feed, trainer.feed.state()
    if feed.keys() != own.keys():
        raise _strange(
            checkpoint / COUNTERS,
            f"its feed has {sorted(feed) or 'nothing'}, expected {sorted(own) or 'nothing'}",
        )
    if not (checkpoint / OPTIMIZER_NAME).exists():  # engines that cut weights up see for themselves
        return
    adapted = isinstance(trainer.model, PeftModel)
    held = (
        get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
        if adapted
        else trainer.model.state_dict()
    )
    found: dict[str, list[int]] = {}
    for path in checkpoint.glob("*.safetensors"):
        found |= _shapes_of(path)
    # A tied head isn't saved beside the embedding.
    tied = set() if adapted else set(getattr(trainer.model, "all_tied_weights_keys", None) or ())
    for name, weight in held.items():
        if name not in tied and found.get(name) != list(weight.shape):
            raise _strange(checkpoint, f"it has no weight {name} of shape {list(weight.shape)}")
    saved, groups = (
        torch.load(checkpoint / OPTIMIZER_NAME, map_location="meta", weights_only=True),
        trainer.optimizer.param_groups,
    )
    if [len(group["params"]) for group in saved["param_groups"]] != [
        len(group["params"]) for group in groups
    ]:
        raise _strange(checkpoint / OPTIMIZER_NAME, "it is the state of other weights")
    weights = [weight for group in groups for weight in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            if name in SHAPED_AS_ITS_WEIGHT and getattr(value, "shape", None) != weight.shape:
                raise _strange(checkpoint / OPTIMIZER_NAME, f"{name} of weight {number} is not of its shape")


def _read_json(path: Path, kind: type[Read]) -> Read:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _strange(path, error.strerror or str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise _strange(
            path, ": ".join([".".join(map(str, first["loc"])), first["msg"]]).lstrip(": ")
        ) from None


def _read_torch(path: Path, is_right: Callable[[Any], bool], *, meta: bool = True) -> None:
    """Loads no code, and with `meta` no numbers either."""
    try:
        with safe_globals():
            held = torch.load(path, map_location="meta" if meta else "cpu", weights_only=True)
        right = is_right(held)
    except OSError as error:
        raise _strange(path, error.strerror or str(error)) from None
    except Exception as error:  # noqa: BLE001 - of strange bytes, or of strange things in them, a dozen kinds are raised
        raise _strange(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not right:
        raise _strange(path, f"it holds a {type(held).__name__}")


def _is_optimizer(held: Any) -> bool:
    groups, states = held["param_groups"], held["state"]
    numbers = {number for group in groups for number in group["params"]}
    return bool(groups) and all(
        number in numbers and isinstance(state, dict) for number, state in states.items()
    )


def _is_generators(held: Any) -> bool:
    """Raises what the generators raise."""
    random.Random().setstate(held["python"])  # noqa: S311 - a state is tried, nothing is drawn
    np.random.RandomState().set_state(held["numpy"])
    torch.Generator().set_state(held["cpu"])
    return True


def _shapes_of(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise _strange(path, str(error)) from None


def _strange(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} can't be resumed from: {reason}.")
