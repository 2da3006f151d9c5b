"""Writing a tokenizer so that all who read it get the ids that were trained: transformers 4 and 5,
llama.cpp's converter.

tokenizer.json decides. transformers 5 by itself leaves out, or spells otherwise, what the others read beside
it.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data_prep.chat.chat_templates import adds_bos, adds_eos, rendering_of, templates_of
from data_prep.tokenizers.sentencepiece_model import MODEL as SENTENCEPIECE
from data_prep.tokenizers.sentencepiece_model import pieces_of
from data_prep.tokenizers.tokens import ids_of
from finetune.models.bases.folder import read_json

TOKENIZER, TOKENIZER_CONFIG, ADDED_TOKENS = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
OF_A_CALL = ("truncation", "padding")
"""Keys of tokenizer.json that each call sets anew."""

VERBATIM = "PreTrainedTokenizerFast"
"""The class by which transformers 4 and 5 take tokenizer.json as it is. The others build some of it anew."""
KNOWN_TO_BOTH = frozenset({"LlamaTokenizer", "CodeLlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"})
"""Other classes of LLaMA-like bases that both have, under this name or with Fast behind it."""
OF_OTHERS = frozenset({
    "backend", "is_local", "local_files_only", "extra_special_tokens", "model_specific_special_tokens",
    "chat_template", "auto_map", "name_or_path", "tokenizer_file", "special_tokens_map_file", "device_map",
})  # fmt: skip
"""Keys of tokenizer_config.json that are transformers 5's alone, lie in a file of their own, or say where it
was read from."""

PROBES = (
    "The capital of France is Paris. It lies on the Seine, which rises in Burgundy and meets the sea at Le "
    "Havre.",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does it travel?\nAnswer: 3 hours and 25 "
    "minutes.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "  two  blanks, a\ttab,\r\n\r\nlines ending ",
    "Ünï­cöde ﬁ ½ 你好 नमस्ते 👩‍🚀 \u200b\u3000x",
    "",
    "x",
)
"""Texts in which tokenizers differ: blanks at either end and in between, digits, code, line ends, scripts,
nothing."""


def probe_texts(tokenizer: Any) -> list[str]:
    """PROBES, and each special or added token by itself, inside a word, and between blanks."""
    tokens = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len)
    tokens = [*tokens[:100], *tokens[-100:]] if len(tokens) > 200 else tokens
    return [*PROBES, *(text for token in tokens for text in (token, f"a{token}b", f"a {token} b"))]


def read_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, with and without the tokens that a tokenizer puts around them."""
    return [ids_of(text, tokenizer, special=around) for text in texts for around in (True, False)]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, sources: Sequence[Path]) -> None:
    """Write a tokenizer, and its chat template with the date that it is rendered with.

    `sources` are the folders that it comes from, the one that it was read from first: what their
    tokenizer_config.json says beyond the tokens is kept, and a tokenizer.model whose pieces are the
    tokenizer's. Raises ModelError where one of these files is damaged.
    """
    written = copy.copy(tokenizer)
    texts = {name: rendering_of(tokenizer).pin(text) for name, text in templates_of(tokenizer).items()}
    if texts:
        written.chat_template = (
            texts if isinstance(tokenizer.chat_template, dict) else next(iter(texts.values()))
        )
    written.save_pretrained(folder)
    _copy_sentencepiece(tokenizer, folder, sources)
    own = next(
        (read_json(source / TOKENIZER_CONFIG) for source in sources if (source / TOKENIZER_CONFIG).is_file()),
        {},
    )
    saved = read_json(folder / TOKENIZER_CONFIG)
    config = {key: value for key, value in (own | saved).items() if key not in OF_OTHERS} | {
        "added_tokens_decoder": {
            str(index): token.__getstate__()
            for index, token in sorted(tokenizer.added_tokens_decoder.items())
        },
        "add_bos_token": adds_bos(tokenizer),
        "add_eos_token": adds_eos(tokenizer),
    }
    config |= _further_tokens(own, saved)
    for name in dict.fromkeys((_class_for_both(own), VERBATIM)):
        text = json.dumps(config | {"tokenizer_class": name}, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")
        if name == VERBATIM or _reads_the_same(folder, tokenizer):
            return


def _class_for_both(own: dict[str, Any]) -> str:
    """The base's own class where transformers 4 and 5 know it and go by tokenizer.json."""
    named = str(own.get("tokenizer_class"))
    # 4 builds a LLaMA tokenizer anew from tokenizer.model where add_prefix_space is there.
    anew = "Llama" in named and own.get("add_prefix_space") is not None
    return (
        named
        if named.removesuffix("Fast") in KNOWN_TO_BOTH and "auto_map" not in own and not anew
        else VERBATIM
    )


def _further_tokens(own: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Special tokens without a name of their own, under the key that transformers 4 reads, and 5 too."""
    if isinstance(own.get("extra_special_tokens"), dict):
        return {"extra_special_tokens": own["extra_special_tokens"]}
    further = saved.get("extra_special_tokens") or own.get("additional_special_tokens")
    return {"additional_special_tokens": further} if further else {}


def _reads_the_same(folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether plain transformers makes the same ids of texts by the class that is named in a folder."""
    from transformers import AutoTokenizer

    texts = probe_texts(tokenizer)
    try:
        return read_texts(AutoTokenizer.from_pretrained(folder), texts) == read_texts(tokenizer, texts)
    except Exception:  # noqa: BLE001 - whatever it stumbles over: it does not read this tokenizer
        return False


def _copy_sentencepiece(tokenizer: PreTrainedTokenizerFast, folder: Path, sources: Sequence[Path]) -> None:
    """The SentencePiece model that the tokenizer was made of, and the tokens beyond it, for those who read
    these files."""
    for source in sources:
        pieces = pieces_of(source / SENTENCEPIECE)
        if pieces is None or not _begins_with(tokenizer, pieces):
            continue
        shutil.copyfile(source / SENTENCEPIECE, folder / SENTENCEPIECE)
        if beyond := _beyond(tokenizer, pieces):
            (folder / ADDED_TOKENS).write_text(
                json.dumps(beyond, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        return


def _beyond(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[str]) -> dict[str, int]:
    """The tokens that a SentencePiece model lacks, by id."""
    beyond = ((token, index) for token, index in tokenizer.get_vocab().items() if index >= len(pieces))
    return dict(sorted(beyond, key=itemgetter(1)))


def _begins_with(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[str]) -> bool:
    """Whether each piece is the tokenizer's token of that id; tokens that were added may stand in a piece's
    place."""
    tokens, added = tokenizer.convert_ids_to_tokens(list(range(len(pieces)))), tokenizer.added_tokens_decoder
    return all(
        token == piece or index in added
        for index, (token, piece) in enumerate(zip(tokens, pieces, strict=True))
    )


def differences_beside_transformers(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, for_version_4: bool = True
) -> Iterator[str]:
    """What those find otherwise than it was trained who read a tokenizer's files by themselves, in words.

    transformers mends tokenizer.json by tokenizer_config.json when it reads them; others go by tokenizer.json
    alone, or by tokenizer.model and added_tokens.json, which earlier versions of this toolkit did not write
    (`for_version_4`).
    """
    stored = json.loads(Tokenizer.from_file(str(folder / TOKENIZER)).to_str())
    trained = json.loads(tokenizer.backend_tokenizer.to_str())
    odd = [key for key in trained if key not in OF_A_CALL and stored.get(key) != trained[key]]
    if odd:
        yield f"{TOKENIZER} says otherwise of {', '.join(odd)} than was trained"
    pieces = pieces_of(folder / SENTENCEPIECE)
    if pieces is None or not for_version_4:
        return
    if not _begins_with(tokenizer, pieces):
        yield f"{SENTENCEPIECE} holds other tokens than were trained"
    added, beyond = folder / ADDED_TOKENS, _beyond(tokenizer, pieces)
    if (read_json(added) if added.is_file() else {}) != beyond:
        yield f"{ADDED_TOKENS} does not name the {len(beyond)} tokens that {SENTENCEPIECE} lacks"
