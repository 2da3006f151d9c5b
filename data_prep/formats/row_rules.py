"""What a recipe's data section says about the rows of every source, whatever their format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data_prep import formats
from data_prep.chat.chat_templates import DEFAULT, rendering_of, templates_of
from data_prep.chat.rendering import MARKER, ChatRenderer
from data_prep.config import PREPARATION, DataSection, TurnOrder
from data_prep.errors import DataError
from data_prep.formats.base import INPUT_BELOW, INPUT_HEADING
from data_prep.messages import Conversation, Message, Parsed, PlainText, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class RowRules:
    """How rows are read and changed, besides what their source says."""

    turn_order: tuple[TurnOrder, ...] = ()
    """See DataSection."""
    system: str | None = None
    """The system message of conversations without one."""
    placeholders: Mapping[str, str] = field(default_factory=dict)
    """Texts of rows -> what they are replaced by."""
    before_input: str = INPUT_BELOW
    """What is between an instruction and its input."""
    preparation: int = PREPARATION
    found: set[str] = field(default_factory=set, compare=False)
    """The placeholders that rows had."""

    @classmethod
    def of(cls, section: DataSection, tokenizer: "PreTrainedTokenizerFast") -> "RowRules":
        """The rules of a section, for rows that this tokenizer's chat template writes."""
        has_input = any(
            source.format == "auto" or "input" in formats.named(source.format).columns.names
            for source in section.sources
        )
        return cls(
            section.turn_order,
            section.system,
            section.placeholders,
            before_input(tokenizer) if has_input else INPUT_BELOW,
            rendering_of(tokenizer).preparation,
        )

    def filled(self, values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """A row with its placeholders replaced in every text, all at once, and whether it had any."""
        if not self.placeholders:
            return values, False
        found: set[str] = set()
        made = {name: self._filled(value, found) for name, value in values.items()}
        self.found.update(found)
        return made, bool(found)

    def applied(self, row: Parsed, *, filled: bool) -> Parsed:
        """What a format made of a row, with the system message if it has none of its own; its changes say
        what was done."""
        changes = ("placeholders",) if filled else ()
        if isinstance(row, Conversation) and self.preparation < 4:
            messages = tuple(replace(message, parts=()) for message in row.messages)
            row = replace(row, messages=messages, template_arguments={})
        if isinstance(row, Preference):
            first = row.prompt or row.chosen
            lacks = self.system is not None and first[0].role != "system"
            if lacks:
                row = replace(row, prompt=(Message("system", self.system or ""), *row.prompt))
            systems = () if self.system is None else ("system",) if lacks else ("own_system",)
            return replace(row, changes=(*row.changes, *changes, *systems))
        if self.system is None or isinstance(row, PlainText):
            return replace(row, changes=row.changes + changes) if changes else row
        if row.messages[0].role == "system":
            return replace(row, changes=(*row.changes, *changes, "own_system"))
        return replace(
            row,
            messages=(Message("system", self.system), *row.messages),
            completion_start=row.completion_start + 1 if row.completion_start else 0,
            changes=(*row.changes, *changes, "system"),
        )

    def _filled(self, value: Any, found: set[str]) -> Any:
        if isinstance(value, str):
            found.update(self._pattern.findall(value))
            return self._pattern.sub(lambda match: self.placeholders[match[0]], value)
        if isinstance(value, dict):
            return {key: self._filled(below, found) for key, below in value.items()}
        return [self._filled(below, found) for below in value] if isinstance(value, list) else value

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Any of the placeholders; of two that begin alike, the longer one."""
        return re.compile("|".join(map(re.escape, sorted(self.placeholders, key=len, reverse=True))))


def before_input(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What is between an instruction and its input: Alpaca's heading if the chat template knows it, that is,
    if it introduces a question with an input otherwise than one without; else a line break."""
    if rendering_of(tokenizer).preparation < 4 or DEFAULT not in templates_of(tokenizer):
        return INPUT_BELOW
    try:
        renderer = ChatRenderer(tokenizer)
        introductions = {
            renderer.render([Message("user", content), Message("assistant", "a")]).partition(MARKER)[0]
            for content in (MARKER, f"{MARKER}{INPUT_HEADING}i")
        }
    except DataError:  # reported for the first row, with its place
        return INPUT_BELOW
    return INPUT_HEADING if len(introductions) == 2 else INPUT_BELOW


NO_RULES = RowRules()
"""Rows as they are."""
