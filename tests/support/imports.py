"""What an import loads, in an interpreter of its own."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")


def loaded_by(code: str, packages: tuple[str, ...]) -> list[str]:
    """Which of the packages a fresh interpreter has loaded after some code."""
    tail = f"\nimport sys\nprint([name for name in {packages!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found
