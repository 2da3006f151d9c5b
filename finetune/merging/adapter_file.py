"""An adapter that was computed, and not trained, written as peft writes one."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig

from finetune.exporters.safetensors import write_weights
from finetune.merging.low_rank import Factors
from finetune.models.architectures.base import EMBEDDING, last_part
from finetune.models.bases.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS
from finetune.models.bases.locate import Base
from finetune.models.safetensors import StoredWeights, ranges

PREFIX = "base_model.model."
"""Of peft's names in an adapter's file."""
ONE_FILE = 1 << 62


@dataclass(frozen=True)
class WholeTensor:
    """A tensor that an adapter has from a model, or its first `rows`."""

    weights: StoredWeights
    name: str
    rows: int


@dataclass
class NewAdapter:
    """What an adapter is made of."""

    factors: dict[str, Factors] = field(default_factory=dict)
    """Module -> B and A, of scale 1."""
    saved: dict[str, dict[str, WholeTensor]] = field(default_factory=dict)
    """Module of modules_to_save -> weight or bias."""
    biases: dict[str, WholeTensor] = field(default_factory=dict)
    """Linear layer -> its bias: of all that have one, or of none."""

    def names(self) -> Sequence[str]:
        """See Weights, whose methods these are: those of the file's tensors."""
        return list(self._places())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        place = self._places()[name]
        if isinstance(place, torch.Tensor):
            return tuple(place.shape)
        return (place.rows, *place.weights.shape(place.name)[1:])

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type: float32, or that of the model that it comes from."""
        place = self._places()[name]
        return place.dtype if isinstance(place, torch.Tensor) else place.weights.dtype(place.name)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows of a tensor."""
        place = self._places()[name]
        if isinstance(place, torch.Tensor):
            return place[first:last]
        return place.weights.rows(place.name, first, last)

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor."""
        for first, last in ranges(self.shape(name)):
            yield first, self.rows(name, first, last)

    def _places(self) -> dict[str, torch.Tensor | WholeTensor]:
        found: dict[str, torch.Tensor | WholeTensor] = {}
        for module, factors in self.factors.items():
            if module == EMBEDDING:  # whose weight has a row a token: peft adapts its transpose
                found[f"{PREFIX}{module}.lora_embedding_A"] = factors.b.T.contiguous()
                found[f"{PREFIX}{module}.lora_embedding_B"] = factors.a.T.contiguous()
                continue
            found[f"{PREFIX}{module}.lora_A.weight"] = factors.a
            found[f"{PREFIX}{module}.lora_B.weight"] = factors.b
        for module, parts in self.saved.items():
            found |= {f"{PREFIX}{module}.{part}": held for part, held in parts.items()}
        for module, held in self.biases.items():
            inner = ".base_layer" if module in self.factors else ""
            found[f"{PREFIX}{module}{inner}.bias"] = held
        return found


def write_adapter(
    folder: Path, adapter: NewAdapter, base: Base, linear: Collection[str], *, workers: int
) -> None:
    """Write config and weights into a folder; `linear` names every linear layer of the base."""
    ranks = {module: factors.rank for module, factors in adapter.factors.items()}
    rank, pattern = rank_patterns(ranks)
    hub = base.identity["kind"] == "hub"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.identity["name"] if hub else str(base.folder),
        revision=base.identity.get("commit"),
        r=rank,
        lora_alpha=rank,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=short_names(ranks, linear),
        modules_to_save=sorted(map(_saved_name, adapter.saved)) or None,
        bias="all" if adapter.biases else "none",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    values = json.loads(path.read_text())
    values["target_modules"] = sorted(values["target_modules"])  # peft has a set of them
    path.write_text(json.dumps(values, indent=2) + "\n")
    write_weights(adapter, folder, ONE_FILE, workers)
    (folder / WEIGHTS).rename(folder / ADAPTER_WEIGHTS)


def _saved_name(module: str) -> str:
    """The name of a module in modules_to_save: peft takes every module that ends so, and a norm of a layer
    ends as the last one."""
    return module if "norm" in last_part(module) else last_part(module)


def rank_patterns(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The largest rank, and rank_pattern: a layer's kind, or one layer, -> its rank where it has another."""
    largest = max(ranks.values())
    by_kind: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        by_kind.setdefault(last_part(module), set()).add(rank)
    named = {
        last_part(module) if len(by_kind[last_part(module)]) == 1 else module: rank
        for module, rank in ranks.items()
    }
    return largest, {name: rank for name, rank in named.items() if rank != largest}


def short_names(modules: Collection[str], of: Iterable[str]) -> list[str]:
    """Names that select these of all modules: a kind where all of it are meant, else one by one."""
    others = {last_part(module) for module in of if module not in modules}
    return sorted({last_part(name) if last_part(name) not in others else name for name in modules})
