"""A combination that peft computes: cat, linear and ties, by its add_weighted_adapter."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig

from finetune.errors import MergeError, library_refusals
from finetune.merging.adapter_file import rank_patterns
from finetune.merging.merged_weights import NOTHING
from finetune.merging.verification.predictions import quiet_peft
from finetune.models.adapters.alone import load_alone

COMBINED = "combined"


class PeftCombination:
    """Adapters side by side on a base without weights, and their combination beside them.

    Raises MergeError where peft can't combine them so.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        folders: Sequence[Path],
        method: str,
        weights: Sequence[float],
        density: float | None,
    ):
        self.config, self.weights = config, weights
        self.names = [_name(index) for index in range(len(folders))]
        self.model = _load(config, folders)
        for name in self.names:
            # peft makes room for the rank in general, and not for what rank_pattern has above it.
            cast(LoraConfig, self.model.peft_config[name]).r = max(_ranks(self.model, name).values())
        # The weights that peft computes have scale 1 in them; with rsLoRA's rule the result would be scaled
        # again.
        cast(LoraConfig, self.model.peft_config[self.names[0]]).use_rslora = False
        try:
            with quiet_peft():
                self.model.add_weighted_adapter(
                    self.names, list(weights), COMBINED, combination_type=method, density=density
                )
        except (ValueError, RuntimeError) as error:
            raise MergeError(
                f"peft can't combine these adapters with {method}: {' '.join(str(error).split())}. Where "
                "their ranks differ, cat and svd can."
            ) from error
        _name_ranks(self.model)

    @property
    def rank(self) -> int:
        """The largest."""
        return cast(LoraConfig, self.model.peft_config[COMBINED]).r

    def distance(self) -> tuple[float, bool]:
        """Of the combined update from the weighted sum, relative L2; and whether it is 0, but for
        rounding."""
        apart = whole = size = parted = 0.0
        for layer in _layers(self.model).values():
            parts = [
                weight * delta
                for name, weight in zip(self.names, self.weights, strict=True)
                if (delta := _delta(layer, name)) is not None
            ]
            if not parts:
                continue
            total, combined = torch.stack(parts).sum(dim=0), _delta(layer, COMBINED)
            combined = torch.zeros_like(total) if combined is None else combined
            apart += float((combined - total).square().sum())
            whole += float(total.square().sum())
            size += float(combined.square().sum())
            parted += sum(float(part.square().sum()) for part in parts)
        return (apart / whole) ** 0.5 if whole else 0.0, size <= NOTHING**2 * parted

    def write(self, folder: Path) -> None:
        """Config and weights."""
        self.model.save_pretrained(str(folder), selected_adapters=[COMBINED], save_embedding_layers=False)
        for path in (folder / COMBINED).iterdir():
            path.rename(folder / path.name)
        (folder / COMBINED).rmdir()

    def read_otherwise(self, folder: Path) -> Iterator[str]:
        """The layers in which the adapter in a folder, read back, is not the combination."""
        read = _layers(_load(self.config, [folder]))
        for name, layer in _layers(self.model).items():
            mine, its = _delta(layer, COMBINED), _delta(read[name], _name(0)) if name in read else None
            if mine is not None and (its is None or not torch.equal(mine, its)):
                yield f"peft reads another update of {name}"


def updates_by_peft(config: PretrainedConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Module -> the update that peft reads from an adapter's folder, N x M in float64."""
    layers = _layers(_load(config, [folder]))
    found = {name: _delta(layer, _name(0)) for name, layer in layers.items()}
    return {name: delta for name, delta in found.items() if delta is not None}


def _name(index: int) -> str:
    return f"part{index}"


def _load(config: PretrainedConfig, folders: Sequence[Path]) -> PeftModel:
    """All adapters on a base without weights."""
    with quiet_peft(), library_refusals("peft can't load these adapters side by side", MergeError):
        model = load_alone(config, folders[0], name=_name(0))
        for index, folder in enumerate(folders[1:], start=1):
            model.load_adapter(str(folder), adapter_name=_name(index))
    return model


def _layers(model: PeftModel) -> dict[str, Any]:
    """The layers that have LoRA, by name."""
    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }


def _ranks(model: PeftModel, adapter: str) -> dict[str, int]:
    """The rank of an adapter in each layer that it has."""
    found = {}
    for name, layer in _layers(model).items():
        if adapter in layer.lora_A:
            found[name] = layer.lora_A[adapter].weight.shape[0]
        elif adapter in layer.lora_embedding_A:
            found[name] = layer.lora_embedding_A[adapter].shape[0]
    return found


def _name_ranks(model: PeftModel) -> None:
    """Write into the combination's config what rank each layer got; peft knows of one rank, and scales by
    it."""
    config = cast(LoraConfig, model.peft_config[COMBINED])
    config.r, config.rank_pattern = rank_patterns(_ranks(model, COMBINED))
    config.lora_alpha, config.alpha_pattern = config.r, dict(config.rank_pattern)  # each layer's scale is 1


def _delta(layer: Any, adapter: str) -> torch.Tensor | None:
    held = adapter in {*layer.lora_A, *layer.lora_embedding_A}
    return cast(torch.Tensor, layer.get_delta_weight(adapter).double()) if held else None
