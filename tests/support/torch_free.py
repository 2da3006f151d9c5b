"""A plugin of pytest for `make test-quick`, whose tests load no torch: the first that does ends the run."""

import sys

import pytest


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Name a test that loaded torch."""
    if "torch" in sys.modules:
        pytest.exit(f"{item.nodeid} loaded torch: give it the mark torch", returncode=1)
