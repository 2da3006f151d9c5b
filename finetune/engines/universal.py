"""ZeRO's checkpoints for another number of processes: in DeepSpeed's universal form each weight and its state
are whole, and are cut up again where they are loaded."""

import io
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import rmtree
from typing import Any

import transformers.trainer

from finetune.engines.group import Group

LATEST, LATEST_UNIVERSAL = "latest", "latest_universal"
"""DeepSpeed's files that name the folder to load."""


def processes_of(checkpoint: Path) -> int:
    """How many processes a checkpoint of ZeRO is cut up for."""
    return len(list(checkpoint.glob("*/*zero_pp_rank_*_optim_states.pt")))


@contextmanager
def recut(checkpoint: Path, group: Group) -> Iterator[None]:
    """While this lasts transformers loads a checkpoint of ZeRO that is cut up for other processes. All
    processes must come here; the main one writes the universal form beside it, and removes it."""
    folder, load = checkpoint.with_name(f".{checkpoint.name}.universal"), _loader()

    def load_recut(engine: Any, path: str, load_module_strict: bool = True) -> None:
        engine._config.load_universal_checkpoint = True
        engine.load_checkpoint(str(folder), load_module_strict=load_module_strict)
        engine._config.load_universal_checkpoint = False

    if group.is_main:
        _convert(checkpoint, folder)
    group.wait()
    _set_loader(load_recut)
    try:
        yield
        group.wait()
    finally:
        _set_loader(load)
        if group.is_main:
            rmtree(folder, ignore_errors=True)


def _loader() -> Any:
    return vars(transformers.trainer)["deepspeed_load_checkpoint"]


def _set_loader(load: Any) -> None:
    vars(transformers.trainer)["deepspeed_load_checkpoint"] = load


def _convert(checkpoint: Path, folder: Path) -> None:
    """The universal form of a checkpoint; DeepSpeed's program for it talks, and is not listened to."""
    from deepspeed.checkpoint.ds_to_universal import main

    rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    tag = (checkpoint / LATEST).read_text().strip()
    options = Namespace(
        input_folder=str(checkpoint / tag), output_folder=str(folder / tag), num_extract_workers=1,
        num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(options)
    (folder / LATEST_UNIVERSAL).write_text(tag)
