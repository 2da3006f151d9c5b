"""A recipe's base to a smaller one: pruned weights and their mask, or fewer layers; what it loses by it is
measured."""

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import FinetuneError
from finetune.merging.output import refuse_existing
from finetune.merging.rounding.calibrated import Inputs, walk
from finetune.models.bases.folder import read_config
from finetune.models.bases.shapes import stored_name
from finetune.models.mask import packed_bits
from finetune.pruning.depth import (
    FewerLayers,
    block_influence,
    each_layers,
    least,
    refuse_bad_count,
    without_layers,
)
from finetune.pruning.inputs import PruningInputs, read_inputs
from finetune.pruning.masked_weights import MaskedWeights
from finetune.pruning.output import Pruning, report_of, write_pruned, zeros_of
from finetune.pruning.sparsity import METHODS, WANDA, Sparsity, kept_weights
from finetune.recipe.schema import Recipe

DEPTH = "block influence"


def prune(
    recipe: Recipe,
    output: Path,
    *,
    sparsity: str | None = None,
    method: str | None = None,
    drop_layers: int | None = None,
) -> Pruning:
    """Write the recipe's base, pruned, into the folder `output`, which must not exist.

    At a `sparsity` (a share, or 2:4) the weights of the decoder's linear layers go that `method` (wanda where
    it is None) scores lowest, and mask.npz says which; with `drop_layers` so many decoder layers. Embedding,
    norms and head stay. Raises FinetuneError, or a kind of it, where that can't be done; nothing stands in
    `output` then.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    asked = _asked(sparsity, method, drop_layers)
    refuse_existing(output)
    method = method or WANDA
    inputs = read_inputs(recipe, needs_rows=asked is None or method == WANDA)
    if asked is None:
        return _without_layers(inputs, output, drop_layers or 0, started)
    for name, columns in inputs.linear.items():
        asked.refuse_undivided(name, columns)
    return _masked(inputs, output, asked, method, started)


def _asked(sparsity: str | None, method: str | None, drop_layers: int | None) -> Sparsity | None:
    """The sparsity; None where layers are to be dropped. Raises FinetuneError for options that say
    otherwise."""
    if (sparsity is None) == (drop_layers is None):
        raise FinetuneError(
            f"got {'neither' if sparsity is None else 'both'} of --sparsity and --drop-layers; expected one "
            "of them. What one writes can be the base of the other."
        )
    if method not in (None, *METHODS):
        raise FinetuneError(f"--method is {method!r}; expected one of {', '.join(METHODS)}.")
    if method is not None and sparsity is None:
        raise FinetuneError(f"--method is for --sparsity; layers are dropped by their {DEPTH}.")
    return None if sparsity is None else Sparsity.parse(sparsity)


def _masked(inputs: PruningInputs, output: Path, sparsity: Sparsity, method: str, started: float) -> Pruning:
    stored, model = inputs.stored, inputs.model()
    before, packed, gone = inputs.loss(model), dict[str, Any](), 0

    def take(path: str, layer: nn.Linear, rows: Inputs | None = None) -> None:
        """Prune a layer, also in the model: those behind it then see what it gives."""
        name = stored_name(inputs.linear, f"{path}.weight")
        if name is None:
            return
        nonlocal gone
        kept = kept_weights(layer.weight.detach(), None if rows is None else torch.cat(rows), sparsity)
        earlier = torch.ones_like(kept)
        if stored.mask is not None and name in stored.mask.names:
            earlier = stored.mask.kept(name, tuple(kept.shape))
        gone += int((earlier & ~kept).sum())
        kept &= earlier  # what was pruned before stays so
        if not bool(kept.any()):
            raise FinetuneError(f"--sparsity {sparsity.text} leaves no weight of {name}: lower it.")
        layer.weight.data.masked_fill_(~kept, 0)
        packed[name] = packed_bits(kept)

    if method == WANDA:
        walk(model, inputs.calibration, take)
    else:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                take(path, module)
    if not gone:
        beyond = "of layers this small" if stored.mask is None else "beyond those that the base lacks already"
        raise FinetuneError(f"--sparsity {sparsity.text} prunes no weight {beyond}: raise it.")
    zeros = zeros_of(packed, [stored.shape(name) for name in packed])
    facts = {"loss_before": before, "loss_after": inputs.loss(model), "zeros": zeros} | {
        "zero_share": zeros / sum(stored.tensors[name].shape[0] * inputs.linear[name] for name in packed)
    }
    del model
    weights = MaskedWeights(stored, packed)
    report = report_of(inputs, weights, output, method=method, sparsity=sparsity.text, **facts)
    return write_pruned(inputs, weights, output, report, started=started, packed=packed)


def _without_layers(inputs: PruningInputs, output: Path, count: int, started: float) -> Pruning:
    layers = inputs.config.num_hidden_layers
    refuse_bad_count(count, layers)
    if inputs.stored.mask is not None:
        raise FinetuneError(
            f"{inputs.base.folder} has a mask, which belongs to all of its layers: drop layers first, and "
            "prune weights of what is left."
        )
    model = inputs.model()
    before, influence = inputs.loss(model), block_influence(model, inputs.calibration)
    del model
    dropped = least(influence, count)
    weights = FewerLayers(inputs.stored, layers, dropped)
    kinds = each_layers(inputs.config)
    config = without_layers(read_config(inputs.base.folder) | kinds, layers, dropped)
    shallow = copy.deepcopy(inputs.config)
    shallow.update(without_layers(kinds, layers, dropped))
    after = inputs.loss(inputs.model(weights, shallow))
    report = report_of(
        inputs, weights, output, method=DEPTH, sparsity=None, loss_before=before, loss_after=after,
        dropped_layers=tuple(dropped), block_influence=tuple(influence),
    )  # fmt: skip
    return write_pruned(inputs, weights, output, report, started=started, config=config)
