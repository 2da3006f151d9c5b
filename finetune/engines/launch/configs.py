"""accelerate's YAML files: the shipped ones by name, anybody's by path; what they say of processes and
sharding. Torch-free."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, AliasEvent, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from data_prep.disk import read_regular
from finetune.engines import registry
from finetune.engines.base import Engine
from finetune.engines.keys import as_flag, as_norm, count_of, flag_of, is_nothing, text_of
from finetune.engines.launch.keys import flat, problems_of
from finetune.environment import OF_ACCELERATE
from finetune.errors import LaunchError
from finetune.recipe.reading.yaml_tree import MAX_BYTES, MAX_DEPTH
from finetune.recipe.shipped import shipped_folder

FOLDER = "accelerate_configs"


@dataclass(frozen=True)
class LaunchConfig:
    """One way of sharding."""

    name: str
    path: Path
    engine: Engine
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
        raise LaunchError(
            f"--launch: got {name!r}, expected one of {', '.join(shipped())}, or an accelerate YAML file."
        )
    try:
        tree = _read(path)
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise LaunchError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise LaunchError(f"{path} is no accelerate configuration: expected keys such as distributed_type.")
    return config_of(flat(tree), path.stem, path.resolve(), f"{path} can't be used")


def _read(path: Path) -> Any:
    """A file's plain values, within a recipe's bounds. Raises YAMLError, ValueError, RecursionError,
    OSError."""
    text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    yaml = YAML(typ="safe", pure=True)
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, AliasEvent):  # a few of them stand for gigabytes
            raise ValueError("it has an alias (*NAME); write the value itself")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:  # the parser's time is quadratic in it
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)  # as accelerate reads it: no is false
    return yaml.load(text)


def config_of(values: dict[str, Any], name: str, path: Path, refusal: str) -> LaunchConfig:
    """What a configuration's keys say. Raises LaunchError with all that can't be honoured, after the words of
    `refusal`."""
    problems = problems_of(values) or _contradictions(values)
    if problems:
        raise LaunchError(
            f"{refusal}: {problems[0]}." if len(problems) == 1 else "\n  ".join([f"{refusal}:", *problems])
        )
    engine = engine_of(values)
    host, port = values.get("main_process_ip"), values.get("main_process_port")
    half = values.get("fp16") is not None and as_flag(values["fp16"])
    return LaunchConfig(
        name,
        path,
        engine,
        processes=count_of(values, "num_processes", 1),
        machines=count_of(values, "num_machines", 1),
        machine_rank=count_of(values, "machine_rank", 0),
        meeting=f"{host}:{port}" if not is_nothing(host) and not is_nothing(port) else None,
        use_cpu=flag_of(values, "use_cpu"),
        gpu_ids="all" if is_nothing(values.get("gpu_ids")) else str(values["gpu_ids"]),
        debug=flag_of(values, "debug"),
        settings=engine.settings(values),
        learning={
            "mixed_precision": "fp16" if half else text_of(values, "mixed_precision", "no"),
            "gradient_accumulation_steps": _learning(values, "gradient_accumulation_steps"),
            "gradient_clipping": _learning(values, "gradient_clipping"),
            "activation_checkpointing": flag_of(values, "fsdp_config.fsdp_activation_checkpointing"),
        },
    )


def config_of_environment() -> LaunchConfig | None:
    """The configuration with which `accelerate launch` started this process; None where it didn't.

    Raises LaunchError as for a file.
    """
    values = {
        key: os.environ[variable]
        for variable, key in OF_ACCELERATE.items()
        if key and os.environ.get(variable)
    }
    if values.keys() <= {"mixed_precision"}:  # which a run before in this process may have left
        return None
    for engine in registry.ENGINES:
        if engine.switch and as_flag(os.environ.get(engine.switch)):
            values["distributed_type"] = engine.kinds[0]
    values.setdefault("distributed_type", "MULTI_GPU")
    own = values["distributed_type"].lower()
    values = {
        key: value
        for key, value in values.items()
        if not key.startswith(("deepspeed", "fsdp")) or key.startswith(own)
    }
    return config_of(
        values, "accelerate launch", Path("."), "accelerate launch was told what can't be honoured"
    )


def engine_of(values: dict[str, Any]) -> Engine:
    """The engine that a configuration without contradictions asks for: the first, where it fits several."""
    return next(engine for engine in registry.ENGINES if engine.is_asked_for(values))


def _contradictions(values: dict[str, Any]) -> list[str]:
    """What each key may say, and not all of them together."""
    return list(dict.fromkeys(line for engine in registry.ENGINES for line in engine.contradictions(values)))


def _learning(values: dict[str, Any], name: str) -> float | None:
    value = values.get(f"deepspeed_config.{name}")
    return None if is_nothing(value) or str(value).lower() == "auto" else as_norm(value)
