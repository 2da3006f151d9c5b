"""What to type to train a finished run's result further: a new run, whose schedule is its own."""

import shlex
from itertools import pairwise

from finetune.recipe.lock import Lock
from finetune.runs.folder import RunFolder

REPEATED = (
    "--launch", "--processes", "--nodes", "--node-rank", "--rendezvous", "--max-restarts",
    "--timeout-minutes", "--patience", "--allow-code",
)  # fmt: skip
"""Options of the command that are wanted again."""


def command_to_train_further(run: RunFolder, lock: Lock, overrides: tuple[str, ...] = ()) -> str:
    """The command that begins with the run's result and goes by its recipe, with a schedule that begins anew.

    `overrides` are further ones. Without any, it takes as many steps again.
    """
    recipe = lock.recipe
    if recipe.adapter.method == "full":
        changes = {"model.base": str(run.model)}
        # What the result has in itself by now.
        changes |= {"model.revision": "null"} if recipe.model.revision is not None else {}
        changes |= {"model.rope_scaling": "null"} if recipe.model.rope_scaling is not None else {}
        changes |= {"model.new_tokens": "[]"} if recipe.model.new_tokens else {}
    else:
        changes = {"adapter.continue_from": str(run.adapter)}
        changes |= {"adapter.init": "default"} if recipe.adapter.init != "default" else {}
        if recipe.adapter.starts_at_base:
            changes["adapter.rank"] = str(recipe.adapter.saved_rank)
            changes["adapter.alpha"] = str(recipe.adapter.saved_alpha)
        # Its start is another one now, and what answers are compared with stays what it was.
        starts = recipe.objective.compares and recipe.objective.options["reference"] == "start"
        if starts and recipe.adapter.init != "loftq":
            changes["objective.reference"] = str(recipe.adapter.continue_from or "base")
    words = [f"{key}={value}" for key, value in changes.items()]
    length = (
        f"max_steps={recipe.train.max_steps}"
        if recipe.train.max_steps
        else f"epochs={recipe.train.epochs or 1}"
    )
    words += overrides or (f"train.{length}",)
    return shlex.join(["finetune", "train", str(run.lock_path), *words, *repeated_options(lock.command)])


def repeated_options(command: str) -> list[str]:
    """The options of a command that are wanted again where its run goes on."""
    found: list[str] = []
    try:
        words = shlex.split(command)
    except ValueError:  # no command of ours: an open quotation mark
        return []
    for word, after in pairwise([*words, ""]):
        if word in REPEATED:
            found += [word, after]
        elif word.partition("=")[0] in REPEATED:
            found.append(word)
    return found
