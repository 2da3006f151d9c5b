"""The folder in which the board works: its recipes, and its runs."""

import hashlib
import os
import re
import secrets
import signal
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_prep.disk import PARTIAL, open_regular, read_regular, umask
from finetune.errors import FinetuneError
from finetune.recipe.reading.layers import SECTION_BEGINS
from finetune.recipe.shipped import recipes_folder, shipped_recipes
from finetune.runs.folder import RUNNING, RunFolder, is_run

SUFFIXES = (".yaml", ".yml")
RECIPE_BYTES = 2**20
DEEPEST = 4
"""Folders below the board's own in which recipes are looked for."""
MOST_FOLDERS, MOST_RECIPES = 1000, 500
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a run or a recipe that the board makes."""
LONGEST_STEM = 90
"""Of a run's name that is proposed, before its number."""
HOLDER = re.compile(r"process (\d+) on (.+)")
EMPTY = """\
model:
  base: HuggingFaceTB/SmolLM2-135M-Instruct

data:
  train:
    - {path: rows.jsonl, format: auto}
  evaluation:
    fraction: 0.1

train:
  epochs: 1
"""


class Conflict(FinetuneError):
    """A file that somebody else has changed meanwhile."""


@dataclass(frozen=True)
class RecipeText:
    """A recipe's text, and by what it is known again."""

    name: str
    text: str

    @property
    def mark(self) -> str:
        """The text's SHA-256."""
        return mark_of(self.text)


def mark_of(text: str) -> str:
    """By what a text is known again."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Workspace:
    """Where commands run, and where their runs go."""

    folder: Path
    runs: Path

    # --- Recipes

    def recipes(self) -> list[str]:
        """The recipes below the folder, by their paths."""
        paths = (path for folder in self._folders() for path in _yaml_files(folder) if _is_recipe(path))
        return sorted(str(path.relative_to(self.folder)) for path in islice(paths, MOST_RECIPES))

    def _folders(self) -> Iterator[Path]:
        """Where recipes may be: the folder and those below it, the nearest first."""
        waiting = deque([(self.folder, 0)])
        for _ in range(MOST_FOLDERS):
            if not waiting:
                return
            folder, depth = waiting.popleft()
            yield folder
            if depth < DEEPEST:
                below = (path for path in _entries(folder) if path.is_dir() and not path.is_symlink())
                waiting.extend((path, depth + 1) for path in below if path != self.runs and not is_run(path))

    def recipe_path(self, name: str) -> Path:
        """A recipe's file. Raises FinetuneError for one outside of the folder, or with another suffix."""
        path = Path(os.path.normpath(self.folder / name))
        if "\0" in name or not path.is_relative_to(self.folder) or path.suffix not in SUFFIXES:
            raise FinetuneError(
                f"{name!r} is no recipe of this folder: expected a path below it that ends in .yaml."
            )
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise FinetuneError(f"{name} is a link to a file elsewhere: open the board there.")
        return path

    def read_recipe(self, name: str) -> RecipeText:
        """A recipe's text. Raises FinetuneError where there is none, or it isn't UTF-8."""
        try:
            content = read_regular(self.recipe_path(name), RECIPE_BYTES)
        except FileNotFoundError:
            raise FinetuneError(f"there is no recipe {name} any more.") from None
        except OSError as error:
            raise FinetuneError(f"{name} can't be read: {error.strerror or error}.") from None
        try:
            return RecipeText(name, content.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise FinetuneError(f"{name} is not UTF-8: convert it, for it can't be edited here.") from None

    def write_recipe(self, name: str, text: str, mark: str) -> RecipeText:
        """Replace a recipe's text, in one step, where the file is still the one that the mark is of ("" where
        there was none). Raises Conflict where it isn't."""
        path, size = self.recipe_path(name), len(text.encode())
        if size > RECIPE_BYTES:
            raise FinetuneError(
                f"the text has {size:,} bytes, and a recipe at most {RECIPE_BYTES:,}. Nothing was saved."
            )
        if path.exists():
            if self.read_recipe(name).mark not in (mark, mark_of(text)):
                raise Conflict(
                    f"{name} was changed since this page has loaded it, in another tab or an editor. Nothing "
                    "was saved: copy what you need, and load the page again."
                )
            mode = path.stat().st_mode & 0o777
        elif mark:
            raise Conflict(f"{name} was deleted or renamed since this page has loaded it. Nothing was saved.")
        else:
            mode = 0o666 & ~umask()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            partial.write_text(text, encoding="utf-8", newline="")
            partial.chmod(mode)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return RecipeText(name, text)

    def new_recipe(self, name: str, start: str) -> str:
        """Make a recipe out of a shipped one ("" for the smallest); its path. Raises FinetuneError for a name
        that is taken or can't be one."""
        stem = name.strip().removesuffix(".yaml")
        if not NAME.fullmatch(stem):
            raise FinetuneError(
                f"the recipe's name is {name!r}; expected letters, digits, dots, - and _, such as my-orders."
            )
        shipped = shipped_recipes()
        if start and start not in shipped:
            raise FinetuneError(f"there is no shipped recipe {start!r}.")
        path = f"{stem}.yaml"
        if self.recipe_path(path).exists():
            raise FinetuneError(f"{path} is there already: open it, or take another name.")
        self.write_recipe(path, _copied(shipped[start]) if start else EMPTY, "")
        return path

    # --- Runs

    def run(self, name: str) -> RunFolder:
        """The folder of a run, which need not be there yet. Raises FinetuneError for what can't be a name."""
        if name in ("", ".", "..") or "/" in name or "\0" in name or name.startswith("."):
            raise FinetuneError(f"{name!r} is no run's name.")
        return RunFolder(self.runs / name)

    def free_run(self, stem: str) -> str:
        """A name for the next run of a recipe."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:LONGEST_STEM] or "run"
        number = 1
        while (self.runs / f"{stem}-{number:03d}").exists():
            number += 1
        return f"{stem}-{number:03d}"

    def shown(self, path: Path) -> str:
        """A path as commands that run in the folder name it."""
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)


def process_of(run: RunFolder) -> int | None:
    """The process of this machine and this user that trains a run now."""
    marker = run.path / RUNNING
    if not run.is_claimed():
        return None
    try:
        if marker.stat().st_uid != os.getuid():  # which may name any process
            return None
        found = HOLDER.match(read_regular(marker, 1000).decode(errors="replace"))
    except OSError:
        return None
    return int(found[1]) if found and found[2] == socket.gethostname() else None


def stop_process(run: RunFolder) -> None:
    """Ask the process that trains a run to stop with a checkpoint. Raises FinetuneError where none of this
    machine does."""
    process = process_of(run)
    if process is None:
        raise FinetuneError(f"no process of this machine trains {run.name}: there is nothing to stop.")
    os.kill(process, signal.SIGTERM)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder and isn't hidden; nothing where it can't be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    except OSError:
        return []


def _yaml_files(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.suffix in SUFFIXES and not path.is_symlink())


def _is_recipe(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return SECTION_BEGINS.search(file.read(RECIPE_BYTES)) is not None
    except OSError:
        return False


def _copied(shipped: Path) -> str:
    """A shipped recipe's text, which finds what it extends from anywhere."""
    text = re.sub(r"# yaml-language-server:.*\n#?\n?", "", shipped.read_text(encoding="utf-8"))

    def by_name(found: re.Match[str]) -> str:
        parent = (shipped.parent / found[2]).resolve()
        return found[1] + parent.relative_to(recipes_folder().resolve()).as_posix().removesuffix(".yaml")

    return re.sub(r"(?m)^(extends:\s*)(\S+)", by_name, text)
