"""DeepSpeed's ZeRO: the optimizer's state is shared out (1), the gradients too (2), the weights as well (3).

Rajbhandari et al. 2020, arXiv:1910.02054; the offloaded ones: Ren et al. 2021, arXiv:2101.06840.
"""

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.engines.base import (
    Engine,
    Guide,
    Held,
    Method,
    Part,
    Refusal,
    Requirement,
    Total,
    find_program,
)
from finetune.engines.keys import (
    FileSection,
    as_norm,
    at_least,
    flag_of,
    harmless,
    honoured,
    is_flag,
    is_nothing,
    one_of,
    refused,
)
from finetune.errors import LaunchError
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.optimizers import known_optimizer

if TYPE_CHECKING:
    import torch

    from finetune.engines.group import Group

OFFLOAD = Refusal("offloading is shown for lora alone", "zero2 or zero3 without offloading")
DORA = Refusal("DoRA under DeepSpeed was never shown to be right", "ddp or fsdp2")
DORA_CUT_UP = Refusal("DoRA needs the norm of whole weights, which ZeRO-3 has cut up", "ddp or fsdp2")

OFFLOADED_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused")
"""For which accelerate puts DeepSpeed's AdamW of the CPU; others would silently become its Adam."""

LIVE_WEIGHTS = 1e9
"""How many weights are kept gathered under ZeRO-3, by default (stage3_max_live_parameters)."""

STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
"""accelerate's variable; 2 where it isn't set."""
SAVES_WHOLE = "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"

NO_SSH = refused("processes of other machines are started there, with --node-rank, and not over ssh")
DEVICE = honoured(one_of("none", "cpu"), "none or cpu")
SECTION = FileSection("deepspeed_config", "", {
    "deepspeed_config_file": refused("write zero_stage and what else it holds into this file"),
    "zero_stage": honoured(one_of("1", "2", "3"), "1, 2 or 3 in the file itself"),
    "offload_optimizer_device": DEVICE, "offload_param_device": DEVICE,
    "offload_optimizer_nvme_path": refused("nothing is kept on NVMe; take cpu"),
    "offload_param_nvme_path": refused("nothing is kept on NVMe; take cpu"),
    "gradient_accumulation_steps": honoured(lambda value: is_auto(value) or at_least(1)(value), "auto"),
    "gradient_clipping": honoured(lambda value: is_auto(value) or as_norm(value) is not None, "auto"),
    "zero3_init_flag": honoured(is_flag, "true or false"),
    "zero3_save_16bit_model": harmless("checkpoints and results are whole in any case"),
    "deepspeed_moe_layer_cls_names": refused("mixtures of experts are not trained here"),
    "deepspeed_multinode_launcher": honoured(one_of("standard"), "standard (no process is started over ssh)"),
    "deepspeed_hostfile": NO_SSH, "deepspeed_exclusion_filter": NO_SSH, "deepspeed_inclusion_filter": NO_SSH,
})  # fmt: skip


@dataclass(frozen=True)
class DeepSpeed(Engine):
    """One of ZeRO's stages."""

    stage: int = 0
    in_host_memory: bool = False
    """Whether the optimizer's state, and with stage 3 the weights, are."""

    kinds = ("DEEPSPEED",)
    switch = "ACCELERATE_USE_DEEPSPEED"
    section = SECTION
    packages = (Requirement("deepspeed", "ZeRO sharding over several devices is refused without it"),)
    programs = tuple(
        Requirement(name, "deepspeed can't offload, or run on the CPU, without it")
        for name in ("g++", "ninja")
    )
    takes_over = True
    steps_in_backward = True
    checkpoints_hold_pickles = True
    gathered_words = "b times at most 1e9 weights, which DeepSpeed keeps gathered"

    @property
    def shards(self) -> frozenset[Part]:
        """One part more with each stage."""
        parts: tuple[Part, ...] = ("states", "gradients", "weights")
        return frozenset(parts[: self.stage])

    @property
    def offloads(self) -> bool:
        """As it was made."""
        return self.in_host_memory

    @property
    def fuses_lora(self) -> bool:
        """Not where weights are cut up."""
        return not self.shards_weights

    def refusal(self, method: Method, precision: str) -> Refusal | None:
        """DoRA, and more than LoRA with offloading."""
        if self.offloads and method != "lora":
            return super().refusal(method, precision) or OFFLOAD
        dora = DORA_CUT_UP if self.shards_weights else DORA
        return super().refusal(method, precision) or (dora if method == "dora" else None)

    def problem(self, recipe: Recipe) -> str | None:
        """New tokens, where weights are cut up; weights in bf16."""
        if recipe.train.weights_dtype == "bf16":
            return "train.weights_dtype: bf16: DeepSpeed keeps float32 copies of what trains. Take ddp."
        if self.offloads and not recipe.train.adam_bias_correction:
            return "train.adam_bias_correction: false: an offloaded state is that of DeepSpeed's own AdamW"
        if recipe.model.new_tokens and self.shards_weights:
            return (
                "model.new_tokens: peft gathers an embedding's rows under ZeRO-3 with CUDA's calls alone, "
                "which was never shown to work here. Take fsdp2, zero2 or ddp."
            )
        return super().problem(recipe)

    def optimizer_problem(self, name: str) -> str | None:
        """Where the state is offloaded accelerate would replace it; else it gets flat shares of tensors."""
        if self.offloads and name not in OFFLOADED_OPTIMIZERS:
            return (
                "an offloaded state is that of DeepSpeed's own AdamW. Take adamw, or an engine that doesn't "
                "offload."
            )
        known = known_optimizer(name)
        if known is None or known.elementwise:
            return None
        if known.averages:
            return "it puts averages into the model itself, of which ZeRO keeps copies. Take adamw; or ddp."
        return (
            "its update of a weight follows from the whole tensor, of which ZeRO gives it a flat share. Take "
            "adamw or adamw_8bit; or ddp, which cuts nothing up."
        )

    def check_installed(self) -> None:
        """Raises LaunchError where DeepSpeed isn't installed, or can't build what it needs here."""
        if importlib.util.find_spec("deepspeed") is None:
            raise LaunchError(
                f"--launch {self.name} needs deepspeed, which is not installed: pip install deepspeed, or "
                "take fsdp2."
            )
        absent = [program.name for program in self.programs if find_program(program.name) is None]
        if absent and self._compiles():
            raise LaunchError(
                f"DeepSpeed compiles an extension and needs {' and '.join(absent)}, which is not here; or "
                "take fsdp2."
            )

    def _compiles(self) -> bool:
        """Whether DeepSpeed compiles an extension: for offloading, and between processes on the CPU."""
        if self.offloads:
            return True
        import torch

        return not torch.cuda.is_available()

    def is_asked_for(self, values: Mapping[str, Any]) -> bool:
        """By stage, and by whether something is offloaded."""
        stage = str(values.get("deepspeed_config.zero_stage")).strip()
        return (
            super().is_asked_for(values)
            and stage == str(self.stage)
            and bool(_offloaded(values)) == self.offloads
        )

    def runs_here(self, environment: Mapping[str, str]) -> bool:
        """By its stage; a process needs not know that it offloads, and a run's lock doesn't say."""
        return (
            super().runs_here(environment)
            and environment.get(STAGE, "2") == str(self.stage)
            and not self.offloads
        )

    def contradictions(self, values: Mapping[str, Any]) -> Iterator[str]:
        """A stage that is missing, or that can't offload what it is asked to."""
        if not super().is_asked_for(values):
            return
        stage, offloaded = values.get("deepspeed_config.zero_stage"), _offloaded(values)
        if is_nothing(stage):
            yield f"deepspeed_config.zero_stage is {stage}, expected 1, 2 or 3 in the file itself"
        if str(stage) == "1" and offloaded:
            yield "zero_stage 1 with an offload device: take zero_stage 2 or 3, or set the device to none"
        if str(stage) == "2" and "param" in offloaded:
            yield (
                "offload_param_device is cpu with zero_stage 2: only zero_stage 3 shards parameters, and so "
                "can offload them"
            )

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stage and offloading."""
        offloaded = _offloaded(values)
        return {
            "zero_stage": self.stage,
            "offload_optimizer_device": "cpu" if "optimizer" in offloaded else "none",
            "offload_param_device": "cpu" if "param" in offloaded else "none",
            "zero3_init_flag": self.stage == 3
            and flag_of(values, "deepspeed_config.zero3_init_flag", default=True),
            "zero3_save_16bit_model": self.stage == 3,
        }

    def variables(self, arguments: Any, settings: Mapping[str, Any]) -> dict[str, str]:
        """accelerate's of DeepSpeed."""
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        arguments.deepspeed_fields_from_accelerate_config = ",".join(settings)
        found: dict[str, str] = prepare_deepspeed_cmd_env(arguments)[1]
        return found

    def settle_environment(self) -> None:
        """Without it a checkpoint of ZeRO-3 would hold shares only."""
        reach_ninja()
        if self.shards_weights:
            os.environ[SAVES_WHOLE] = "true"

    def prepare_launch(self) -> None:
        """Builds that a killed process left locked would let all others wait for ever."""
        reach_ninja()
        remove_stale_builds()

    def loading(self, precision: str) -> AbstractContextManager[None]:
        """With stage 3 transformers cuts weights up meanwhile, so that no process ever holds the full
        model."""
        return _cutting_up(precision) if self.shards_weights else nullcontext()

    @property
    def fills_layers(self) -> bool:
        """With stage 3, whose own way of loading is for bases that aren't quantised."""
        return self.shards_weights

    def share_layer(self, layer: "torch.nn.Module", precision: str) -> None:
        """As deepspeed.initialize would later."""
        import deepspeed
        from transformers.integrations import deepspeed_config

        deepspeed.zero.Init(module=layer, config_dict_or_path=deepspeed_config())

    def cuts_up_while_loading(self) -> bool:
        """With stage 3, unless a model is built in full meanwhile."""
        from transformers.integrations import is_deepspeed_zero3_enabled

        return bool(is_deepspeed_zero3_enabled())

    @contextmanager
    def building_unsharded(self) -> Iterator[None]:
        """transformers would share it out among all processes."""
        from transformers.integrations import deepspeed

        held = deepspeed._hf_deepspeed_config_weak_ref
        deepspeed.unset_hf_deepspeed_config()
        try:
            yield
        finally:
            deepspeed._hf_deepspeed_config_weak_ref = held

    def trainer_options(self, *, on_cpu: bool) -> dict[str, Any]:
        """On the CPU use_cpu would silently turn DeepSpeed off; without it transformers refuses bf16, so
        accelerate is told."""
        found = super().trainer_options(on_cpu=on_cpu)
        return found | {"use_cpu": False, "bf16": False, "ddp_backend": "gloo"} if on_cpu else found

    def inference(self, trainer: Any, model: Any) -> AbstractContextManager[None]:
        """ZeRO-3 gathers the weights of any module that is called."""
        if self.shards_weights:
            _forget_recorded_calls(trainer.deepspeed)
        return nullcontext()

    def full_weight(self, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        """The float32 copy that is trained, of weights that compute in bf16."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole: torch.Tensor | None = safe_get_full_fp32_param(parameter)
        assert whole is not None  # noqa: S101 - each trained parameter is in the optimizer
        return whole.detach().to("cpu", copy=True)

    def full_shape(self, parameter: "torch.nn.Parameter") -> tuple[int, ...]:
        """ZeRO-3 leaves a share of the weight, and its shape beside it."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def full_count(self, parameter: "torch.nn.Parameter") -> int:
        """The same for its number of elements."""
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def unfusable(self, weight: "torch.Tensor") -> str | None:
        """It may be there in the forward pass, by chance of what ZeRO-3 has not let go yet, and gone in the
        backward pass."""
        return "ZeRO-3 cuts its weights up" if hasattr(weight, "ds_id") else None

    def resumes(self, then: Engine) -> bool:
        """Its own, of any number of processes; see resuming."""
        return then.name == self.name

    def resuming(self, checkpoint: Path, group: "Group") -> AbstractContextManager[None]:
        """Each process's file holds its own share: for other processes the checkpoint is cut up again."""
        from finetune.engines.universal import processes_of, recut

        same = processes_of(checkpoint) == group.world_size
        return nullcontext() if same else recut(checkpoint, group)

    def gathered(self, total: Total) -> float:
        """ZeRO-3 lets go of no more than it must to hold a billion weights."""
        return min(total.weights, LIVE_WEIGHTS * total.weight_bytes)

    def memory(self, total: Total, processes: int) -> Held:
        """What trains is held in 16 bit where it computes so, beside shares of float32 copies; offloaded, the
        host has the state, and with stage 3 the weights."""
        if total.half:
            total = replace(
                total, weights=total.weights - total.gradients / 2, weight_bytes=min(total.weight_bytes, 2)
            )
        held = super().memory(total, processes)
        if self.offloads:
            return replace(
                held, states=0.0, weights=self.gathered(total) if self.shards_weights else held.weights
            )
        return replace(held, states=held.states + total.gradients / processes) if total.half else held


def is_auto(value: Any) -> bool:
    """Whether accelerate fills a key in."""
    return str(value).lower() == "auto"


def reach_ninja() -> None:
    """Let torch, which looks on the PATH alone, find the ninja that is installed beside this interpreter."""
    found = find_program("ninja")
    if found is not None and shutil.which("ninja") is None:
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(found).parent)))


BUILDS = ("deepspeed_*", "cpu_adam")
"""Folders of what DeepSpeed compiles when it is first needed."""


def remove_stale_builds(minutes: float = 10.0) -> None:
    """Remove the locks of DeepSpeed's builds in whose folders nothing was written for so long.

    torch's lock is a file that stands until its maker deletes it: one that was killed lets all others wait
    forever.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in chain(*(root.glob(f"**/{build}/lock") for build in BUILDS)):
        with suppress(FileNotFoundError):  # a build that has just ended
            if time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir()) > 60 * minutes:
                lock.unlink()


def _offloaded(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        part
        for part in ("optimizer", "param")
        if not is_nothing(values.get(f"deepspeed_config.offload_{part}_device"))
    )


@contextmanager
def _cutting_up(precision: str) -> Iterator[None]:
    """Where the processes hadn't met, DeepSpeed would take one for all of them."""
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision({"fp32": "no"}.get(precision, precision))
    plugin.set_deepspeed_weakref()
    yield
    del plugin


def _forget_recorded_calls(engine: Any) -> None:
    """DeepSpeed records the calls of one step to fetch weights ahead in the next; those of an evaluation
    aren't a step's."""
    if engine is None:
        return
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if coordinator.is_record_trace():
        coordinator._invalidate_trace()


ZERO1 = DeepSpeed(
    "zero1",
    guides=(
        Guide(
            "zero1",
            "all weights are trained (`adapter.method: full`) and the state is what doesn't fit",
            "help LoRA, whose state is small",
        ),
    ),
    stage=1,
)
ZERO2 = DeepSpeed(
    "zero2", 1.05, (Guide("zero2", "as zero1, and gradients don't fit either", "help LoRA much"),), stage=2
)
ZERO2_OFFLOAD = DeepSpeed(
    "zero2_offload",
    2.0,
    (
        Guide(
            "zero2_offload",
            "GPUs are few and the host's memory is large",
            "be fast; it is offered for lora",
            "the state in the host's memory",
        ),
    ),
    stage=2,
    in_host_memory=True,
)
ZERO3 = DeepSpeed(
    "zero3",
    1.5,
    (
        Guide(
            "zero3",
            "the base doesn't fit on one GPU",
            "DoRA; `model.new_tokens`; fuse LoRA layers (peft's own forward is used)",
        ),
    ),
    stage=3,
)
ZERO3_OFFLOAD = DeepSpeed(
    "zero3_offload",
    3.0,
    (
        Guide(
            "zero3_offload",
            "nothing else fits",
            "be fast; it is offered for lora",
            "state and weights in the host's memory",
        ),
    ),
    stage=3,
    in_host_memory=True,
)
STAGES = (ZERO1, ZERO2, ZERO2_OFFLOAD, ZERO3, ZERO3_OFFLOAD)
