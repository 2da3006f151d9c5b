"""What DistributedDataParallel sends at its start: two processes, over gloo, that begin with other weights."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from types import SimpleNamespace
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from finetune.engines.ddp import DDP

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(rank)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
next(weight for name, weight in model.named_parameters() if "lora_A" in name).requires_grad_(False)
accelerator = SimpleNamespace(prepare_model=DistributedDataParallel)
DDP.adapt(accelerator)
wrapped = accelerator.prepare_model(model)
adapter = sum(weight.sum() for name, weight in model.named_parameters() if "lora_" in name).item()
base = sum(weight.sum() for name, weight in model.named_parameters() if "lora_" not in name).item()
print(adapter, base)
wrapped(input_ids=torch.full((1, 3), rank), labels=torch.full((1, 3), rank)).loss.backward()
print([weight.grad.sum().item() for name, weight in model.named_parameters() if weight.grad is not None])
distributed.destroy_process_group()
"""


def test_the_adapter_is_sent_and_the_base_is_not(tmp_path: Path) -> None:
    """All of the adapter, a frozen part too; gradients are averaged as ever."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[3],
            text=True,
        )
        for rank in range(2)
    ]
    [first, second] = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    adapters, bases = zip(*(lines[0].split() for lines in (first, second)), strict=True)
    assert adapters[0] == adapters[1]
    assert bases[0] != bases[1]
    assert first[1] == second[1]
    assert first[1].count(",") == 2, "of the four matrices three train"
