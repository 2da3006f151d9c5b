"""A small tokenizer of each family, made with the tokenizers library."""

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Paris is the capital: yes ",
    "the cat is called: tom  and he\n\n\n likes fish. ",
    "Answer:\n12345 (Ada) äöü 日本",
] * 20
UNKNOWN = "<unk>"


def trained(kind: str) -> Tokenizer:
    """A tokenizer of each family: byte-level BPE, SentencePiece's two ways of blanks, Unigram."""
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<s>", "</s>", UNKNOWN], unk_token=UNKNOWN
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True))
        if kind == "prepended":  # LLaMA-2's: a blank before every text, whatever it begins with
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        fallback = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        tokenizer.decoder = decoders.Sequence(fallback)
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "</s>", UNKNOWN])
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_bytes(tokenizer) if kind in ("prepended", "first") else tokenizer


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a token for each byte, as SentencePiece's byte fallback has them."""
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = vocabulary | {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(state))


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
Load = Callable[[str], PreTrainedTokenizerFast]
KINDS = ["byte-level", "prepended", "first", "unigram"]
