"""One row over two processes (train.sequence_parallel_size: 2) beside one process: loss, gradients, memory.

    python -m benchmarks.bench_sequence_parallel [--base FOLDER] [--tokens 8192] [--documents 3]

A small LLaMA with random weights (4 layers, 9 heads of 3, which two processes can't halve) unless a base is
named; LoRA of rank 16 on every linear layer, float32, gloo, a thread each. `kept` are the bytes that autograd
keeps for the backward pass, weights aside, of the process that keeps most.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from benchmarks.gpu.models import LLAMA, pack
from finetune.cli.quiet import quiet_libraries
from finetune.models.adapters.adapter import attach
from finetune.models.bases.locate import Base
from finetune.models.batch import sequence_part
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.sequence_parallel import split_rows
from finetune.models.load import load_model
from finetune.models.loss import install_loss, supervised_loss, supervised_positions
from finetune.recipe.schema.adapter import AdapterSection

PROCESSES = 2
SHAPE = LLAMA | {
    "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 4096, "torch_dtype": "float32",
}  # fmt: skip


def drawn(folder: Path) -> Path:
    """A base of that shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def model_of(folder: Path, processes: int) -> Any:
    """The base with an adapter that isn't zero."""
    base = Base(folder, {"kind": "folder", "name": folder.name})
    loaded = load_model(base, dtype=torch.float32, attention=PER_DOCUMENT)
    if processes > 1:
        split_rows(loaded, processes)
    install_loss(loaded, supervised_loss)
    torch.manual_seed(0)
    model = attach(loaded, AdapterSection(rank=16))
    install_fast_path(model)
    draw = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.02 * torch.randn(weight.shape, generator=draw)
    return model.train()


def outcome(model: Any, batch: dict[str, Any], items: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The loss, all gradients, and the bytes that are kept."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, num_items_in_batch=items).loss
    for weight in model.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    loss.backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]
    return loss.detach(), torch.cat(gradients), sum(kept.values())


def row_of(tokens: int, documents: int, folder: Path) -> tuple[dict[str, Any], int]:
    """Documents of about the same length, all but their first tokens learned; and how many are."""
    lengths = [tokens // documents] * documents
    lengths[-1] += tokens - sum(lengths)
    vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    batch = pack(lengths, vocabulary, torch.device("cpu"))
    return batch, len(batch["supervised"])


def part_of_row(rank: int, folder: Path, place: str, tokens: int, documents: int) -> None:
    """One of the processes: the sums over both, and the most that one keeps, in a file."""
    quiet_libraries()
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{place}/store", PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    batch, items = row_of(tokens, documents, folder)
    part = sequence_part(batch, rank, PROCESSES)
    part["supervised"] = supervised_positions(part["shift_labels"])
    loss, gradients, kept = outcome(model_of(folder, PROCESSES), part, items)
    most = torch.tensor(kept)
    distributed.all_reduce(loss)
    distributed.all_reduce(gradients)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if rank == 0:
        torch.save((loss, gradients, int(most)), f"{place}/found.pt")
    distributed.destroy_process_group()


def main() -> None:
    """Both, and how far they are apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=3)
    asked = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = asked.base or drawn(Path(place) / "base")
        arguments = (folder, place, asked.tokens, asked.documents)
        multiprocessing.spawn(part_of_row, arguments, PROCESSES)
        loss, gradients, kept = torch.load(f"{place}/found.pt")
        batch, items = row_of(asked.tokens, asked.documents, folder)
        own_loss, own_gradients, own_kept = outcome(model_of(folder, 1), batch, items)
    found = {
        "loss": own_loss.item(),
        "loss apart": abs(loss.item() / own_loss.item() - 1),
        "gradients apart": float((gradients - own_gradients).norm() / own_gradients.norm()),
        "GB kept": own_kept / 1e9,
        "of it in a process": kept / own_kept,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
