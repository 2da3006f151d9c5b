"""Rows to verify a merge on: the run's own, or these where there is no run."""

from collections.abc import Iterator, Sequence
from itertools import islice

from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import end_id
from data_prep.chat.tokenization import Tokenization
from data_prep.errors import DataError
from data_prep.files import Use
from data_prep.formats.parser import read_parsed
from data_prep.formats.row_rules import RowRules
from data_prep.messages import Example, PlainText
from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import ids_of
from finetune.data import prepare_data
from finetune.errors import MergeError
from finetune.objectives import objective_of
from finetune.recipe.schema import Recipe

ROWS = 8
TOKENS_A_ROW = 256
HEAD_ROWS = 32
"""For a classification head, which says one thing of a row: more rows, of as many tokens together as the
others at most."""
LOGITS_BYTES = 400_000_000
"""Of one model's logits over all rows, in float32, at most."""

TEXTS = (
    "The capital of France is Paris. It lies on the Seine, which rises in Burgundy and meets the sea at Le "
    "Havre.",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does it travel?\nAnswer: 3 hours and 25 "
    "minutes.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    '{"customer": "Ada Byron", "product": "brass lamp", "quantity": 2, "due": "2026-03-14", "priority": '
    '"high"}',
    "Once upon a time there was a little girl who had a red kite. One day the wind took the kite over the "
    "hills, and she ran after it.",
    "Der Ausschuss tagt am Donnerstag; die Vorlage liegt seit gestern aus. Les délégués voteront demain, "
    "après la pause.",
    "Dear Ms Okafor, thank you for your letter of 2 May. We have sent the replacement by post and enclose "
    "the invoice, less 15 %.",
    "1. Boil the water. 2. Add salt, then the pasta. 3. Stir for a minute. 4. Drain after nine minutes and "
    "serve with butter and sage.",
)
"""Prose, a calculation, code, JSON, other languages, a letter and a list."""


def verification_documents(
    recipe: Recipe | None, tokenizer: PreTrainedTokenizerFast, *, classifies: bool = False
) -> tuple[list[Document], str]:
    """Up to ROWS documents, each of at most TOKENS_A_ROW tokens (fewer with a large vocabulary), and where
    they come from.

    They are the first that the run held out, of its training data where it held out none; the built-in texts
    where there is no run, or its data can't be read any more, which the second value then says. For a model
    that `classifies` they are up to HEAD_ROWS, which keep their ends, where a head reads.
    """
    why = "built-in texts"
    # Logits are a vocabulary wide, and several models' are held at once; a head's outputs are few.
    tokens = (
        TOKENS_A_ROW
        if classifies
        else max(16, min(TOKENS_A_ROW, LOGITS_BYTES // (4 * len(tokenizer) * ROWS)))
    )
    if recipe is not None:
        try:
            documents = _documents(recipe, tokenizer, HEAD_ROWS if classifies else ROWS)
            documents = (
                _last_parts(documents, tokens)
                if classifies
                else [document.part(0, tokens) for document in documents]
            )
            documents = [document for document in documents if len(document.token_ids) > 1]
            if documents:
                return documents, "the run's data"
            why = "built-in texts, because the run's data hold no row"
        except DataError as error:
            why = f"built-in texts, because the run's data can't be read ({str(error).splitlines()[0]})"
    encoded = [ids_of(text, tokenizer)[:tokens] for text in TEXTS]
    if not all(encoded):
        raise MergeError(
            f"the tokenizer in {tokenizer.name_or_path} makes no tokens of plain text, so the merge can't be "
            "checked with it: put the base's own tokenizer there."
        )
    if classifies:
        return [_prompt(ids, end_id(tokenizer)) for ids in encoded], why
    return [Document(ids, ((len(ids) // 2, len(ids), 1.0),), "a built-in text") for ids in encoded], why


def _prompt(ids: list[int], end: int) -> Document:
    """A text as a classification head reads it: up to the end token behind it."""
    return Document([*ids, end], ((len(ids), len(ids) + 1, 1.0),), "a built-in text")


def last_part(document: Document, tokens: int) -> Document:
    """A document's last tokens: a classification head reads at the end."""
    return document.part(max(0, len(document.token_ids) - tokens), len(document.token_ids))


def _last_parts(documents: Sequence[Document], tokens: int) -> list[Document]:
    kept = list[Document]()
    for document in documents:
        kept.append(last_part(document, tokens))
        if sum(len(part.token_ids) for part in kept) >= ROWS * TOKENS_A_ROW:
            break
    return kept


def calibration_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rows: int, *, classifies: bool = False
) -> list[Document]:
    """Up to so many documents of a recipe's training data, of at most TOKENS_A_ROW tokens, none of which a
    merge of that run is verified on."""
    if recipe.data.streaming is None and recipe.data.evaluates:
        documents: Sequence[Document] = prepare_data(recipe, tokenizer).train[:rows]
    else:
        verifying = HEAD_ROWS if classifies else ROWS
        documents = _tokenized(recipe, tokenizer, verifying + rows)[verifying:]
    parts = (
        last_part(document, TOKENS_A_ROW) if classifies else document.part(0, TOKENS_A_ROW)
        for document in documents
    )
    return [part for part in parts if len(part.token_ids) > 1]


def _documents(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rows: int) -> Sequence[Document]:
    if recipe.data.streaming is None and recipe.data.evaluates:
        held_out = prepare_data(recipe, tokenizer).evaluation
        if len(held_out):
            return held_out[:rows]
    return _tokenized(recipe, tokenizer, rows)


def _tokenized(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rows: int) -> list[Document]:
    tokenization = Tokenization(tokenizer, recipe.data.supervise, encoding=objective_of(recipe).encoding)
    return [document for document, _ in tokenization.run(islice(_examples(recipe, tokenizer), rows))]


def goes_through_template(recipe: Recipe | None, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a run's rows were written by the chat template: conversations, where the tokenizer has one."""
    if not tokenizer.chat_template:
        return False
    try:
        _, first = next(_examples(recipe, tokenizer)) if recipe is not None else ("", None)
    except (DataError, StopIteration):
        return True  # the rows are gone; most are conversations
    return not isinstance(first, PlainText)


def _examples(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, Example]]:
    data, rules = recipe.data, RowRules.of(recipe.data, tokenizer)
    encoding = objective_of(recipe).encoding
    use: Use = "evaluation" if data.held_out else "train"
    for source in data.held_out or data.train:
        parser, rows = read_parsed(
            source, seed=recipe.train.seed, rules=rules, streaming=data.streaming is not None, use=use
        )
        for row in rows:
            for place, parsed in parser.parse(row):
                yield from ((place, example) for example in encoding.examples(parsed))
