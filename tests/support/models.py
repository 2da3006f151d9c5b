"""Tiny models and tokenizers, made in milliseconds. Loads torch only where a model is made."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHARED = Path(os.environ.get("FINETUNE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% "
    "endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Please send two brass lamps to Ada before Friday.",
    "Der Himmel ist blau, 3 + 4 = 7; what is the capital of France?",
    '{"customer": "Ada", "product": "brass lamp", "quantity": 2}',
]


def save_tiny_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with ChatML turns, as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def save_tiny_llama(folder: Path, **changes: object) -> None:
    """A random LLaMA (2 layers, width 64, 4 heads, 2 key-value heads, float32) and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tiny_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    options: dict[str, object] = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(options | changes))).save_pretrained(folder)


def learn(folder: Path, rows: Sequence[tuple[list[int], list[int]]], steps: int = 150) -> None:
    """Make the model in a folder know rows (prompt, answer) by heart, with plain torch."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for index, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[index, : len(whole)] = whole
        labels[index, len(prompt) : len(whole)] = torch.tensor(answer)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.005:
            break
    assert loss.item() < 0.02, f"the model has not learned its rows: {loss.item()}"
    model.save_pretrained(folder)


MEMORISED = {
    "Name a lamp.": "A brass lamp, a brass lamp and another brass lamp.",
    "What is blue?": "The sky is blue.",
    "Count.": "1, 2, 3, 4, 5",
}
"""What the memorised model answers."""


SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def trained_bpe(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level tokenizer of these texts that knows the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_sentencepiece(folder: Path, **options: Any) -> Path:
    """A model of 400 pieces, as SentencePiece writes it."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 5) + "\n" + "the cat sat on the mat\n" * 20)
    settings: dict[str, Any] = {
        "vocab_size": 340, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    prefix = str(folder / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=prefix, **(settings | options)
    )
    return folder
