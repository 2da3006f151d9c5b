"""Classification heads, and rows for each."""

from data_prep.chat.tokenization import Placed
from data_prep.config import HeadSection
from data_prep.messages import Conversation, Message

HEADS = (
    HeadSection(labels=("bad", "good")),
    HeadSection(problem="multi_label", labels=("red", "green", "blue")),
    HeadSection(problem="regression"),
)
ANSWERS = {
    "single_label": ("good", "bad", "good", "good"),
    "multi_label": ("red, blue", "none", "green", "blue, red"),
    "regression": ("1.5", "-2", "0.25", "7"),
}


def placed_rows(head: HeadSection) -> list[Placed]:
    """Four rows of different lengths."""
    texts = ("Hi", "What a film it was, in the end!", "x y z", "Berlin " * 7)
    pairs = zip(texts, ANSWERS[head.problem], strict=True)
    turns = ((Message("user", text), Message("assistant", answer)) for text, answer in pairs)
    return [(f"rows.json:{number}", Conversation(pair)) for number, pair in enumerate(turns, start=1)]
