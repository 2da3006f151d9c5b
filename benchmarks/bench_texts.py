"""How long a megabyte of each nasty text takes to be scrubbed, cleaned and searched: each under half a
second.

python benchmarks/bench_texts.py
"""

import sys
import time

from nasty_texts import FUNCTIONS, texts

BYTES, MOST_SECONDS = 1_000_000, 0.5


def main() -> int:
    """The slowest text of each function, and whatever takes too long."""
    slow = 0
    for name, function in FUNCTIONS.items():
        taken = {}
        for kind, text in texts(BYTES).items():
            started = time.perf_counter()
            function(text)
            taken[kind] = time.perf_counter() - started
        for kind in sorted(taken, key=lambda kind: -taken[kind])[:3]:
            print(f"{name:14} {kind:26} {taken[kind]:6.3f} s")
        slow += sum(seconds > MOST_SECONDS for seconds in taken.values())
    print(f"{slow} took longer than {MOST_SECONDS} s")
    return 3 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
