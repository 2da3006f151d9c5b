"""What this machine offers, what will be used of it, and why."""

import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import __version__
from finetune.extras import DISTRIBUTION, EXTRAS, is_installed

if TYPE_CHECKING:
    import torch

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
DRIVER = Path("/proc/driver/nvidia/version")
OPTIONAL = {
    "bitsandbytes": "adapter.method qlora and train.optimizer adamw_8bit are refused without it",
    "flash_attn": "not needed: on a GPU attention is torch's own without it",
    "triton": "on a GPU norms, positions, MLPs and losses are computed without fused kernels",
    "trackio": "tracking.tracker trackio is refused without it",
    "wandb": "tracking.tracker wandb is refused without it",
}


@dataclass(frozen=True)
class Fact:
    """One line of the report."""

    topic: str
    name: str
    value: str
    remark: str = ""
    """The reason, or the consequence."""


def examine() -> Iterator[Fact]:
    """Everything that the report says, in order."""
    yield from use()
    yield from processor()
    yield from devices()
    yield from packages()
    yield from extras()
    yield from disks()
    yield from accounts()


def use() -> Iterator[Fact]:
    """What a run with precision auto takes."""
    from finetune.engines.launch.allocator import allocator
    from finetune.models.device import choose_device, choose_precision, unusable_gpu

    unusable = unusable_gpu()
    if unusable is not None:
        yield Fact("will be used", "device", "none", f"training is refused: {unusable}")
        return
    device, precision = choose_device(), choose_precision("auto")
    why = {
        "cuda": "there is a CUDA device",
        "mps": "there is no CUDA device, but Apple's MPS",
        "cpu": "there is neither a CUDA device nor Apple's MPS",
    }
    yield Fact("will be used", "device", str(device), why[device.type])
    yield Fact("will be used", "precision", precision.name, precision.reason)
    yield from kernels(device, precision.dtype)
    yield Fact("will be used", "allocator", *allocator())


def kernels(device: "torch.device", dtype: "torch.dtype") -> Iterator[Fact]:
    """What attention, and what is neither attention nor a product, of a LLaMA are computed by."""
    from transformers import LlamaConfig

    from finetune.models.kernels.attention import choose_attention
    from finetune.models.kernels.ops import kernel_problem

    yield Fact("will be used", "attention", choose_attention(device, dtype, LlamaConfig()))
    problem = kernel_problem() if device.type == "cuda" else f"the device is {device}"
    yield Fact("will be used", "fused kernels", "Triton's" if problem is None else "none", problem or "")


def processor() -> Iterator[Fact]:
    """Cores, threads, instructions and memory."""
    import psutil
    import torch

    from finetune.models.device import processor_facts

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Fact("processor", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Fact("processor", "cores", str(usable), f"torch computes with {torch.get_num_threads()} threads")
    flags = processor_facts().get("flags")
    if flags is not None:
        found = [flag for flag in CPU_FLAGS if flag in flags.split()]
        native = any(flag in ("avx512_bf16", "amx_bf16") for flag in found)
        yield Fact(
            "processor",
            "instructions",
            ", ".join(found) or "none of note",
            "bf16 natively" if native else "no native bf16",
        )
    memory = psutil.virtual_memory()
    yield Fact("processor", "memory", f"{memory.total / 1e9:.1f} GB", f"{memory.available / 1e9:.1f} GB free")


def devices() -> Iterator[Fact]:
    """GPUs and their memory."""
    import torch

    from finetune.models.device import unusable_gpu

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            kind = f"compute capability {found.major}.{found.minor}"
            free, whole = (f"{size / 1e9:.1f} GB" for size in torch.cuda.mem_get_info(index))
            yield Fact("devices", f"cuda:{index}", found.name, f"{whole}, {free} free, {kind}")
        yield from cuda()
    else:
        built = (
            "this torch was built without it"
            if torch.version.cuda is None
            else "no device or driver was found"
        )
        yield Fact("devices", "CUDA", "none", unusable_gpu() or built)
    if platform.system() == "Darwin":
        there = torch.backends.mps.is_available()
        yield Fact(
            "devices",
            "MPS",
            "present" if there else "none",
            "fp32 unless the recipe says otherwise" if there else "",
        )


def cuda() -> Iterator[Fact]:
    """Versions of what computes on NVIDIA's GPUs, their links, and what compiles kernels for them."""
    import torch

    from finetune.models.kernels.compiler import c_compiler

    match = re.search(r"\d{3,}\.\d+(\.\d+)?", DRIVER.read_text()) if DRIVER.is_file() else None
    yield Fact(
        "devices", "driver", match[0] if match else "unknown", f"torch is for CUDA {torch.version.cuda}"
    )
    yield Fact("devices", "cuDNN", str(torch.backends.cudnn.version()))
    if torch.distributed.is_nccl_available():
        version = torch.cuda.nccl.version()
        yield Fact("devices", "NCCL", ".".join(map(str, version)), "between the processes of --launch")
    count = torch.cuda.device_count()
    apart = [
        f"{one}-{other}"
        for one in range(count)
        for other in range(one + 1, count)
        if not torch.cuda.can_device_access_peer(one, other)
    ]
    if count > 1:
        remark = f"not between {', '.join(apart)}, which meet in the host's memory" if apart else ""
        yield Fact("devices", "links", "some" if apart else "between all GPUs", remark)
    compiler = c_compiler()
    without = "Triton's kernels can't be compiled" if compiler is None else ""
    yield Fact("devices", "C compiler", compiler or "absent", without)


def packages() -> Iterator[Fact]:
    """Python and the packages that matter, compared with what this package asks for."""
    from packaging.requirements import Requirement

    yield Fact("packages", "finetune", __version__, f"at {Path(__file__).parents[1]}")
    yield Fact("packages", "python", platform.python_version(), f"at {sys.executable}")
    for requirement in map(Requirement, requirements()):
        if "extra" in str(requirement.marker or "") or (
            requirement.marker and not requirement.marker.evaluate()
        ):
            continue
        there = version_of(requirement.name)
        if there is None:
            yield Fact(
                "packages", requirement.name, "absent", f"MISSING: {requirement.specifier} is asked for"
            )
        elif not requirement.specifier.contains(there, prereleases=True):
            yield Fact(
                "packages", requirement.name, there, f"OUTSIDE the tested range {requirement.specifier}"
            )
        else:
            yield Fact("packages", requirement.name, there, f"within {requirement.specifier}")


def requirements() -> list[str]:
    """What this package asks for: as installed, or as the checkout's pyproject.toml says."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return list(tomllib.loads(path.read_text())["project"]["dependencies"])


def version_of(package: str) -> str | None:
    """A package's version; None where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> Iterator[Fact]:
    """What is there only on some machines, and what is refused without it."""
    from finetune.engines import registry
    from finetune.engines.base import find_program

    packages = {package.name: package.without for engine in registry.ENGINES for package in engine.packages}
    programs = {program.name: program.without for engine in registry.ENGINES for program in engine.programs}
    for name, consequence in (OPTIONAL | packages).items():
        there = is_installed(name)
        yield Fact("extras", name, "present" if there else "absent", "" if there else consequence)
    for extra, modules in EXTRAS.items():
        missing = [package for module, package in modules.items() if not is_installed(module)]
        consequence = f'pip install "{DISTRIBUTION}[{extra}]" adds {", ".join(missing)}' if missing else ""
        yield Fact("extras", extra, "absent" if missing else "present", consequence)
    for name, consequence in programs.items():
        path = find_program(name)
        yield Fact("extras", name, "present" if path else "absent", "" if path else consequence)


def disks() -> Iterator[Fact]:
    """Free space where bases and runs go."""
    from finetune.models.bases.hashes import cache_folder

    for name, folder in (
        ("converted bases", cache_folder()),
        ("hub cache", hub_cache()),
        ("runs", Path("runs").resolve()),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        yield Fact("disk", name, f"{shutil.disk_usage(there).free / 1e9:,.1f} GB free", str(folder))


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def accounts() -> Iterator[Fact]:
    """Whether keys are there; their values are never read out."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    token = bool(os.environ.get("HF_TOKEN"))
    yield Fact(
        "accounts",
        "hub token",
        "set" if token else "not set",
        "" if token else "gated bases (HF_TOKEN) can't be fetched",
    )
    yield Fact(
        "accounts",
        "hub",
        "offline" if HF_HUB_OFFLINE else "online",
        "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "",
    )
    if util.find_spec("wandb") is not None:
        from finetune.runs.tracking.wandb_settings import NO_ACCOUNT, has_account

        found = has_account()
        yield Fact(
            "accounts",
            "wandb key",
            "set" if found else "not set",
            "" if found else f"{NO_ACCOUNT}: runs are offline",
        )
