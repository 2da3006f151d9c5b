"""Rows of common tasks, written as a question and its answer: reading, labels, numbers, translation, summaries, code."""

import re
from collections.abc import Mapping
from typing import Any

from data_prep.config import BETWEEN_LABELS, NO_LABEL
from data_prep.formats.columns import a_json_type, as_text, column, json_type, optional_text_column, text_column
from data_prep.formats.text_values import as_number, as_truth
from data_prep.messages import Conversation, Message
from data_prep.sources.rows import listed
from data_prep.text import shortened, shown

UNANSWERABLE = "unanswerable"
"""The answer of a question that its context doesn't answer (SQuAD 2.0)."""

FENCE = "```"
"""Encloses code in an answer, as in Markdown."""

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sv": "Swedish", "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
"""Names of languages by code; any other code is written as it is in the row."""


def ask(question: str, answer: str, *, references: tuple[str, ...] = (), tests: str = "") -> Conversation:
    """One user turn and its answer."""
    return Conversation((Message("user", question), Message("assistant", answer)), references=references, tests=tests)


def parse_question_answer(values: dict[str, Any]) -> list[Conversation]:
    """One question with its answer, or an article of SQuAD with all of its questions; the first answer is learned."""
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


def parse_classification(values: dict[str, Any], labels: Mapping[str, str]) -> list[Conversation]:
    """The text is the question and its label, or list of labels, the answer, in the words of `labels` if it is given."""
    text, label = text_column(values, "text"), column(values, "label")
    if not isinstance(label, list):
        return [ask(text, _label(label, labels))]
    words = [_label(one, labels) for one in label]
    split = next((word for word in words if BETWEEN_LABELS in word), None)
    if split is not None:
        raise ValueError(f"the label {shown(split)} holds {BETWEEN_LABELS!r}, which separates labels; rename it")
    return [ask(text, BETWEEN_LABELS.join(words) or NO_LABEL)]


def _label(label: Any, labels: Mapping[str, str]) -> str:
    if not isinstance(label, str | int | float):
        raise ValueError(f"label is {a_json_type(label)}; a string or a number was expected")
    raw = str(label).lower() if isinstance(label, bool) else str(label)
    if not labels and not isinstance(label, str):
        raise ValueError(
            f"label is the {json_type(label)} {shortened(raw)}; say what it stands for: labels: {{{shown(raw)}: ...}}"
        )
    if not labels or raw in labels:
        return labels.get(raw, raw)
    same = {_plain_label(name): text for name, text in labels.items()}
    if _plain_label(raw) not in same:
        raise ValueError(f"label is {shown(raw)}, which labels doesn't name; it names {listed(labels)}")
    return same[_plain_label(raw)]


def _plain_label(name: str) -> str:
    """A label in a form that doesn't depend on the file's type: 1 and 1.0 are the same, and so are true and " TRUE "."""
    text = name.strip()
    if whole := re.fullmatch(r"([+-]?\d+)\.0*", text, re.ASCII):
        return whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


def parse_regression(values: dict[str, Any]) -> list[Conversation]:
    """The text is the question, its number is the answer."""
    text, value = text_column(values, "text"), as_number(column(values, "value"), "value")
    return [ask(text, f"{value:g}" if f"{value:g}" == repr(value) else repr(value))]


def parse_translation(values: dict[str, Any], columns: Mapping[str, str]) -> list[Conversation]:
    """From one language to another; the languages are the columns' names, or the two keys of `translation`, in order."""
    names = {side: columns.get(side, "") for side in ("source", "target")}
    pair = values.get("translation")
    if pair is not None and values.get("source") is None:
        if not isinstance(pair, dict):
            raise ValueError(f"translation is {a_json_type(pair)}; an object with two languages was expected")
        if not all(names.values()):
            if len(pair) != 2:
                keys = listed(pair, "(none)")
                raise ValueError(f"translation has the keys {keys}; say which two: columns: {{source: ..., target: ...}}")
            names = dict(zip(names, pair, strict=True))
        texts = {side: as_text(column(pair, name), f"translation.{name}") for side, name in names.items()}
    else:
        texts = {side: text_column(values, side) for side in names}
    spoken = {side: _language(optional_text_column(values, f"{side}_language") or name) for side, name in names.items()}
    origin = f" from {spoken['source']}" if spoken["source"] else ""
    goal = f" to {spoken['target']}" if spoken["target"] else ""
    return [ask(f"Translate{origin}{goal}:\n\n{texts['source']}", texts["target"])]


def _language(name: str) -> str:
    """A language's name for its code (de, de-DE, de_DE); empty for names such as "source" or "text_1"."""
    code = re.split(r"[-_]", name)[0]
    if code.lower() in LANGUAGES:
        return LANGUAGES[code.lower()]
    return name if name.isalpha() and name.lower() not in ("source", "target", "src", "tgt", "input", "output", "text") else ""


def parse_summarisation(values: dict[str, Any]) -> list[Conversation]:
    """A document and its summary; a list of sentences is joined, and each of several summaries makes an example."""
    pair = ("source", "target") if values.get("document") is None and "source" in values else ("document", "summary")
    document, summary = (column(values, name) for name in pair)
    if isinstance(document, list):
        document = " ".join(as_text(part, f"{pair[0]}[{index}]") for index, part in enumerate(document))
    question = f"Summarize:\n\n{as_text(document, pair[0])}"
    if not isinstance(summary, list):
        return [ask(question, as_text(summary, pair[1]))]
    if not summary:
        raise ValueError(f"{pair[1]} is an empty list; a summary was expected")
    return [ask(question, as_text(text, f"{pair[1]}[{index}]")) for index, text in enumerate(summary)]


def parse_solution(values: dict[str, Any]) -> list[Conversation]:
    """A programming task and the code that solves it, as MBPP has them; the tests are part of the question."""
    task, code = text_column(values, "task"), text_column(values, "code").replace("\r\n", "\n").strip("\n")
    tests = values.get("test_list") or []
    if isinstance(tests, str):
        tests = [tests]
    if not isinstance(tests, list):
        raise ValueError(f"test_list is {a_json_type(tests)}; a text or a list of texts was expected")
    lines = [as_text(test, f"test_list[{index}]") for index, test in enumerate(tests)]
    setup = optional_text_column(values, "test_setup_code") or ""
    shown_tests = "\n\nIt has to pass these tests:\n\n" + "\n".join(lines) if lines else ""
    question = f"{task}{shown_tests}"
    program = "\n".join([*([setup] if setup else []), *lines]) if lines else ""
    return [ask(question, f"{FENCE}python\n{code}\n{FENCE}", tests=program)]
