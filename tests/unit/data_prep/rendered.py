"""One row as tokens, and what of it is learned."""

from transformers import PreTrainedTokenizerFast

from data_prep import Document, tokenize
from data_prep.messages import Conversation, PlainText


def supervised_texts(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The decoded runs of supervised tokens."""
    runs: list[list[int]] = []
    before = False
    for token, flag in zip(document.token_ids, document.supervised, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


def one(
    example: Conversation | PlainText, tokenizer: PreTrainedTokenizerFast, supervise: str = "assistant"
) -> Document:
    return tokenize([("rows.json row 1", example)], tokenizer, supervise)[0]
