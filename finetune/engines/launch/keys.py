"""Every key that `accelerate config` can write, and what becomes of it: honoured, refused with the reason, or harmless.

A key that is in neither list is refused by its name. Torch-free.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from data_prep.text import one_line

SECTIONS = {"deepspeed_config": "", "fsdp_config": "fsdp_", "dynamo_config": "dynamo_"}
"""A section of keys -> the prefix that accelerate adds to those that lack it."""

NOTHING = ("", "no", "none", "null", "false", "{}", "[]")


def is_nothing(value: Any) -> bool:
    """Whether a value asks for nothing: absent, false, no, none, or empty."""
    return value is None or str(value).strip().lower() in NOTHING


def as_flag(value: Any) -> bool | None:
    """What a switch says, as YAML or the environment writes it; None for what is no switch."""
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(value).strip().lower())


def as_count(value: Any) -> int | None:
    """A whole number from 0, as YAML or the environment writes it; None for anything else."""
    text = "" if isinstance(value, bool) else str(value).strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def one_of(*names: str) -> Callable[[Any], bool]:
    """Takes these words in any case."""
    return lambda value: str(value).strip().lower() in {name.lower() for name in names}


def at_least(low: int) -> Callable[[Any], bool]:
    """Takes whole numbers from this one."""
    return lambda value: (count := as_count(value)) is not None and count >= low


def is_flag(value: Any) -> bool:
    """Takes true and false."""
    return as_flag(value) is not None


@dataclass(frozen=True)
class Key:
    """What becomes of one key."""

    fate: Literal["honoured", "refused", "harmless"]
    why: str
    """honoured: what is expected; refused: why it can't be; harmless: why it makes no difference."""
    takes: Callable[[Any], bool] = is_nothing
    """Which values are no problem."""


def honoured(takes: Callable[[Any], bool], expected: str) -> Key:
    """A key that is carried out, where its value is one that can be."""
    return Key("honoured", expected, takes)


def refused(why: str) -> Key:
    """A key that asks for something else than this toolkit does, unless it asks for nothing."""
    return Key("refused", why if "take " in why or "set " in why or "write " in why else f"{why}; remove it")


def harmless(why: str) -> Key:
    """A key that changes nothing, whatever it says."""
    return Key("harmless", why, lambda value: True)


FSDP1 = harmless("FSDP2 has no such choice")
NO_TPU = refused("this toolkit trains on no TPU")
NO_SSH = refused("processes of other machines are started there, with --node-rank, and not over ssh")
DEVICE = honoured(one_of("none", "cpu"), "none or cpu")

KEYS: dict[str, Key] = {
    "compute_environment": honoured(one_of("LOCAL_MACHINE"), "LOCAL_MACHINE"),
    "distributed_type": honoured(
        one_of("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"), "NO, MULTI_GPU, DEEPSPEED or FSDP"
    ),
    "mixed_precision": honoured(one_of("no", "bf16", "fp16"), "no, or to the recipe's train.precision"),
    "fp16": honoured(is_flag, "true or false"),
    "use_cpu": honoured(is_flag, "true or false"),
    "debug": honoured(is_flag, "true or false"),
    "num_processes": honoured(at_least(1), "a whole number from 1"),
    "num_machines": honoured(at_least(1), "a whole number from 1"),
    "machine_rank": honoured(at_least(0), "a whole number from 0"),
    "main_process_ip": honoured(lambda value: isinstance(value, str) and bool(value), "machine 0's address"),
    "main_process_port": honoured(lambda value: as_count(value) in range(65536), "a port"),
    "gpu_ids": honoured(
        lambda value: value == "all" or all(at_least(0)(part) for part in str(value).split(",")), "all, or numbers such as 0,1"
    ),
    "rdzv_backend": honoured(one_of("static"), "static (others unpickle what anybody sends to their port)"),
    "same_network": harmless("machines meet at main_process_ip in any case"),
    "main_training_function": harmless("only notebooks and TPUs have one"),
    "enable_cpu_affinity": refused("binding processes to cores was never shown to work here"),
    "downcast_bf16": NO_TPU,
    "tpu_name": NO_TPU, "tpu_zone": NO_TPU, "tpu_use_cluster": NO_TPU, "tpu_use_sudo": NO_TPU, "command_file": NO_TPU,
    "commands": NO_TPU, "tpu_vm": NO_TPU, "tpu_env": NO_TPU,
    "dynamo_backend": refused("nothing here is compiled by torch.compile"),
    "dynamo_config.dynamo_backend": refused("nothing here is compiled by torch.compile"),
    "dynamo_config.dynamo_mode": harmless("says how a dynamo_backend compiles, and one is refused"),
    "dynamo_config.dynamo_use_fullgraph": harmless("says how a dynamo_backend compiles, and one is refused"),
    "dynamo_config.dynamo_use_dynamic": harmless("says how a dynamo_backend compiles, and one is refused"),
    "dynamo_config.dynamo_use_regional_compilation": harmless("says how a dynamo_backend compiles, and one is refused"),
    "fp8_config": refused("nothing here is trained in fp8"),
    "megatron_lm_config": refused("Megatron-LM is not among the engines; take fsdp2 or zero3"),
    "parallelism_config": refused("tensor, context and sequence parallelism are not among the engines; take fsdp2 or zero3"),
    "mpirun_config": refused("processes are not started by mpirun, but by --launch on each machine"),
    "fsdp_config.fsdp_version": honoured(one_of("2"), "2 (FSDP1 can't shard an adapter beside its base)"),
    "fsdp_config.fsdp_reshard_after_forward": honoured(is_flag, "true or false"),
    "fsdp_config.fsdp_offload_params": refused("never shown to work here: set it to false, or take zero3_offload"),
    "fsdp_config.fsdp_auto_wrap_policy": honoured(one_of("TRANSFORMER_BASED_WRAP"), "TRANSFORMER_BASED_WRAP"),
    "fsdp_config.fsdp_transformer_layer_cls_to_wrap": honoured(
        one_of(*(f"{family}DecoderLayer" for family in ("Llama", "Mistral", "Qwen2", "Qwen3"))),
        "the decoder layer of the base, such as LlamaDecoderLayer, or leave it out",
    ),
    "fsdp_config.fsdp_min_num_params": harmless("TRANSFORMER_BASED_WRAP, which alone is taken, asks for no size"),
    "fsdp_config.fsdp_state_dict_type": honoured(
        one_of("FULL_STATE_DICT", "SHARDED_STATE_DICT"), "FULL_STATE_DICT or SHARDED_STATE_DICT"
    ),
    "fsdp_config.fsdp_cpu_ram_efficient_loading": honoured(is_flag, "true or false"),
    "fsdp_config.fsdp_sync_module_states": honoured(is_flag, "true or false"),
    "fsdp_config.fsdp_activation_checkpointing": honoured(is_flag, "true or false"),
    "fsdp_config.fsdp_activation_checkpointing_offload": refused("activations are not kept in the host's memory"),
    "fsdp_config.fsdp_ignored_modules": refused("every module is sharded"),
    "fsdp_config.fsdp_sharding_strategy": honoured(one_of("FULL_SHARD", "1"), "FULL_SHARD, or fsdp_reshard_after_forward"),
    "fsdp_config.fsdp_backward_prefetch": FSDP1,
    "fsdp_config.fsdp_forward_prefetch": FSDP1,
    "fsdp_config.fsdp_use_orig_params": FSDP1,
    "deepspeed_config.deepspeed_config_file": refused("write zero_stage and what else it holds into this file"),
    "deepspeed_config.zero_stage": honoured(one_of("1", "2", "3"), "1, 2 or 3 in the file itself"),
    "deepspeed_config.offload_optimizer_device": DEVICE,
    "deepspeed_config.offload_param_device": DEVICE,
    "deepspeed_config.offload_optimizer_nvme_path": refused("nothing is kept on NVMe; take cpu"),
    "deepspeed_config.offload_param_nvme_path": refused("nothing is kept on NVMe; take cpu"),
    "deepspeed_config.gradient_accumulation_steps": honoured(
        lambda value: str(value).lower() == "auto" or at_least(1)(value), "auto"
    ),
    "deepspeed_config.gradient_clipping": honoured(
        lambda value: str(value).lower() == "auto" or as_norm(value) is not None, "auto"
    ),
    "deepspeed_config.zero3_init_flag": honoured(is_flag, "true or false"),
    "deepspeed_config.zero3_save_16bit_model": harmless("checkpoints and results are whole in any case"),
    "deepspeed_config.deepspeed_moe_layer_cls_names": refused("mixtures of experts are not trained here"),
    "deepspeed_config.deepspeed_multinode_launcher": honoured(one_of("standard"), "standard (no process is started over ssh)"),
    "deepspeed_config.deepspeed_hostfile": NO_SSH,
    "deepspeed_config.deepspeed_exclusion_filter": NO_SSH,
    "deepspeed_config.deepspeed_inclusion_filter": NO_SSH,
}  # fmt: skip


def as_norm(value: Any) -> float | None:
    """A number from 0; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number >= 0 else None


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration and their values; those of a section as SECTION.KEY, with accelerate's prefix."""
    found = {}
    for name, value in tree.items():
        if name not in SECTIONS or not isinstance(value, dict):
            found[str(name)] = value
            continue
        for key, below in value.items():
            prefix = "" if str(key).startswith(SECTIONS[name].rstrip("_")) else SECTIONS[name]
            found[f"{name}.{prefix}{key}"] = below
    return found


def problems_of(values: dict[str, Any]) -> list[str]:
    """What of a configuration's keys can't be honoured, a line for each."""
    found = []
    for name, value in values.items():
        key = KEYS.get(name)
        if name in SECTIONS:
            found += [] if is_nothing(value) else [f"{name} is {_short(value)}, expected a section of keys"]
        elif key is None:
            close = get_close_matches(name, KEYS, n=1)
            found.append(f"{_short(name)}: unknown key" + (f"; did you mean {close[0]}?" if close else ""))
        elif is_nothing(value) or key.takes(value):
            continue
        elif key.fate == "refused":
            found.append(f"{name} is {_short(value)}: {key.why}")
        else:
            found.append(f"{name} is {_short(value)}; set it to {key.why}")
    return found


def _short(value: Any) -> str:
    return one_line(str(value), 60)
