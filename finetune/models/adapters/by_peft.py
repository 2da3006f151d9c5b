"""Adapters other than LoRA, each computed by peft's own layer.

MiSS: Kang and Yin 2024, arXiv:2409.15371; OFT: Qiu et al. 2023, arXiv:2306.07280; VeRA: Kopiczko et al. 2023,
arXiv:2310.11454; LoHa: Hyeon-Woo et al. 2021, arXiv:2108.06098.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoHaConfig, MissConfig, OFTConfig, PeftConfig, VeraConfig
from torch import nn

from finetune.errors import ModelError
from finetune.recipe.schema.adapter import AdapterSection


@dataclass(frozen=True)
class Kind:
    """One of peft's kinds of adapters."""

    config: type[PeftConfig]
    values: Callable[[AdapterSection], dict[str, Any]]
    """What of a recipe it takes, by peft's names, targets aside. What an adapter that is continued need not
    equal is falsy where the recipe says nothing of it."""
    costs: str
    """What there is to know of it before it trains."""


KINDS: Mapping[str, Kind] = {
    "miss": Kind(
        MissConfig,
        lambda section: {"r": section.rank, "miss_dropout": section.dropout},
        "it keeps its input, and a sum over blocks of it",
    ),
    "oft": Kind(
        OFTConfig,
        lambda section: {"r": 0, "oft_block_size": section.block_size},
        "each layer's input is rotated before the base's product",
    ),
    "vera": Kind(
        VeraConfig,
        lambda section: {"r": section.rank, "vera_dropout": section.dropout},
        "two products with frozen matrices, which the adapter's file holds once",
    ),
    "loha": Kind(
        LoHaConfig,
        lambda section: {"r": section.rank, "alpha": section.alpha},
        "each layer's update is formed whole, as large as its weight, and multiplied a second time",
    ),
}
"""Those of adapter.method that peft computes; finetune.recipe.schema.adapter has the keys that each takes."""


def check_sizes(model: nn.Module, section: AdapterSection, targets: set[str]) -> None:
    """Raises ModelError where a layer's size doesn't go with the method: peft would take another one."""
    for name, module in model.named_modules():
        if name not in targets or not isinstance(module, nn.Linear):
            continue
        if section.method == "oft" and module.in_features % section.block_size:
            raise ModelError(
                f"adapter.block_size is {section.block_size}, which doesn't divide the {module.in_features} "
                f"inputs of {name}; take one that does."
            )
        if section.method == "miss" and section.rank > module.in_features:
            raise ModelError(
                f"adapter.rank is {section.rank}, and {name} has {module.in_features} inputs; lower it."
            )
