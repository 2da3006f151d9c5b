"""What the data ask of a plan: the heaviest micro-batch, steps and tokens. Measured where rows and tokenizer
are here."""

import math
from dataclasses import dataclass

import numpy as np

from data_prep.epoch.packing import per_row
from data_prep.errors import DataError
from data_prep.preparation import PreparedData
from finetune.errors import ModelError
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Load:
    """The data as memory and time see them."""

    micro_batch_tokens: int
    """Of the heaviest, padding included."""
    supervised_tokens: int
    """Of the micro-batch with the most."""
    row_tokens: int
    """The longest row."""
    steps: int | None
    tokens: int | None
    """Of all steps, padding aside; None where the data are not here."""
    origin: str
    """measured, or why it is assumed."""


def load_of(recipe: Recipe) -> Load:
    """From the recipe's rows, else from its bounds: every row as long as it may be, every token learned."""
    if recipe.data.streaming is not None:
        return assumed(recipe, "assumed: the data are streamed")
    from finetune.data import prepare_data, tokenizer_for
    from finetune.models.bases.locate import tokenizer_folder

    if isinstance(recipe.model.base, str) and not recipe.model.base.startswith("/"):
        return assumed(recipe, "assumed: the base's tokenizer is not a local folder")
    try:
        tokenizer = tokenizer_for(recipe.model, None, tokenizer_folder(recipe.model))
        data = prepare_data(recipe, tokenizer)
    except (ModelError, DataError, OSError) as error:
        return assumed(recipe, f"assumed: {str(error).splitlines()[0].split(';')[0]}")
    return measured(recipe, data)


def measured(recipe: Recipe, prepared: PreparedData) -> Load:
    """From the tokens of each row."""
    train, data, packs = recipe.train, recipe.data, prepared.packs(0)
    supervised = per_row(prepared.train.supervised_tokens, prepared.documents_per_row)
    lengths = prepared.train.lengths
    tokens, micro = np.sort(packs.tokens)[::-1], train.micro_batch_size
    learned = np.sort(np.add.reduceat(supervised[packs.documents], packs.bounds[:-1]))[::-1][:micro].sum()
    heaviest = (
        int(tokens[:micro].sum()) if data.pack_length_tokens else int(tokens[0]) * min(micro, len(tokens))
    )
    if recipe.objective.draws:
        return _drawn(recipe, int(lengths.max()), len(lengths), f"measured on {len(lengths):,} rows")
    steps_an_epoch = math.ceil(len(packs) / train.global_batch_size)
    steps = train.max_steps or math.ceil(round((train.epochs or 1.0) * steps_an_epoch, 6))
    seen = int(packs.document_tokens * steps / steps_an_epoch)
    return Load(
        heaviest,
        min(int(learned), heaviest),
        int(lengths.max()),
        steps,
        seen,
        f"measured on {len(lengths) // prepared.documents_per_row:,} rows",
    )


def assumed(recipe: Recipe, why: str) -> Load:
    """The bounds that the recipe gives."""
    train, data = recipe.train, recipe.data
    row = data.pack_length_tokens or data.max_length_tokens
    if recipe.objective.draws:
        return _drawn(recipe, row, None, why)
    heaviest = row * train.micro_batch_size
    tokens = train.max_steps * train.global_batch_size * row if train.max_steps else None
    return Load(heaviest, heaviest, data.max_length_tokens, train.max_steps, tokens, why)


def _drawn(recipe: Recipe, prompt: int, rows: int | None, origin: str) -> Load:
    """Of answers that are drawn: prompts of at most so many tokens, each there once with all its answers,
    which are taken to be as long as they may be."""
    train, options = recipe.train, recipe.objective.drawing
    answers = options["group_size"] * options["max_new_tokens"]
    steps = train.max_steps
    if steps is None and rows is not None:
        epoch = math.ceil(rows / train.global_batch_size) * options["epochs_per_sample"]
        steps = math.ceil(round((train.epochs or 1.0) * epoch, 6))
    each = prompt + answers
    # Beside a teacher some rows are learned as they are.
    learned = each if recipe.objective.teaches else answers
    return Load(
        train.micro_batch_size * each,
        train.micro_batch_size * learned,
        prompt + options["max_new_tokens"],
        steps,
        None if steps is None else steps * train.global_batch_size * each,
        origin,
    )
