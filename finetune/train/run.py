"""One training run from recipe to run folder: the lifecycle only; build.py makes the parts."""

import datetime
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finetune.errors import CheckpointError, LaunchError
from finetune.model.adapter import count_parameters, save_adapter
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder, create_run, open_run, write_text
from finetune.runs.trackers import start_tracker
from finetune.train import build
from finetune.train.build import Inputs
from finetune.train.callbacks import KeepBest, MetricsLog, OrderlyStop, peak_memory_bytes
from finetune.train.checkpoints import latest_checkpoint, remove_incomplete
from finetune.train.progress import Progress
from finetune.train.trainer import ExactTrainer

Say = Callable[[str], None]


def start(recipe: Recipe, *, name: str, command: str, say: Say) -> dict[str, Any]:
    """Train a recipe in a new run folder; returns its summary.

    Nothing is left behind where it can't start. Raises the errors of finetune.errors and data_prep.errors.
    """
    refuse_several_processes()
    inputs = build.build_inputs(recipe)
    run = create_run(Path(recipe.output.folder), recipe.output.name or name)
    lock = make_lock(recipe, inputs, command, tracker_id=f"{run.name}-{secrets.token_hex(3)}")
    try:
        write_text(run.lock_path, lock.to_yaml())
        parts = Parts(run, lock, inputs, checkpoint=None, say=say)
    except BaseException:
        shutil.rmtree(run.path)
        raise
    return parts.train()


def resume(path: Path, *, recipe: Recipe | None, say: Say) -> dict[str, Any]:
    """Go on with an interrupted run from its newest whole checkpoint, in the same tracker run; returns its summary.

    Raises CheckpointError where the run is finished, or its base, tokenizer or data are not what they were, or where
    a recipe is given that isn't the run's.
    """
    refuse_several_processes()
    run = open_run(path)
    lock = read_lock(run.lock_path)
    if run.finished:
        raise CheckpointError(f"{run.path} is finished; there is nothing to resume. Start a new run from its recipe.")
    if recipe is not None and recipe != lock.recipe:
        raise CheckpointError(
            f"the recipe differs from the one that {run.path} was started with. Leave it out, or start a new run."
        )
    inputs = build.build_inputs(lock.recipe)
    refuse_changes(lock, make_lock(lock.recipe, inputs, lock.command, lock.tracker_id))
    run.claim()
    remove_incomplete(run.checkpoints)
    return Parts(run, lock, inputs, checkpoint=latest_checkpoint(run.checkpoints), say=say).train()


def refuse_several_processes() -> None:
    """Raises LaunchError under a launcher with more than one process: this version trains in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            "this version trains in one process; it was started with WORLD_SIZE={WORLD_SIZE}.".format(**os.environ)
        )


def make_lock(recipe: Recipe, inputs: Inputs, command: str, tracker_id: str) -> Lock:
    """The identity of everything that a run is made of."""
    return Lock(
        recipe=recipe,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        base=inputs.base.fingerprint(),
        tokenizer_sha256=build.tokenizer_sha256(inputs.tokenizer),
        template_sha256=build.template_sha256(inputs.tokenizer),
        data=inputs.data.digests,
        versions=build.versions(),
        device=build.device_facts(inputs.precision),
        tracker_id=tracker_id,
    )


def refuse_changes(then: Lock, now: Lock) -> None:
    """Raises CheckpointError where something that decides the run's outcome changed since it was started."""
    for what in ("base", "tokenizer_sha256", "template_sha256", "data"):
        before, after = getattr(then, what), getattr(now, what)
        if before != after:
            raise CheckpointError(
                f"{what} changed since this run was started: then {before}, now {after}. "
                "Put back what was there, or start a new run."
            )


class Parts:
    """The live parts of one run, from built to closed."""

    def __init__(self, run: RunFolder, lock: Lock, inputs: Inputs, *, checkpoint: Path | None, say: Say):
        self.run, self.lock, self.recipe, self.inputs, self.checkpoint = run, lock, lock.recipe, inputs, checkpoint
        self.before = run.read_summary()
        self.log = logging.FileHandler(run.log_path)
        self.log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.say = self._both(say)
        for line in inputs.data.report.lines():
            self.say(line)
        self.model = build.build_model(self.recipe, inputs)
        self.trainable, self.total = count_parameters(self.model)
        self.say(
            f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / self.total:.2%}), "
            f"in {inputs.precision.name}: {inputs.precision.reason}"
        )
        config = self.recipe.model_dump(mode="json")
        self.tracker = start_tracker(self.recipe.tracking, lock.tracker_id, config, folder=run.path)
        self.progress = Progress(self.say)
        self.metrics = MetricsLog(run.metrics_path, self.tracker, self.progress.show)
        self.stop = OrderlyStop()
        self.trainer: ExactTrainer = build.build_trainer(
            self.recipe,
            inputs,
            self.model,
            checkpoints=run.checkpoints,
            evaluate_first=checkpoint is None,
            callbacks=[self.metrics, KeepBest(self.recipe.train.early_stopping), self.stop],
        )
        self.metrics.trainer = self.trainer

    def _both(self, say: Say) -> Say:
        record = logging.getLogger("finetune.run")
        record.setLevel(logging.INFO)
        record.propagate = False

        def both(line: str) -> None:
            record.info(line)
            say(line)

        return both

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Warnings of the libraries, and what is said, go to run.log while this lasts."""
        loggers = [logging.getLogger(name) for name in ("finetune", "finetune.run", "transformers", "accelerate", "peft")]
        for logger in loggers:
            logger.addHandler(self.log)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(self.log)
            self.log.close()

    def train(self) -> dict[str, Any]:
        """Train to the end, or to an orderly stop; write the result and the summary."""
        self.run.claim()
        started = time.perf_counter()
        status = "failed"
        try:
            with self._recorded():
                self.run.write_summary(self.before | {"status": "running"})
                self.say(f"run folder {self.run.path}")
                if self.checkpoint is not None:
                    self.say(f"going on from {self.checkpoint.name}")
                try:
                    self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
                finally:
                    self.progress.close()
                    self.stop.restore()
                status = "stopped" if self.stop.asked and not self._complete else "finished"
                if status == "finished":
                    self._write_result()
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            summary = self._summary(status, time.perf_counter() - started)
            self.run.write_summary(summary)
            self.tracker.finish()
            self.run.release()
        if status == "stopped":
            self.say(
                f"stopped after step {self.trainer.state.global_step}; go on with: finetune train --resume {self.run.path}"
            )
            raise KeyboardInterrupt
        return summary

    @property
    def _complete(self) -> bool:
        return bool(self.trainer.state.global_step >= self.trainer.state.max_steps)

    def _write_result(self) -> None:
        state = self.trainer.state
        if self.recipe.train.early_stopping is not None and state.best_model_checkpoint is not None:
            self.trainer._load_best_model()
            self.say(f"the result is the best checkpoint, step {state.best_global_step}")
        full = self.recipe.adapter.method == "full"
        final = self.run.model if full else self.run.adapter
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if full:
            self.model.to(self.inputs.precision.dtype).save_pretrained(partial)
        else:
            hub = self.inputs.base.identity["kind"] == "hub"
            name = self.inputs.base.identity["name"] if hub else str(self.inputs.base.folder)
            save_adapter(self.model, partial, name, self.inputs.base.identity.get("commit"))
        self.inputs.tokenizer.save_pretrained(partial)
        partial.rename(final)

    def _summary(self, status: str, seconds: float) -> dict[str, Any]:
        history = self.trainer.state.log_history
        evaluations = [entry for entry in history if "eval_loss" in entry]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        speed = self.metrics.tokens_before / self.metrics.step_seconds if self.metrics.step_seconds else 0.0
        return {
            "status": status,
            "name": self.run.name,
            "created": self.lock.created,
            "base": self.lock.base.get("name", ""),
            "method": self.recipe.adapter.method,
            "steps": self.trainer.state.global_step,
            "total_steps": self.trainer.state.max_steps,
            "tokens": self.before.get("tokens", 0) + self.trainer.tokens_seen,
            "seconds": round(self.before.get("seconds", 0.0) + seconds, 1),
            "tokens_per_second": round(speed, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "trainable_parameters": self.trainable,
            "parameters": self.total,
            "train_loss": losses[-1] if losses else None,
            "evaluation_loss_before": evaluations[0]["eval_loss"] if evaluations else None,
            "evaluation_loss": evaluations[-1]["eval_loss"] if evaluations else None,
            "best_evaluation_loss": self.trainer.state.best_metric,
            "best_step": self.trainer.state.best_global_step,
            "tracker": self.recipe.tracking.tracker,
            "tracker_id": self.lock.tracker_id,
            "torch": torch.__version__,
        }
