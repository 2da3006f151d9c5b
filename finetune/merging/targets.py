"""What a merge is asked for: runs or adapters, on their base or another. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import MergeError
from finetune.models.bases.folder import ADAPTER_CONFIG
from finetune.runs.target import Target, resolve_target


def choose_target(text: str, base: str | Path | None) -> Target:
    """What RUN_OR_ADAPTER names, on the base that `base` names where it is given.

    Raises MergeError for something without an adapter, and ModelError or CheckpointError as resolve_target
    does.
    """
    target = resolve_target(text, base)
    if target.adapter is not None:
        return target
    if (Path(text).expanduser() / ADAPTER_CONFIG).is_file():
        raise MergeError(
            f"{target.description} is whole weights with an adapter beside them: move {ADAPTER_CONFIG} and "
            "the adapter's weights into a folder of their own to merge them."
        )
    raise MergeError(
        f"{target.description} has no adapter: it is whole weights already, so there is nothing to merge."
    )


def choose_more(texts: Sequence[str], base: str | Path | None, first: Target) -> list[Path]:
    """The folders of further adapters. Raises MergeError for one that was trained on another base than the
    first."""
    folders = []
    for text in texts:
        target = choose_target(text, base)
        if None not in (target.base_sha256, first.base_sha256) and target.base_sha256 != first.base_sha256:
            raise MergeError(
                f"{target.description} was trained on another base than {first.description}: SHA-256 "
                f"{target.base_sha256}, and {first.base_sha256}. Name the base that both fit with --base."
            )
        assert target.adapter is not None  # noqa: S101 - choose_target refuses others
        folders.append(target.adapter)
    return folders
