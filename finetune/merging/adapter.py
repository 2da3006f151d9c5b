"""An adapter folder, as peft and the tools around it write one: its config, checked, and its weights'
header."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import MergeError
from finetune.merging.deltas import parts_of
from finetune.merging.heads import SCORE
from finetune.models.adapters.config_file import (
    LORA,
    check_adapter_config,
    checked_adapter_config,
    frozen_copies,
    is_target,
)
from finetune.models.adapters.fit import HARMLESS, refuse_unknown_keys, refuse_wrapped
from finetune.models.architectures.base import EMBEDDING, LM_HEAD, last_part
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.safetensors import StoredWeights
from finetune.recipe.heads import ABSENT_MODULE, CLASSIFIES

UNDERSTOOD = frozenset({
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
    "peft_version", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
    "bias", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "trainable_token_indices",
    "loftq_config", "eva_config", "runtime_config", "lora_bias", "qalora_group_size",
})  # fmt: skip
"""Keys of adapter_config.json that are followed here, or decide nothing once the training is over. (peft
itself ignores fan_in_fan_out for the linear layers of a LLaMA.)"""

KEEPS_BASE = (True, False, "true", "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the base as it is. The others (PiSSA, OLoRA ...) take a part of it into the
adapter."""


ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""
NOT_LINEAR = frozenset({last_part(EMBEDDING), LM_HEAD, SCORE})


@dataclass
class Adapter:
    """An adapter folder."""

    folder: Path
    config: dict[str, Any] = field(init=False)
    weights: StoredWeights = field(init=False)

    def __post_init__(self) -> None:
        """Raises ModelError or MergeError where it is no adapter folder, or damaged."""
        self.config = checked_adapter_config(self.folder)
        self.weights = StoredWeights([self.folder / ADAPTER_WEIGHTS])
        for name in frozen_copies(self.config, self.weights.names(), self.folder):
            del self.weights.tensors[name]

    def why_not_streamed(self) -> str | None:
        """What only peft itself can merge; None where there is nothing of the kind. Raises ModelError for
        what peft can't."""
        if self.config.get("peft_type") != LORA:
            return f"it is of type {self.config.get('peft_type')}"
        if self.config.get("init_lora_weights", True) not in KEEPS_BASE:
            return (
                f"it was initialised with {self.config['init_lora_weights']}, which takes a part of the base"
            )
        strange = sorted(
            key for key, value in self.config.items() if value and key not in UNDERSTOOD | HARMLESS
        )
        if strange:
            refuse_unknown_keys(self.folder, self.config)
            return f"it uses {', '.join(strange)}"
        if self.config.get("use_dora") and any("lora_embedding_A" in name for name in self.weights.names()):
            return "it has DoRA on an embedding"
        return None

    def targets(self, module: str) -> bool:
        """Whether the config has LoRA on a module with a matrix, by peft's rules
        (check_target_module_exists)."""
        saved, wanted = self.config["modules_to_save"] or (), self.config["target_modules"]
        if matches(module, self.config["exclude_modules"]) or any(_lies_in(module, name) for name in saved):
            return False
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            return module.rpartition(".")[2] not in NOT_LINEAR
        named = not isinstance(wanted, str) and module in (wanted or ())
        return matches(module, wanted) and (named or isinstance(wanted, str) or self._in_layers(module))

    def _in_layers(self, module: str) -> bool:
        """Whether a module lies in one of the layers that the config names; it names all of them where it
        names none."""
        layers, patterns = self.config["layers_to_transform"], self.config["layers_pattern"] or ()
        if layers is None or layers == []:
            return True
        known = [
            rf"(?:^|.*?\.){pattern}" for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        ]
        found = (re.match(rf"{pattern}\.(\d+)\.", module) for pattern in known or [r".*?\.[^.]*"])
        match = next((match for match in found if match is not None), None)
        return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)

    def parts(self) -> dict[str, dict[str, str]]:
        """Module -> part -> name in the file. Raises MergeError where config and file contradict each
        other."""
        refuse_wrapped(self.folder / ADAPTER_WEIGHTS, self.weights.names())
        found = parts_of(self.weights)
        check_adapter_config(self.config, found, self.folder)
        self._refuse_contradictions(found)
        return found

    def _refuse_contradictions(self, parts: dict[str, dict[str, str]]) -> None:
        for module, names in parts.items():
            lora = [name for name in names if name.startswith("lora_")]
            if lora and not self.targets(module):
                raise self.contradiction(f"the file has LoRA on {module}, which the config does not name")
            if "lora_A.weight" in names and (
                ("lora_magnitude_vector" in names) is not self.config["use_dora"]
            ):
                raise self.contradiction(
                    f"use_dora is {self.config['use_dora']}, and the file says otherwise of {module}"
                )
            if "lora_A.weight" in names and (("lora_B.bias" in names) is not self.config["lora_bias"]):
                raise self.contradiction(
                    f"lora_bias is {self.config['lora_bias']}, and the file says otherwise of {module}"
                )
        saved = set(self.config["modules_to_save"] or []) - (
            {ABSENT_MODULE} if self.config.get("task_type") == CLASSIFIES else set()
        )
        for name in sorted(saved):
            if not any(_lies_in(module, name) and "weight" in names for module, names in parts.items()):
                raise self.contradiction(f"modules_to_save names {name}, and the file does not hold it")
        if self.config["trainable_token_indices"] and not any(
            "trainable_tokens_delta" in names for names in parts.values()
        ):
            raise self.contradiction(
                "trainable_token_indices names tokens, and the file holds no rows for them"
            )

    def contradiction(self, what: str) -> MergeError:
        """Config and weights that can't both be right."""
        return MergeError(
            f"the adapter in {self.folder} contradicts its own config: {what}. One of the two files is not "
            "its own."
        )


def _lies_in(module: str, saved: str) -> bool:
    """peft's rule: whether a module is one of modules_to_save, or a part of one."""
    return re.match(rf"(^|.*\.){saved}($|\..*)", module) is not None


def matches(module: str, wanted: str | list[str] | None) -> bool:
    """peft's rule: a regular expression for the whole name, or names by is_target."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return wanted is not None and any(is_target(module, name) for name in wanted)
