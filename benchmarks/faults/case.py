"""One fault: a command is started, hit in its phase, what the user sees is judged; then the next command."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.faults import Attempt, Fault
from benchmarks.faults.phases import BY_NAME as PHASES
from benchmarks.faults.phases import Missed, Phase, moment
from benchmarks.faults.scene import Command, Scene
from benchmarks.faults.verdict import complaints, differences, refusal

LIMIT_SECONDS = 240.0
"""How long a command may take that is to end."""
ATTEMPTS = 4
FINISHED = "is finished, and its schedule came to its end"
HELD, TOLD, FAILED, MISSED = "same", "told", "FAILED", "missed"


@dataclass(frozen=True)
class Case:
    """A fault in a phase of a command of so many processes."""

    fault: Fault
    phase: str
    processes: int
    round: int = 0

    @property
    def name(self) -> str:
        """Its name, by which it is known in a campaign's folder."""
        return f"{self.fault.name}, {self.phase}, {self.processes}, {self.round}"


@dataclass
class Outcome:
    """What came of a case."""

    case: Case
    verdict: str = MISSED
    struck: str = ""
    said: str = ""
    """The message by which the next command says why it can't."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    codes: list[int | None] = field(default_factory=list)
    """Exit codes: of the command that was hit, of the next one."""

    def as_dict(self) -> dict[str, Any]:
        """A line of the campaign."""
        case = self.case
        which = {"fault": case.fault.name, "phase": case.phase, "processes": case.processes}
        own = {"verdict": self.verdict, "struck": self.struck, "said": self.said, "wrong": self.wrong}
        return {"case": case.name} | which | own | {"codes": self.codes, "seconds": round(self.seconds, 1)}


def run_case(case: Case, campaign: Path, seconds: dict[str, float], seed: int) -> Outcome:
    """Run a case until its fault has hit the phase. `seconds` is how long each phase lasts undisturbed."""
    draw, phase, started = random.Random(f"{seed}, {case.name}"), PHASES[case.phase], time.monotonic()
    outcome = Outcome(case)
    share = draw.random()
    for attempt in range(ATTEMPTS):
        # One that came too late comes earlier, the next time.
        late = share * seconds.get(case.phase, 0.0) / 2**attempt
        outcome = Outcome(case)
        try:
            _attempt(outcome, phase, late, draw, campaign)
            break
        except Missed as missed:
            outcome.struck = str(missed)
    outcome.seconds = time.monotonic() - started
    return outcome


def _attempt(outcome: Outcome, phase: Phase, late: float, draw: random.Random, campaign: Path) -> None:
    case = outcome.case
    folder, printed = (
        campaign / "scene",
        campaign / "printed" / case.name.replace(", ", "-").replace(" ", "_"),
    )
    shutil.rmtree(printed, ignore_errors=True)
    printed.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    scene = Scene(folder, campaign, case.processes, printed)
    whole = whole_scene(campaign, case.processes)
    scene.remove()
    with case.fault.around(scene):
        try:
            scene.make()
            if phase.verb != "train":
                shutil.copytree(whole.runs, scene.runs)
                shutil.copytree(whole.folder / "cache", scene.folder / "cache", dirs_exist_ok=True)
            names_folder = bool(draw.randrange(2)) or len(scene.prefixes) > 1
            words = words_of(scene, phase.verb, names_folder=names_folder)
            commands, step = scene.start(words), draw.choice(phase.at)
            moment(scene, phase, step, late, lambda: all(c.process.poll() is None for c in commands))
            attempt = Attempt(scene, phase, step, commands, draw)
            at = f" at step {step}" if step else ""
            outcome.struck = f"{case.fault.strike(attempt)}{at}, {late:.3f} s in"
            _judge(outcome, attempt, whole, words, names_folder=names_folder)
        finally:
            scene.remove()


def words_of(scene: Scene, verb: str, *, names_folder: bool = False) -> list[str]:
    """The command of a phase."""
    if verb == "merge":
        return ["merge", str(scene.run), "--output", "merged"]
    if verb == "export":
        return ["export", str(scene.run), "--output", "exported", "--format", "gguf"]
    return scene.train_words(names_folder=names_folder)


def whole_scene(campaign: Path, processes: int) -> Scene:
    """Where nothing went wrong."""
    printed = campaign / "printed" / f"whole-{processes}"
    printed.mkdir(parents=True, exist_ok=True)
    return Scene(campaign / f"whole-{processes}", campaign, processes, printed)


def _judge(outcome: Outcome, attempt: Attempt, whole: Scene, words: list[str], *, names_folder: bool) -> None:
    scene, fault, verb = attempt.scene, outcome.case.fault, attempt.phase.verb
    if fault.name == "hang" and scene.processes == 1:
        outcome.wrong += _suspended(attempt, words)
    code = _ended(outcome, attempt.commands, scene)
    fault.mend(attempt)
    last, trained = attempt.command, (scene.run / "recipe.lock.yaml").is_file()
    if code != 0:
        if verb == "train" and trained and not names_folder:
            words = scene.train_words(resumes=True)
        commands = scene.start(words)
        last, code = commands[0], _ended(outcome, commands, scene)
    why = refusal(last, code)
    if why is not None and FINISHED in why:  # the fault came when all was done
        why = None
    if why is not None and fault.loses:
        outcome.verdict, outcome.said = TOLD, why
    elif why is not None:
        outcome.wrong.append(f"the next command refuses: {why}")
    else:
        outcome.wrong += differences(scene, whole, verb)
    if outcome.wrong:
        outcome.verdict = FAILED
        _keep(scene, last.printed.parent)
    elif outcome.verdict != TOLD:
        outcome.verdict = HELD


def _suspended(attempt: Attempt, words: list[str]) -> Iterator[str]:
    """Another command that wants the same is refused meanwhile; then the first one goes on."""
    scene, verb = attempt.scene, attempt.phase.verb
    if verb != "train" or (scene.run / ".running").is_file():
        (other,) = scene.start(scene.train_words(resumes=True) if verb == "train" else words)
        code = other.wait(LIMIT_SECONDS)
        if refusal(other, code) is None:
            yield f"while it is suspended another command ends with {code}"
        yield from complaints(other, code, killed=False)
    attempt.command.process.send_signal(signal.SIGCONT)


def _ended(outcome: Outcome, commands: list[Command], scene: Scene) -> int | None:
    """Wait for what was started, and note what a user would complain of; the exit code of the first."""
    codes = [command.wait(LIMIT_SECONDS) for command in commands]
    for command, code in zip(commands, codes, strict=True):
        outcome.wrong += complaints(command, code, killed=code is not None and code < 0)
    outcome.wrong += [f"left alive: {process}" for process in scene.left_alive()]
    outcome.codes += codes[:1]
    return codes[0]


def _keep(scene: Scene, printed: Path) -> None:
    """What is needed to understand a failure."""
    names = sorted(str(path.relative_to(scene.folder)) for path in scene.folder.rglob("*"))
    (printed / "files.txt").write_text("\n".join(names))
    for log in (scene.run / "run.log", *scene.run.glob("logs/*")):
        if log.is_file():
            shutil.copy(log, printed)
