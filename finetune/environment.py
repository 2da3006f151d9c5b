"""What launchers say in the environment: which process this is, and among how many. The only reader of it,
but for what finetune/engines reads of sharding.

torch's variables count where torch's own agent set them (finetune train --launch, torchrun, accelerate
launch). Left over in a shell, or set by a scheduler that starts no process itself, they are refused or taken
away: torch and accelerate would wait for processes that nobody starts. And whether there is an NVIDIA GPU.
Torch-free.
"""

import os
import re
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from finetune.errors import LaunchError

RUN = "FINETUNE_RUN"
"""The run folder that the launcher made for its processes; empty on a machine beside the first."""
LAUNCHER = "FINETUNE_LAUNCHER"
"""The launcher's process id."""
TIMEOUT = "FINETUNE_TIMEOUT_MINUTES"
"""How long the processes wait for each other."""
ROUND, CONTINUES = "FINETUNE_ROUND", "FINETUNE_CONTINUES"
"""On several machines: how often their processes were started by now, from 1, and the run that they go on
with, empty where there is none."""
STORE = "FINETUNE_STORE"
"""On one machine: the folder of the file in which the processes leave each other their addresses."""

MESSAGES = "FINETUNE_MESSAGES"
"""The file in which the main process leaves its messages for the launcher."""

NVIDIA_GPUS = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so*")
"""Where NVIDIA's driver shows its GPUs: on Linux, and under Windows' WSL 2, where it has no device files."""

RUN_THREAD = "run "
"""What the name of a thread begins with that trains one of several runs; the rest is the run's."""

API_KEY = "FINETUNE_API_KEY"
"""Not a launcher's but the user's: the key that clients send to finetune serve, and that a teacher's server
is asked with. Its name is needed in rooms that may not import one another."""

AGENT = "TORCHELASTIC_RUN_ID"
"""torch's agent sets it in each process that it starts."""
OF_TORCH = (
    AGENT, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip
OF_ACCELERATE = {
    "ACCELERATE_USE_DEEPSPEED": "",
    "ACCELERATE_USE_FSDP": "",
    "ACCELERATE_CONFIG_DS_FIELDS": "",
    "ACCELERATE_USE_CPU": "use_cpu",
    "ACCELERATE_DEBUG_MODE": "debug",
    "ACCELERATE_MIXED_PRECISION": "mixed_precision",
    "ACCELERATE_CPU_AFFINITY": "enable_cpu_affinity",
    "ACCELERATE_USE_MEGATRON_LM": "megatron_lm_config",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_config.dynamo_backend",
    "ACCELERATE_DYNAMO_MODE": "dynamo_config.dynamo_mode",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "dynamo_config.dynamo_use_fullgraph",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "dynamo_config.dynamo_use_dynamic",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "dynamo_config.dynamo_use_regional_compilation",
    "FSDP_VERSION": "fsdp_config.fsdp_version",
    "FSDP_SHARDING_STRATEGY": "fsdp_config.fsdp_sharding_strategy",
    "FSDP_RESHARD_AFTER_FORWARD": "fsdp_config.fsdp_reshard_after_forward",
    "FSDP_OFFLOAD_PARAMS": "fsdp_config.fsdp_offload_params",
    "FSDP_MIN_NUM_PARAMS": "fsdp_config.fsdp_min_num_params",
    "FSDP_AUTO_WRAP_POLICY": "fsdp_config.fsdp_auto_wrap_policy",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "fsdp_config.fsdp_transformer_layer_cls_to_wrap",
    "FSDP_BACKWARD_PREFETCH": "fsdp_config.fsdp_backward_prefetch",
    "FSDP_FORWARD_PREFETCH": "fsdp_config.fsdp_forward_prefetch",
    "FSDP_STATE_DICT_TYPE": "fsdp_config.fsdp_state_dict_type",
    "FSDP_USE_ORIG_PARAMS": "fsdp_config.fsdp_use_orig_params",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "fsdp_config.fsdp_cpu_ram_efficient_loading",
    "FSDP_SYNC_MODULE_STATES": "fsdp_config.fsdp_sync_module_states",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_config.fsdp_activation_checkpointing",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "fsdp_config.fsdp_activation_checkpointing_offload",
    "FSDP_IGNORED_MODULES": "fsdp_config.fsdp_ignored_modules",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "deepspeed_config.zero_stage",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "deepspeed_config.deepspeed_config_file",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "deepspeed_config.offload_optimizer_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "deepspeed_config.offload_param_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH": "deepspeed_config.offload_optimizer_nvme_path",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH": "deepspeed_config.offload_param_nvme_path",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "deepspeed_config.gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "deepspeed_config.gradient_clipping",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "deepspeed_config.zero3_init_flag",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "deepspeed_config.zero3_save_16bit_model",
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "deepspeed_config.deepspeed_moe_layer_cls_names",
}
"""How accelerate's launcher tells its processes -> the key of a configuration file that says the same."""
STARTED = {
    "srun": "SLURM_STEP_NUM_TASKS",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "mpiexec": "PMI_SIZE",
    "MVAPICH": "MV2_COMM_WORLD_SIZE",
}
"""Who starts processes without a word to torch -> how many it says it started."""


@dataclass(frozen=True)
class World:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""


def is_worker() -> bool:
    """Whether `finetune train --launch` started this process."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def run_folder() -> Path | None:
    """The run folder that the launcher made; None where there is none, or another launcher."""
    return Path(os.environ[RUN]) if is_worker() and os.environ.get(RUN) else None


def set_round(number: int, run: str) -> None:
    """For processes that are started from now on: see ROUND and CONTINUES."""
    os.environ[ROUND], os.environ[CONTINUES] = str(number), run


def meeting_round() -> int | None:
    """Which round of the machines' meeting this process was started in; None on one machine."""
    return int(os.environ[ROUND]) if is_worker() and ROUND in os.environ else None


def continued_run() -> Path | None:
    """The run that processes of several machines go on with, since one of them was gone."""
    return Path(os.environ[CONTINUES]) if is_worker() and os.environ.get(CONTINUES) else None


def store_file() -> Path | None:
    """The file in which the processes of one machine leave their addresses; None where they meet at
    MASTER_ADDR."""
    folder = os.environ.get(STORE) if is_worker() else None
    return Path(folder, f"store-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}") if folder else None


def timeout_minutes() -> float:
    """How long a process waits for the others in one operation, as the launcher says it; 30 minutes
    otherwise."""
    return float(os.environ[TIMEOUT]) if is_worker() else 30.0


def has_company() -> bool:
    """Whether torch's agent started other processes beside this one."""
    return bool(os.environ.get(AGENT)) and os.environ.get("WORLD_SIZE", "") not in ("", "1")


def world() -> World:
    """What the launcher says. Raises LaunchError where that is no whole: a number that is none, one that is
    absent or too large, or several processes that nobody started."""
    size = _number("WORLD_SIZE")
    if size == 0:
        raise LaunchError(
            "WORLD_SIZE is 0 in the environment; expected how many processes there are. Unset it."
        )
    size = size or 1
    names = ("RANK", "LOCAL_RANK")
    if size == 1:
        wrong = [f"{name} is {os.environ[name]}" for name in names if _number(name)]
        if wrong:
            raise LaunchError(
                f"{' and '.join(wrong)} in the environment, but WORLD_SIZE says that there is one process. "
                f"Unset {' and '.join(name for name in names if _number(name))}, or start with finetune "
                "train --launch."
            )
        return World()
    if not os.environ.get(AGENT):
        raise LaunchError(_left_over(size))
    absent = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if absent:
        raise LaunchError(
            f"WORLD_SIZE is {size} in the environment, but {' and '.join(absent)} is not set there."
        )
    rank, local_rank = (_number(name) or 0 for name in names)
    if rank >= size or local_rank > rank:
        raise LaunchError(
            f"RANK is {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {size} in the environment: they "
            "contradict."
        )
    return World(rank, size, local_rank, _number("LOCAL_WORLD_SIZE") or size)


def settle_training(machines: int | None = None) -> None:
    """Let a training see what its launcher said and nothing that others left; `machines` of a launch that is
    to begin.

    Raises LaunchError as `world` does, where another program started several processes that would each train
    by itself, and where a launcher started a launcher.
    """
    if os.environ.get(LAUNCHER):
        if not is_worker():
            raise LaunchError(
                f"process {os.environ[LAUNCHER]}, which launched this one, is gone; start again with "
                f"finetune train --resume. (In a shell of your own: unset {LAUNCHER}.)"
            )
        world()
        return
    if not os.environ.get(AGENT):
        _refuse_started_by_others(machines or 1)
    if machines is not None and has_company():
        raise LaunchError(
            "torchrun or accelerate started this process, and --launch would start more: leave one of them "
            "out."
        )
    if machines is not None or world().size == 1:
        forget()


def settle_alone(verb: str) -> None:
    """The same for a verb that is one process, whatever is left in the environment. Raises LaunchError where
    it isn't one."""
    if has_company():
        raise LaunchError(f"finetune {verb} is one process: start it without torchrun or accelerate launch.")
    forget()


def forget() -> None:
    """Take away what would make torch, accelerate or transformers see a launcher."""
    for name in (*OF_TORCH, *OF_ACCELERATE, RUN, LAUNCHER, TIMEOUT, STORE):
        os.environ.pop(name, None)


def _refuse_started_by_others(machines: int) -> None:
    for program, name in STARTED.items():
        count = _number(name) or 1
        if count not in (1, machines):
            raise LaunchError(
                f"{program} started {count} processes ({name}), each of which would train by itself. Start "
                f"one on each machine, with finetune train RECIPE --launch NAME --processes {count}; for a "
                f"run in each, unset {name}."
            )


def _left_over(size: int) -> str:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    several = (
        f" --nodes {size} --node-rank {os.environ.get('RANK') or 'N'} --rendezvous {address}:{port}"
        if address and port
        else ""
    )
    return (
        f"WORLD_SIZE is {size} in the environment, but no launcher started this process. Unset it to train "
        f"in one process (env -u WORLD_SIZE finetune train RECIPE), or start {size} with finetune train "
        f"RECIPE --launch ddp --processes {size}{f' (on {size} machines:{several})' if several else ''}, "
        "torchrun, or accelerate launch."
    )


def _number(name: str) -> int | None:
    """A variable's whole number; None where it is not set, or empty. Raises LaunchError for anything else."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise LaunchError(
            f"{name} is {text!r} in the environment, expected a whole number; unset it, or mend it."
        )
    return int(text)


def has_nvidia_gpu() -> bool:
    """Whether this machine has one, whatever torch can do with it."""
    return any(glob(pattern) for pattern in NVIDIA_GPUS)
