"""The report of a sweep, as a browser shows it."""

from pathlib import Path

import pytest

import finetune
from finetune.sweeping.results import Sweep
from tests.support.browser import needs_browser, open_page, opened_tab
from tests.unit.sweeping.sweeps import RATE, write_recipe

SPACE = RATE | {"train.schedule": {"choice": ["cosine", "constant"]}}


@pytest.fixture(scope="module")
def found(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Five trials of two keys."""
    sweep = {"space": SPACE, "trials": 5, "sampler": "random"}
    folder = tmp_path_factory.mktemp("page")
    return finetune.sweep(write_recipe(folder, tiny_base, sweep, train={"max_steps": 2}))


@needs_browser
def test_the_page_shows_each_trial_in_each_chart(found: Sweep, tmp_path: Path) -> None:
    """A dot a trial for each key, a line a trial over all keys and over evaluations, and nothing in the
    console."""
    with opened_tab(found.page.as_uri(), tmp_path) as tab:
        counts = [
            tab.run(f"document.querySelectorAll('{kind}').length") for kind in ("circle", "polyline", "tr")
        ]
        titles = tab.run("[...document.querySelectorAll('h2')].map(title => title.innerText).join()")
    assert counts == [2 * 5, 5 + 5, 5 + 1]
    assert titles == "What matters,Each key,All keys,Trials"
    assert open_page(found.page, tmp_path / "other").console == []


@needs_browser
def test_the_page_fits_400_pixels_in_light_and_dark(found: Sweep, tmp_path: Path) -> None:
    """Nothing is wider than the window, and the page's ground follows the reader's choice."""
    grounds = set()
    with opened_tab(found.page.as_uri(), tmp_path) as tab:
        for scheme in ("light", "dark"):
            tab.call(
                "Emulation.setDeviceMetricsOverride", width=400, height=900, deviceScaleFactor=1, mobile=True
            )
            tab.call(
                "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
            )
            assert tab.run("document.documentElement.scrollWidth") <= 400
            grounds.add(tab.run("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
