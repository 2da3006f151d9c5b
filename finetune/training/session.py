"""What trains one run: its trainer, callbacks and trackers; from the first step to the result and its
summary."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_prep.disk import write_private
from finetune import signals
from finetune.engines.ddp import DDP
from finetune.engines.group import Group, contact
from finetune.engines.memory import allocator_name, memory_advice, say_without_jemalloc
from finetune.engines.registry import current
from finetune.errors import FinetuneError
from finetune.evaluation.report import Report
from finetune.evaluation.report_tables import score_lines
from finetune.generation.asking import Asked, asked
from finetune.hub.card import write_result_card
from finetune.models.adapters.adapter import count_parameters
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.bases.hashes import file_sha256
from finetune.models.device import choose_device, choose_threads
from finetune.models.kernels.fp8 import unrounded
from finetune.recipe.lock import ADAPTER_SHA256, START_HASH, Lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.every import NEVER
from finetune.recipe.schema.tracking import TrackingSection
from finetune.recipe.secrets import scrubbed_recipe, scrubbed_values
from finetune.runs.commands import shell_command
from finetune.runs.compare import UNROUNDED_LOSS, is_metric
from finetune.runs.folder import ANSWERS, VALUES, RunFolder, write_json
from finetune.runs.tracking.base import SeveralTrackers, Tracker
from finetune.runs.tracking.start import trackers_started
from finetune.training import build
from finetune.training.batches import StreamFeed
from finetune.training.callbacks.best_checkpoint import BestCheckpoint
from finetune.training.callbacks.document_values import DocumentValues
from finetune.training.callbacks.drawn_answers import DrawnAnswers
from finetune.training.callbacks.graceful_stop import GracefulStop
from finetune.training.callbacks.integrations import Integration, add_integration
from finetune.training.callbacks.memory_check import MemoryCheck
from finetune.training.callbacks.metrics_log import MetricsLog
from finetune.training.callbacks.progress import Progress
from finetune.training.callbacks.samples import Samples
from finetune.training.callbacks.start_hash import StartHash
from finetune.training.callbacks.task_metrics import TaskMetrics
from finetune.training.callbacks.watched import Watched
from finetune.training.checkpoints.contents import check_fit, read_state
from finetune.training.checkpoints.store import check_checkpoint, keep_newest, latest_checkpoint
from finetune.training.inputs import Inputs
from finetune.training.outputs import (
    best_checkpoint,
    describe_checkpoint,
    notes_on_result,
    summary_of,
    write_foreseen,
    write_metrics,
    write_result,
    written_type,
)
from finetune.training.provenance import refuse_other_engine
from finetune.training.reference import reference_model
from finetune.training.teacher import refuse_other_answers
from finetune.training.trainer import ExactTrainer
from finetune.training.watching import Watcher

logger = logging.getLogger(__name__)


def open_session(
    run: RunFolder,
    lock: Lock,
    inputs: Inputs,
    *,
    group: Group,
    checkpoint: Path | None,
    requests: signals.Requests,
    watcher: Watcher | None = None,
) -> "TrainingSession":
    """Build what trains the run, from the checkpoint where there is one.

    Raises the errors of finetune.errors where it can't be trained here; nothing was taken to a tracker then.
    """
    recipe = lock.recipe
    for line in inputs.data.report.lines():
        logger.info(line)
    best = BestCheckpoint(recipe.train, inputs.rules.training)
    with memory_advice(together=inputs.member is not None):
        trainer = _trainer(
            run, lock, inputs, callbacks=[best, GracefulStop(requests, group)], first=checkpoint is None
        )
    checkpoint = None if checkpoint is None else _that_fits(checkpoint, run, trainer)
    if checkpoint is not None and trainer.values_hash:
        refuse_other_answers(checkpoint, trainer.values_hash)
    refuse_other_engine(trainer, group)
    if group.is_main:
        write_foreseen(run, recipe, inputs, trainer.engine, group)
    watched = None if watcher is None else Watched(watcher)
    if watched is not None:
        trainer.add_callback(watched)
    metrics = TaskMetrics(recipe, inputs, trainer, group) if recipe.evaluate.metrics else None
    how = (
        asked(recipe, inputs.tokenizer, allow_code=inputs.allow_code)
        if inputs.objective.writes_text
        else None
    )
    trainer.add_callback(StartHash(trainer, written_type(recipe, inputs)))
    if recipe.train.rehearsal and not trainer.engine.steps_in_backward:
        trainer.add_callback(MemoryCheck(trainer, recipe))
    if inputs.objective.values_per_document:
        reference = partial(reference_model, trainer, partial(build.load_base, recipe, inputs))
        trainer.add_callback(DocumentValues(trainer, run.path / VALUES, reference, requests))
    # Last, because they are seen from outside: a tracker's run and a moving line, for a run that can start.
    tracking = TrackingSection.model_validate(scrubbed_values(recipe.tracking.model_dump(mode="json")))
    if not group.is_main:
        tracking = TrackingSection(tracker="none", samples=tracking.samples if trainer.cut_up else None)
    config = scrubbed_recipe(recipe.model_dump(mode="json"))
    with trackers_started(tracking, lock.tracker_id, config, folder=run.path) as guards:
        tracker = SeveralTrackers(list(guards.values()))
        progress = Progress(moves=inputs.member is None)
        log = MetricsLog(run.metrics_path if group.is_main else None, trainer, tracker, progress.show)
        trainer.add_callback(log)
        if trainer.rollouts is not None and group.is_main:
            trainer.add_callback(DrawnAnswers(trainer.rollouts, run.path / ANSWERS, tracker))
        integrations = [add_integration(trainer, name, run.path, guard) for name, guard in guards.items()]
        if tracking.samples is not None:
            assert how is not None  # noqa: S101 - the rules refuse samples of a head
            clock = log.restart
            trainer.add_callback(
                Samples(
                    tracking.samples, trainer, inputs.tokenizer, run.samples_path, tracker, clock, group, how
                )
            )
        return TrainingSession(
            run=run, lock=lock, inputs=inputs, group=group, checkpoint=checkpoint, trainer=trainer, best=best,
            watched=watched, metrics=metrics, asked=how, tracker=tracker, integrations=integrations,
            progress=progress,
        )  # fmt: skip


def _trainer(
    run: RunFolder, lock: Lock, inputs: Inputs, *, callbacks: list[Any], first: bool
) -> ExactTrainer:
    """The trainer and its model; `first` where no step was taken yet."""
    recipe, threads, device = lock.recipe, choose_threads(), choose_device()
    where = (
        f"the CPU, {threads} threads" if device.type == "cpu" else f"{device}, {threads} threads on the host"
    )
    logger.info(f"computing on {where}, with {allocator_name()}")
    gpus = torch.cuda.device_count()
    if gpus > 1 and not current().several:
        logger.info(
            f"this machine has {gpus} GPUs, and one process uses one of them: --launch {DDP.name} "
            f"--processes {gpus} trains on all"
        )
    if device.type == "cpu":
        say_without_jemalloc()
    taught = build.ask_teacher(recipe, inputs)  # before the student takes its memory
    model = build.build_model(recipe, inputs)
    trainable, total = count_parameters(model, current())
    precision = inputs.precision
    logger.info(
        f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%}), in {precision.name}: "
        f"{precision.reason}"
    )
    trainer = build.build_trainer(
        recipe, inputs, model, checkpoints=run.checkpoints, evaluate_first=first, callbacks=callbacks,
        taught=taught,
    )  # fmt: skip
    trainer.describe = lambda checkpoint: describe_checkpoint(checkpoint, recipe, inputs, trainer.model)
    return trainer


def _that_fits(chosen: Path, run: RunFolder, trainer: ExactTrainer) -> Path | None:
    """The checkpoint, or an earlier one where it is of another model than this."""

    def check(checkpoint: Path) -> None:
        if checkpoint != chosen:
            check_checkpoint(checkpoint)
        check_fit(checkpoint, trainer)

    return latest_checkpoint(run.checkpoints, check, newest=chosen)


@dataclass
class TrainingSession:
    """One run in training."""

    run: RunFolder
    lock: Lock
    inputs: Inputs
    group: Group
    checkpoint: Path | None
    """Where it starts from."""
    trainer: ExactTrainer
    best: BestCheckpoint
    watched: Watched | None
    metrics: TaskMetrics | None
    """None where the recipe measures none."""
    asked: Asked | None
    """How prompts are asked; None for a head."""
    tracker: Tracker
    integrations: list[Integration]
    progress: Progress
    report: Report | None = None
    """The recipe's metrics of the result, once measured."""
    unrounded_loss: float | None = None
    """The result's evaluation loss with the base as it was loaded, where training had that in FP8."""
    changed: bool | None = None
    """Whether the result differs from the start, once written; None where that is not known."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What became of the run, once it ended."""
    broken_off: bool = False
    """Whether it ended in the midst of a step, so that other processes are elsewhere."""

    def train(self) -> dict[str, Any]:
        """Train to the end, or to a stop; write the result. Returns the summary, whose status says which it
        was."""
        with ExitStack() as closing:
            closing.callback(lambda: self.tracker.finish(self.summary.get("status", "failed")))
            for integration in self.integrations:
                closing.callback(integration.finish)
            closing.callback(self._upload)  # with its card, which is written when all is known
            closing.enter_context(self._recorded())
            closing.callback(self.progress.close)
            logger.info(f"run folder {self.run.path}")
            together = self.trainer.member is not None
            with memory_advice(together=together), contact(self.group):
                self._take_steps()
                if self._complete:
                    self._write_result()
                    with unrounded(self.trainer.model):
                        self._measure()
        if self.summary["status"] == "stopped":
            why = "" if self._reason is None else f": {self._reason}"
            logger.info(
                f"stopped after step {self.trainer.state.global_step}{why}; resume with: "
                f"{self._resume_command()}"
            )
        return self.summary

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """The summary says that the run is running while this lasts, and then what became of it."""
        try:
            if self.group.is_main:
                # Complete from the start: a run that is killed is listed by it.
                known = self._summary("running", None)
                self.run.write_summary(known | self.run.read_summary() | {"status": "running", "error": None})
            yield
            self._write_summary(self._status, None)
        except KeyboardInterrupt:  # in the midst of a step: nothing more is saved
            self.broken_off = True
            self._write_summary("stopped", None)
            return
        except BaseException as error:
            self._write_summary("failed", f"{type(error).__name__}: {error}")
            raise
        if self._complete and self.group.is_main and self.recipe.train.save_every == NEVER:
            keep_newest(self.run.checkpoints, 0, None)

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.lock.recipe

    @property
    def _complete(self) -> bool:
        # An early stop is an end, also where Ctrl-C came in the same step.
        state = self.trainer.state
        return bool(state.global_step >= self.trainer.args.max_steps) or self.best.says_stop(state)

    @property
    def _status(self) -> str:
        return "finished" if self._complete else "stopped"

    @property
    def _reason(self) -> str | None:
        """Why who watches the run stopped it."""
        return None if self.watched is None else self.watched.reason

    def _resume_command(self) -> str:
        engine, allowed = self.trainer.engine.name, sorted(self.inputs.allow_code)
        launch = (
            ["--launch", engine, "--processes", str(self.group.world_size)]
            if self.group.world_size > 1
            else []
        )
        code = [word for sha256 in allowed for word in ("--allow-code", sha256)]
        return shell_command("train", "--resume", self.run.path, *launch, *code)

    def _summary(self, status: str, error_text: str | None) -> dict[str, Any]:
        found = summary_of(
            self.lock,
            self.trainer,
            name=self.run.name,
            status=status,
            error=error_text,
            changed=self.changed,
            report=self.report,
        )
        if self.unrounded_loss is not None:
            found[UNROUNDED_LOSS] = self.unrounded_loss
        stopped = {} if self._reason is None else {"stopped_because": self._reason}
        return found | {"asked": self.asked} | stopped

    def _write_summary(self, status: str, error_text: str | None) -> None:
        found = self._summary(status, error_text)
        if self.group.is_main:
            self._write_outcome(found)
        self.summary = found

    def _write_outcome(self, found: dict[str, Any]) -> None:
        if found["status"] == "finished":
            # Before the summary says so: a run that is finished is never gone on with.
            final = {name: value for name, value in found.items() if is_metric(name)}
            if self.trainer.values_hash:
                final["document_values_sha256"] = self.trainer.values_hash
            if self.run.adapter.is_dir():
                final[ADAPTER_SHA256] = file_sha256(self.run.adapter / ADAPTER_WEIGHTS)
            if self.recipe.adapter.reads_rows and self.trainer.start_hash:
                final[START_HASH] = self.trainer.start_hash
            write_private(self.run.lock_path, replace(self.lock, final=final).to_yaml())
            if self.inputs.base.mask is None:  # whose card says what plain peft would do to it
                write_result_card(self.run, self.lock, found)
        self.run.write_summary(found)

    def _upload(self) -> None:
        if self.summary.get("status") == "finished" and self.run.adapter.is_dir():
            self.tracker.upload(self.run.adapter)

    def _take_steps(self) -> None:
        if self.checkpoint is None:
            self.trainer.train()
            return
        logger.info(f"resuming from {self.checkpoint.name}")
        self.trainer.load_counters(self.checkpoint)
        state = read_state(self.checkpoint)
        if state.global_step >= self.trainer.args.max_steps or self.best.says_stop(state):
            logger.info("all steps were taken; what is left is to write the result")
            self.trainer.load_finished(self.checkpoint)
        elif self.watched is not None and self.watched.says_stop(state):
            self.trainer.load_finished(self.checkpoint)
        else:
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint))

    def _write_result(self) -> None:
        if isinstance(self.trainer.feed, StreamFeed):
            for line in self.trainer.feed.stream.report.lines()[:-1]:
                logger.info(line)
            if self.group.is_main:
                write_json(self.run.data_path, self.trainer.feed.stream.report.as_dict())
        state = self.trainer.state
        best = best_checkpoint(self.trainer, self.run.checkpoints)
        if self.recipe.train.keeps_best and best is not None:
            state.best_model_checkpoint = str(best)
            self.trainer._load_best_model()
            self.best.tell_verdict(state)
        elif self.recipe.train.keeps_best:
            best_by = self.recipe.train.best_by or "loss"
            logger.warning(
                f"{best_by} was never a finite number, so there is no best checkpoint; the last step's "
                "weights are the result"
            )
        written = write_result(self.run, self.lock, self.inputs, self.trainer, self.group)
        for line in notes_on_result(self.recipe, self.inputs):
            logger.info(line)
        if self.trainer.start_hash:  # checkpoints of earlier versions don't say
            self.changed = written != self.trainer.start_hash
        verdict = None if self.trainer.rollouts is None else self.trainer.rollouts.verdict()
        if verdict is not None:
            logger.warning(verdict)
        elif self.changed is False:
            logger.warning(
                "nothing was learned: each trained weight is bit for bit what it was before the first step. "
                f"train.learning_rate ({self.recipe.train.learning_rate:g}) may be too small for it; "
                "metrics.jsonl has the gradient's norm of each step."
            )

    def _measure(self) -> None:
        """The result on all evaluation rows: the recipe's metrics, and where FP8 trained it the loss with the
        base as it is merged."""
        evaluated = any("eval_loss" in entry for entry in self.trainer.state.log_history)
        if self.recipe.train.base_arithmetic == "fp8" and evaluated:
            self.unrounded_loss, _ = self.trainer.evaluation_means()
            self.tracker.log({UNROUNDED_LOSS: self.unrounded_loss}, self.trainer.state.global_step)
        if self.metrics is None:
            return
        logger.info("measuring the result on the evaluation rows")
        try:
            self.report = self.metrics.at_end()
        except FinetuneError as error:
            # The result is there, and good; what could be known before was refused before the training.
            logger.warning(f"the metrics could not be measured: {error}")
            return
        for line in (*score_lines(self.report, None), *(f"note: {note}" for note in self.report.notes)):
            logger.info(line)
        if self.group.is_main:
            write_metrics(self.run, self.report, self.trainer.state.global_step)
        final = {f"final/{name}": value for name, value in self.report.values.items()}
        self.tracker.log(final, self.trainer.state.global_step)
        for integration in self.integrations:
            integration.log_result(final)
