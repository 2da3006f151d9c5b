"""The data section of a recipe: where rows come from and how they become tokens. Pure data; imports no
torch."""

from data_prep.config.base import NAMES, PATH, PREPARATION, OneOf, Section, sections_in
from data_prep.config.head import BETWEEN_LABELS, NO_LABEL, HeadSection, ProblemType
from data_prep.config.modelscope import problem_with_name
from data_prep.config.section import (
    CleanSection,
    DataSection,
    EvaluationSplit,
    Finding,
    Note,
    OverLength,
    Reasoning,
    Streaming,
    Supervise,
    TurnOrder,
)
from data_prep.config.sources import (
    CHAT_TEMPLATES,
    FileSource,
    FormatName,
    HubSource,
    OrdersSource,
    RowsSource,
    RowTemplate,
    Source,
    is_template_text,
)

__all__ = [
    "BETWEEN_LABELS",
    "CHAT_TEMPLATES",
    "NAMES",
    "NO_LABEL",
    "PATH",
    "PREPARATION",
    "CleanSection",
    "DataSection",
    "EvaluationSplit",
    "FileSource",
    "Finding",
    "FormatName",
    "HeadSection",
    "HubSource",
    "Note",
    "OneOf",
    "OrdersSource",
    "OverLength",
    "ProblemType",
    "Reasoning",
    "RowTemplate",
    "RowsSource",
    "Section",
    "Source",
    "Streaming",
    "Supervise",
    "TurnOrder",
    "is_template_text",
    "problem_with_name",
    "sections_in",
]
