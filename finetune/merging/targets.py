"""What a merge is asked for: runs or adapters, on their base or another. Loads no torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import MergeError
from finetune.models.bases.folder import ADAPTER_CONFIG
from finetune.models.bases.written import refuse_changed
from finetune.runs.checkpoint import complete_checkpoints
from finetune.runs.folder import open_run
from finetune.runs.target import Target, on_base


def choose_target(text: str, base: str | Path | None) -> Target:
    """What RUN_OR_ADAPTER names, on the base that `base` names where it is given.

    Raises MergeError for something without an adapter, ModelError for one that is not what its run wrote, and
    ModelError or CheckpointError as on_base does.
    """
    target = on_base(text, base)
    if target.adapter is not None:
        refuse_changed(target.adapter)
        return target
    if (Path(text).expanduser() / ADAPTER_CONFIG).is_file():
        raise MergeError(
            f"{target.description} is whole weights with an adapter beside them: move {ADAPTER_CONFIG} and "
            "the adapter's weights into a folder of their own to merge them."
        )
    raise MergeError(
        f"{target.description} has no adapter: it is whole weights already, so there is nothing to merge."
    )


def last_checkpoints(text: str, asked: str) -> list[str]:
    """The last whole checkpoints of a run, as `asked` names them: last:5.

    Raises MergeError where the run has fewer, and CheckpointError for a folder that is no run.
    """
    match = re.fullmatch(r"last:(\d{1,6})", asked)
    if match is None or int(match[1]) < 2:
        raise MergeError(f"--checkpoints is {asked!r}; expected last:N with N from 2, such as last:5.")
    run = open_run(Path(text).expanduser().resolve())
    found = complete_checkpoints(run.checkpoints)
    if len(found) < int(match[1]):
        raise MergeError(
            f"--checkpoints {asked}: {run.path} has {len(found)} whole checkpoints "
            f"({', '.join(path.name for path in found) or 'none'}). Ask for fewer, or train with a larger "
            "train.keep_checkpoints and a smaller train.save_every."
        )
    return [str(path) for path in found[-int(match[1]) :]]


def choose_more(texts: Sequence[str], base: str | Path | None, first: Target) -> list[Path]:
    """The folders of further adapters. Raises MergeError for one that was trained on another base than the
    first."""
    folders = []
    for text in texts:
        target = choose_target(text, base)
        refuse_other_base(target, first)
        assert target.adapter is not None  # noqa: S101 - choose_target refuses others
        folders.append(target.adapter)
    return folders


def refuse_other_base(target: Target, first: Target) -> None:
    """Raises MergeError where an adapter was trained on another base than the first one: by the hashes of
    both where they are known, else by what the bases are called."""
    hashes = target.base_sha256, first.base_sha256
    names = target.model.base, first.model.base
    if hashes[0] != hashes[1] if None not in hashes else names[0] != names[1]:
        mine, its = hashes if None not in hashes and names[0] == names[1] else names
        raise MergeError(
            f"{target.description} was trained on another base than {first.description}: {mine}, and {its}. "
            "Name the base that both fit with --base."
        )
    if target.base_mask != first.base_mask:
        raise MergeError(
            f"{target.description} was trained with another mask of a pruned base than {first.description}, "
            "or without one: train both on one base."
        )
