"""What a pass over documents has computed before it is whole: a file per process in the run's folder, so
that a pass that was stopped or killed continues where it was."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.disk import make_private
from data_prep.temporary import remove_tree
from finetune.engines.group import Group
from finetune.errors import CheckpointError
from finetune.training.checkpoints.numbers_file import read_numbers, write_numbers

logger = logging.getLogger(__name__)

BATCHES = "batches of "
"""Before a part's name: how many of its batches are computed."""


class BegunValues:
    """This process's numbers of each part of a pass, and how many of the part's batches they are of."""

    def __init__(self, folder: Path, group: Group, most_bytes: int):
        """Read what an earlier start kept, at most so many bytes. The pass is begun anew where not every
        process has it of the same moment: after a kill between two files, or with another number of
        processes."""
        self.folder, self.group = folder, group
        self.path = folder / f"rank-{group.rank}-of-{group.world_size}.safetensors"
        self.batches = Counter[str]()
        """Of each part, computed so far."""
        self._numbers = self._read(most_bytes)
        for name in [name for name in self._numbers if name.startswith(BATCHES)]:
            self.batches[name.removeprefix(BATCHES)] = int(self._numbers.pop(name))
        moments = group.texts_of_all(str(sorted(self.batches.items())))
        if len(set(moments)) > 1:
            self.batches.clear()
            self._numbers.clear()

    def numbers(self, part: str, shape: tuple[int, int]) -> np.ndarray:
        """A part's numbers, to be filled in place: zeros at first."""
        held = self._numbers.get(part)
        if held is None or held.shape != shape:
            held = self._numbers[part] = np.zeros(shape)
            self.batches[part] = 0
        return held

    def keep(self) -> None:
        """Write what there is: in all processes after the same batch."""
        make_private(self.folder)
        counts = {f"{BATCHES}{part}": np.array(count) for part, count in self.batches.items()}
        write_numbers(self.path, self._numbers | counts)

    def remove(self) -> None:
        """The pass is whole, and kept elsewhere."""
        if self.folder.is_dir():
            remove_tree(self.folder)

    def _read(self, most_bytes: int) -> dict[str, np.ndarray]:
        if not self.path.exists():
            return {}
        try:
            return read_numbers(self.path, most_bytes)
        except CheckpointError as error:
            logger.warning(f"{error} It is computed again.")
            return {}
