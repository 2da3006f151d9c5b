"""Several adapters of one base to one adapter, by peft's own add_weighted_adapter.

cat and svd give the weighted sum of the updates (svd as far as its rank reaches); linear adds A's and B's
apart, a rough approximation; ties: Yadav et al. 2023, arXiv:2306.01708.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig

from finetune.data import tokenizer_for
from finetune.errors import MergeError, library_refusals
from finetune.generation.loading import unchanged_base
from finetune.merging.adapter import Adapter
from finetune.merging.heads import score_name
from finetune.merging.merged_weights import NOTHING, Updates
from finetune.merging.output import refuse_existing, unfinished
from finetune.merging.targets import choose_target
from finetune.merging.verification.predictions import quiet_peft
from finetune.models.adapters.alone import load_alone
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_adapter_config
from finetune.models.description import write_description
from finetune.models.description_check import differences
from finetune.models.safetensors import StoredWeights
from finetune.runs.folder import ADAPTER_NOTES
from finetune.runs.target import Target

METHODS = ("linear", "cat", "svd", "ties")
COMBINED = "combined"
BEYOND_COMBINING = (
    "modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "layers_to_transform",
    "exclude_modules",
)  # fmt: skip
"""What peft takes from the first adapter, or leaves out."""
WHOLE = ("weight", "bias")
"""Parts of an adapter that are no low-rank update; peft saves an embedding whole where it is adapted, or
grew."""
CAT_BOUND = 1e-4


@dataclass(frozen=True)
class Combination:
    """What was combined, and how far its update is from the weighted sum of the parts' updates."""

    output: str
    method: str
    weights: tuple[float, ...]
    rank: int
    distance: float
    """Relative L2, over all modules."""
    changes_nothing: bool
    """Whether its update is 0 everywhere."""


def combine(
    targets: Sequence[str],
    output: Path,
    *,
    method: str,
    weights: Sequence[float],
    base: str | Path | None = None,
    rank: int | None = None,
    density: float | None = None,
) -> Combination:
    """Write one adapter that stands for several. Raises MergeError where they can't be combined so."""
    output = Path(os.path.abspath(output.expanduser()))
    refuse_existing(output)
    _refuse_bad_options(targets, method, weights, rank, density)
    parts = [choose_target(text, base) for text in targets]
    folders = [part.adapter for part in parts if part.adapter is not None]
    _refuse_unlike(parts, folders)
    found = unchanged_base(parts[0])
    config = load_config(found, parts[0].model.rope_scaling)
    for folder in folders:
        Updates(
            StoredWeights.of_folder(found.folder), config.to_dict(), [Adapter(folder)]
        )  # refuses what doesn't fit
    model = _load(config, folders)
    options: dict[str, Any] = {"svd_rank": rank} if method == "svd" and rank is not None else {}
    names = [_name(index) for index in range(len(folders))]
    narrowest = min(min(layer.in_features, layer.out_features) for layer in _layers(model).values())
    if rank is not None and rank > narrowest:
        raise MergeError(
            f"--rank is {rank}, and the narrowest of the adapted matrices has {narrowest} rows or columns."
        )
    for name in names:  # peft makes room for the rank in general, and not for what rank_pattern has above it
        cast(LoraConfig, model.peft_config[name]).r = max(_ranks(model, name).values())
    # The weights that peft computes have scale 1 in them; with rsLoRA's rule the result would be scaled
    # again.
    cast(LoraConfig, model.peft_config[names[0]]).use_rslora = False
    try:
        with quiet_peft():
            model.add_weighted_adapter(
                names,
                list(weights),
                COMBINED,
                combination_type=method,
                svd_full_matrices=False,
                density=density,
                **options,
            )
    except (ValueError, RuntimeError) as error:
        raise MergeError(
            f"peft can't combine these adapters with {method}: {' '.join(str(error).split())}. Where their "
            "ranks differ, cat and svd can."
        ) from error
    _name_ranks(model)
    distance, changes_nothing = _distance(model, names, weights)
    if method == "cat" and distance > CAT_BOUND:
        raise MergeError(
            f"the combination is {distance:.1e} from the weighted sum, and cat must be exact: it was not "
            "written."
        )
    with unfinished(output) as folder:
        model.save_pretrained(str(folder), selected_adapters=[COMBINED], save_embedding_layers=False)
        for path in (folder / COMBINED).iterdir():
            path.rename(folder / path.name)
        (folder / COMBINED).rmdir()
        _describe(folder, parts[0], targets, method, weights, density, distance)
        tokenizer = tokenizer_for(parts[0].model, folders[0], found.folder)
        write_description(folder, tokenizer, [folders[0], found.folder])
        wrong = [*_read_otherwise(model, _load(config, [folder])), *differences(folder, tokenizer, None)]
        if wrong:
            raise MergeError(
                f"what was written is not the combination: {'; '.join(wrong[:3])}. Nothing stands in "
                f"{output}."
            )
    rank = cast(LoraConfig, model.peft_config[COMBINED]).r
    return Combination(str(output), method, tuple(weights), rank, distance, changes_nothing)


def _name(index: int) -> str:
    return f"part{index}"


def _refuse_bad_options(
    targets: Sequence[str], method: str, weights: Sequence[float], rank: int | None, density: float | None
) -> None:
    if method not in METHODS:
        raise MergeError(f"--method is {method!r}; expected one of {', '.join(METHODS)}.")
    if len(targets) < 2 or len(weights) != len(targets):
        raise MergeError(
            f"got {len(targets)} adapters and {len(weights)} weights; expected two or more, and a weight for "
            "each."
        )
    if not all(map(math.isfinite, weights)):
        raise MergeError(f"--weights are {', '.join(map(str, weights))}; expected finite numbers.")
    if rank is not None and method != "svd":
        raise MergeError(f"--rank is for --method svd; with {method} the parts' ranks decide.")
    if (density is None) == (method == "ties"):
        raise MergeError(
            "--density (the share of numbers that is kept, such as 0.5) belongs to --method ties, and ties "
            "needs it."
        )


def _refuse_unlike(parts: Sequence[Target], folders: Sequence[Path]) -> None:
    """Raises MergeError where the adapters have different bases, or hold more than low-rank updates."""
    first = parts[0]
    for part, folder in zip(parts, folders, strict=True):
        if (part.model.base, part.base_sha256) != (first.model.base, first.base_sha256):
            raise MergeError(
                f"{part.description} has the base {part.model.base}, {first.description} the base "
                f"{first.model.base}: adapters of different bases can't be combined; name the one that both "
                "fit with --base."
            )
        adapter = Adapter(folder)
        config = adapter.config
        if part.model.classifies or score_name(adapter.weights.names()) is not None:
            raise MergeError(
                f"the adapter in {folder} has a classification head, which belongs to its own update alone: "
                "heads can't be combined. Merge it by itself."
            )
        beyond = [key for key in BEYOND_COMBINING if config.get(key)] + (
            ["bias"] if config["bias"] != "none" else []
        )
        whole = sorted(
            f"{module}.{part}" for module, held in adapter.parts().items() for part in held if part in WHOLE
        )
        reason = f"it uses {', '.join(beyond)}" if beyond else adapter.why_not_streamed()
        reason = f"it holds {whole[0]} whole" if reason is None and whole else reason
        if reason is not None:
            raise MergeError(
                f"the adapter in {folder}: {reason}, which peft's combination would leave out. Merge it by "
                "itself."
            )


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
    ranks, config = _ranks(model, COMBINED), cast(LoraConfig, model.peft_config[COMBINED])
    config.r = config.lora_alpha = max(ranks.values())
    leaves = {name: name.rpartition(".")[2] for name in ranks}
    alike = {
        leaf for leaf in leaves.values() if len({ranks[name] for name in ranks if leaves[name] == leaf}) == 1
    }
    named = {leaves[name] if leaves[name] in alike else name: rank for name, rank in ranks.items()}
    config.rank_pattern = {name: rank for name, rank in named.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)  # so that each layer's scale is 1


def _delta(layer: Any, adapter: str) -> torch.Tensor | None:
    held = adapter in {*layer.lora_A, *layer.lora_embedding_A}
    return cast(torch.Tensor, layer.get_delta_weight(adapter).double()) if held else None


def _distance(model: PeftModel, names: Sequence[str], weights: Sequence[float]) -> tuple[float, bool]:
    """Of the combined update from the weighted sum, relative L2; and whether it is 0, but for rounding."""
    apart = whole = size = parted = 0.0
    for layer in _layers(model).values():
        parts = [
            weight * delta
            for name, weight in zip(names, weights, strict=True)
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


def _read_otherwise(model: PeftModel, again: PeftModel) -> Iterator[str]:
    """The layers in which an adapter that was read back is not the combination that was written."""
    read = _layers(again)
    for name, layer in _layers(model).items():
        mine, its = _delta(layer, COMBINED), _delta(read[name], _name(0)) if name in read else None
        if mine is not None and (its is None or not torch.equal(mine, its)):
            yield f"peft reads another update of {name}"


def _describe(
    folder: Path,
    first: Target,
    targets: Sequence[str],
    method: str,
    weights: Sequence[float],
    density: float | None,
    distance: float,
) -> None:
    path = folder / "adapter_config.json"
    assert first.adapter is not None  # noqa: S101 - choose_target refuses others
    own = read_adapter_config(first.adapter)
    config = json.loads(path.read_text()) | {
        name: own.get(name) for name in ("base_model_name_or_path", "revision")
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
    if (first.adapter / ADAPTER_NOTES).is_file():
        shutil.copyfile(first.adapter / ADAPTER_NOTES, folder / ADAPTER_NOTES)
    parts = [f"- {target}, weight {weight:g}" for target, weight in zip(targets, weights, strict=True)]
    how = f"peft's add_weighted_adapter, {method}" + (f", density {density:g}" if density is not None else "")
    lines = [
        "---",
        "library_name: peft",
        "tags: [lora, combined]",
        "---",
        "",
        "# A combination of adapters",
        "",
        f"By {how}, of",
        "",
    ]
    lines += [*parts, "", f"Its update is {distance:.2e} (relative L2) from the weighted sum of theirs."]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
