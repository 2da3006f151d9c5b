"""transformers' Trainer with exact normalisation: it carries the loop, accelerate, checkpoints and resume; ours are the
batches, the loss, the evaluation, and the refusal of steps that are not finite.
"""

import functools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from data_prep.render import Document
from finetune.errors import TrainingError
from finetune.model.loss import IGNORED
from finetune.train.batches import FILLER, Documents, StepSampler, collate, evaluation_batches
from finetune.train.checkpoints import MARKER, PREFIX, keep_newest, mark_complete

COUNTERS = "counters.json"
"""What a checkpoint holds beside transformers' files: tokens and seconds up to it."""

SKIPPED_STEPS_LIMIT = 20
"""fp16: so many overflows in a row halve the loss scale a millionfold; no scale is at fault then."""


class ExactTrainer(Trainer):
    """Each optimizer step minimises (sum of the losses of its supervised tokens) / (their number), over all processes and
    accumulation steps, however the rows are cut into micro-batches. The model must have the loss of finetune.model.loss.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        documents: Sequence[Document],
        evaluation: Sequence[Document],
        sampler: StepSampler,
        pad_token_id: int,
        keep_checkpoints: int,
        evaluation_tokens: int,
        **options: Any,
    ):
        held_out = Documents(evaluation) if evaluation else None
        super().__init__(model=model, args=args, train_dataset=Documents(documents), eval_dataset=held_out, **options)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.documents, self.evaluation, self.sampler = documents, evaluation, sampler
        self.pad_token_id, self.keep_checkpoints = pad_token_id, keep_checkpoints
        self.evaluation_tokens = evaluation_tokens
        self.tokens_seen = self.supervised_tokens_seen = self.skipped_steps = 0
        self.step_seconds, self.seconds_before, self.started = 0.0, 0.0, time.perf_counter()
        self.step_rows: list[int] = []

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches; never re-sharded by accelerate, so no row is repeated."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=functools.partial(collate, pad_token_id=self.pad_token_id),
            pin_memory=self.args.device.type == "cuda",
        )

    def _run_epoch(self, *, epoch: int, **options: Any) -> None:
        self.sampler.epoch = epoch
        super()._run_epoch(epoch=epoch, **options)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
        count = torch.stack([batch["shift_labels"].ne(IGNORED).sum() for batch in batch_samples]).sum().to(device)
        self.step_rows = [int(row) for batch in batch_samples for row in batch["row_index"] if row != FILLER]
        self.tokens_seen += sum(int(batch["attention_mask"].sum()) for batch in batch_samples)
        self.supervised_tokens_seen += int(count)
        return self.accelerator.reduce(count) if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The micro-batch's part of the step's mean loss. Raises TrainingError, before the backward, where it isn't finite."""
        rows = inputs.pop("row_index")
        loss = model(**inputs, num_items_in_batch=num_items_in_batch).loss
        if not torch.isfinite(loss):
            raise TrainingError(self._not_finite("loss", loss.item(), [int(row) for row in rows if row != FILLER]))
        # DDP and ZeRO average gradients over processes; the sum is wanted.
        return loss * self.args.world_size

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        # With fp16's loss scaling a step that overflowed is skipped by the scaler, and the scale lowered.
        self.skipped_steps = 0 if math.isfinite(norm) else self.skipped_steps + 1
        if self.skipped_steps >= (1 if self.accelerator.scaler is None else SKIPPED_STEPS_LIMIT):
            raise TrainingError(self._not_finite("gradient norm", norm, self.step_rows))
        return norm

    def _not_finite(self, what: str, value: float, rows: list[int]) -> str:
        places = ", ".join(self.documents[row].place for row in rows[:8]) + (" ..." if len(rows) > 8 else "")
        return (
            f"the {what} is {value} at step {self.state.global_step + 1}; nothing was updated. Rows: {places}. "
            "Look at these rows (finite numbers in, labels in the vocabulary), lower train.learning_rate, "
            "or set train.precision to fp32; the last whole checkpoint is kept and --resume goes on from it."
        )

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The exact mean loss over all supervised tokens of the evaluation documents, over all processes."""
        model = self.model_wrapped if self.is_in_train else self.accelerator.unwrap_model(self.model)
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for batch in evaluation_batches(
            self.evaluation,
            batch_size=self.args.per_device_eval_batch_size,
            max_tokens=self.evaluation_tokens,
            pad_token_id=self.pad_token_id,
            world_size=self.args.world_size,
            rank=self.args.process_index,
        ):
            batch.pop("row_index")
            count = batch["shift_labels"].ne(IGNORED).sum()
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                # To the host first: Apple's MPS has no float64.
                total += torch.stack([model(**inputs).loss.cpu().double(), count.double()])
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device)).cpu()
        model.train()
        loss = float(total[0] / total[1])
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700.0))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"{PREFIX}{self.state.global_step}"
        # A damaged checkpoint of this step may be there: without its marker it isn't taken for whole while it is rewritten.
        (checkpoint / MARKER).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            (checkpoint / COUNTERS).write_text(json.dumps(self.counters()))
            mark_complete(checkpoint)
            keep_newest(folder, self.keep_checkpoints, folder / f"{PREFIX}{self.state.best_global_step}")

    def counters(self) -> dict[str, Any]:
        """Tokens and seconds of the run up to now, those before a resume included."""
        return {
            "tokens": self.tokens_seen,
            "supervised_tokens": self.supervised_tokens_seen,
            "step_seconds": self.step_seconds,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
        }

    def load_counters(self, checkpoint: Path) -> None:
        """Count on from a checkpoint."""
        counters = json.loads((checkpoint / COUNTERS).read_text())
        self.tokens_seen, self.supervised_tokens_seen = counters["tokens"], counters["supervised_tokens"]
        self.step_seconds, self.seconds_before = counters["step_seconds"], counters["seconds"]

    @staticmethod
    def state_of(checkpoint: Path) -> TrainerState:
        """The trainer's state when the checkpoint was taken."""
        return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def load_finished(self, checkpoint: Path) -> None:
        """Take over weights and state of a checkpoint after which no step is left.

        train() would take one: transformers' loop looks at the number of steps only after each step.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = self.state_of(checkpoint)
