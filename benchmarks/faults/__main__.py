"""Seeded faults, each in a phase of a run, and what a user finds after it.

    python -m benchmarks.faults FOLDER                    # ten minutes; the same command goes on
    python -m benchmarks.faults FOLDER --minutes 600      # all that is left
    python -m benchmarks.faults FOLDER --only "disk full, saving"
    python -m benchmarks.faults FOLDER --table            # what was found so far

A tiny random base learns from pairs, in one process and in two (ddp); a fault hits it at a drawn moment of a
phase, which its own log and files tell. Then the user's next command is given, the same again or --resume.
`same`: it ends in the uninterrupted run's files, bit for bit. `told`: one message says why it can't, where a
fault destroyed what nobody can make again. Whatever else comes has FAILED: a traceback, two messages, a
process, a port or a temporary file that is left, a command that doesn't end. Each fault is a line of
FOLDER/faults.jsonl; what a failed one printed is in FOLDER/printed. Exit code 1 where one failed.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults.case import FAILED, LIMIT_SECONDS, MISSED, Case, run_case, whole_scene, words_of
from benchmarks.faults.phases import PHASES, POLL_SECONDS, TRAINING, Timeline
from benchmarks.faults.scene import write_inputs
from benchmarks.faults.surroundings import FAULTS

LINES, TIMES = "faults.jsonl", "times.json"


def main() -> int:
    """Run what is left of the campaign, as long as there is time; print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="no fault begins after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="how often each, at other moments")
    parser.add_argument("--only", default="", help="cases whose name has this: 'FAULT, PHASE, PROCESSES'")
    parser.add_argument("--again", action="store_true", help="those that failed or missed are run again")
    parser.add_argument("--table", action="store_true", help="print what was found, and run nothing")
    asked = parser.parse_args()
    until, folder = time.monotonic() + 60 * asked.minutes, asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in cases_of(asked.seed, asked.rounds) if asked.only in case.name]
    if not cases:
        parser.error(
            f"--only {asked.only!r}: no case has this in its name, such as 'disk full, saving, 2, 0'"
        )
    done = read(folder / LINES)
    if asked.again:
        done = {name: line for name, line in done.items() if line["verdict"] not in (FAILED, MISSED)}
    left = [] if asked.table else [case for case in cases if case.name not in done]
    times = undisturbed(folder) if left else {}
    for case in left:
        if time.monotonic() > until:
            break
        line = run_case(case, folder, times[str(case.processes)], asked.seed).as_dict()
        done[case.name] = line
        with (folder / LINES).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(told(line), flush=True)
    found = [done[case.name] for case in cases if case.name in done]
    print("\n".join(table(found)))
    if len(found) < len(cases):
        print(f"{len(cases) - len(found)} of {len(cases)} are left: the same command goes on")
    return 1 if any(line["verdict"] == FAILED for line in found) else 0


def cases_of(seed: int, rounds: int) -> list[Case]:
    """Every fault that this machine can have, in every phase, in a drawn order; so often, each time at
    another moment."""
    cells = []
    for fault in FAULTS:
        if (reason := fault.why_not()) is not None:
            print(f"left out: {fault.name}: {reason}")
            continue
        for phase in fault.phases:
            several = phase in TRAINING
            cells += [(fault, phase, number) for number in fault.processes if several or number == 1]
    return [
        Case(*cell, number)
        for number in range(rounds)
        for cell in random.Random(f"{seed}, {number}").sample(cells, len(cells))
    ]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each case; one that a kill cut short is none, and its case is run again."""
    found = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            line = json.loads(text)
            found[line["case"]] = line
    return found


def undisturbed(folder: Path) -> dict[str, dict[str, float]]:
    """Run, merge and export where nothing goes wrong, once; how long each phase lasts, by the number of
    processes."""
    if (folder / TIMES).is_file():
        return dict(json.loads((folder / TIMES).read_text()))
    if not (folder / "pairs.jsonl").is_file():
        write_inputs(folder)
    times = {}
    for processes in (1, 2):
        scene, found = whole_scene(folder, processes), dict[str, float]()
        scene.remove()
        scene.make()
        for verb in ("train", "merge", "export") if processes == 1 else ("train",):
            timeline = Timeline(scene, verb)
            (command,) = scene.start(words_of(scene, verb))
            started = time.monotonic()
            while command.process.poll() is None and time.monotonic() - started < LIMIT_SECONDS:
                timeline.look()
                time.sleep(POLL_SECONDS)
            timeline.look()
            if (code := command.process.poll()) != 0:
                scene.left_alive(0)
                sys.exit(f"undisturbed, {command.words} gave {code}:\n{command.out}{command.err}")
            found |= timeline.seconds()
        times[str(processes)] = found
        print(f"undisturbed, {processes} processes: {', '.join(f'{n} {s:.2f} s' for n, s in found.items())}")
    (folder / TIMES).write_text(json.dumps(times))
    return times


def told(line: dict[str, Any]) -> str:
    """A case for a person."""
    more = [f"    {text}" for text in (line["said"], *line["wrong"]) if text]
    first = f"{line['verdict']:7} {line['seconds']:5.0f} s  {line['case']}: {line['struck']}"
    first += f", exits {', '.join(map(str, line['codes']))}" if line["codes"] else ""
    return "\n".join([first, *more])


def table(lines: list[dict[str, Any]]) -> Iterable[str]:
    """Faults by phases: how many held, were told, failed; `-` where there is no such case."""
    names = [phase.name for phase in PHASES]
    yield f"{'':18}" + "".join(f"{name:>12}" for name in names)
    for fault in FAULTS:
        row = f"{fault.name:18}"
        for name in names:
            here = [line["verdict"] for line in lines if (line["fault"], line["phase"]) == (fault.name, name)]
            counts = [f"{here.count(kind)} {kind}" for kind in dict.fromkeys(here)]
            row += f"{', '.join(counts) or '-':>12}"
        yield row
    total = [line["verdict"] for line in lines]
    yield f"{len(total)} faults: " + ", ".join(f"{total.count(kind)} {kind}" for kind in dict.fromkeys(total))


if __name__ == "__main__":
    sys.exit(main())
