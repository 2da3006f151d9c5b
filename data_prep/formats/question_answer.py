"""Questions with their answers, about a context or not; SQuAD's articles too
(https://arxiv.org/abs/1806.03822)."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, ask
from data_prep.formats.columns import a_json_type, as_text, column, optional_text_column
from data_prep.formats.text_values import as_answer, as_answers, as_structure, as_truth
from data_prep.messages import Conversation

UNANSWERABLE = "unanswerable"
"""The answer of a question that its context doesn't answer (SQuAD 2.0)."""


def parse_question_answer(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """One question with its answer, or an article of SQuAD with all of its questions; the first answer is
    learned."""
    if values.get("paragraphs") is None:
        return [_question(values, "")]
    examples = []
    for index, paragraph in enumerate(_objects(values["paragraphs"], "paragraphs")):
        place = f"paragraphs[{index}]"
        context = as_text(paragraph.get("context"), f"{place}.context")
        for number, asked in enumerate(_objects(paragraph.get("qas"), f"{place}.qas")):
            examples.append(_question({"context": context} | asked, f"{place}.qas[{number}]."))
    if not examples:
        raise ValueError("paragraphs holds no question")
    return examples


def _objects(value: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{field} is {a_json_type(value)}; a list of objects was expected")
    return value


def _question(values: dict[str, Any], prefix: str) -> Conversation:
    question = as_text(column(values, "question"), f"{prefix}question")
    context = optional_text_column(values, "context")
    given = values["answers"] if values.get("answers") is not None else column(values, "answer")
    answers = _answers(given, f"{prefix}answers" if values.get("answers") is not None else f"{prefix}answer")
    if as_truth(values.get("is_impossible"), f"{prefix}is_impossible") or not answers:
        answers = [UNANSWERABLE]
    others = tuple(dict.fromkeys(answer for answer in answers[1:] if answer != answers[0]))
    return ask(f"{context}\n\n{question}" if context else question, answers[0], references=others)


def _answers(value: Any, field: str) -> list[str]:
    """The answers of SQuAD's [{"text": ...}] or {"text": [...]}, of a list of texts, or the text itself."""
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list):
        return [as_text(value, field)]
    return [as_text(answer.get("text") if isinstance(answer, dict) else answer, field) for answer in value]


FORMAT = Format(
    "question_answer",
    row="""`{"question": ..., "answer": ..., "context": ...}`, or SQuAD's articles""",
    columns=Columns(
        (("paragraphs",), ("question", "answers"), ("question", "answer")), ("context", "is_impossible")
    ),
    parse=parse_question_answer,
    readers={
        "paragraphs": as_structure,
        "answers": as_answers,
        "answer": as_answer,
        "is_impossible": as_truth,
    },
    asks=True,
)
