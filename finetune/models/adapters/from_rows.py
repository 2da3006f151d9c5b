"""Adapters that start by what the recipe's own rows do to the base: EVA, CorDA and LoRA-GA.

The first rows are read, in an order that the seed draws, so that a start follows from the lock; each process
of several reads all of them, and starts alike.
"""

import logging
import time
from collections.abc import Iterable

from peft import PeftModel

from finetune.errors import ModelError
from finetune.models.adapters.corda import start_at_what_rows_use
from finetune.models.adapters.eva import start_at_directions
from finetune.models.adapters.lora_ga import start_at_gradients
from finetune.models.batch import TokenisedRow
from finetune.recipe.schema.adapter import AdapterSection

logger = logging.getLogger(__name__)


def start_from_rows(
    model: PeftModel, section: AdapterSection, rows: Iterable[TokenisedRow], pad_token_id: int
) -> None:
    """Let the LoRA layers of a fresh adapter start as adapter.init says, by some of the rows.

    Raises ModelError where the rows have too few tokens for the rank.
    """
    began = time.perf_counter()
    match section.init:
        case "eva":
            tokens = start_at_directions(model, section, rows)
        case "corda":
            tokens = start_at_what_rows_use(model, section, rows)
        case "lora_ga":
            tokens = start_at_gradients(model, section, rows, pad_token_id)
        case _:
            raise ModelError(f"adapter.init {section.init} reads no rows.")
    logger.info(
        f"adapter.init {section.init}: {tokens:,} tokens of the rows, {time.perf_counter() - began:.1f} s"
    )
