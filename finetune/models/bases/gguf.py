"""A GGUF file to plain bf16 safetensors, once."""

import json
from pathlib import Path
from typing import Any

import torch

from finetune.errors import ModelError, library_refusals
from finetune.extras import refuse_without


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file of a LLaMA-family model into `folder`: config, bf16 safetensors, tokenizer, chat
    template.

    Raises ModelError where the file can't be read as such a model, and FinetuneError where gguf is not
    installed.
    """
    refuse_without("gguf", f"{file}: a GGUF file")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune.models.description import CONFIG, ModelConfig, read_generation_config, write_description
    from finetune.models.description_check import differences

    # Both loaders look for the file inside a folder, and would ask the hub if that folder's name looked like
    # a hub id.
    source, name = str(file.resolve().parent), file.name
    with library_refusals(f"{file} could not be read as a GGUF model"):
        packed = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name, trust_remote_code=False)
    # transformers keeps a GGUF model marked as quantised, which save_pretrained refuses: copy the weights
    # into a plain one.
    config = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(packed.config.__class__(**config), dtype=torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    _mend_pre_tokenizer(tokenizer, file)
    own = json.loads((folder / CONFIG).read_text())
    described = ModelConfig(
        own, plain.config, {"vocab_size": plain.config.vocab_size, "dtype": torch.bfloat16}
    )
    write_description(folder, tokenizer, [], config=described, generation=read_generation_config(folder))
    if wrong := differences(folder, tokenizer, described.expected()):
        raise ModelError(f"{file} is read otherwise once it is converted: {'; '.join(wrong[:3])}.")


def _mend_pre_tokenizer(tokenizer: Any, file: Path) -> None:
    """Split digits where the file's tokenizer does: transformers doesn't read that from tokenizer.ggml.pre.

    Without it, blanks before a digit become other tokens than those that the base was trained with.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        digits, rest = (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        )
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
