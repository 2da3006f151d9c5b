"""An engine: how processes share one training. All that the toolkit knows of one is declared in its own file.
Torch-free.

registry.py has the tuple of engines and says which one runs here. Methods that need torch, transformers or
accelerate import them when they are called.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finetune.engines.keys import FileSection, text_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import AdapterSection

if TYPE_CHECKING:
    import torch

    from finetune.engines.group import Group

Method = Literal["lora", "dora", "qlora", "qlora_int8", "full"]
METHODS: tuple[Method, ...] = ("lora", "dora", "qlora", "qlora_int8", "full")
PRECISIONS = ("fp32", "bf16", "fp16")
Part = Literal["states", "gradients", "weights"]


@dataclass(frozen=True)
class Refusal:
    """Why a combination isn't offered."""

    reason: str
    nearest: str
    """What to choose in its place."""


FP16 = Refusal(
    "fp16 scales its loss, which is shown in one process on CUDA only", "bf16, or fp32 where there is no bf16"
)

INT8_CUT_UP = Refusal(
    "a base in int8 can't be cut up: bitsandbytes keeps the scales of its rows beside the weights",
    "ddp, zero1 or zero2, or adapter.quantization: nf4",
)


@dataclass(frozen=True)
class Guide:
    """When to take a shipped file of accelerate_configs."""

    file: str
    when: str
    not_for: str
    """What it can't do; continues "it can't"."""
    remark: str = ""
    """On what is sharded."""


@dataclass(frozen=True)
class Requirement:
    """A package or a program that an engine needs."""

    name: str
    without: str
    """What is refused, or fails, without it."""


def find_program(name: str) -> str | None:
    """Where a program is: on the PATH, or beside this interpreter, whose environment may not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


@dataclass(frozen=True)
class Total:
    """What a training holds besides activations and the loss, in bytes, before it is shared out."""

    weights: float
    """The base's, and those that train."""
    gradients: float
    """In float32: 4 for each weight that trains."""
    states: float
    """The optimizer's."""
    weight_bytes: int
    """Of one weight of the base."""
    layer: float
    """Of a decoder layer, as it is gathered: quantised, or in the arithmetic's type."""
    head: float
    """Of the head, or of the embedding, in the arithmetic's type."""
    half: bool
    """Whether the arithmetic is in bf16 or fp16."""


@dataclass(frozen=True)
class Held:
    """What one process holds of it, in bytes."""

    weights: float
    gradients: float
    states: float


@dataclass(frozen=True)
class Engine:
    """An engine whose processes each hold the full model, as plain torch has it; other engines say how they
    differ."""

    name: str
    """In --launch, in a run's lock, and in tables."""
    slowness: float = 1.0
    """How many times longer a step takes than one of ddp's, roughly: the order of preference. Not measured on
    GPUs."""
    guides: tuple[Guide, ...] = ()
    """A line for each of its shipped files."""

    several: ClassVar[bool] = True
    """Whether it is one of several processes."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """accelerate's names of it, in distributed_type."""
    switch: ClassVar[str] = ""
    """The variable that is "true" in its processes, accelerate's or one of its own; empty for plain
    processes."""
    section: ClassVar[FileSection | None] = None
    """Its section of an accelerate file."""
    packages: ClassVar[tuple[Requirement, ...]] = ()
    programs: ClassVar[tuple[Requirement, ...]] = ()
    splits_rows: ClassVar[bool] = False
    """Whether several processes can share a row (train.sequence_parallel_size)."""
    takes_over: ClassVar[bool] = False
    """Whether a library of its own moves, saves and loads the weights, in a form of its own."""
    shares_out_frozen: ClassVar[bool] = False
    """Whether its processes can share out a base that several adapters have in common (frozen.py), each with
    the adapters whole."""
    steps_in_backward: ClassVar[bool] = False
    """Whether the backward pass reduces gradients and takes the step, so that nothing can be refused or
    undone after it."""
    checkpoints_hold_pickles: ClassVar[bool] = False
    """Whether loading its checkpoints can run code."""
    gathered_words: ClassVar[str] = ""
    """What `gathered` counts, for the table of memory."""

    @property
    def shards(self) -> frozenset[Part]:
        """What each process holds a share of."""
        return frozenset()

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds the full model, so that all must make the same calls of it."""
        return "weights" in self.shards

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's state is in the host's memory."""
        return False

    @property
    def fills_layers(self) -> bool:
        """Whether it cuts up a base's decoder layers one by one, as they are read; a whole base otherwise."""
        return False

    @property
    def fuses_lora(self) -> bool:
        """Whether LoRA layers compute by finetune.models.kernels; peft's own forward, which keeps more,
        otherwise."""
        return True

    # What it refuses

    def refusal(self, method: Method, precision: str) -> Refusal | None:
        """Why a method in a precision isn't offered; None where it is, and tests/distributed shows it."""
        cut_up = INT8_CUT_UP if method == "qlora_int8" and self.shards_weights else None
        return FP16 if precision == "fp16" else cut_up

    def problem(self, recipe: Recipe) -> str | None:
        """What else in a recipe it can't do, and what to do; None where there is nothing."""
        adapter, optimizer = recipe.adapter, recipe.train.optimizer
        why = self.optimizer_problem(optimizer)
        if why is not None:
            return f"train.optimizer: {optimizer}: {why}"
        if adapter.by_peft and (self.takes_over or self.shards_weights):
            return (
                f"adapter.method: {adapter.method}: where weights are cut up, or kept in bf16, peft's "
                "layers of that kind were never shown to be right. Take ddp, or adapter.method: lora."
            )
        if recipe.train.sequence_parallel_size > 1 and not self.splits_rows:
            return (
                f"train.sequence_parallel_size: {recipe.train.sequence_parallel_size}: the processes of "
                f"{self.name} share no row. Take --launch ddp or fsdp2 with several processes, or leave it "
                "out."
            )
        if recipe.train.mlp_tile_tokens is not None and not self.fuses_lora:
            return (
                "train.mlp_tile_tokens: its LoRA layers are computed by peft, where MLPs have no tiles. Take "
                "ddp, zero2 or fsdp2, or remove it."
            )
        if recipe.train.riemannian_damping is not None and (self.takes_over or self.shards_weights):
            return (
                "train.riemannian_damping: it needs the adapter's matrices and gradients whole, and they are "
                "cut up. Take ddp, or remove it."
            )
        if recipe.objective.teaches and (why := self.teacher_problem(recipe)) is not None:
            return f"objective.teacher: {why}"
        if recipe.objective.draws and self.steps_in_backward:
            return (
                f"objective.kind: {recipe.objective.kind}: {self.name} takes its step in the backward pass, "
                "and one whose rewards teach nothing must be left out; it was never shown to draw answers. "
                f"Take ddp{'' if recipe.objective.teaches else ' or fsdp2'}."
            )
        if recipe.train.base_arithmetic is not None and self.takes_over:
            return (
                f"train.base_arithmetic: {recipe.train.base_arithmetic}: {self.name} moves and cuts up a "
                "base's weights, and not the 8-bit ones beside them. Take ddp, or remove it."
            )
        if self.shards_weights and recipe.objective.names_reference:
            return (
                "objective.reference (an adapter): each process would hold the model under it whole, and "
                f"{self.name} cuts models up. Take ddp, or set it to start or base."
            )
        if (
            (adapter.starts_at_base and self.takes_over)
            or (adapter.init == "loftq" and self.shards_weights)
            or (adapter.reads_rows and (self.takes_over or self.shards_weights))
        ):
            return (
                f"adapter.init {adapter.init}: where weights are cut up or kept in bf16 its start was never "
                "shown to be right. Take ddp, or adapter.init: default."
            )
        return None

    def frozen_problem(self, settings: Mapping[str, Any]) -> str | None:
        """What of its settings can't be honoured where only a frozen base is shared out; None where there is
        nothing."""
        return None

    def optimizer_problem(self, name: str) -> str | None:
        """Why it can't train with an optimizer, and what to take; None where it can."""
        return None

    def teacher_problem(self, recipe: Recipe) -> str | None:
        """Why a student can't learn from a teacher, and what to take; None where it can."""
        if not self.shards_weights:
            return None
        return (
            f"{self.name} cuts models up, and was never shown to train beside a teacher. Take ddp or fsdp2."
        )

    def check_installed(self) -> None:
        """Raises LaunchError where what it needs isn't installed."""

    # How accelerate is told

    def is_asked_for(self, values: Mapping[str, Any]) -> bool:
        """Whether the keys of an accelerate file ask for it."""
        return text_of(values, "distributed_type", "no").upper() in self.kinds

    def runs_here(self, environment: Mapping[str, str]) -> bool:
        """Whether a launcher of several processes told this one to use it."""
        return environment.get(self.switch, "").lower() == "true"

    def contradictions(self, values: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with keys of its kind that are right one by one, a line each."""
        yield from ()

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Its section for accelerate; what the recipe decides, and what is harmless, is left out."""
        return {}

    def variables(self, arguments: Any, settings: Mapping[str, Any]) -> dict[str, str]:
        """The environment of its processes; `arguments` are those of accelerate's launcher, with the settings
        among them."""
        from accelerate.utils.launch import prepare_multi_gpu_env

        found: dict[str, str] = prepare_multi_gpu_env(arguments)
        return found

    def settle_environment(self) -> None:
        """What a process sets that `accelerate launch` started."""

    def prepare_launch(self) -> None:
        """What is done once, before the first process starts."""

    # How a model is trained

    def loading(self, precision: str) -> AbstractContextManager[None]:
        """While this lasts a base is loaded as the engine needs it; the group of processes must have been
        formed."""
        return nullcontext()

    def cuts_up_while_loading(self) -> bool:
        """Whether a base that is loaded now is shared out by transformers, so that it is put on no device."""
        return False

    def building_unsharded(self) -> AbstractContextManager[None]:
        """While this lasts a model that is built is this process's own, in full."""
        return nullcontext()

    def share_layer(self, layer: "torch.nn.Module", precision: str) -> None:
        """Keep this process's share of a decoder layer that has just been filled, where `fills_layers`."""
        raise NotImplementedError

    def place(self, model: "torch.nn.Module", device: "torch.device") -> "torch.nn.Module":
        """The model where it computes."""
        return model if self.takes_over else model.to(device)

    def trainer_options(self, *, on_cpu: bool) -> dict[str, Any]:
        """Of transformers' TrainingArguments, those that it decides."""
        return {
            "use_cpu": on_cpu,
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": False}},
        }

    def settle_accelerate(self, *, on_cpu: bool) -> None:
        """What accelerate must be told after the arguments were made."""

    def adapt(self, accelerator: Any) -> None:
        """Change what accelerate chose for it, before the model is prepared."""

    def inference(self, trainer: Any, model: Any) -> AbstractContextManager[None]:
        """While this lasts, between two steps, the unwrapped model can be asked for answers and hidden
        states."""
        return nullcontext()

    # Weights

    def full_weight(self, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        """A trained weight, gathered, in the precision of the optimizer, on the host. All processes must call
        this."""
        return parameter.detach().to("cpu", copy=True)

    def full_shape(self, parameter: "torch.nn.Parameter") -> tuple[int, ...]:
        """The parameter's shape, of which this process may hold a share."""
        return tuple(parameter.shape)

    def full_count(self, parameter: "torch.nn.Parameter") -> int:
        """How many elements the parameter has, over all processes."""
        return parameter.numel()

    def unfusable(self, weight: "torch.Tensor") -> str | None:
        """Why finetune.models.kernels can't compute with a layer's weight; None where they can."""
        return None

    # Checkpoints and memory

    def resuming(self, checkpoint: "Path", group: "Group") -> AbstractContextManager[None]:
        """While this lasts transformers loads a checkpoint that `resumes` takes."""
        return nullcontext()

    def resumes(self, then: "Engine") -> bool:
        """Whether it loads the checkpoints of another engine, or of another number of its own processes."""
        return not self.takes_over and not then.takes_over

    def gathered(self, total: Total) -> float:
        """Bytes of weights that are gathered at once, beside the share that a process keeps."""
        return 0.0

    def memory(self, total: Total, processes: int) -> Held:
        """What one of so many processes holds. Rajbhandari et al. 2020, arXiv:1910.02054."""
        shared = self.shards_weights and processes > 1
        return Held(
            weights=total.weights / processes + self.gathered(total) if shared else total.weights,
            gradients=total.gradients / (processes if "gradients" in self.shards else 1),
            states=total.states / (processes if "states" in self.shards else 1),
        )


def method_of(adapter: AdapterSection) -> Method:
    """The tables' name for the recipe's adapter section."""
    if adapter.method == "qlora":
        return "qlora_int8" if adapter.quantization == "int8" else "qlora"
    if adapter.method == "full":
        return "full"
    return "dora" if adapter.use_dora else "lora"
