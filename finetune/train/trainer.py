"""transformers' Trainer with exact normalisation: it carries the loop, accelerate, checkpoints and resume; ours are the
batches, the loss, the evaluation, and the refusal of steps that are not finite.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from data_prep.render import Document
from finetune.errors import TrainingError
from finetune.model.loss import IGNORED
from finetune.train.batches import FILLER, Documents, StepSampler, collate, evaluation_batches
from finetune.train.checkpoints import PREFIX, keep_newest, mark_complete


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
        **options: Any,
    ):
        held_out = Documents(evaluation) if evaluation else None
        super().__init__(model=model, args=args, train_dataset=Documents(documents), eval_dataset=held_out, **options)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.documents, self.evaluation, self.sampler = documents, evaluation, sampler
        self.pad_token_id, self.keep_checkpoints = pad_token_id, keep_checkpoints
        self.tokens_seen = self.supervised_tokens_seen = 0
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
        if not math.isfinite(norm) and self.accelerator.scaler is None:
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
            pad_token_id=self.pad_token_id,
            world_size=self.args.world_size,
            rank=self.args.process_index,
        ):
            batch.pop("row_index")
            count = batch["shift_labels"].ne(IGNORED).sum()
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                total += torch.stack([model(**inputs).loss.double().cpu(), count.double()])
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device)).cpu()
        model.train()
        loss = float(total[0] / total[1])
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700.0))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            mark_complete(folder / f"{PREFIX}{self.state.global_step}")
            best = self.state.best_model_checkpoint
            keep_newest(folder, self.keep_checkpoints, Path(best) if best else None)
