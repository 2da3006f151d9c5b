"""Free-text customer orders and their JSON: a task that a base model can't do and that is quick to learn.

The two splits share no template, greeting, sentence, phrase, name or product word (order_texts.py), and no
quantity and no day of the year; check_disjoint verifies this before any row is made. A date is copied as the
customer writes it ("14 March"), a quantity in words becomes a number, and the priority follows from a phrase.
"""

import json
import random
import re
from typing import Literal, get_args

from data_prep.generated.order_texts import HELD_OUT, TRAIN, Priority, Texts

VERSION = 1
"""Incremented whenever the same split, rows and seed would make different rows."""

Split = Literal["train", "held_out"]
SPLITS: dict[Split, Texts] = {"train": TRAIN, "held_out": HELD_OUT}

SYSTEM = "Extract the order as JSON."
"""Doesn't say which fields there are, so that the fields must be learned."""

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
LARGEST_QUANTITY = 60
DAYS_A_MONTH = 28
"""Only days that every month has."""


def quantities(split: Split) -> list[int]:
    """The numbers that can be ordered: from 2, every fifth is held out (4, 9, 14, ...)."""
    return [n for n in range(2, LARGEST_QUANTITY + 1) if (n % 5 == 4) == (split == "held_out")]


def dates(split: Split) -> list[str]:
    """Days of the year, such as "14 March"; every fourth is held out."""
    return [
        f"{day} {month}"
        for number, month in enumerate(MONTHS)
        for day in range(1, DAYS_A_MONTH + 1)
        if ((day + number) % 4 == 0) == (split == "held_out")
    ]


def products(split: Split) -> list[str]:
    """Every product, such as "brass lamps"."""
    texts = SPLITS[split]
    return [f"{material} {thing}" for material in texts.materials for thing in texts.things]


def customers(split: Split) -> list[str]:
    """Every customer: a first and a last name."""
    texts = SPLITS[split]
    return [f"{first} {last}" for first in texts.first_names for last in texts.last_names]


def check_disjoint(train: Texts = TRAIN, held_out: Texts = HELD_OUT) -> None:
    """Raise ValueError if the splits share a text, a quantity or a date, or if a split has one twice.

    Case and punctuation are ignored, and no text may be inside a sentence of the other split.
    """
    for texts in (train, held_out):
        values = [_plain(value) for value in texts.values()]
        if repeated := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"repeated in one split: {sorted(repeated)}")
    shared = {_plain(value) for value in train.values()} & {_plain(value) for value in held_out.values()}
    for mine, theirs in (train.sentences(), held_out.sentences()), (held_out.sentences(), train.sentences()):
        shared |= {
            _plain(text)
            for text in mine
            if any(f" {_plain(text)} " in f" {_plain(other)} " for other in theirs)
        }
    shared |= {str(n) for n in set(quantities("train")) & set(quantities("held_out"))}
    shared |= set(dates("train")) & set(dates("held_out"))
    if shared:
        raise ValueError(f"shared between the splits: {sorted(shared)}")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w{}]+", text.casefold()))


def order_rows(split: Split, rows: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """Rows of the format `messages`: an instruction, a customer's order, and its JSON on one line.

    The same arguments make the same rows. Templates take turns, so that each occurs equally often.
    """
    check_disjoint()
    source = random.Random(f"{split} {seed}")  # noqa: S311 - rows that can be made again, no secret
    texts = SPLITS[split]
    templates: list[str] = []
    made = []
    for _ in range(rows):
        if not templates:
            templates = source.sample(texts.templates, len(texts.templates))
        made.append(_order(source, split, templates.pop()))
    return made


def _order(source: random.Random, split: Split, template: str) -> dict[str, list[dict[str, str]]]:
    texts = SPLITS[split]
    quantity = source.choice(quantities(split))
    priority: Priority = source.choice(get_args(Priority))
    order = {
        "customer": f"{source.choice(texts.first_names)} {source.choice(texts.last_names)}",
        "product": f"{source.choice(texts.materials)} {source.choice(texts.things)}",
        "quantity": quantity,
        "date": source.choice(dates(split)),
        "priority": priority,
    }
    in_words = quantity < len(WORDS) and source.random() < 0.5
    body = template.format_map(order | {"quantity": WORDS[quantity] if in_words else quantity})
    answer = json.dumps(order, separators=(",", ":"))
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": _letter(source, texts, body, source.choice(texts.urgency[priority]))},
            {"role": "assistant", "content": answer},
        ]
    }


def _letter(source: random.Random, texts: Texts, body: str, urgency: str) -> str:
    """The order in a customer's words: greeting or none, small talk or none, the order, its urgency."""
    signed = body[-1].isalpha()  # the customer's name ends the text
    sentences = [body[0].upper() + body[1:]]
    sentences.insert(0 if signed else source.choice((0, 1)), urgency)
    if source.random() < 0.4:
        sentences.insert(0, source.choice(texts.small_talk))
    greeting = f"{source.choice(texts.greetings)}\n" if source.random() < 0.5 else ""
    return greeting + " ".join(sentences)
