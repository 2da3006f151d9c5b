"""The heaviest batches before the first step: memory that isn't enough ends the run in its first minute, with
advice."""

import gc
import logging
import math
import time
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.table.documents import Document
from finetune.engines.memory import peak_memory_words
from finetune.errors import TrainingError
from finetune.models.device import generators_kept, is_out_of_memory, widest_type
from finetune.models.sizes import state_bytes
from finetune.recipe.schema import Recipe
from finetune.training.batches import collate
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

USABLE = 0.9
"""Of a GPU's memory, when something larger is recommended: batches of many lengths leave gaps."""

SMALLEST_TRIED = 16
"""After a failure the batch is halved until it fits, down to this part of it."""


class MemoryCheck(TrainerCallback):
    """Takes the feed's heaviest batches forward and backward when training begins, and leaves no trace.

    Gradients are dropped, no weight is touched, and torch's generators are put back, so that a run is bit for
    bit what it would have been. The optimizer's state, which is made in the first step, is stood in for by
    memory of its size.
    """

    def __init__(self, trainer: ExactTrainer, recipe: Recipe):
        self.trainer, self.recipe = trainer, recipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Raises TrainingError where a batch doesn't fit."""
        started = time.perf_counter()
        on_gpu = self.trainer.args.device.type == "cuda"
        held = torch.cuda.memory_allocated() if on_gpu else 0
        batches = self.trainer.feed.heaviest()
        for documents in batches:
            if not self._fits(documents):
                raise TrainingError(self._advice(documents))
        lengths = [[len(document.token_ids) for document in documents] for documents in batches]
        heaviest, longest = max(map(sum, lengths)), max(map(max, lengths))
        logger.info(
            f"rehearsed the heaviest batches ({heaviest:,} tokens, longest document {longest:,}) in "
            f"{time.perf_counter() - started:.1f} s: at most {peak_memory_words()}"
        )
        if on_gpu:
            self._say_what_would_fit(held)

    def _say_what_would_fit(self, held: int) -> None:
        train, now = self.recipe.train, self.recipe.train.micro_batch_size
        whole = torch.cuda.get_device_properties(self.trainer.args.device).total_memory
        share = train.global_batch_size // self.trainer.feed.batching.world_size
        most = largest_micro_batch(held, torch.cuda.max_memory_reserved(), whole, now, share)
        if most > now:
            logger.info(f"train.micro_batch_size: {most} would fit too (it is {now})")

    def _batch(self, documents: list[Document]) -> dict[str, Any]:
        batch = collate(documents, self.trainer.feed.batching, step=0)
        del batch["places"], batch["tokens"]
        if self.trainer.objective.step_values:
            batch["step_sum"] = torch.zeros(self.trainer.objective.step_values, dtype=widest_type())
        return batch

    def _fits(self, documents: list[Document]) -> bool:
        """Forward and backward; whether memory was enough. Another error is raised."""
        try:
            with generators_kept(self.trainer.args.device):
                self._take(self._batch(documents))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        else:
            fits = True
        # The error's frames are gone by now, and with them what the failed batch held.
        self.trainer.model_wrapped.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return fits

    def _take(self, batch: dict[str, Any]) -> None:
        trainer, model = self.trainer, self.trainer.model_wrapped
        state = torch.ones(self._state_bytes(model), dtype=torch.uint8, device=trainer.args.device)
        model.train()
        with trainer.compute_loss_context_manager():
            loss = model(**trainer._prepare_inputs(batch), num_items_in_batch=1).loss
        trainer.accelerator.backward(loss)
        del state

    def _state_bytes(self, model: torch.nn.Module) -> int:
        """What the optimizer will keep here from its first step on."""
        optimizer = self.recipe.train.optimizer
        if optimizer == "adagrad":  # which has it from the beginning
            return 0
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        held = (
            parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in trained
        )
        number_bytes = 2 if self.recipe.train.weights_dtype == "bf16" else 4
        vocabulary = self.trainer.model.get_input_embeddings().weight.shape[0]
        return state_bytes(optimizer, (tuple(tensor.shape) for tensor in held), number_bytes, vocabulary)

    def _advice(self, documents: list[Document]) -> str:
        """What didn't fit, the largest part of it that does, and the knobs that bring it there."""
        tokens = self._batch(documents)["input_ids"].numel()
        parts = (2**power for power in range(1, int(math.log2(SMALLEST_TRIED)) + 1))
        train, data = self.recipe.train, self.recipe.data
        per_row = self.trainer.feed.batching.documents_per_row
        if self.trainer.group.world_size > 1:
            # Trying needs all processes, and the others may have had room.
            part, found, knobs = (
                None,
                "with several processes no part of it was tried",
                [_smaller_batch(self.recipe, 2, per_row)],
            )
        else:
            part = next((part for part in parts if self._fits(_shortened(documents, part, per_row))), None)
            found, knobs = f"a {SMALLEST_TRIED}th of it doesn't either", []
        if part is not None:
            found, knobs = f"1/{part} of it does", [_smaller_batch(self.recipe, part, per_row)]
        if not train.activation_checkpointing:
            knobs.append("train.activation_checkpointing: true")
        elif not train.activation_offloading and self.trainer.args.device.type == "cuda":
            knobs.append("train.activation_offloading: true")
        if self.recipe.adapter.method == "lora":
            knobs.append("adapter.method: qlora")
        if self.recipe.adapter.method == "full":
            knobs.append("adapter.method: lora")
        return (
            f"out of memory: the heaviest batch ({tokens:,} tokens, longest document "
            f"{max(len(document.token_ids) for document in documents):,} of at most "
            f"{data.max_length_tokens:,}) does not fit; {found}. Set "
            f"{', or '.join(knobs) if knobs else 'a smaller base'}. Nothing was trained."
        )


def largest_micro_batch(held: int, peak: int, whole: int, micro_batch_size: int, share: int) -> int:
    """The largest micro-batch that fits a GPU of `whole` bytes, of those that cut a process's share of a
    global batch into equal parts; the present one where no larger one does.

    `held` are the bytes of weights and optimizer, `peak` all that the present one needs.
    """
    each = (peak - held) / micro_batch_size
    fits = [
        size
        for size in range(micro_batch_size + 1, share + 1)
        if share % size == 0 and held + size * each <= USABLE * whole
    ]
    return max(fits, default=micro_batch_size)


def _shortened(documents: list[Document], part: int, documents_per_row: int) -> list[Document]:
    """The first of the documents, cut where a part of their tokens is reached; rows of several stay whole."""
    if documents_per_row > 1:
        rows = len(documents) // documents_per_row
        kept, cut = documents[: max(1, rows // part) * documents_per_row], max(1, part // rows)
        return [document.part(0, max(2, len(document.token_ids) // cut)) for document in kept]
    left = max(2, sum(len(document.token_ids) for document in documents) // part)
    kept = []
    for document in documents:
        if left > 0:
            kept.append(document.part(0, min(left, len(document.token_ids))))
            left -= len(document.token_ids)
    return kept


def _smaller_batch(recipe: Recipe, part: int, documents_per_row: int) -> str:
    """The knob that makes a micro-batch that many times smaller, and its value."""
    train, data = recipe.train, recipe.data
    if train.micro_batch_size >= part:
        return f"train.micro_batch_size: {train.micro_batch_size // part} (it is {train.micro_batch_size})"
    row = documents_per_row * data.max_length_tokens
    fits = train.micro_batch_size * (data.pack_length_tokens or row) // part
    alone = " with train.micro_batch_size: 1" if train.micro_batch_size > 1 else ""
    if data.pack_length_tokens is not None and fits >= row:
        return f"data.pack_length_tokens: {fits} (it is {data.pack_length_tokens}){alone}"
    packs = f" and data.pack_length_tokens: {fits}" if data.pack_length_tokens is not None else ""
    longest = fits // documents_per_row
    return f"data.max_length_tokens: {longest} (it is {data.max_length_tokens}){packs}{alone}"
