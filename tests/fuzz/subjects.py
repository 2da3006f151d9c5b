"""What is changed: bases of each family and kind of tokenizer, an adapter, a finished run and an interrupted
one.

Made once, in a folder of their own; a case works on copies.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.support.models import CHATML, CORPUS, save_tiny_llama

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BASES = (*FAMILIES, "sharded", "nf4", "unigram", "pieces")
"""Beside a plain one of each family: a base in several files, one that bitsandbytes stored, and two with
other tokenizers."""


def make_subjects(folder: Path) -> None:
    """All of them, in `folder`; it may be there already, whole."""
    if folder.is_dir():
        return
    made = folder.with_name(f"{folder.name}.partial")
    made.mkdir(parents=True)
    for family in FAMILIES:
        _save_base(made / family, family)
    _save_sharded(made / "llama", made / "sharded")
    _save_nf4(made / "llama", made / "nf4")
    _save_unigram(made / "llama", made / "unigram")
    _save_pieces(made / "llama", made / "pieces")
    _save_adapter(made / "llama", made / "adapter", folder / "llama")
    rows = [
        {"instruction": f"Say {word}.", "input": "", "output": f"{word} lamp"}
        for word in ("blue", "seven", "Ada", "café")
    ]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.rename(folder)
    # A lock holds the base's path, so the runs are made where everything stays.
    _train(folder)


def recipe(base: Path, rows: Path, output: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe of one step; sections in `changes` are added to its own."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"base": str(base)},
        "adapter": {"rank": 2, "alpha": 4},
        "data": {"train": [{"path": str(rows), "format": "alpaca"}], "max_length_tokens": 128},
        "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "rehearsal": False},
        "output": {"folder": str(output)},
        "tracking": {"tracker": "none"},
    }
    return {name: values | changes.get(name, {}) for name, values in sections.items()} | {
        name: values for name, values in changes.items() if name not in sections
    }


def _save_base(folder: Path, family: str) -> None:
    if family == "llama":
        save_tiny_llama(folder)
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(folder.with_name("llama"), folder)
    known = json.loads((folder / "config.json").read_text())
    sizes = {
        key: value
        for key, value in known.items()
        if key not in ("model_type", "architectures", "rope_parameters")
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(sizes | {"tie_word_embeddings": family == "qwen3"}))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _save_sharded(llama: Path, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    shutil.copytree(llama, folder)
    (folder / "model.safetensors").unlink()
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="150KB")


def _save_nf4(llama: Path, folder: Path) -> None:
    import torch
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    shutil.copytree(llama, folder)
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    LlamaForCausalLM.from_pretrained(llama, quantization_config=how, device_map={"": "cpu"}).save_pretrained(
        folder
    )


def _save_unigram(llama: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(llama, folder)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    options = {
        "special_tokens": special,
        "unk_token": "<unk>",
        "initial_alphabet": ["\n", "é", *map(chr, range(33, 127))],
    }
    tokenizer.train_from_iterator(
        CORPUS * 3, trainers.UnigramTrainer(vocab_size=250, show_progress=False, **options)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def _save_pieces(llama: Path, folder: Path) -> None:
    """A base with a tokenizer.model alone, as LLaMA 2's own files are."""
    import sentencepiece

    shutil.copytree(llama, folder)
    (folder / "tokenizer.json").unlink()
    corpus = folder.with_name("corpus.txt")
    corpus.write_text("\n".join(CORPUS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False})
    )


def _save_adapter(llama: Path, folder: Path, named: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama), config)
    model.peft_config["default"].base_model_name_or_path = str(named)
    model.save_pretrained(folder)


def _train(folder: Path) -> None:
    """A run that came to its end, and the same after the first of its two steps."""
    from finetune.cli import app

    path = folder / "two_steps.yaml"
    steps = {"max_steps": 2, "save_every": 1, "keep_checkpoints": 2}
    path.write_text(json.dumps(recipe(folder / "llama", folder / "rows.jsonl", folder / "runs", train=steps)))
    before = sys.argv
    try:
        sys.argv = ["finetune", "train", str(path)]
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            code = app.run()
    finally:
        sys.argv = before
    assert code == 0, "the run that cases work on could not be trained"
    finished = folder / "runs" / "two_steps-001"
    stopped = Path(shutil.copytree(finished, folder / "runs" / "stopped-001"))
    shutil.rmtree(stopped / "adapter")
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-2")
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
