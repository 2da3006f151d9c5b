"""The board's pages: what each needs, drawn by its template."""

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup, escape

from finetune.board.actions import (
    AUDIT_PAGE,
    RECIPE_ACTIONS,
    RUN_ACTIONS,
    Action,
    defaults,
    word_of,
    words_of,
)
from finetune.board.checking import check_text
from finetune.board.jobs import RUNNING, BoardJob, Jobs, training_job
from finetune.board.workspace import RecipeText, Workspace, process_of
from finetune.errors import FinetuneError
from finetune.recipe.shipped import shipped_recipes
from finetune.reporting.page import TEMPLATE, report_environment, values_of
from finetune.runs.commands import shell_command
from finetune.runs.folder import RunFolder, is_run, list_summaries, open_run

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
SKELETON = "page.html.jinja"
MOST_JOBS = 20
"""Commands that a page lists."""
SOON, LATER = 2, 10
"""Seconds until a page looks again, while something runs and else; 0 is never."""
SERVING = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+) ")
"""What `finetune serve` says once it listens."""


@dataclass(frozen=True)
class Offer:
    """An action with what its form holds at first."""

    verb: str
    action: Action
    about: str
    values: dict[str, str]
    command: str


class Pages:
    """Draws what there is in a workspace."""

    def __init__(self, workspace: Workspace, jobs: Jobs):
        self.workspace, self.jobs = workspace, jobs
        self.environment = _environment()

    def home(self) -> str:
        """Runs, recipes, commands."""
        runs = [_listed(summary) for summary in reversed(list_summaries(self.workspace.runs))]
        jobs = self.jobs.all()[:MOST_JOBS]
        return self._draw(
            "home", runs=runs, recipes=self.workspace.recipes(), shipped=list(shipped_recipes()), jobs=jobs,
            every=LATER if not _busy(jobs) else SOON,
        )  # fmt: skip

    def recipe(self, recipe: RecipeText, *, mark: str | None = None, told: str = "") -> str:
        """A recipe in the editor. `mark` is of the text that was loaded, where this one isn't it."""
        asked = (recipe.name, str(self.workspace.folder))
        jobs = [job for job in self.jobs.all() if (job.recipe, job.where) == asked]
        training = [job for job in jobs if job.verb == "train" and job.state == RUNNING]
        return self._draw(
            "recipe", recipe=recipe, mark=recipe.mark if mark is None else mark, told=told,
            checked=check_text(self.workspace, recipe.name, recipe.text), training=training,
            offers=self._offers(RECIPE_ACTIONS, recipe.name), jobs=jobs[:MOST_JOBS],
            every=SOON if _busy(jobs) else LATER,
        )  # fmt: skip

    def job(self, job: BoardJob) -> str:
        """A command, what it says, and what came of it."""
        running = job.state == RUNNING
        is_recipe = job.verb != "train" and job.recipe == job.about
        return self._draw(
            "job", job=job, subject=f"/{'recipes' if is_recipe else 'runs'}/{quote(job.about)}",
            port=port_of(job), page=(job.folder / AUDIT_PAGE).is_file() and not running, state=job.state,
            every=SOON if running else 0,
        )  # fmt: skip

    def run(self, name: str) -> str:
        """A run's report with what can be done with it; before it has one, what its command says. Raises
        FinetuneError where there is neither."""
        run = self.workspace.run(name)
        jobs = [job for job in self.jobs.all() if job.about == name]
        newest = next((job for job in jobs if job.verb == "train"), jobs[0] if jobs else None)
        training = training_job(jobs, name)
        process = training.process if training else process_of(run)
        stop = f"kill {process}" if process else ""
        common = {"name": name, "newest": newest, "stop": stop, "every": SOON if _busy(jobs) or stop else 0}
        if not is_run(run.path):
            if newest is None:
                raise FinetuneError(f"there is no run {name} in {self.workspace.shown(self.workspace.runs)}.")
            return self._draw("beginning", **common, state=f"beginning {newest.state}")
        values = values_of([run])
        outcome = values["records"][0].outcome
        busy = " ".join(f"{job.name} {job.state}" for job in jobs[:MOST_JOBS])
        return self._draw(
            "run", **values, **common, jobs=jobs[:MOST_JOBS], offers=self._run_offers(run, outcome),
            parent=TEMPLATE, state=f"{outcome.get('status')} {busy}",
        )  # fmt: skip

    def compare(self, names: list[str]) -> str:
        """Runs side by side. Raises FinetuneError for fewer than two."""
        if len(names) < 2:
            raise FinetuneError("mark two runs or more to compare them.")
        paths = [self.workspace.run(name).path for name in dict.fromkeys(names)]
        words = [word_of(self.workspace.shown(path)) for path in paths]
        return self._draw(
            "run", **values_of([open_run(path) for path in paths]), parent=TEMPLATE, newest=None, stop="",
            jobs=[], offers=[], compared=shell_command("report", *words, "--html", "compared.html"),
        )  # fmt: skip

    def error(self, message: str, heading: str = "That can't be done") -> str:
        """What is wrong with what was asked."""
        return self._draw("error", message=message, heading=heading)

    def _draw(self, template: str, **values: Any) -> str:
        common = {"parent": SKELETON, "workspace": self.workspace, "state": "", "every": 0, "compared": ""}
        return self.environment.get_template(f"{template}.html.jinja").render(common | values)

    def _run_offers(self, run: RunFolder, outcome: dict[str, Any]) -> list[Offer]:
        """What fits the run's state."""
        status = outcome.get("status")
        if status == "running":
            return []
        if status != "finished":
            return self._offers({"resume": RUN_ACTIONS["resume"]}, run.name)
        offered = {verb: action for verb, action in RUN_ACTIONS.items() if verb != "resume"}
        if not (run.path / "adapter").is_dir():
            del offered["merge"]
        return self._offers(offered, run.name)

    def _offers(self, actions: dict[str, Action], about: str) -> list[Offer]:
        return [Offer(verb, action, about, *self._filled(verb, about)) for verb, action in actions.items()]

    def _filled(self, verb: str, about: str) -> tuple[dict[str, str], str]:
        values = defaults(self.workspace, verb, about)
        return values, command_of(self.workspace, verb, about, values)


def command_of(workspace: Workspace, verb: str, about: str, values: dict[str, str]) -> str:
    """What a form is, to be copied; what is wrong with it where it can't be."""
    try:
        return shell_command(*words_of(workspace, verb, about, values))
    except FinetuneError as error:
        return str(error)


def port_of(job: BoardJob) -> int | None:
    """Where the server that a command started listens; None before it does."""
    found = SERVING.search(job.output()) if job.verb == "serve" else None
    return int(found[1]) if found else None


def _busy(jobs: list[BoardJob]) -> bool:
    return any(job.state == RUNNING for job in jobs)


def _listed(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "status", "method", "steps", "evaluation_loss", "tokens_per_second", "created")
    return {name: summary.get(name) for name in names}


def _time(moment: float | str | None) -> str:
    """A moment (seconds since 1970, or ISO 8601) by this machine's clock; nothing for what is none."""
    try:
        if isinstance(moment, str):
            found = datetime.fromisoformat(moment).astimezone()
        else:
            found = datetime.fromtimestamp(moment or 0)
    except (ValueError, OverflowError, OSError):
        return ""
    return found.strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _environment() -> "Environment":
    environment = report_environment(TEMPLATES)
    environment.filters["time"] = _time
    # A name that isn't UTF-8 is left as the file system has it.
    environment.filters["urlencode"] = lambda name: quote(os.fsencode(name))
    # The editor holds the file as it is, or saving would change it.
    environment.filters["raw"] = lambda text: Markup(escape(text))  # noqa: S704 - it is escaped
    return environment
