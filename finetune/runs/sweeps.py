"""Sweeps among the runs: which folder is one. Loads nothing heavy."""

from difflib import get_close_matches
from pathlib import Path

from data_prep.disk import read_json
from finetune.errors import CheckpointError
from finetune.runs.compare import FINAL

SWEEP = "sweep.json"
"""The file by which a folder is a sweep."""
OF_TRAINER = {"loss": "evaluation_loss"}
"""Objectives that a run's summary has under another name than that of its metric."""


def sweep_folder(folder: Path, name: str) -> Path:
    """The folder of a sweep, which holds its trials' runs. Raises CheckpointError where there is none of this
    name."""
    path = folder / name
    if (path / SWEEP).is_file():
        return path
    known = sorted(found.parent.name for found in folder.glob(f"*/{SWEEP}"))
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known) or 'none'}"
    raise CheckpointError(f"{folder.resolve()} has no sweep {name!r}{hint}")


def sweep_columns(path: Path) -> list[str]:
    """What a list of a sweep's trials shows: the keys that it varied, and its objectives. Raises
    CheckpointError where its file is damaged."""
    try:
        about = read_json(path / SWEEP)
        keys, objectives = map(str, about["keys"]), map(str, about["objectives"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / SWEEP} is damaged: {error}") from None
    return [*keys, *(OF_TRAINER.get(name, f"{FINAL}{name}") for name in objectives)]
