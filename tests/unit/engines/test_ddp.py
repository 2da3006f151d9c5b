"""What DistributedDataParallel sends at its start: two processes, over gloo, that begin with other weights."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, os, sys
from types import SimpleNamespace
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from finetune.engines.ddp import DDP

rank, way = int(sys.argv[1]), sys.argv[3]
os.environ.update(RANK=sys.argv[1], WORLD_SIZE="2", LOCAL_RANK=sys.argv[1], MASTER_ADDR="here", MASTER_PORT="1")
os.environ["TORCHELASTIC_RUN_ID"] = "1"
logging.basicConfig(stream=sys.stdout, format="%(message)s")
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=31, hidden_size=14, intermediate_size=27, num_hidden_layers=2, num_attention_heads=1)
base = LlamaForCausalLM(config).to(torch.bfloat16)
if way == "differs" and rank == 1:
    base.model.layers[1].mlp.down_proj.weight.data[3, 4] += 1
torch.manual_seed(rank)
model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
next(weight for name, weight in model.named_parameters() if "lora_A" in name).requires_grad_(False)
accelerator = SimpleNamespace(prepare_model=DistributedDataParallel)
DDP.adapt(accelerator)
wrapped = accelerator.prepare_model(model)
print(sum(weight.float().sum() for name, weight in model.named_parameters() if "lora_" in name).item())
print(base.model.layers[1].mlp.down_proj.weight[3, 4].item())
sent = [name for name, weight in model.named_parameters() if not getattr(weight, "_ddp_ignored", False)]
print(len(sent), all("lora_" in name for name in sent))
wrapped(input_ids=torch.full((1, 3), rank), labels=torch.full((1, 3), rank)).loss.backward()
print([weight.grad.sum().item() for name, weight in model.named_parameters() if weight.grad is not None])
distributed.destroy_process_group()
"""


def said_by_two(tmp_path: Path, way: str) -> list[list[str]]:
    """What each process says."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store"), way],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[3],
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=120)[0].splitlines() for process in processes]


def test_the_adapter_is_sent_and_the_base_is_not(tmp_path: Path) -> None:
    """All of the adapter, a frozen part too; gradients are averaged as ever."""
    first, second = said_by_two(tmp_path, "the same")
    assert first == second
    assert first[2] == "4 True"
    assert first[3].count(",") == 2, "of the four matrices three train"


def test_a_base_that_differs_is_the_main_process_s(tmp_path: Path) -> None:
    """By one number of one weight; it is said."""
    first, second = said_by_two(tmp_path, "differs")
    warning = "the base of process 1 isn't the main process's to the bit, and is replaced by it"
    assert first[0] == second[0] == warning
    assert first == second
    assert first[3].endswith("False")
