"""A tokenizer under GGUF's keys: tokens, their kinds, merges or scores, what stands around a text, the chat
template.

llama.cpp has two kinds here: "gpt2", byte-level BPE by merges, and "llama", SentencePiece's BPE by scores,
with bytes for what has no token.
"""

import json
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from data_prep.chat.chat_templates import DEFAULT, adds_bos, adds_eos, rendering_of, templates_of
from data_prep.chat.rendering import end_of_turn_ids
from data_prep.tokenizers.tokens import SPACE
from finetune.errors import ExportError
from finetune.exporters.gguf.pre_tokenizers import MARKS_APART, pre_tokenizer_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""
NEVER = -1e9
"""The score of a piece that no merge makes."""


@dataclass
class Vocabulary:
    """Values by key, without `tokenizer.` before it, and what is to be said of them."""

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def vocabulary_of(tokenizer: PreTrainedTokenizerFast, rows: int) -> Vocabulary:
    """The tokenizer for an embedding of `rows` rows. Raises ExportError for one that llama.cpp doesn't
    have."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        raise ExportError(
            f"the tokenizer is a {described['model']['type']} one, and GGUF takes byte-level BPE and "
            "SentencePiece's BPE."
        )
    tokens, kinds = _tokens(described, tokenizer, rows)
    found = Vocabulary({"ggml.tokens": tokens, "ggml.token_type": kinds})
    if described["model"].get("byte_fallback"):
        _put_sentencepiece(found, described)
    else:
        _put_byte_level(found, described)
    _put_specials(found.values, tokenizer)
    _put_templates(found.values, tokenizer)
    return found


def _tokens(
    described: dict[str, Any], tokenizer: PreTrainedTokenizerFast, rows: int
) -> tuple[list[str], list[int]]:
    """Each row's token and kind; rows beyond the tokenizer's are unused."""
    model, known = described["model"], tokenizer.get_vocab()
    tokens = [_unlike(known, f"[PAD{index}]") for index in range(rows)]
    kinds = [UNUSED] * rows
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token, _kind(token, model)
    for index, added in tokenizer.added_tokens_decoder.items():
        tokens[index] = str(added)
        unknown = added.special and str(added) == model.get("unk_token") and model.get("byte_fallback")
        kinds[index] = UNKNOWN if unknown else CONTROL if added.special else USER_DEFINED
    return tokens, kinds


def _unlike(known: Container[str], text: str) -> str:
    """A text that is no token: llama.cpp reads no file with two of one text."""
    return text if text not in known else _unlike(known, f"{text}_")


def _kind(token: str, model: dict[str, Any]) -> int:
    if not model.get("byte_fallback"):
        return NORMAL
    if len(token) == 6 and token.startswith("<0x"):
        return BYTE
    return UNKNOWN if token == model.get("unk_token") else NORMAL


def _put_byte_level(found: Vocabulary, described: dict[str, Any]) -> None:
    normalizer = described.get("normalizer") or {}
    if normalizer.get("type") not in (None, "NFC"):
        raise ExportError(
            f"the tokenizer changes texts before it reads them (normalizer {normalizer['type']} in "
            "tokenizer.json), which llama.cpp doesn't do for byte-level BPE."
        )
    if normalizer:
        found.notes.append(
            "the tokenizer composes characters (NFC), which llama.cpp doesn't do: give it texts that are "
            "composed"
        )
    pre, merges = pre_tokenizer_name(described), described["model"]["merges"]
    if pre in MARKS_APART:
        found.notes.append(
            "llama.cpp cuts words before combining marks, which the tokenizer doesn't: texts in Hindi, Thai "
            "and their like become other tokens there, and were left out of the check"
        )
    found.values |= {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


def _put_sentencepiece(found: Vocabulary, described: dict[str, Any]) -> None:
    """SentencePiece merges the pair whose piece has the highest score: the order of the merges, downwards."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(described["model"]["merges"]):
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(first + second, -float(rank))
    tokens, kinds = found.values["ggml.tokens"], found.values["ggml.token_type"]
    merged = [
        scores.get(token, NEVER) if kind == NORMAL else 0.0 for token, kind in zip(tokens, kinds, strict=True)
    ]
    found.values |= {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.scores": merged,
        "ggml.add_space_prefix": _adds_blank(described),
    }


def _adds_blank(described: dict[str, Any]) -> bool:
    """Whether a blank is put before a text. Raises ExportError for blanks that llama.cpp doesn't treat so."""
    normalizer, pre_tokenizer = described.get("normalizer") or {}, described.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {"type": "Prepend", "prepend": SPACE}
    if not pre_tokenizer and steps in ([replaced], [prepended, replaced]):
        return len(steps) == 2
    metaspace = pre_tokenizer.get("type") == "Metaspace"
    if metaspace and not steps and not pre_tokenizer.get("split", True):
        return bool(pre_tokenizer.get("prepend_scheme") != "never")
    raise ExportError(
        "the tokenizer treats blanks otherwise than llama.cpp does for SentencePiece (normalizer and "
        "pre_tokenizer in tokenizer.json): texts would become other tokens, so the model isn't exported."
    )


def _put_specials(values: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Tokens by their use. llama.cpp ends an answer at the end token, and at the end of a turn."""
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    values |= {f"ggml.{name}_token_id": int(index) for name, index in named.items() if index is not None}
    values |= {"ggml.add_bos_token": adds_bos(tokenizer), "ggml.add_eos_token": adds_eos(tokenizer)}
    beside = [index for index in end_of_turn_ids(tokenizer) if index != tokenizer.eos_token_id]
    if beside:
        values["ggml.eot_token_id" if tokenizer.eos_token_id is not None else "ggml.eos_token_id"] = beside[0]


def _put_templates(values: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """The chat templates as they are saved beside a model: with the date that was trained."""
    for name, text in templates_of(tokenizer).items():
        values["chat_template" if name == DEFAULT else f"chat_template.{name}"] = rendering_of(tokenizer).pin(
            text
        )
    others = [name for name in templates_of(tokenizer) if name != DEFAULT]
    if others:
        values["chat_templates"] = others
