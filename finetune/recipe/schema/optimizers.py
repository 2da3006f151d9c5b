"""The optimizers that a recipe may name: those of transformers' OptimizerNames, known here without importing
it (a test compares the two)."""

from dataclasses import dataclass
from typing import Literal

OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adam": "adam",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
    "lion": "lion_32bit",
    "adamw_8bit": "adamw_bnb_8bit",
    "muon": "muon",
    "polora": "polora",
    "schedule_free_adamw": "schedule_free_adamw",
}
"""Optimizers that are tested, and transformers' names for them; other names of its OptimizerNames pass
through. It has no names for torch's adam and muon, and for our polora; adam's weight decay is coupled, a part
of the gradient."""

Knob = Literal["betas", "epsilon"]
ADAM: tuple[Knob, ...] = ("betas", "epsilon")
BETAS: tuple[Knob, ...] = ("betas",)


@dataclass(frozen=True)
class Optimizer:
    """What is known of one of transformers' optimizers."""

    knobs: tuple[Knob, ...] = ()
    """Which of train.adam_betas and train.adam_epsilon it takes from transformers."""
    module: str = ""
    """What must be importable beside torch and transformers; empty for nothing."""
    refused: str = ""
    """Why it can't be had; empty where it can."""
    elementwise: bool = False
    """Whether the update of a number follows from that number's own gradients (or, in 8 bit, a block's): ZeRO
    hands an optimizer flat shares of all tensors together."""
    takes_dtensor: bool = False
    """Whether it computes with torch's DTensor, the form of FSDP2's shares."""
    for_full: bool = False
    """Whether it is for the base's own matrices, and not for an adapter's."""
    for_lora: bool = False
    """Whether it is for LoRA's pairs of matrices, and for nothing else."""
    averages: bool = False
    """Whether it evaluates and saves an average of weights, in place of a learning rate that falls."""


LOW_RANK = Optimizer(
    refused="projects gradients to a low rank, and a recipe has no keys for its rank, scale and modules; "
    "take adafactor or adamw_8bit, or adapter.method: lora, which need little memory too"
)
IN_BACKWARD = Optimizer(
    refused="updates each weight within the backward pass, before its gradient's norm is known, so no step "
    "could be clipped or refused; take adafactor"
)
AVERAGING = Optimizer(
    refused="evaluates and saves other weights than it trains, which is done for schedule_free_adamw alone; "
    "take that"
)
# It steps with DTensor to the last digit, but what FSDP2 gathers of its state is a file that torch 2.13 (with
# torchao 0.18) won't read: AsyncCollectiveTensor is left in it.
TORCHAO = Optimizer(ADAM, module="torchao")
BITSANDBYTES = "bitsandbytes"
TORCH_ADAM = Optimizer(ADAM, elementwise=True, takes_dtensor=True)
TORCH = Optimizer(elementwise=True, takes_dtensor=True)

KNOWN = {
    "adamw_torch": TORCH_ADAM,
    "adamw_torch_fused": TORCH_ADAM,
    "adamw_torch_xla": Optimizer(ADAM, module="torch_xla"),
    "adamw_torch_npu_fused": Optimizer(ADAM, module="torch_npu"),
    "adafactor": Optimizer(),
    "adamw_anyprecision": Optimizer(ADAM, module="torchdistx"),
    "adamw_torch_4bit": TORCHAO,
    "adamw_torch_8bit": TORCHAO,
    "sgd": TORCH,
    "adagrad": Optimizer(elementwise=True),  # its state is made before FSDP2 cuts up the weights
    "rmsprop": TORCH,
    **dict.fromkeys(
        ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "ademamix", "ademamix_8bit",
         "paged_ademamix_32bit", "paged_ademamix_8bit"),
        Optimizer(ADAM, module=BITSANDBYTES, elementwise=True),
    ),
    **dict.fromkeys(
        ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
        Optimizer(BETAS, module=BITSANDBYTES, elementwise=True),
    ),
    **dict.fromkeys(
        ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        Optimizer(module=BITSANDBYTES, elementwise=True),
    ),
    **dict.fromkeys(
        ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
         "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw",
         "apollo_adamw_layerwise"),
        LOW_RANK,
    ),
    "lomo": IN_BACKWARD,
    "adalomo": IN_BACKWARD,
    "grokadamw": Optimizer(module="grokadamw"),
    "schedule_free_adamw": Optimizer(ADAM, module="schedulefree", averages=True),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_sgd"), AVERAGING),
    "stable_adamw": Optimizer(ADAM, module="optimi"),
}  # fmt: skip
"""transformers' OptimizerNames (5.23)."""

OURS = {
    "adam": TORCH_ADAM,
    "muon": Optimizer(ADAM, for_full=True),
    "polora": Optimizer(for_lora=True),
}
"""Those of OPTIMIZERS that transformers has no name for."""


def known_optimizer(name: str) -> Optimizer | None:
    """The optimizer of one of our names or transformers'; None where there is none."""
    return OURS.get(name) or KNOWN.get(OPTIMIZERS.get(name, name))
