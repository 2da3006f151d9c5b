"""The chat page, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Tab, needs_browser, opened_tab
from tests.support.models import MEMORISED
from tests.support.serving import Running, running

TURNS = """
[...document.querySelectorAll("section")].map(
  (side) => [...side.querySelectorAll(".turn")].map((turn) => turn.textContent)
)"""
IDLE = "document.getElementById('stop').disabled && document.querySelectorAll('.note').length > 0"


@pytest.fixture
def tab(served: Running, tmp_path: Path) -> Iterator[Tab]:
    with opened_tab(served.address, tmp_path / "profile") as found:
        found.wait_for("document.querySelector('select')?.options.length > 0")
        yield found
    served.wait_idle()


@needs_browser
def test_two_models_answer_side_by_side(tab: Tab, served: Running) -> None:
    """What is typed goes to both; a conversation remembers its turns; nothing is asked of another host."""
    chosen = "[...document.querySelectorAll('select')].map((select) => select.value)"
    assert tab.run(chosen) == ["lamps", "tuned"]
    tab.write("#longest", "40")
    for question in ("Name a lamp.", "Count."):
        tab.write("#text", question)
        tab.press_enter()
        tab.wait_for(f"{IDLE} && !document.getElementById('text').value")
    left, right = tab.run(TURNS)
    assert left[:3] == ["Name a lamp.", MEMORISED["Name a lamp."], "Count."]
    assert len(left) == len(right) == 4
    assert left[1] != right[1]
    assert all(address.startswith((served.address, "data:")) for address in tab.requested)


@needs_browser
def test_an_answer_can_be_stopped(tab: Tab, served: Running) -> None:
    """Its row is freed, and the page can ask again."""
    tab.run(
        "document.getElementById('temperature').value = 2; document.getElementById('longest').value = 200"
    )
    tab.run("document.querySelectorAll('select')[0].selectedIndex = 1")
    tab.run("document.querySelectorAll('select')[1].selectedIndex = 2")
    tab.write("#text", "x")
    tab.run("send(); document.getElementById('stop').click()")
    tab.wait_for(IDLE)
    served.wait_idle()
    assert "tuned: stopped" in tab.run("document.querySelector('.note').textContent")


@needs_browser
def test_markup_in_an_answer_is_text(tab: Tab) -> None:
    """What is asked, and what a model writes, is never part of the page."""
    tab.write("#text", "<img src=x onerror=\"document.title='run'\">")
    tab.press_enter()
    tab.wait_for(IDLE)
    assert tab.run("document.title") == "finetune serve"
    assert tab.run("document.querySelectorAll('img').length") == 0


@needs_browser
def test_a_locked_server_asks_for_its_key(models: dict[str, Path], tmp_path: Path) -> None:
    """And lists its models once it has it."""
    with (
        running([f"lamps={models['lamps']}"], key="the-key") as server,
        opened_tab(server.address, tmp_path / "profile") as tab,
    ):
        tab.wait_for("!document.getElementById('locked').hidden")
        assert "the API key is missing" in tab.run("document.querySelector('.note').textContent")
        tab.write("#key", "the-key")
        tab.run("document.getElementById('text').focus()")
        tab.wait_for("document.querySelector('select').options.length == 1")


def test_the_page_names_no_other_host() -> None:
    """It works offline: no script, style, font or image from elsewhere."""
    import finetune.serving

    page = Path(finetune.serving.__path__[0], "page.html").read_text()
    assert re.findall(r"https?://|//\w+\.|@import|<link|src=", page) == []
