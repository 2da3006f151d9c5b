"""Tokenizers of the kinds that bases come with, small ones, made with the tokenizers library."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(texts: Sequence[str]) -> Tokenizer:
    """As LLaMA-3's: BPE over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def sentencepiece(texts: Sequence[str]) -> Tokenizer:
    """As LLaMA-2's: a blank before the text, bytes for characters that it doesn't know."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(
        "▁", "merged_with_next"
    )  # no token begins in one word and ends in the next
    ascii_texts = ["".join(letter for letter in text if letter.isascii()) for text in texts]
    trained.train_from_iterator(
        ascii_texts, trainers.BpeTrainer(vocab_size=380, special_tokens=[*SPECIAL, *BYTES])
    )
    vocabulary = trained.get_vocab(with_added_tokens=True)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram(texts: Sequence[str]) -> Tokenizer:
    """As SentencePiece's own: Unigram, a blank before the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return tokenizer


def normalising(texts: Sequence[str]) -> Tokenizer:
    """One that changes texts: compatible characters, lower case, blanks around."""
    tokenizer = unigram([unicodedata.normalize("NFKC", text).lower() for text in texts])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    )
    return tokenizer


def prefixing(texts: Sequence[str]) -> Tokenizer:
    """BPE over bytes that puts a blank before each text, as RoBERTa's may."""
    tokenizer = byte_level(texts)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=True)
    return tokenizer


KINDS: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "byte_level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram, "normalising": normalising,
    "prefixing": prefixing,
}  # fmt: skip


def save_kind(kind: str, folder: Path, texts: Sequence[str]) -> None:
    """Save a tokenizer of a kind that knows these texts, with tokens that begin and end a text, and two of
    the text's own."""
    tokenizer = KINDS[kind](texts)
    tokenizer.add_tokens(
        [
            AddedToken("<call>", normalized=False),
            AddedToken("[note]", lstrip=True, rstrip=True, normalized=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
