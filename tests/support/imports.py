"""What an import loads, in an interpreter of its own."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")


def loaded_by(code: str, packages: tuple[str, ...]) -> list[str]:
    """Which of the packages a fresh interpreter has loaded after some code."""
    found = _printed(f"{code}\nimport sys\nprint([name for name in {packages!r} if name in sys.modules])")
    assert isinstance(found, list)
    return found


def loaded_after(modules: Sequence[str], packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Which of the packages a fresh interpreter has loaded after importing each of the modules, one after the
    other."""
    found = _printed(
        "import importlib, sys\nloaded = {}\n"
        f"for module in {list(modules)!r}:\n"
        "    importlib.import_module(module)\n"
        f"    loaded[module] = [name for name in {packages!r} if name in sys.modules]\n"
        "print(loaded)"
    )
    assert isinstance(found, dict)
    return found


def _printed(code: str) -> object:
    """The value that a fresh interpreter prints last."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])
