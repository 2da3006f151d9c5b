"""finetune selftest, as a user runs it."""

import json
from collections.abc import Callable

import pytest

from tests.support.cli import Result


@pytest.mark.long
def test_every_way_of_training_agrees_here(finetune: Callable[..., Result]) -> None:
    """Each way that this machine has ends where one plain process does: supervised and by preferences, each
    with two processes that start."""
    report = json.loads(finetune("selftest", "--json").stdout)
    assert report["holds"]
    assert {case["name"] for case in report["cases"]} | set(report["left_out"]) >= {
        "ddp, 2 processes",
        "beside another adapter",
        "the same, fsdp2, 2 processes",
        "killed and resumed",
    }
