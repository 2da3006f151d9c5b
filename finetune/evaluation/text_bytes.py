"""The text that documents stand for, in bytes: what bits_per_byte divides by, wherever a document was cut."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from data_prep.chat.tokenization import Placed
from data_prep.config import DataSection
from data_prep.table.documents import Document
from data_prep.truncation import fitted, overlap_of
from finetune.evaluation.predictions import tokenization_of


def supervised_bytes(
    documents: Sequence[Document],
    rows: Sequence[Placed],
    section: DataSection,
    tokenizer: PreTrainedTokenizerFast,
) -> list[float]:
    """The bytes of text (UTF-8) of each document's supervised tokens, each by its weight, as in the loss.

    `rows` are what the documents were made of. Special tokens, and blanks that a tokenizer puts before a
    text, have no bytes.
    """
    found: dict[str, float] = {}
    overlap = overlap_of(tokenizer)
    tokenization = tokenization_of(section, tokenizer, section.supervise, section.loss_weights)
    for document, sizes in tokenization.with_bytes(rows):
        has_bos = document.token_ids[0] == tokenizer.bos_token_id
        # The document with each token's place for its id: cut as it was, it tells which tokens each part has.
        places = replace(document, token_ids=list(range(len(sizes))))
        for part in fitted(
            places, section.max_length_tokens, section.over_length, 0 if has_bos else None, overlap
        ):
            found[part.place] = sum(
                weight * sizes[place]
                for first, end, weight in part.spans
                for place in part.token_ids[first:end]
            )
    return [found[document.place] for document in documents]
