"""Every key that `accelerate config` can write, and what becomes of it: honoured, refused with the reason, or
harmless.

Here are those of all engines; each engine has its own section's. A key that is in neither is refused by its
name. Torch-free.
"""

from difflib import get_close_matches
from typing import Any

from data_prep.text import one_line
from finetune.engines import registry
from finetune.engines.keys import (
    FileSection,
    Key,
    as_count,
    at_least,
    harmless,
    honoured,
    is_flag,
    is_nothing,
    one_of,
    refused,
)

NO_TPU = refused("this toolkit trains on no TPU")
COMPILE = "says how a dynamo_backend compiles, and one is refused"

DYNAMO = FileSection("dynamo_config", "dynamo_", {
    "dynamo_backend": refused("nothing here is compiled by torch.compile"),
    "dynamo_mode": harmless(COMPILE),
    "dynamo_use_fullgraph": harmless(COMPILE),
    "dynamo_use_dynamic": harmless(COMPILE),
    "dynamo_use_regional_compilation": harmless(COMPILE),
})  # fmt: skip

OF_ALL: dict[str, Key] = {
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
        lambda value: value == "all" or all(at_least(0)(part) for part in str(value).split(",")),
        "all, or numbers such as 0,1",
    ),
    "rdzv_backend": honoured(one_of("static"), "static (others unpickle what anybody sends to their port)"),
    "same_network": harmless("machines meet at main_process_ip in any case"),
    "main_training_function": harmless("only notebooks and TPUs have one"),
    "enable_cpu_affinity": refused("binding processes to cores was never shown to work here"),
    "downcast_bf16": NO_TPU,
    "tpu_name": NO_TPU, "tpu_zone": NO_TPU, "tpu_use_cluster": NO_TPU, "tpu_use_sudo": NO_TPU,
    "command_file": NO_TPU,
    "commands": NO_TPU, "tpu_vm": NO_TPU, "tpu_env": NO_TPU,
    "dynamo_backend": refused("nothing here is compiled by torch.compile"),
    "fp8_config": refused("the recipe says so: train.base_arithmetic: fp8"),
    "megatron_lm_config": refused("Megatron-LM is not among the engines; take fsdp2 or zero3"),
    "parallelism_config": refused(
        "tensor, context and sequence parallelism are not among the engines; take fsdp2 or zero3"
    ),
    "mpirun_config": refused("processes are not started by mpirun, but by --launch on each machine"),
}  # fmt: skip


def sections() -> dict[str, FileSection]:
    """By name."""
    own = (engine.section for engine in registry.ENGINES)
    return {section.name: section for section in (*own, DYNAMO) if section is not None}


def known_keys() -> dict[str, Key]:
    """Each key's fate; those of a section as SECTION.KEY."""
    within = {
        f"{name}.{key}": fate for name, section in sections().items() for key, fate in section.keys.items()
    }
    return OF_ALL | within


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration and their values; those of a section as SECTION.KEY, with accelerate's
    prefix."""
    found, known = {}, sections()
    for name, value in tree.items():
        if name not in known or not isinstance(value, dict):
            found[str(name)] = value
            continue
        for key, below in value.items():
            prefix = "" if str(key).startswith(known[name].prefix.rstrip("_")) else known[name].prefix
            found[f"{name}.{prefix}{key}"] = below
    return found


def problems_of(values: dict[str, Any]) -> list[str]:
    """What of a configuration's keys can't be honoured, a line for each."""
    found, known, within = [], known_keys(), sections()
    for name, value in values.items():
        key = known.get(name)
        if name in within:
            found += [] if is_nothing(value) else [f"{name} is {_short(value)}, expected a section of keys"]
        elif key is None:
            close = get_close_matches(name, known, n=1)
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
