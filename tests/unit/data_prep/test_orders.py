"""The generated orders."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from data_prep.config import CHAT_TEMPLATES
from data_prep.generated.order_texts import HELD_OUT, TRAIN
from data_prep.generated.orders import (
    SPLITS,
    SYSTEM,
    WORDS,
    Split,
    check_disjoint,
    customers,
    dates,
    order_rows,
    products,
    quantities,
)

FIELDS = ["customer", "product", "quantity", "date", "priority"]


def test_splits_share_nothing() -> None:
    """No template, sentence, phrase, name, product, quantity or date stands in both splits."""
    check_disjoint()
    for values in (customers, products, dates, quantities):
        assert not set(values("train")) & set(values("held_out"))
    for part in dataclasses.fields(TRAIN):
        train, held_out = getattr(TRAIN, part.name), getattr(HELD_OUT, part.name)
        if part.name == "urgency":
            train, held_out = sum(train.values(), ()), sum(held_out.values(), ())
        assert not set(train) & set(held_out), part.name


def test_a_shared_text_is_refused() -> None:
    """The check is a real one: a single shared or repeated text ends in an error that names it."""
    shared = dataclasses.replace(HELD_OUT, small_talk=(*HELD_OUT.small_talk, TRAIN.small_talk[0].upper()))
    with pytest.raises(ValueError, match="i hope you are well"):
        check_disjoint(TRAIN, shared)
    within = dataclasses.replace(HELD_OUT, small_talk=("Good. I hope you are well, Sir.",))
    with pytest.raises(ValueError, match="i hope you are well"):
        check_disjoint(TRAIN, within)
    with pytest.raises(ValueError, match="repeated in one split"):
        check_disjoint(dataclasses.replace(TRAIN, things=TRAIN.things * 2))


def test_variety() -> None:
    """There are enough templates, customers and products for rows to differ."""
    assert len(TRAIN.templates) >= 24
    assert len(HELD_OUT.templates) >= 12
    for split in SPLITS:
        assert len(customers(split)) >= 60
        assert len(products(split)) >= 60
    letters = [row["messages"][1]["content"] for row in order_rows("train", 900, 0)]
    assert len(set(letters)) == 900


@pytest.mark.parametrize("split", SPLITS)
def test_rows(split: Split) -> None:
    """Every answer is compact JSON of the schema, and every value but the priority stands in the letter."""
    for row in order_rows(split, 300, 1):
        system, user, assistant = row["messages"]
        order = json.loads(assistant["content"])
        letter = user["content"]
        assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
        assert list(order) == FIELDS
        assert assistant["content"] == json.dumps(order, separators=(",", ":"))
        assert all(order[name] in letter for name in ("customer", "product", "date"))
        quantity = order["quantity"]
        written = {str(quantity)} | (
            {WORDS[quantity], WORDS[quantity].capitalize()} if quantity < len(WORDS) else set()
        )
        assert any(re.search(rf"\b{text}\b", letter) for text in written)
        assert order["priority"] in SPLITS[split].urgency
        said = {
            name
            for name, phrases in SPLITS[split].urgency.items()
            if any(phrase in letter for phrase in phrases)
        }
        assert said == {order["priority"]}
        assert "{" not in letter


def test_the_schema_is_not_in_the_prompt() -> None:
    """What to do is said without the names of the fields, so that the base can't know them."""
    assert not any(field in SYSTEM for field in FIELDS)


def test_the_same_seed_makes_the_same_rows() -> None:
    """Split, rows and seed fix the rows; another seed makes others; more rows begin with the same ones."""
    rows = order_rows("train", 50, 7)
    assert order_rows("train", 50, 7) == rows
    assert order_rows("train", 80, 7)[:50] == rows
    assert order_rows("train", 50, 8) != rows


def test_templates_take_turns() -> None:
    """In as many rows as there are templates each is used once."""
    letters = [row["messages"][1]["content"] for row in order_rows("held_out", len(HELD_OUT.templates), 0)]
    for template in HELD_OUT.templates:
        literal = max(re.split(r"{\w+}", template), key=len)
        assert any(literal.casefold() in letter.casefold() for letter in letters), template


def test_package_holds_the_templates() -> None:
    """The chat templates lie inside the package, so that the wheel has them."""
    import data_prep

    folder = Path(data_prep.__file__).parent / "chat" / "templates"
    assert {path.name for path in folder.glob("*.jinja")} == {f"{name}.jinja" for name in CHAT_TEMPLATES}
