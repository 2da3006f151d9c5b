"""Rows to prepare, sections of them, and what is compared of what they become."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection
from data_prep.preparation import PreparedData, prepare
from data_prep.table.cache import entries
from data_prep.table.documents import Document, DocumentTable
from data_prep.tokenizers.tokenizer import load_tokenizer

ROWS = [
    {
        "instruction": f"Say {word} to {name}.",
        "output": f"{word}, {name}",
        "topic": f"It is {word}.",
        "note": f"Ask {name}.",
    }
    for word in ("blue", "lamp", "seven")
    for name in ("Ada", "Bob", "Eve")
]
OTHER_ROWS = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 7)]
LABELLED = [{"text": f"It was {n} times as good.", "label": ("bad", "good")[n % 2]} for n in range(6)]


def allowing(finding: str, place: str, message: str) -> None:
    """Takes rows that begin with a second BOS, or whose prompt grows together with the answer, and refuses
    any others."""
    assert finding in ("double_bos", "prompt_not_learned", "plain_special_tokens"), message


def write(path: Path, values: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in values))


def file(
    path: Path, rows: Sequence[dict[str, Any]], format_name: str = "alpaca", **options: Any
) -> dict[str, Any]:
    """A source of these rows."""
    write(path, rows)
    return {"path": str(path), "format": format_name} | options


def alpaca(path: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(path), "format": "alpaca"} | options


def section(*train: dict[str, Any], **options: Any) -> DataSection:
    return DataSection.model_validate({"train": list(train)} | options)


def prepared_rows(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    form: str = "alpaca",
    **more: Any,
) -> PreparedData:
    """What these rows become; `more` are options of the section."""
    return prepare(section(file(folder / "a.jsonl", rows, form), **more), tokenizer, seed=0)


def said(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    """Alpaca rows."""
    return [{"instruction": instruction, "output": output} for instruction, output in pairs]


def talk(*turns: str, system: str | None = None, **answer: Any) -> dict[str, Any]:
    """A conversation of user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for index, content in enumerate(turns):
        messages.append(
            {"role": "user", "content": content}
            if index % 2 == 0
            else {"role": "assistant", "content": content}
        )
    return {"messages": [*messages[:-1], messages[-1] | answer]}


def places(documents: Sequence[Document]) -> list[str]:
    return [document.place for document in documents]


def with_template(folder: Path, text: str, tmp_path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder, with a template of the test's own."""
    path = tmp_path / "own.jinja"
    path.write_text(text)
    return load_tokenizer(folder, chat_template=str(path))


def content(table: DocumentTable) -> list[Any]:
    """Everything that a table holds, a row a document."""
    columns = (table, table.lengths.tolist(), table.sources.tolist(), table.fingerprints.tolist())
    return list(zip(*columns, strict=True))


def same(one: PreparedData, other: PreparedData) -> bool:
    """Whether two are the same in all but where they come from."""
    return (
        content(one.train) == content(other.train)
        and content(one.evaluation) == content(other.evaluation)
        and one.report == other.report
        and one.digests == other.digests
        and one.repeats == other.repeats
        and one.evaluation_examples == other.evaluation_examples
    )


def whole_entries(folder: Path) -> list[Path]:
    return [entry.folder for entry in entries(folder)]
