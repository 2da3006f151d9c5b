"""accelerate's YAML files: the shipped ones by name, anybody's by path; what they say about sharding. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import LaunchError
from finetune.recipe.shipped import shipped_folder
from finetune.recipe.yaml_tree import read_plain

FOLDER = "accelerate_configs"


@dataclass(frozen=True)
class LaunchConfig:
    """One way of sharding."""

    name: str
    path: Path
    engine: str
    """cpu, or one of finetune.launch.matrix.ENGINES."""
    processes: int
    """As many as the file says."""


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
        tree = read_plain(path)
    except ValueError as error:
        raise LaunchError(f"{path} is no YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise LaunchError(f"{path} is no accelerate configuration: expected keys such as distributed_type.")
    return LaunchConfig(path.stem, path.resolve(), engine_of(tree, path), int(tree.get("num_processes") or 1))


def engine_of(tree: dict[str, Any], path: Path) -> str:
    """The engine that an accelerate configuration asks for. Raises LaunchError for one that the toolkit doesn't run."""
    kind = str(tree.get("distributed_type", "NO"))
    if kind == "NO":
        return "cpu"
    if kind in ("MULTI_GPU", "MULTI_CPU"):
        return "ddp"
    if kind == "FSDP":
        section = tree.get("fsdp_config") or {}
        version = int(section.get("fsdp_version") or 1)
        if version != 2:
            raise LaunchError(f"{path}: fsdp_version is {version}; set it to 2 (FSDP1 can't shard an adapter beside its base).")
        if section.get("fsdp_offload_params"):
            raise LaunchError(
                f"{path}: fsdp_offload_params was never shown to work here: set it to false, or take zero3_offload."
            )
        return "fsdp2"
    if kind == "DEEPSPEED":
        section = tree.get("deepspeed_config") or {}
        stage = section.get("zero_stage")
        if stage not in (1, 2, 3):
            raise LaunchError(f"{path}: deepspeed_config.zero_stage is {stage}, expected 1, 2 or 3 in the file itself.")
        offloads = "cpu" in (section.get("offload_optimizer_device"), section.get("offload_param_device"))
        return f"zero{stage}_offload" if offloads else f"zero{stage}"
    raise LaunchError(f"{path}: distributed_type is {kind}, expected NO, MULTI_GPU, DEEPSPEED or FSDP.")
