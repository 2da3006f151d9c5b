"""Steps of another library on the base of bench_gpu.py, which gives it a tokenizer (write_tokenizer), in a
process of its own; prints a line of JSON.

    python -m benchmarks.gpu.peers trl --base FOLDER [--device cpu] [--row 4096] [--rows 2]

trl      TRL's SFTTrainer on rows of tokens, with peft's LoRA
liger    transformers and peft with all of Liger's kernels
unsloth  Unsloth's model and its LoRA, without recomputation

Each trains LoRA r 16 on all linear layers without dropout, in bf16, on --rows rows of --row drawn tokens a
step. On a machine without a GPU only TRL runs: the others refuse to load.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP, STEPS = 2, 5
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16


def main() -> None:
    """Measure the one that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(PEERS))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--row", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2)
    asked = parser.parse_args()
    seconds = PEERS[asked.name](asked)
    found: dict[str, Any] = {
        "version": version(PACKAGES[asked.name]),
        "tokens/s": asked.rows * asked.row / seconds,
    }
    import torch

    from benchmarks.gpu.bench_gpu import memory_of

    print(json.dumps(found | memory_of(torch.device(asked.device))))


def write_tokenizer(folder: Path) -> None:
    """A word for each token: libraries ask for one, and nothing reads a text with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    count = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = {f"t{number}": number for number in range(count)}
    special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), words, strict=False))
    model = WordLevel(words, unk_token=special["unk_token"])
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(folder)


def rows_of(asked: argparse.Namespace, count: int) -> Any:
    """Drawn tokens (count x row)."""
    import torch

    vocabulary = json.loads((asked.base / "config.json").read_text())["vocab_size"]
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (count, asked.row), generator=draw)


def trl(asked: argparse.Namespace) -> float:
    """Seconds of a step of SFTTrainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        """When each step ended on the device."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """A step."""
            if asked.device == "cuda":
                torch.cuda.synchronize()
            self.moments.append(time.perf_counter())

    clock, steps = Clock(), WARM_UP + STEPS
    with tempfile.TemporaryDirectory() as name:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                asked.base, dtype=torch.bfloat16, attn_implementation="sdpa"
            ),
            args=SFTConfig(
                output_dir=name, max_steps=steps, per_device_train_batch_size=asked.rows, bf16=True,
                max_length=asked.row, gradient_checkpointing=False, report_to="none", save_strategy="no",
                use_cpu=asked.device == "cpu", optim="adamw_torch_fused", logging_steps=steps,
                disable_tqdm=True, dataloader_pin_memory=asked.device == "cuda",
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows_of(asked, asked.rows * steps).tolist()}),
            processing_class=AutoTokenizer.from_pretrained(asked.base),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return (clock.moments[-1] - clock.moments[WARM_UP - 1]) / STEPS


def liger(asked: argparse.Namespace) -> float:
    """Seconds of a step of a short loop."""
    importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        asked.base, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return _looped(
        get_peft_model(
            model.to(asked.device),
            LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        ),
        asked,
    )


def unsloth(asked: argparse.Namespace) -> float:
    """The same of its own model."""
    fast = importlib.import_module("unsloth").FastLanguageModel  # before transformers, which it changes
    import torch

    model, _ = fast.from_pretrained(
        model_name=str(asked.base), max_seq_length=asked.row, dtype=torch.bfloat16, load_in_4bit=False
    )
    return _looped(
        fast.get_peft_model(
            model, r=RANK, lora_alpha=2 * RANK, lora_dropout=0, target_modules=TARGETS, bias="none",
            use_gradient_checkpointing=False, random_state=0,
        ),
        asked,
    )  # fmt: skip


def _looped(model: Any, asked: argparse.Namespace) -> float:
    """Forward, backward, clipping, update; the loss is the library's own."""
    import torch

    from benchmarks.gpu.models import optimizer_of, seconds_of

    model.train()
    optimizer, rows = optimizer_of(model), rows_of(asked, asked.rows).to(asked.device)

    def step() -> None:
        with torch.autocast(asked.device, torch.bfloat16):
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_((one for one in model.parameters() if one.requires_grad), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return seconds_of(step, torch.device(asked.device), warm_up=WARM_UP, steps=STEPS)


PEERS: dict[str, Callable[[argparse.Namespace], float]] = {"trl": trl, "liger": liger, "unsloth": unsloth}
PACKAGES = {"trl": "trl", "liger": "liger_kernel", "unsloth": "unsloth"}

if __name__ == "__main__":
    main()
