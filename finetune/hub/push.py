"""Uploading a result in one commit, and reading back what the hub then has. Loads no torch."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.sources.hub import hub_token
from finetune.errors import CheckFailed, ModelError
from finetune.hub.card import base_of, card_of
from finetune.hub.result import Result, read_result
from finetune.models.bases.card import CARD
from finetune.models.bases.hashes import remembered_sha256
from finetune.models.bases.hub import is_hub_id, refusal

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

OF_THE_HUB = (".gitattributes",)
"""Files that the hub itself puts into a repository."""
NAMED = 5
"""Files that a message names, at most."""


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now."""

    url: str
    commit: str
    files: tuple[str, ...]
    bytes: int
    private: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def push(text: str, name: str, *, private: bool = False, overwrite: bool = False) -> Pushed:
    """Upload a run's result, an adapter, a model or GGUF files as the repository `name`, OWNER/NAME, with a
    card.

    All is one commit: nobody sees half of it, and what an interrupted upload has transferred isn't sent
    again. The hub's hash of each file is then compared with its own. A repository that holds other files is
    refused without `overwrite`, which replaces files of the same name and leaves the others. Raises
    ModelError where there is nothing to push, or the hub refuses it; CheckFailed where the hub has other
    content than was sent.
    """
    api, result = _api(name), read_result(text)
    made = False

    def state() -> str:
        return "The repository was made, and is empty" if made else "The repository is as it was"

    with _refused(name, state):
        api.whoami()
        newest, there, is_private = _state_of(api, name)
        files: dict[str, Path | bytes] = {path.name: path for path in result.files}
        # The card asks more than once for a repository's.
        files[CARD] = card_of(result, name, cache(partial(_licence_of, api))).encode()
        if newest is None:
            api.create_repo(name, private=private)
            is_private, made = private, True
        else:
            _refuse_other(name, files, there, overwrite=overwrite)
            if private and not is_private:
                raise ModelError(
                    f"--private, and {name} is there already and public: change that on its page first."
                )
        commit = _commit(api, name, files, newest)
    with _unread(name, commit):
        wrong = _other_content(files, {file.path: file for file in _tree(api, name, commit)})
    if wrong:
        raise CheckFailed(
            f"{name} at {commit} holds other content than was sent: {', '.join(wrong)}. Push again."
        )
    return Pushed(
        f"{api.endpoint}/{name}",
        commit,
        tuple(sorted(files)),
        result.bytes,
        is_private,
        tuple(_notes(result)),
    )


def refuse_unpushable(name: str) -> None:
    """Raises ModelError where nothing can be pushed to a repository of this name: asked before work whose
    result is to be pushed."""
    api = _api(name)
    with _refused(name, lambda: "Nothing was done"):
        api.whoami()


def _api(name: str) -> "HfApi":
    """The hub's client, which may write. Raises ModelError for a name that is none, and without a token."""
    from huggingface_hub import HfApi

    if not is_hub_id(name):
        raise ModelError(f"{name!r} is no repository's name: expected OWNER/NAME.")
    if not (token := hub_token()):
        raise ModelError(
            "HF_TOKEN is not set, and the hub lets nobody write without: set it to a token that may."
        )
    return HfApi(token=token)


def _notes(result: Result) -> Iterator[str]:
    """What a person should know of what was uploaded."""
    if result.left_out:
        yield f"not uploaded: {', '.join(result.left_out)}"
    if result.with_folders:
        yield f"folders of this machine are named in {', '.join(result.with_folders)}"
    if result.kind == "adapter" and base_of(result).get("kind") != "hub":
        yield (
            "adapter_config.json names a base of this machine: who loads the adapter must name the base "
            "(finetune generate ... --base)"
        )


def _state_of(api: "HfApi", name: str) -> "tuple[str | None, list[RepoFile], bool]":
    """The newest commit of a repository, its files, and whether it is private; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(name)
    except RepositoryNotFoundError:
        return None, [], False
    assert info.sha is not None  # noqa: S101 - a repository of the hub has a commit
    return info.sha, _tree(api, name, info.sha), bool(info.private)


def _tree(api: "HfApi", name: str, commit: str) -> "list[RepoFile]":
    from huggingface_hub.hf_api import RepoFile

    return [
        file
        for file in api.list_repo_tree(name, recursive=True, revision=commit)
        if isinstance(file, RepoFile)
    ]


def _refuse_other(
    name: str, files: Mapping[str, Path | bytes], there: "Sequence[RepoFile]", *, overwrite: bool
) -> None:
    """Raises ModelError where a repository holds what this push didn't bring."""
    known = {file.path: file for file in there if file.path not in OF_THE_HUB}
    others = sorted(set(known) - set(files))
    changed = _other_content({own: content for own, content in files.items() if own in known}, known)
    found = [*others, *changed]
    if found and not overwrite:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise ModelError(
            f"{name} holds other files ({', '.join(found[:NAMED])}{more}): name a new repository, or add "
            "--overwrite, which replaces files of the same name and leaves the others."
        )


def _commit(api: "HfApi", name: str, files: Mapping[str, Path | bytes], newest: str | None) -> str:
    """Upload in one commit, on the one that was looked at; its name."""
    from huggingface_hub import CommitOperationAdd

    added = [
        CommitOperationAdd(own, content if isinstance(content, bytes) else str(content))
        for own, content in files.items()
    ]
    made = api.create_commit(name, added, commit_message="Upload by finetune push", parent_commit=newest)
    return str(made.oid)


def _other_content(files: Mapping[str, Path | bytes], there: "Mapping[str, RepoFile]") -> list[str]:
    """Names of files that a repository lacks, or has with other content."""
    return sorted(
        own for own, content in files.items() if own not in there or not _is_alike(content, there[own])
    )


def _is_alike(content: Path | bytes, there: "RepoFile") -> bool:
    if there.lfs is not None:
        own = remembered_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        return bool(own == there.lfs.sha256)
    raw = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest() == there.blob_id


def _licence_of(api: "HfApi", kind: str, name: str) -> str | None:
    """What a repository's card says."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        info = api.model_info(name) if kind == "model" else api.dataset_info(name)
    except (HTTPError, OSError):
        return None  # gone, or not for this token: the card says that none is known
    card = info.card_data
    return str(card.license) if card is not None and card.get("license") else None


@contextmanager
def _refused(name: str, state: Callable[[], str]) -> Iterator[None]:
    """Turn what the hub's client raises into a ModelError that says what to do, and in what state the hub
    is."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no repository's name: {error}") from None
    except (HTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        raise ModelError(
            f"{name} was not pushed: {refusal(error)}. {state()}; the same command sends only what is not "
            "there yet."
        ) from error


@contextmanager
def _unread(name: str, commit: str) -> Iterator[None]:
    """The same where the hub has the commit, and doesn't give it back."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        raise ModelError(
            f"{name} was pushed as {commit}, and could not be read back to be compared: {refusal(error)}. "
            "The same command compares it."
        ) from error
