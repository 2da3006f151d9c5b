"""Commands that are printed for a person to type: they work as they are printed, whatever a path holds."""

import shlex
from pathlib import Path


def shell_command(*words: str | Path) -> str:
    """`finetune` with these words, as a shell takes them; a path is never taken for an option, or for a home
    folder."""
    return shlex.join(["finetune", *(_argument(word) if isinstance(word, Path) else word for word in words)])


def _argument(path: Path) -> str:
    text = str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text
