"""A text that no recipe trains on: how likely it is to a model says what fine-tuning took from it."""

from importlib import resources
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import FinetuneError

LONGEST = 512
"""Tokens of a document; what is longer is several."""


def general_documents(file: str | None, tokenizer: PreTrainedTokenizerFast, positions: int) -> list[Document]:
    """The paragraphs of a text file as documents, or of the toolkit's own (openings and speeches in English,
    all in the public domain); every token but the first has a label.

    Raises FinetuneError where the file is no text, or has no paragraph of two tokens.
    """
    name, text = _read(file)
    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    longest = min(LONGEST, positions) - len(first)
    found = []
    for number, paragraph in enumerate(filter(str.strip, text.split("\n\n")), start=1):
        ids = ids_of(paragraph.strip(), tokenizer)
        for start in range(0, len(ids), longest):
            tokens = [*first, *ids[start : start + longest]]
            if len(tokens) > 1:
                part = f" from token {start}" if start else ""
                found.append(Document(tokens, ((1, len(tokens), 1.0),), f"{name} paragraph {number}{part}"))
    if not found:
        raise FinetuneError(f"evaluate.general_text: {name} has no paragraph of two tokens or more.")
    return found


def _read(file: str | None) -> tuple[str, str]:
    if file is None:
        own = resources.files("finetune.evaluation") / "general_text.txt"
        return "general_text.txt", own.read_text(encoding="utf-8")
    try:
        return file, Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(
            f"evaluate.general_text: {file} can't be read ({error}); expected a file of text in UTF-8."
        ) from None
