"""accelerate's YAML files: the shipped ones by name, anybody's by path; what they say of processes and sharding. Torch-free."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, AliasEvent, YAMLError

from data_prep.disk import read_regular
from finetune.engines.launch.keys import as_count, as_flag, as_norm, flat, is_nothing, problems_of
from finetune.environment import OF_ACCELERATE
from finetune.errors import LaunchError
from finetune.recipe.shipped import shipped_folder
from finetune.recipe.yaml_tree import MAX_BYTES

FOLDER = "accelerate_configs"


@dataclass(frozen=True)
class LaunchConfig:
    """One way of sharding."""

    name: str
    path: Path
    engine: str
    """cpu, or one of finetune.engines.launch.matrix.ENGINES."""
    processes: int = 1
    """As many as the file says, on all machines together."""
    machines: int = 1
    machine_rank: int = 0
    meeting: str | None = None
    """HOST:PORT of machine 0."""
    use_cpu: bool = False
    gpu_ids: str = "all"
    debug: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the engine's section, under accelerate's own names."""
    learning: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe decides, and may not be said otherwise here."""


def shipped() -> list[str]:
    """The names of the shipped files."""
    return sorted(path.stem for path in shipped_folder(FOLDER).glob("*.yaml"))


def find_config(name: str) -> LaunchConfig:
    """A shipped configuration by its name, or a file. Raises LaunchError for one that can't be used."""
    path = shipped_folder(FOLDER) / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise LaunchError(f"--launch: got {name!r}, expected one of {', '.join(shipped())}, or an accelerate YAML file.")
    try:
        tree = _read(path)
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise LaunchError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise LaunchError(f"{path} is no accelerate configuration: expected keys such as distributed_type.")
    return config_of(flat(tree), path.stem, path.resolve(), f"{path} can't be used")


def _read(path: Path) -> Any:
    """A file's plain values, within a recipe's bounds. Raises YAMLError, ValueError, RecursionError, OSError."""
    text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    yaml = YAML(typ="safe", pure=True)
    if any(isinstance(event, AliasEvent) for event in yaml.parse(text)):  # a few of them stand for gigabytes
        raise ValueError("it has an alias (*NAME); write the value itself")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # as accelerate reads it: no is false
    return yaml.load(text)


def config_of(values: dict[str, Any], name: str, path: Path, refusal: str) -> LaunchConfig:
    """What a configuration's keys say. Raises LaunchError with all that can't be honoured, after the words of `refusal`."""
    problems = problems_of(values) or _contradictions(values)
    if problems:
        raise LaunchError(f"{refusal}: {problems[0]}." if len(problems) == 1 else "\n  ".join([f"{refusal}:", *problems]))
    engine = engine_of(values)
    host, port = values.get("main_process_ip"), values.get("main_process_port")
    half = values.get("fp16") is not None and as_flag(values["fp16"])
    return LaunchConfig(
        name,
        path,
        engine,
        processes=_count(values, "num_processes", 1),
        machines=_count(values, "num_machines", 1),
        machine_rank=_count(values, "machine_rank", 0),
        meeting=f"{host}:{port}" if not is_nothing(host) and not is_nothing(port) else None,
        use_cpu=_flag(values, "use_cpu"),
        gpu_ids="all" if is_nothing(values.get("gpu_ids")) else str(values["gpu_ids"]),
        debug=_flag(values, "debug"),
        settings=_settings(engine, values),
        learning={
            "mixed_precision": "fp16" if half else _text(values, "mixed_precision", "no"),
            "gradient_accumulation_steps": _learning(values, "gradient_accumulation_steps"),
            "gradient_clipping": _learning(values, "gradient_clipping"),
            "activation_checkpointing": _flag(values, "fsdp_config.fsdp_activation_checkpointing"),
        },
    )


def config_of_environment() -> LaunchConfig | None:
    """The configuration with which `accelerate launch` started this process; None where it didn't.

    Raises LaunchError as for a file.
    """
    values = {key: os.environ[variable] for variable, key in OF_ACCELERATE.items() if key and os.environ.get(variable)}
    if values.keys() <= {"mixed_precision"}:  # which a run before in this process may have left
        return None
    for engine, variable in (("DEEPSPEED", "ACCELERATE_USE_DEEPSPEED"), ("FSDP", "ACCELERATE_USE_FSDP")):
        if as_flag(os.environ.get(variable)):
            values["distributed_type"] = engine
    values.setdefault("distributed_type", "MULTI_GPU")
    own = values["distributed_type"].lower()
    values = {key: value for key, value in values.items() if not key.startswith(("deepspeed", "fsdp")) or key.startswith(own)}
    return config_of(values, "accelerate launch", Path("."), "accelerate launch was told what can't be honoured")


def engine_of(values: dict[str, Any]) -> str:
    """The engine that a configuration asks for."""
    kind = _text(values, "distributed_type", "no").upper()
    if kind != "DEEPSPEED":
        return {"NO": "cpu", "FSDP": "fsdp2"}.get(kind, "ddp")
    return f"zero{values['deepspeed_config.zero_stage']}{'_offload' if _offloads(values) else ''}"


def _contradictions(values: dict[str, Any]) -> list[str]:
    """What each key may say, and not all of them together."""
    found = []
    kind, stage = _text(values, "distributed_type", "no").upper(), values.get("deepspeed_config.zero_stage")
    if kind == "DEEPSPEED" and is_nothing(stage):
        found.append(f"deepspeed_config.zero_stage is {stage}, expected 1, 2 or 3 in the file itself")
    if kind == "DEEPSPEED" and str(stage) == "1" and _offloads(values):
        found.append("zero_stage 1 with an offload device: take zero_stage 2 or 3, or set the device to none")
    if kind == "DEEPSPEED" and str(stage) == "2" and "param" in _offloads(values):
        found.append(
            "offload_param_device is cpu with zero_stage 2: only zero_stage 3 shards parameters, and so can offload them"
        )
    if kind == "FSDP" and is_nothing(values.get("fsdp_config.fsdp_version")):
        found.append(
            "fsdp_config.fsdp_version is not set, which is 1; set it to 2 (FSDP1 can't shard an adapter beside its base)"
        )
    if _flag(values, "fsdp_config.fsdp_cpu_ram_efficient_loading") and not _flag(
        values, "fsdp_config.fsdp_sync_module_states", default=True
    ):
        found.append("fsdp_cpu_ram_efficient_loading needs fsdp_sync_module_states: true")
    return found


def _settings(engine: str, values: dict[str, Any]) -> dict[str, Any]:
    """The engine's section for accelerate; what the recipe decides, and what is harmless, is left out."""
    if engine == "fsdp2":
        flags = ("reshard_after_forward", "cpu_ram_efficient_loading", "activation_checkpointing")
        asked = {f"fsdp_{name}": _flag(values, f"fsdp_config.fsdp_{name}", default=name == flags[0]) for name in flags}
        kept = _text(values, "fsdp_config.fsdp_state_dict_type", "FULL_STATE_DICT").upper()
        return {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_state_dict_type": kept, **asked}
    if not engine.startswith("zero"):
        return {}
    stage, offloads = int(engine[4]), _offloads(values)
    return {
        "zero_stage": stage,
        "offload_optimizer_device": "cpu" if "optimizer" in offloads else "none",
        "offload_param_device": "cpu" if "param" in offloads else "none",
        "zero3_init_flag": stage == 3 and _flag(values, "deepspeed_config.zero3_init_flag", default=True),
        "zero3_save_16bit_model": stage == 3,
    }


def _offloads(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        part for part in ("optimizer", "param") if not is_nothing(values.get(f"deepspeed_config.offload_{part}_device"))
    )


def _learning(values: dict[str, Any], name: str) -> float | None:
    value = values.get(f"deepspeed_config.{name}")
    return None if is_nothing(value) or str(value).lower() == "auto" else as_norm(value)


def _text(values: dict[str, Any], name: str, default: str) -> str:
    return default if is_nothing(values.get(name)) else str(values[name]).strip().lower()


def _count(values: dict[str, Any], name: str, default: int) -> int:
    found = as_count(values.get(name))
    return default if found is None else found


def _flag(values: dict[str, Any], name: str, *, default: bool = False) -> bool:
    found = as_flag(values.get(name))
    return default if found is None else found
