"""Changed models, adapters and runs through the command line: exit 0, 2 or 3, never a traceback, never a
hang.

    python benchmarks/bench_fuzz.py                    # 2,000 cases, and their tally
    python benchmarks/bench_fuzz.py --first 5000 --cases 300
    python benchmarks/bench_fuzz.py --case 1234        # one, with all that it printed

Ends with exit code 1 where a case failed. Weaknesses are messages that are too long, empty, about nothing
that the user has, or late, and cases that take long.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz.cases import VERBS
from tests.fuzz.running import Fuzzer, Outcome

AGAIN = ".venv/bin/python benchmarks/bench_fuzz.py --case"


def main() -> int:
    """Run the cases; print failures as they come, and the tally."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--case", type=int)
    parser.add_argument("--all", action="store_true", help="print every case, not only those that fail")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.cases) if asked.case is None else [asked.case]
    began, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="finetune-fuzz-") as scratch:
        fuzzer = Fuzzer(Path(scratch))
        try:
            for seed in seeds:
                outcomes.append(fuzzer.run(seed))
                if outcomes[-1].failure or asked.all or asked.case is not None:
                    print(told(outcomes[-1], whole=asked.all or asked.case is not None), flush=True)
        finally:
            fuzzer.stop()
    for line in tally(outcomes, time.monotonic() - began):
        print(line)
    return 1 if any(outcome.failure for outcome in outcomes) else 0


def told(outcome: Outcome, *, whole: bool) -> str:
    """A case for a person, and the line that runs it again."""
    lines = [f"case {outcome.seed}: {outcome.words}", f"    {outcome.failure or f'exit {outcome.code}'}"]
    lines += [f"    {line}" for line in (outcome.message, *outcome.weaknesses) if line and whole]
    if outcome.details and whole:
        lines.append(outcome.details)
    return "\n".join([*lines, f"    again: {AGAIN} {outcome.seed}"])


def tally(outcomes: list[Outcome], seconds: float) -> Iterable[str]:
    """What came of all cases."""
    yield f"\n{len(outcomes):,} cases in {seconds / 60:.1f} minutes"
    codes = [0, 2, 3, "failed"]
    yield f"{'':28}" + "".join(f"{'exit ' + str(code) if code != 'failed' else code:>10}" for code in codes)
    names = sorted({file for outcome in outcomes for file in outcome.files if "." in file})
    for title, keys, of in (("", list(VERBS), lambda o: (o.verb,)), ("changed", names, lambda o: o.files)):
        yield title
        for key in keys:
            found = Counter[object]("failed" if o.failure else o.code for o in outcomes if key in of(o))
            yield f"{key:28}" + "".join(f"{found[code]:>10,}" for code in codes)
    for title, groups in (
        ("failures", [(outcome.failure, outcome) for outcome in outcomes if outcome.failure]),
        ("weaknesses", [(weakness, outcome) for outcome in outcomes for weakness in outcome.weaknesses]),
    ):
        yield f"\n{title}: {len(groups):,}"
        kinds = defaultdict(list)
        for kind, outcome in groups:
            kinds[kind].append(outcome.seed)
        for kind, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
            yield (
                f"{len(seeds):6,}  {kind}  (cases "
                f"{', '.join(map(str, seeds[:5]))}{' ...' if len(seeds) > 5 else ''})"
            )
    slowest = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:3]
    yield "\nslowest: " + ", ".join(f"{outcome.seconds:.1f} s (case {outcome.seed})" for outcome in slowest)


if __name__ == "__main__":
    sys.exit(main())
