"""The world of one command: a folder with its run, its cache, its temporary files, its home, and the
processes that were started in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MARK = "FINETUNE_FAULTS_SCENE"
"""The variable by which a scene's processes are known, whoever started them."""
NAME = "faults"
STEPS, SAVE_EVERY, EVALUATE_EVERY = 40, 10, 15
RECIPE = """\
model: {{base: {base}}}
adapter: {{rank: 4, dropout: 0.1}}
objective: {{kind: dpo}}
data:
  train: [{{path: {rows}, format: preference}}]
  evaluation: {{fraction: 0.1}}
  max_length_tokens: 96
train:
  precision: fp32
  learning_rate: 1e-3
  global_batch_size: 4
  micro_batch_size: 2
  max_steps: {steps}
  save_every: {save_every}
  keep_checkpoints: 2
  evaluate_every: {evaluate_every}
tracking: {{tracker: none}}
output: {{folder: {runs}}}
"""
PAIRS = 400
TIMEOUT_MINUTES = "0.5"
"""How long the processes of a launch wait for one that hangs."""


def write_inputs(folder: Path) -> None:
    """The tiny base and the pairs that all scenes of a campaign share."""
    from tests.support.models import save_tiny_llama

    save_tiny_llama(folder / "base")
    lines = []
    for index in range(PAIRS):
        right, wrong = f"it is {index}, it is {index}", f"not {index + 7}"
        chosen, rejected = (right, wrong) if index % 2 else (right[:9], wrong + " " + wrong)
        lines.append(json.dumps({"prompt": f"number {index}?", "chosen": chosen, "rejected": rejected}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


@dataclass
class Command:
    """A command that was started, and what it printed."""

    words: list[str]
    process: subprocess.Popen[bytes]
    printed: Path

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it doesn't end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    @property
    def out(self) -> str:
        """Its standard output."""
        return Path(f"{self.printed}.out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """Its standard error."""
        return Path(f"{self.printed}.err").read_text(errors="replace")


@dataclass
class Scene:
    """One folder, and the commands that are given in it. `prefixes` stand before each command of a launch
    that has several machines, `words` after it, `variables` are its environment's."""

    folder: Path
    campaign: Path
    processes: int
    printed: Path
    prefixes: list[list[str]] = field(default_factory=lambda: [[]])
    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    group: Path | None = None
    """The control group that its processes are put into."""
    commands: int = 0

    def make(self) -> None:
        """The folders and the recipe."""
        for name in ("tmp", "home", "cache", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        values = {"base": self.campaign / "base", "rows": self.campaign / "pairs.jsonl", "runs": self.runs}
        numbers = {"steps": STEPS, "save_every": SAVE_EVERY, "evaluate_every": EVALUATE_EVERY}
        (self.folder / f"{NAME}.yaml").write_text(RECIPE.format(**values, **numbers))

    @property
    def token(self) -> str:
        """What names its campaign to the kernel: what a killed one has left is found again."""
        return f"ff{zlib.crc32(str(self.campaign).encode()):08x}"

    @property
    def runs(self) -> Path:
        """Where its recipe's runs are."""
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        """The run that the commands train, merge and export."""
        return self.runs / f"{NAME}-001"

    def train_words(self, *, resumes: bool = False, names_folder: bool = False) -> list[str]:
        """A command that trains: the recipe, the recipe into a folder that is named, or the run's end."""
        words = ["train", "--resume", str(self.run)] if resumes else ["train", f"{NAME}.yaml"]
        words += ["--run-folder", str(self.run)] if names_folder and not resumes else []
        launch = ["--launch", "ddp", "--processes", "2", "--timeout-minutes", TIMEOUT_MINUTES]
        return words + (launch if self.processes > 1 else []) + ([] if resumes else self.words)

    def start(self, words: Sequence[str], **variables: str) -> list[Command]:
        """Start `finetune WORDS`, once on each machine."""
        started = []
        for rank, prefix in enumerate(self.prefixes):
            machine = ["--node-rank", str(rank)] if len(self.prefixes) > 1 else []
            line = [*prefix, sys.executable, "-m", "finetune", *words, *machine]
            self.commands += 1
            printed = self.printed / f"{self.commands}"
            with open(f"{printed}.out", "wb") as out, open(f"{printed}.err", "wb") as err:
                process = subprocess.Popen(
                    line, cwd=self.folder, env=self.environment() | variables, stdout=out, stderr=err,
                    start_new_session=True, preexec_fn=self._enter if self.group is not None else None,
                )  # fmt: skip
            started.append(Command(list(words), process, printed))
        return started

    def environment(self) -> dict[str, str]:
        """What its commands inherit: nothing that they write lies outside its folder."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
        own = {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"), "FINETUNE_CACHE": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"), "PYTHONDONTWRITEBYTECODE": "1",
            MARK: str(self.folder),
        }  # fmt: skip
        return kept | own | self.variables

    def _enter(self) -> None:
        assert self.group is not None  # noqa: S101 - see start
        (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def alive(self) -> Iterator[psutil.Process]:
        """Every process that was started here, by whomever, and lives."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(
                    self.folder
                ):
                    yield process

    def left_alive(self, seconds: float = 15) -> list[str]:
        """The processes that are there though their command has ended, after so long; they are killed."""
        deadline = time.monotonic() + seconds
        while (left := list(self.alive())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [self._ended(process) for process in left]

    @staticmethod
    def _ended(process: psutil.Process) -> str:
        with suppress(psutil.Error):
            ports = [c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            said = f"{process.pid} {' '.join(process.cmdline()[:8])}{f', port {ports}' if ports else ''}"
            process.send_signal(signal.SIGKILL)
            return said
        return ""

    def remove(self) -> None:
        """End what is there, and delete the folder's content; a mount point stays."""
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
