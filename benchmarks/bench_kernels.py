"""How many kernels a training step of a LLaMA-3.1-8B launches, and how many bytes move beside its products,
counted by one tracer for this toolkit and for transformers with peft. No GPU is needed: tensors have shapes,
types, and no numbers. As this torch may have no CUDA, they are said to be on the CPU, where the toolkit is
told that there is a GPU.

    python benchmarks/bench_kernels.py                # one pack of 4,096 tokens in eight documents
    python benchmarks/bench_kernels.py --layers 4     # a smaller model

A step is the forward and the backward pass of its second micro-batch. LoRA of rank 16 on all linear layers, a
bf16 base, bf16 autocast. Attention is torch's variable-length one for
both, so that only the rest differs. Views and allocations launch nothing; operators on lists of tensors are
counted by the blocks that a launch of theirs takes; FlashAttention-2 is one kernel forward and three
backward. peft's loss is transformers' own, over logits at all positions.
"""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from math import ceil
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune.models.kernels import ops
from finetune.models.kernels.attention import VARLEN
from finetune.models.kernels.fp8 import round_base
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.varlen import layout_of
from finetune.models.loss import install_loss, supervised_loss

DOCUMENTS = 8
NOTHING = {
    "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "device",
    "_unsafe_view",
}  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm", "_varlen_attn", "_varlen_attn_backward")
LAUNCHES = {"_varlen_attn_backward": 3}
NUMBERS_OF_A_BLOCK, BLOCKS_OF_A_LAUNCH, TENSORS_OF_A_LAUNCH = 65_536, 320, 48


class Counted(TorchDispatchMode):
    """Counts what is launched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count it by its schema: a view's output is an alias that isn't written."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        views = any(
            one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns
        )
        if views or name in NOTHING:
            return found
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        written = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        self.launches[name] += _launches(name, args)
        if name not in PRODUCTS:
            self.moved += sum(map(_bytes, read)) + sum(map(_bytes, written))
        return found


def _launches(name: str, args: Any) -> int:
    if not name.startswith(("_foreach", "_fused", "_amp_foreach")):
        return LAUNCHES.get(name, 1)
    tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
    blocks = sum(ceil(tensor.numel() / NUMBERS_OF_A_BLOCK) for tensor in tensors)
    return max(ceil(blocks / BLOCKS_OF_A_LAUNCH), ceil(len(tensors) / TENSORS_OF_A_LAUNCH))


def _bytes(tensor: torch.Tensor) -> int:
    """What is repeated by a stride of 0 is read once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    count = 1
    for size in sizes:
        count *= size
    return count * tensor.element_size()


def model_of(layers: int, ours: bool, mode: FakeTensorMode, tiny: bool, fp8: bool) -> Any:
    """The model with its adapter, its weights without numbers."""
    width = 256 if tiny else 4096
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=width // 128, num_key_value_heads=max(1, width // 512),
        vocab_size=1024 if tiny else 128_256, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        attention_dropout=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model: Any = get_peft_model(
            base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    model.set_attn_implementation(VARLEN)
    if ours:
        install_loss(base, supervised_loss)
        install_fast_path(model)
    with mode:
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                kind = torch.float32 if weight.requires_grad else torch.bfloat16
                empty = torch.empty(weight.shape, dtype=kind)
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=weight.requires_grad))
            for name, held in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(held.shape, dtype=held.dtype))
        if fp8:
            round_base(model)
    return model.train()


def count(
    layers: int, tokens: int, ours: bool, tiny: bool = False, fused: bool = True, fp8: bool = False
) -> Counted:
    """What a forward and a backward pass of one pack launch."""
    ops.on_gpu = lambda x: fused
    layout_of.cache_clear()  # which holds tensors of the trace before
    mode = FakeTensorMode()
    model = model_of(layers, ours, mode, tiny, fp8)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    counted = Counted()
    with mode:
        ids = torch.empty(1, tokens, dtype=torch.long)
        common = {
            "input_ids": ids,
            "position_ids": torch.empty_like(ids),
            "documents": [tokens // DOCUMENTS] * DOCUMENTS,
        }
        for mode_of_count in (nullcontext(), counted):
            with mode_of_count:
                _loss(model, common, ours).backward()
            for weight in weights:
                weight.grad = None
    return counted


def _loss(model: Any, common: dict[str, Any], ours: bool) -> torch.Tensor:
    items, ids = torch.empty(()), common["input_ids"]
    own = {"shift_labels": ids, "supervised": torch.empty(ids.numel(), dtype=torch.long)}
    theirs = {"labels": ids, "use_cache": False}
    with torch.autocast("cpu", torch.bfloat16):
        loss: torch.Tensor = model(**common, **(own if ours else theirs), num_items_in_batch=items).loss
    return loss


def report(layers: int, tokens: int, ours: bool, fused: bool = True, fp8: bool = False) -> dict[str, Any]:
    """The step's launches, and those of a layer, which are what one layer more adds."""
    one, two, whole = (count(number, tokens, ours, fused=fused, fp8=fp8) for number in (1, 2, layers))
    return {
        "launches": sum(whole.launches.values()),
        "launches_of_a_layer": sum(two.launches.values()) - sum(one.launches.values()),
        "gb_of_a_layer": round((two.moved - one.moved) / 1e9, 2),
        "of_a_layer": dict((two.launches - one.launches).most_common()),
    }


def main() -> None:
    """Ours, with the kernels and without, and theirs, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096)
    asked = parser.parse_args()
    problem = ops.kernel_problem()
    found: dict[str, Any] = {"fused kernels": problem or "Triton's"}
    found["finetune"] = report(asked.layers, asked.tokens, ours=True)
    found["finetune, base in FP8"] = report(asked.layers, asked.tokens, ours=True, fp8=True)
    found["finetune, not fused"] = report(asked.layers, asked.tokens, ours=True, fused=False)
    found["transformers + peft"] = report(asked.layers, asked.tokens, ours=False)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
