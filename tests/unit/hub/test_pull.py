"""Bases and adapters of a hub that answers."""

from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.bases.locate import resolve_base
from finetune.recipe.schema.model import ModelSection
from tests.support.hub_server import TOKEN, Fault, Hub


def test_a_base_is_fetched_at_the_commit_of_its_branch(hub: Hub, tiny_base: Path) -> None:
    """Its files, and the commit that the lock then names."""
    first = hub.add("me/tiny", tiny_base).head
    base = resolve_base(ModelSection(base="me/tiny"))
    assert base.identity == {"kind": "hub", "name": "me/tiny", "commit": first}
    assert (base.folder / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()


def test_a_pinned_commit_stays(hub: Hub, tiny_base: Path) -> None:
    """Whatever the branch has become."""
    repository = hub.add("me/tiny", tiny_base)
    first = repository.head
    repository.add({"config.json": b"{}"})
    base = resolve_base(ModelSection(base="me/tiny", revision=first))
    assert base.identity["commit"] == first
    assert (base.folder / "config.json").read_bytes() == (tiny_base / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "faults", "token", "expected"),
    [
        ({"gated": True}, [], None, r"me/tiny is gated\. Accept its licence"),
        ({"gated": True}, [], "hf_" + "b" * 34, r"me/tiny is gated\. Accept its licence"),
        ({"private": True}, [], None, r"the hub has no model me/tiny \(or it is private: set HF_TOKEN\)"),
        ({}, [Fault("GET /api/models", 429, 99)], None, r"the hub limits requests"),
        ({}, [Fault("GET /api/models", 500, 99)], None, r"the hub answers 500"),
        ({}, [Fault("GET .*model.safetensors", times=99)], None, r"the connection to the hub failed"),
    ],
    ids=["gated", "gated for this token", "private", "rate limit", "down", "cut"],
)
def test_what_the_hub_refuses_is_said(
    options: dict[str, bool],
    faults: list[Fault],
    token: str | None,
    expected: str,
    hub: Hub,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add("me/tiny", tiny_base, **options)
    hub.faults = faults
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match=expected):
        resolve_base(ModelSection(base="me/tiny"))


def test_a_token_opens_what_is_gated(hub: Hub, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/tiny", tiny_base, gated=True, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve_base(ModelSection(base="me/tiny")).identity["name"] == "me/tiny"


def test_an_interrupted_transfer_is_taken_up(hub: Hub, tiny_base: Path) -> None:
    """A connection that breaks once in the middle of the weights costs nothing but a second request."""
    hub.add("me/tiny", tiny_base)
    hub.faults = [Fault("GET .*model.safetensors")]
    base = resolve_base(ModelSection(base="me/tiny"))
    assert (base.folder / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert sum("GET" in line and "model.safetensors" in line for line in hub.asked) == 2
