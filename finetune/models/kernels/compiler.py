"""The C compiler that Triton's kernels need at their first call, on the machine that trains."""

import os
import shutil
import sysconfig
from pathlib import Path


def c_compiler() -> str | None:
    """The compiler that Triton would take; None where there is none, or Python's headers, which it includes,
    are absent."""
    named = os.environ.get("CC")
    found = named or next(filter(None, map(shutil.which, ("gcc", "clang"))), None)
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return found if headers.is_file() else None
