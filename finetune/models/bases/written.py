"""Whether an adapter is still what its run wrote. Loads no torch."""

from pathlib import Path

from finetune.errors import ModelError
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.bases.hashes import remembered_sha256
from finetune.recipe.lock import ADAPTER_SHA256, read_lock
from finetune.recipe.paths import LOCK


def refuse_changed(adapter: Path) -> None:
    """Raises ModelError where an adapter lies in the run that trained it, and its weights aren't those that
    the run's lock tells of; locks of earlier versions don't."""
    here = adapter.resolve()
    run, path = here.parent, here / ADAPTER_WEIGHTS
    if here.name != "adapter" or not (run / LOCK).is_file() or not path.is_file():
        return
    written = read_lock(run / LOCK).final.get(ADAPTER_SHA256)
    if written is not None and (found := remembered_sha256(path)) != written:
        raise ModelError(
            f"{path} is not what run {run.name} wrote: its SHA-256 was {written}, and is {found}. Put back a "
            "copy of it, or name the run's last checkpoint; if it was changed on purpose, name a copy of its "
            "folder outside the run."
        )
