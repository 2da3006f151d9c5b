"""From rows to tokens and masks: sources, formats, chat templates, orders. Light to import; no torch, ever.

from data_prep import DataSection, load_tokenizer, prepare

prepared = prepare(DataSection(...), load_tokenizer("path/to/model"), seed=0)
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "chat.chat_templates": ("TEMPLATES",),
    "config": (
        "CleanSection", "DataSection", "EvaluationSplit", "FileSource", "HubSource", "OrdersSource",
        "RowTemplate", "Source",
        "Streaming",
    ),
    "table.documents": ("Document", "DocumentTable"),
    "errors": ("DataError",),
    "formats": ("FORMATS",),
    "formats.parser": ("parse_row", "read_parsed"),
    "chat.tokenization": ("tokenize",),
    "messages": ("Conversation", "Example", "Message", "PlainText", "Preference", "ToolCall"),
    "generated.orders": ("order_rows",),
    "preparation": ("PreparedData", "prepare"),
    "chat.rendering": ("end_of_turn_ids", "prompt_and_reference", "render_prompt"),
    "audit.report": ("DataReport",),
    "sources": ("Row", "read_rows", "source_digest"),
    "tokenizers.tokenizer": ("load_tokenizer",),
}  # fmt: skip
"""Which module holds each public name; a module is imported when one of its names is first asked for."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
