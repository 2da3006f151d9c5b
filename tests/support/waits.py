"""How often a step of the real loop reads from the device, for which a GPU is waited for."""

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from finetune.recipe.schema import Recipe
from finetune.training.trainer import ExactTrainer
from tests.support.processes import start

READING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
ON_HOST, ON_DEVICE = {"_get_num_items_in_batch", "_means"}, "reduced"
"""What reads tensors in the host's memory on every machine, but for what it lets the processes add up."""


def reader() -> str:
    """The function that reads, behind those that called it; nothing where it is the host's own."""
    stack = traceback.extract_stack()[:-2]
    names = [frame.name for frame in stack if frame.name not in ("_fn", "inner", "__torch_function__")]
    return "" if ON_HOST & set(names) and ON_DEVICE not in names else " > ".join(names[-6:])


class Reads(TorchDispatchMode):
    """Counts what reads a tensor's numbers, by where, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it."""
        if func._schema.name in READING:
            self.found[reader()] += 1
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """The same of tolist, numpy and cpu, which no dispatcher sees on a CPU."""

    def __init__(self, reads: Reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it."""
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu"):
            self.reads.found[reader()] += 1
        return func(*args, **(kwargs or {}))


class OneStep(TrainerCallback):
    """Counts from the end of step 2 to that of step 3: batches, step, and what is logged of it."""

    def __init__(self) -> None:
        self.reads = Reads()
        self.modes = self.reads, Lists(self.reads)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Enter, or leave."""
        if state.global_step == 2:
            for mode in self.modes:
                mode.__enter__()
        elif state.global_step == 3:
            for mode in reversed(self.modes):
                mode.__exit__(None, None, None)


def reads_of_a_step(recipe: Recipe) -> dict[str, int]:
    """By where, in a run of the recipe."""
    counting, own = OneStep(), ExactTrainer.train

    def train(trainer: ExactTrainer, **options: Any) -> Any:
        trainer.add_callback(counting)
        return own(trainer, **options)

    ExactTrainer.train = train  # type: ignore[method-assign]
    try:
        start(recipe)
    finally:
        ExactTrainer.train = own  # type: ignore[method-assign]
    return {where: count for where, count in counting.reads.found.items() if where}


def main() -> None:
    """In one of several processes: what it counted, as JSON."""
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    print(json.dumps(reads_of_a_step(recipe)), flush=True)


if __name__ == "__main__":
    main()
