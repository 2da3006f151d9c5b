"""What other tools have for long rows: activations recomputed, on the host, MLPs in tiles."""

import math

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, at_least_one, truth
from finetune.recipe.aliases import Alias
from finetune.recipe.rules.optimization import tiles_need

RECOMPUTED, OFFLOADED = "train.activation_checkpointing", "train.activation_offloading"
TILE, TILE_TOKENS = "train.mlp_tile_tokens", 4096


def checkpointing(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A switch; of Axolotl and Unsloth also a word, by which layers' inputs wait on the host or on disk."""
    word = str(entry.value)
    if word.startswith(("offload", "unsloth")):
        draft.put(RECOMPUTED, True, entry)
        draft.put(OFFLOADED, True, entry)
        if word == "offload_disk":
            draft.otherwise(entry, "they wait in the host's memory, not on disk", OFFLOADED)
        else:
            draft.carried(entry, f"{RECOMPUTED}, {OFFLOADED}")
    elif not truth(entry) and draft.value(OFFLOADED):
        draft.otherwise(entry, "recomputed: what is offloaded goes into recomputed layers", RECOMPUTED)
    else:
        draft.carry(entry, alias.ours, truth(entry))


def offloading(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Other tools offload all that is kept, recomputed or not; a word says how."""
    if entry.off:
        draft.carried(entry, OFFLOADED, "off there, off here")
        return
    draft.put(RECOMPUTED, True, entry)
    draft.put(OFFLOADED, True, entry)
    draft.otherwise(
        entry, "layers are recomputed, and what goes into them waits in the host's memory", OFFLOADED
    )


def tiles(draft: Draft) -> None:
    """Tiles by their number in a row, where it is given."""
    switch, shards = draft.notes.pop("tiled_mlp", None), draft.notes.pop("tiled_mlp_shards", None)
    if switch is None or not truth(switch):
        for entry in (switch, shards):
            draft.carried(entry, TILE, "off there, off here")
        return
    adapter = {key.removeprefix("adapter."): placed.value for key, placed in draft.values.items()}
    missing = tiles_need(
        method=adapter.get("method", "lora"),
        dropout=adapter.get("dropout", 0.0),
        target_modules=adapter.get("target_modules", "all-linear"),
        layers=adapter.get("layers"),
    )
    if missing:
        for entry in (switch, shards):
            if entry is not None:
                draft.drop(entry, f"tiles need {'; and '.join(missing)}", changes=False)
        return
    row = draft.value("data.pack_length_tokens") or draft.value("data.max_length_tokens")
    tokens = TILE_TOKENS if shards is None or shards.off else math.ceil(row / at_least_one(shards))
    draft.put(TILE, tokens, switch if shards is None else shards)
    for entry in (switch, shards):
        draft.carried(entry, TILE)
