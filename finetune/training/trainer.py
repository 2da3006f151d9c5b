"""transformers' Trainer with exact normalisation: it carries the loop, accelerate, checkpoints and resume;
ours are the batches, the loss, the evaluation, and the refusal of steps that are not finite.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import peft
import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from data_prep.table.documents import Document
from finetune.engines.base import Engine
from finetune.engines.group import Group
from finetune.engines.sharded import gathered_weights
from finetune.errors import NotFiniteError
from finetune.models.device import widest_type
from finetune.models.kernels.noise import seed_of
from finetune.models.loss import IGNORE_INDEX, Part
from finetune.objectives import Objective
from finetune.runs.checkpoint import MARKER, PREFIX
from finetune.training.batches import Beside, Feed, evaluation_batches
from finetune.training.checkpoints.background import Background
from finetune.training.checkpoints.contents import COUNTERS, read_counters, read_state
from finetune.training.checkpoints.store import gone_if_disk_is_full, keep_newest, mark_complete
from finetune.training.company import Member
from finetune.training.drawing import Drawing
from finetune.training.next_step import NextStep
from finetune.training.optimization.own_optimizers import Maker
from finetune.training.optimization.parameter_groups import NO_RATES, Rates
from finetune.training.optimization.riemannian import precondition

T = TypeVar("T")

SKIPPED_STEPS_LIMIT = 20
"""fp16: so many overflows in a row halve the loss scale a millionfold; no scale is at fault then."""


class ExactTrainer(Trainer):
    """Each optimizer step minimises (sum of its losses) / (sum of its weights), over all processes and
    accumulation steps, however the rows are cut into micro-batches. The model must have the loss of its
    objective (Objective.install).
    """

    model: Any

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        feed: Feed,
        rate_factor: Callable[[int], float],
        evaluation: Sequence[Document],
        keep_checkpoints: int,
        evaluation_tokens: int,
        group: Group,
        engine: Engine,
        rates: Rates = NO_RATES,
        own_optimizer: Maker | None = None,
        member: Member | None = None,
        **options: Any,
    ):
        """`own_optimizer` takes the place of transformers'; the steps of a `member` of a company are computed
        with the others'."""
        self.engine, self.rates, self.member = engine, rates, member
        if own_optimizer is not None:
            options["optimizer_cls_and_kwargs"] = own_optimizer
        # The Trainer only wants to know that there is something to evaluate on; see evaluate.
        held_out: Any = evaluation if len(evaluation) else None
        super().__init__(model=model, args=args, train_dataset=feed, eval_dataset=held_out, **options)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.objective: Objective = objective
        self.feed, self.evaluation, self.keep_checkpoints = feed, evaluation, keep_checkpoints
        self.steps = NextStep(feed, args.max_steps)
        self.evaluation_values: np.ndarray | None = None
        self.evaluation_beside: Beside | None = None
        """As the feed's."""
        self.evaluation_counterparts: Sequence[Document] = ()
        self.evaluation_counterpart_values: np.ndarray | None = None
        self.rollouts: Drawing | None = None
        """What draws the answers that are learned from, for an objective that has some drawn."""
        self.rate_factor = rate_factor
        self.evaluation_tokens, self.group = evaluation_tokens, group
        self.describe: Callable[[Path], None] = lambda checkpoint: None
        self.task_metrics: Callable[[], dict[str, float]] | None = None
        self.start_hash = self.values_hash = ""
        self.tokens_seen = self.supervised_tokens_seen = self.skipped_steps = 0
        self.step_seconds, self.seconds_before, self.started = 0.0, 0.0, time.perf_counter()
        self.group_rates: dict[str, float] = {}
        self.step_rates: dict[str, float] = {}
        self.teaches_nothing = False
        """Whether the step has nothing to learn: its weights stay as they are."""
        self.step_losses: list[tuple[torch.Tensor, list[str]]] = []
        self.completing = Background()
        self.step_logged = list[torch.Tensor]()
        self.logged_sums = self._nothing_logged()

    @property
    def cut_up(self) -> bool:
        """Whether no process holds the full model, so that all must make the same calls of it."""
        return self.engine.shards_weights or (self.member is not None and self.member.shares_out)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, and as the engine needs it."""
        super().create_accelerator_and_postprocess()
        self.engine.adapt(self.accelerator)
        if self.member is not None:
            # No DistributedDataParallel: it expects each of its models to have a backward pass of its own.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As transformers does, with groups of their own for weights that have other learning rates."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            names = {weight: name for name, weight in self.model.named_parameters() if weight.requires_grad}
            self.group_rates = self.rates.split(optimizer, names, self.args.learning_rate)
            if self.rates.riemannian_damping is not None:
                precondition(optimizer, self.model, self.rates.riemannian_damping)
        return cast(torch.optim.Optimizer, self.optimizer)

    def _get_learning_rate(self) -> float:
        """The rate of the step, that of weights without one of their own; the others are kept for the log."""
        rate = float(super()._get_learning_rate())
        self.step_rates = {
            name: rate * own / self.args.learning_rate for name, own in self.group_rates.items()
        }
        return rate

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """finetune.training.optimization.schedule's rates; a scheduler counts the steps that were taken, so
        the next one is one more."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                cast(Any, optimizer or self.optimizer), lambda taken: self.rate_factor(taken + 1)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_input(self, data: Any) -> Any:
        """To the device, in its own type: transformers rounds what DeepSpeed is given to the weights' type,
        weights of messages and targets among it."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=self.args.device.type == "cuda")
        return super()._prepare_input(data)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's micro-batches; never re-sharded by accelerate, so no row is repeated.

        A generator of its own: otherwise the loader would draw from the one that dropout draws from.
        """
        pin = self.args.device.type == "cuda"
        return DataLoader(self.steps, batch_size=None, pin_memory=pin, generator=torch.Generator())

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        self.step_losses, self.step_logged = [], []
        cast(Any, self.optimizer).train()  # what the step is computed with: see optimization/schedule_free.py
        if self.rollouts is not None:
            batch_samples[:] = self.rollouts.answered(batch_samples)
        if self.objective.step_values:
            seen = [(batch["places"], batch.pop("counterparts", batch)) for batch in batch_samples]
            total = self._step_sum(seen).to(widest_type())
            for batch in batch_samples:
                batch["step_sum"] = total
        weight = torch.stack([self.objective.weight(batch) for batch in batch_samples]).sum().double()
        tokens = sum(batch["tokens"] for batch in batch_samples)
        supervised = sum(int(batch["shift_labels"].ne(IGNORE_INDEX).sum()) for batch in batch_samples)
        counts = torch.stack([weight, torch.tensor(tokens).double(), torch.tensor(supervised).double()])
        counts = self.reduced(counts)
        self.tokens_seen += int(counts[1])
        self.supervised_tokens_seen += int(counts[2])
        self.teaches_nothing = not counts[0]
        counts[0] = counts[0] or 1
        return counts[0].to(device, widest_type())

    def _step_sum(self, batches: Iterable[tuple[Sequence[Any], dict[str, Any]]]) -> torch.Tensor:
        """The sum of the objective's step_terms over the batches of all processes."""
        total = torch.zeros(self.objective.step_values, dtype=torch.float64)
        for _, terms in self.computed("step_terms", batches):
            total += terms
        return self.reduced(total)

    def computed(
        self,
        part: Part,
        batches: Iterable[tuple[Sequence[T], dict[str, Any]]],
        model: torch.nn.Module | None = None,
    ) -> Iterator[tuple[Sequence[T], torch.Tensor]]:
        """An objective's function of each batch, in float64 on the host, beside the batch's rows.

        The wrapped model computes it, or `model`, in evaluation mode and without noise. What a batch without
        rows gives is left out: it is there for the other processes' sake.
        """
        left_out = ("places", "tokens", "noise_seeds", "noise_lengths", "step_sum", "counterparts")
        computing = self.model_wrapped if model is None else model
        computing.eval()
        for rows, batch in batches:
            kept = {name: value for name, value in batch.items() if name not in left_out}
            with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
                found = computing(**self._prepare_inputs(kept), part=part).logits
            if rows:
                yield rows, found.cpu().double()
        self.model_wrapped.train()

    def reduced(self, total: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' tensors, on the host."""
        if self.group.world_size == 1:
            return total
        return cast(torch.Tensor, self.accelerator.reduce(total.to(self.args.device, widest_type()))).cpu()

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *arguments: Any) -> torch.Tensor:
        """A micro-batch forward and backward, by itself or in its company."""
        if self.member is None:
            return super().training_step(model, inputs, *arguments)
        of_rank = [self.group.rank] if self.group.rank else []
        seed = seed_of(self.args.seed, self.state.global_step, len(self.step_losses), *of_rank)
        with self.member.together(seed):
            loss = super().training_step(model, inputs, *arguments)
        if self.accelerator.sync_gradients:
            self._average_gradients()
        return loss

    def _average_gradients(self) -> None:
        """Over the processes, after a step's last micro-batch. A weight that only another one had something
        for has zeros here; one that none had something for stays without."""
        if self.group.world_size == 1:
            return
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        known = own[0].new_tensor([weight.grad is not None for weight in weights])
        *means, shares = self.group.average([*own, known])
        for weight, mean, share in zip(weights, means, shares.tolist(), strict=True):
            weight.grad = mean if share else None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The micro-batch's part of the step's mean loss."""
        places, _ = inputs.pop("places"), inputs.pop("tokens")
        output = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss: torch.Tensor = output.loss
        loss = loss if places else loss * 0.0  # what fills up teaches nothing, whatever its loss is
        if self.objective.logged and places:
            self.step_logged.append(output.logits.detach())
        self.step_losses.append((loss.detach(), places))
        if self.engine.steps_in_backward and self.group.any(not torch.isfinite(loss)):
            raise NotFiniteError(self._not_finite("loss", loss.item(), places))
        # DDP and ZeRO average gradients over processes; the sum is wanted.
        return loss * self.args.world_size

    def logged_means(self) -> dict[str, float]:
        """The means of what the objective logs, over all processes' batches since the last call."""
        total, self.logged_sums = self.logged_sums, self._nothing_logged()
        found = self._means(self.reduced(total)) if self.objective.logged else {}
        return found if self.rollouts is None else found | self.rollouts.means()

    def _nothing_logged(self) -> torch.Tensor:
        """Sums and counts of what the objective logs (K x 2), before there are any."""
        return torch.zeros(len(self.objective.logged), 2, dtype=torch.float64)

    def _means(self, total: torch.Tensor) -> dict[str, float]:
        """The means of what the objective logs, by their sums and counts (K x 2); without what nothing is
        known of."""
        named = zip(self.objective.logged, total.tolist(), strict=True)
        return {name: value / count for name, (value, count) in named if count}

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
        """Raises NotFiniteError, before the update, where a loss or the gradient isn't finite.

        The device is asked once a step, for all of them together and for what the objective logs.
        """
        if self.teaches_nothing and self.accelerator.scaler is None:
            # Without a gradient the optimizer passes over a weight, momentum and decay included.
            model.zero_grad(set_to_none=True)
        norm = torch.as_tensor(super()._get_grad_norm(model, grad_norm=grad_norm))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        losses = [loss.float().to(norm.device) for loss, _ in self.step_losses]
        asked = [torch.stack([*losses, norm.float()]), *(sums.flatten() for sums in self.step_logged)]
        numbers = torch.cat([part.to(norm.device, widest_type()) for part in asked]).tolist()
        values, length, logged = numbers[: len(losses)], numbers[len(losses)], numbers[len(losses) + 1 :]
        if logged:
            self.logged_sums += (
                torch.tensor(logged, dtype=torch.float64).reshape(-1, *self.logged_sums.shape).sum(0)
            )
        for value, (_, places) in zip(values, self.step_losses, strict=True):
            if not math.isfinite(value):
                raise NotFiniteError(self._not_finite("loss", value, places))
        # With fp16's loss scaling a step that overflowed is skipped by the scaler, and the scale lowered.
        self.skipped_steps = 0 if math.isfinite(length) else self.skipped_steps + 1
        if self.skipped_steps >= (1 if self.accelerator.scaler is None else SKIPPED_STEPS_LIMIT):
            places = [place for _, places in self.step_losses for place in places]
            raise NotFiniteError(self._not_finite("gradient norm", length, places))
        return float(length)

    def _not_finite(self, what: str, value: float, places: list[str]) -> str:
        shown = ", ".join(places[:8]) + (" ..." if len(places) > 8 else "")
        return (
            f"the {what} is {value} at step {self.state.global_step + 1}; nothing was updated. Rows: "
            f"{shown}. Look at these rows (finite numbers in, labels in the vocabulary), lower "
            "train.learning_rate, or set train.precision to fp32; the last whole checkpoint is kept and "
            "--resume goes on from it."
        )

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The exact mean loss of the evaluation documents, over all processes.

        With `task_metrics` what they measure too, each under its own name.
        """
        mean, means = self.evaluation_means()
        metrics = {f"{metric_key_prefix}_loss": mean}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        if self.objective.has_perplexity:
            metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(mean, 700.0))
        if self.task_metrics is not None:
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.task_metrics().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def evaluation_means(self) -> tuple[float, dict[str, float]]:
        """The mean loss of the evaluation documents, over all processes, and what the objective logs beside
        it."""
        found = None if self.rollouts is None else self.rollouts.evaluation_means()
        if found is not None:
            return found
        model = self.model_wrapped if self.is_in_train else self.accelerator.unwrap_model(self.model)
        model.eval()
        total, step_sum = torch.zeros(2, dtype=torch.float64), None
        logged = self._nothing_logged()
        if self.objective.step_values:
            step_sum = self._step_sum(self.evaluation_step_batches()).to(widest_type())
            model.eval()
        for rows, batch in self.evaluation_batches():
            weight = self.objective.weight(batch)
            inputs = self._prepare_inputs(batch if step_sum is None else batch | {"step_sum": step_sum})
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                # To the host first: Apple's MPS has no float64.
                output = model(**inputs)
            if rows:
                total += torch.stack([output.loss.cpu().double(), weight.double()])
                if self.objective.logged:
                    logged += output.logits.cpu().double()
        total, logged = self.reduced(total), self.reduced(logged)
        model.train()
        return float(total[0] / total[1]), self._means(logged)

    def evaluation_batches(self) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """This process's batches of the evaluation documents, each with their indexes."""
        for rows, batch in self.batches_of(self.evaluation, self.evaluation_values):
            yield rows, batch if self.evaluation_beside is None else batch | self.evaluation_beside(rows)

    def evaluation_step_batches(self) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """What step_terms is computed of: the documents, or what the objective has in their place."""
        if not self.evaluation_counterparts:
            return self.evaluation_batches()
        return self.batches_of(self.evaluation_counterparts, self.evaluation_counterpart_values)

    def batches_of(
        self, documents: Sequence[Document], values: np.ndarray | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """This process's batches of documents, packed where the training's are, each with their indexes;
        `values` go with the documents."""
        batching = self.feed.batching
        return evaluation_batches(
            documents,
            batch_size=self.args.per_device_eval_batch_size,
            max_tokens=self.evaluation_tokens,
            pad_token_id=batching.pad_token_id,
            packed=batching.packed,
            world_size=batching.world_size,
            rank=batching.rank,
            documents_per_row=batching.documents_per_row,
            shares_prompts=batching.shares_prompts,
            part=batching.part,
            parts=batching.parts,
            values=values,
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"{PREFIX}{self.state.global_step}"
        # A damaged checkpoint of this step may be there: without its marker it isn't taken for whole while it
        # is rewritten.
        if self.group.is_main:
            self.completing.settle()
            (checkpoint / MARKER).unlink(missing_ok=True)
        self.group.wait()
        with gone_if_disk_is_full(checkpoint), without_embeddings():
            super()._save_checkpoint(model, trial)
            if self.rollouts is not None:
                self.rollouts.save(checkpoint, self.state.global_step)
            self.group.wait()
            if self.group.is_main:
                self.describe(checkpoint)
                (checkpoint / COUNTERS).write_text(json.dumps(self.counters()))
        if self.group.is_main:
            best = folder / f"{PREFIX}{self.state.best_global_step}"
            self.completing.start(partial(self._complete, checkpoint, best))

    def _complete(self, checkpoint: Path, best: Path) -> None:
        """Mark a checkpoint, whose files are written, and then let go of earlier ones."""
        with gone_if_disk_is_full(checkpoint):
            mark_complete(checkpoint)
        keep_newest(checkpoint.parent, self.keep_checkpoints, best)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """To the end, or to a stop; its checkpoints are complete then."""
        try:
            found = super().train(*arguments, **options)
        except Exception:
            self.completing.settle()
            raise
        self.completing.settle()
        self.group.wait()
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of an adapter what is trained, gathered on the main process; transformers gathers the base too, or
        copies all weights in each process."""
        if not self.engine.takes_over:
            super().save_model(output_dir, _internal_call)
        elif isinstance(self.model, PeftModel):
            self._save(output_dir, gathered_weights(self, keep=self.group.is_main))
        elif self.group.is_main or self.engine.shards_weights:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """An adapter without the base's embedding, which peft would add, whole, where the vocabulary grew."""
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.model.save_pretrained(str(output_dir), state_dict=state_dict, save_embedding_layers=False)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        with without_embeddings():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        with without_embeddings(), self.engine.resuming(best, self.group):
            super()._load_best_model()

    def store_flos(self) -> None:
        """Nothing is done with this count, for which transformers lets all processes wait at each log."""

    def counters(self) -> dict[str, Any]:
        """Tokens and seconds of the run up to now, those before a resume included; Counters of
        checkpoints/contents.py."""
        return {
            "tokens": self.tokens_seen,
            "supervised_tokens": self.supervised_tokens_seen,
            "step_seconds": self.step_seconds,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
            "feed": self.steps.state,
            "start": self.start_hash,
            "values": self.values_hash,
            "company_passes": self.member.passes if self.member is not None else 0,
        }

    def load_counters(self, checkpoint: Path) -> None:
        """Count on from a checkpoint, and go on with the data behind it."""
        counters = read_counters(checkpoint)
        self.steps.restore(read_state(checkpoint).global_step, counters.feed)
        self.tokens_seen, self.supervised_tokens_seen = counters.tokens, counters.supervised_tokens
        self.step_seconds, self.seconds_before = counters.step_seconds, counters.seconds
        self.start_hash, self.values_hash = counters.start, counters.values
        if self.rollouts is not None:
            self.rollouts.load(checkpoint, read_state(checkpoint).global_step)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """As transformers does, with a checkpoint as the engine reads it."""
        if resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        with self.engine.resuming(Path(resume_from_checkpoint), self.group):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def load_finished(self, checkpoint: Path) -> None:
        """Take over weights and state of a checkpoint after which no step is left.

        train() would take one: transformers' loop looks at the number of steps only after each step.
        """
        if self.engine.takes_over:  # what holds the weights is made there
            self._prepare_for_training(self.args.max_steps, self.get_train_dataloader(), str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))
        self.state = read_state(checkpoint)


@contextmanager
def without_embeddings() -> Iterator[None]:
    """accelerate (FSDP2) asks peft for an adapter's weights, and peft adds the whole embedding where the
    vocabulary grew."""
    own = peft.get_peft_model_state_dict
    peft.get_peft_model_state_dict = partial(own, save_embedding_layers=False)
    try:
        yield
    finally:
        peft.get_peft_model_state_dict = own
