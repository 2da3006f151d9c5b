"""The board in a real browser: from an empty page to a chat with the merged model, by clicks."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.browser import Tab, needs_browser, opened_tab

pytestmark = [needs_browser, pytest.mark.long]

RECIPE = """
model: {base: BASE}
adapter: {rank: 4}
data:
  train:
    - {generated: orders, split: train, rows: 40, format: messages}
  evaluation:
    sources:
      - {generated: orders, split: held_out, rows: 4, format: messages}
  max_length_tokens: 256
train: {max_steps: STEPS, global_batch_size: 2, micro_batch_size: 2, precision: fp32, learning_rate: 1e-3}
tracking: {tracker: none}
"""


@dataclass
class OpenBoard:
    """A board's process."""

    address: str
    process: subprocess.Popen[str]

    @property
    def root(self) -> str:
        """The address without its token."""
        return self.address.partition("/?")[0]


@contextmanager
def board(folder: Path, port: int = 0) -> Iterator[OpenBoard]:
    words = [sys.executable, "-m", "finetune", "board", "--port", str(port)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        try:
            yield OpenBoard(process.stdout.readline().strip(), process)
        finally:
            process.terminate()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[OpenBoard, Tab]]:
    """A board over an empty folder, in a browser."""
    work = tmp_path / "work"
    work.mkdir()
    with board(work) as found, opened_tab(found.address, tmp_path / "profile") as tab:
        yield found, tab
        tab.call("Page.navigate", url="about:blank")  # it asks nothing more
    stop_what_is_left(work)


def stop_what_is_left(work: Path) -> None:
    """End the commands that a test has left running."""
    from finetune.board.jobs import Jobs

    for job in Jobs(work / "runs" / ".board" / "jobs").all():
        if job.process is not None:
            job.stop()


VERDICT = "(document.querySelector('.verdict')?.textContent ?? '')"


def until(tab: Tab, condition: str) -> None:
    """Wait until it is so; a page that is just being loaded has nothing yet."""
    tab.wait_for(f"(() => {{ try {{ return !!({condition}) }} catch {{ return false }} }})()")


def has(selector: str) -> str:
    return f"document.querySelector({selector!r})"


def click(tab: Tab, selector: str) -> None:
    """Click it once it is there; in one script, for a page may be loaded again in between."""
    until(tab, f"((found) => found && (found.click(), true))({has(selector)})")


def act(tab: Tab, verb: str, page: str) -> None:
    """Open an action, start it, and see the page that it leads to."""
    click(tab, f"#action-{verb} summary")
    click(tab, f"#action-{verb} button[type=submit]")
    until(tab, f"location.pathname.startsWith({page!r}) && document.readyState == 'complete'")


def write_recipe(tab: Tab, text: str) -> None:
    """Replace what is in the editor, as by typing."""
    until(tab, has("#editor .numbers span"))  # which its script draws
    tab.run("text.select()")
    tab.call("Input.insertText", text=text)


def begin(tab: Tab, name: str, text: str) -> None:
    """Begin a recipe from the first page, and write it."""
    tab.write("#new-name", name)
    click(tab, "#new-recipe button")
    write_recipe(tab, text)
    until(tab, "document.querySelector('#summary').textContent.startsWith('valid')")


def test_from_an_empty_page_to_a_chat_with_the_merged_model(
    opened: tuple[OpenBoard, Tab], tiny_base: Path
) -> None:
    """A recipe is begun, corrected where the editor says, looked at, planned, trained, merged, and answers
    beside its base; nothing is asked of another host."""
    found, tab = opened
    assert "There are none in runs yet" in tab.run("document.body.innerText")
    wrong = (
        RECIPE.replace("BASE", str(tiny_base)).replace("STEPS", "4").replace("learning_rate", "learning_rat")
    )
    tab.write("#new-name", "orders")
    click(tab, "#new-recipe button")
    write_recipe(tab, wrong)
    until(tab, "document.querySelector('#problems').textContent.includes('learning_rate?')")
    click(tab, "#problems button")
    # The caret is before the wrong key: after it the last letter is typed, and taken from what is offered.
    tab.run("text.setSelectionRange(text.selectionStart + 12, text.selectionStart + 12)")
    tab.call("Input.dispatchKeyEvent", type="char", text="e")
    until(tab, "!completion.hidden")
    tab.press_enter()
    until(tab, "document.querySelector('#summary').textContent.startsWith('valid')")
    act(tab, "data", "/jobs/")  # which saves first
    until(tab, has("iframe"))
    assert "finetune data orders.yaml --preview 5" in tab.run("document.body.innerText")
    tab.call("Page.navigate", url=f"{found.root}/recipes/orders.yaml")
    act(tab, "plan", "/jobs/")
    until(tab, has("h1 .badge.finished"))
    assert "checkpoints" in tab.run("document.querySelector('.output').textContent")
    tab.call("Page.navigate", url=f"{found.root}/recipes/orders.yaml")
    act(tab, "train", "/runs/")
    until(tab, has("#action-merge"))
    assert tab.run("document.querySelectorAll('svg.chart').length") >= 4
    act(tab, "merge", "/jobs/")
    until(tab, has("h1 .badge.finished"))
    click(tab, "p.quiet a")
    act(tab, "serve", "/jobs/")
    click(tab, "#chat")
    until(tab, "document.querySelector('select')?.options.length == 3")
    tab.run(
        "[['base', 0], ['merged', 1]].forEach(([name, place]) => {"
        "const select = document.querySelectorAll('select')[place];"
        "select.value = name; select.dispatchEvent(new Event('change')) })"
    )
    tab.write("#longest", "8")
    tab.write("#text", "Two lamps, please.")
    tab.press_enter()
    until(tab, "document.querySelectorAll('.note').length == 2 && document.getElementById('stop').disabled")
    notes = tab.run("[...document.querySelectorAll('.note')].map((note) => note.textContent.split(':')[0])")
    assert notes == ["base", "merged"]
    assert all(address.startswith((found.root, "data:", "about:")) for address in tab.requested)


def test_a_run_outlives_its_board_and_is_stopped_and_resumed(
    opened: tuple[OpenBoard, Tab], tiny_base: Path, tmp_path: Path
) -> None:
    """It trains on while no board is there; the next one shows it, stops it with a checkpoint, and resumes it;
    the old page says what has happened, and a recipe that trains says so while it is edited."""
    found, tab = opened
    begin(tab, "long", RECIPE.replace("BASE", str(tiny_base)).replace("STEPS", "4000"))
    act(tab, "train", "/runs/")
    until(tab, has("[data-live=curves] svg"))
    found.process.terminate()
    found.process.wait(timeout=30)
    until(tab, "banner.textContent.includes('What it has started goes on')")
    with (
        board(tmp_path / "work", int(found.root.rpartition(":")[2])) as later,
        opened_tab(later.address, tmp_path / "second") as second,
    ):
        until(tab, "banner.textContent.includes('started again')")
        second.call("Page.navigate", url=f"{later.root}/recipes/long.yaml")
        until(
            second, "document.body.innerText.includes('long-001 trains this recipe as it was when it began')"
        )
        second.call("Page.navigate", url=f"{later.root}/runs/long-001")
        until(second, f"{VERDICT}.includes('Running')")
        before = second.run(VERDICT)
        until(second, f"{VERDICT} && {VERDICT} != {before!r}")
        click(second, ".stop button")
        until(second, f"{has('#action-resume')} && {VERDICT}.includes('Stopped')")
        act(second, "resume", "/runs/")
        until(second, f"{has('.stop button')} && {VERDICT}.includes('Running')")
        click(second, ".stop button")
        until(second, has("#action-resume"))


def test_two_tabs_and_a_start_that_is_asked_for_twice(opened: tuple[OpenBoard, Tab], tiny_base: Path) -> None:
    """The second tab's training is refused with one message, and one run is there."""
    found, tab = opened
    begin(tab, "twice", RECIPE.replace("BASE", str(tiny_base)).replace("STEPS", "3"))
    click(tab, ".saving button")
    until(tab, "saved.textContent == 'saved'")
    # As a tab that was loaded before the first one has started it.
    tab.run("window.fields = new URLSearchParams(new FormData(document.querySelector('#action-train form')))")
    fields = tab.run("String(window.fields)")
    act(tab, "train", "/runs/")
    time.sleep(0.1)
    told = tab.run(
        f"fetch('/start', {{method: 'POST', headers: {{Accept: 'application/json'}}, "
        f"body: new URLSearchParams({fields!r})}}).then((answer) => answer.json())"
    )
    assert "runs already" in told["error"] or "is there already" in told["error"]
    until(tab, has("#action-merge"))
    tab.call("Page.navigate", url=f"{found.root}/")
    until(tab, has("[data-live=runs] tbody"))
    assert tab.run("document.querySelectorAll('[data-live=runs] tbody tr').length") == 1
