"""The phases of a run, of a merge and of an export, known by what they write: never by the clock."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.scene import EVALUATE_EVERY, SAVE_EVERY, STEPS, Scene

Sign = Callable[[Scene, int], bool]
"""Whether something is seen; of a phase that comes several times, at that step."""
POLL_SECONDS = 0.005


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _says(text: str) -> Sign:
    return lambda scene, _: text in _text(scene.run / "run.log")


def _logged(metric: str, later: int = 0) -> Sign:
    """Whether the step's metric is in metrics.jsonl."""

    def sign(scene: Scene, step: int) -> bool:
        start = f'{{"step": {step + later}, '
        lines = _text(scene.run / "metrics.jsonl").splitlines()
        return any(line.startswith(start) and f'"{metric}"' in line for line in lines)

    return sign


def _there(*names: str) -> Sign:
    """Whether a path is there whose name has the step in place of {}."""
    return lambda scene, step: any(list(scene.folder.glob(name.format(step))) for name in names)


def _summary(status: str) -> Sign:
    def sign(scene: Scene, _: int) -> bool:
        try:
            return bool(json.loads((scene.run / "summary.json").read_text())["status"] == status)
        except (OSError, ValueError, KeyError):
            return False

    return sign


@dataclass(frozen=True)
class Phase:
    """A stretch of a command's work."""

    name: str
    begun: Sign
    ended: Sign
    at: Sequence[int] = (0,)
    """The steps at which it comes."""
    verb: str = "train"


_STRETCH = range(3)
"""Steps that follow one another with nothing in between: one alone is over too soon to be hit."""
_CHECKPOINT = "runs/*/checkpoints/checkpoint-{}"
PHASES = (
    Phase("preparing", _there("cache/**/*.unfinished"), _there("cache/**/entry.json")),
    Phase("rehearsal", _says("run folder "), _says("rehearsed the heaviest")),
    Phase("reference", _says("rehearsed the heaviest"), _says("computed what the objective needs")),
    Phase(
        "step",
        _logged("train/loss"),
        _logged("train/loss", later=len(_STRETCH)),
        [
            step
            for step in range(1, STEPS - len(_STRETCH))
            if all((step + more) % SAVE_EVERY and (step + more) % EVALUATE_EVERY for more in _STRETCH)
        ],
    ),
    Phase(
        "evaluation",
        _logged("train/loss"),
        _logged("eval/loss"),
        range(EVALUATE_EVERY, STEPS, EVALUATE_EVERY),
    ),
    Phase(
        "saving",
        _there(_CHECKPOINT),
        _there(_CHECKPOINT + "/complete.json"),
        range(SAVE_EVERY, STEPS, SAVE_EVERY),
    ),
    Phase("result", _there(_CHECKPOINT + "/complete.json"), _summary("finished"), (STEPS,)),
    Phase("merge", _there(".merged.unfinished"), _there("merged", "merged.failed"), verb="merge"),
    Phase("export", _there(".exported.unfinished"), _there("exported", "exported.failed"), verb="export"),
)
TRAINING = tuple(phase.name for phase in PHASES if phase.verb == "train")
BY_NAME = {phase.name: phase for phase in PHASES}


class Missed(Exception):
    """The phase was over, or never came."""


def moment(scene: Scene, phase: Phase, step: int, seconds: float, running: Callable[[], bool]) -> None:
    """Return so many seconds into a phase. Raises Missed where it is over by then, or the command ended
    before."""
    while not phase.begun(scene, step):
        if not running():
            raise Missed(f"the command ended before {phase.name} began")
        time.sleep(POLL_SECONDS)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(POLL_SECONDS / 4)
    if not running() or phase.ended(scene, step):
        raise Missed(f"{phase.name} was over")


class Timeline:
    """How long each phase of a command lasts that nothing disturbs."""

    def __init__(self, scene: Scene, verb: str) -> None:
        self.scene = scene
        self.waiting = [(phase, step) for phase in PHASES if phase.verb == verb for step in phase.at]
        self.begun: dict[tuple[str, int], float] = {}
        self.lasted: dict[str, list[float]] = {}

    def look(self) -> None:
        """Note what has begun and ended."""
        for phase, step in list(self.waiting):
            key, now = (phase.name, step), time.monotonic()
            if key not in self.begun and phase.begun(self.scene, step):
                self.begun[key] = now
            if key in self.begun and phase.ended(self.scene, step):
                self.lasted.setdefault(phase.name, []).append(now - self.begun[key])
                self.waiting.remove((phase, step))

    def seconds(self) -> dict[str, float]:
        """The median of each phase."""
        return {name: sorted(found)[len(found) // 2] for name, found in self.lasted.items()}
