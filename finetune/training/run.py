"""One training run from recipe to run folder: the lifecycle only; build.py makes the parts, result.py writes the outcome."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.disk import write_private
from data_prep.temporary import sweep
from finetune import environment, signals
from finetune.errors import CheckpointError, FinetuneError
from finetune.evaluation.asking import asked
from finetune.evaluation.scores import Report
from finetune.evaluation.tables import score_lines
from finetune.model.adapter import count_parameters
from finetune.model.precision import choose_device, choose_threads
from finetune.recipe.lock import CURRENT_RULES, Lock, Rules, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.tracking import TrackingSection
from finetune.recipe.secrets import scrubbed_recipe, scrubbed_values
from finetune.recipe.tracking import tracked, tracker_id
from finetune.runs.commands import shell_command
from finetune.runs.compare import is_metric
from finetune.runs.folder import RunFolder, create_run, open_run
from finetune.runs.trackers import start_tracker
from finetune.training import build
from finetune.training.batches import StreamFeed
from finetune.training.build import Inputs
from finetune.training.callbacks import KeepBest, MetricsLog, OrderlyStop, StartHash
from finetune.training.checkpoints import check_checkpoint, latest_checkpoint, remove_incomplete
from finetune.training.contents import check_fit, read_state
from finetune.training.further import command_to_train_further
from finetune.training.group import Group, contact, holds_shares, this_group
from finetune.training.identity import (
    inexact_because,
    make_lock,
    refuse_another_engine_than,
    refuse_changes,
    refuse_differences,
    refuse_foreign_pickles,
    refuse_other_engine,
)
from finetune.training.integrations import add_integration
from finetune.training.journal import Say, journal
from finetune.training.memory import allocator_name, memory_advice
from finetune.training.metrics import TaskMetrics
from finetune.training.progress import Progress
from finetune.training.read_back import describe_checkpoint, notes_on_result
from finetune.training.rehearsal import Rehearsal
from finetune.training.result import best_checkpoint, summary_of, write_metrics, write_result, written_type
from finetune.training.samples import Samples
from finetune.training.trainer import ExactTrainer


def start(
    recipe: Recipe,
    *,
    name: str,
    command: str,
    say: Say,
    allow_code: frozenset[str] = frozenset(),
    folder: Path | None = None,
    origins: dict[str, str] | None = None,
    accept: Callable[[Lock], None] = lambda lock: None,
    rules: Rules | None = None,
) -> dict[str, Any]:
    """Train a recipe in a new run folder, or in `folder`, which its launcher made; returns its summary.

    `origins` says where each value of the recipe was written; `accept` may raise when it sees what the run is made of;
    `rules` are an earlier version's, where its run is done again.
    Under a launcher each process calls this; the main one says what there is to say. Nothing is left behind where it can't
    start. Raises the errors of finetune.errors and data_prep.errors.
    """
    environment.settle_training()
    recipe = tracked(recipe)
    group = this_group()
    say = say if group.is_main else _silent
    run: RunFolder | None = None
    made = folder is None and group.is_main
    with signals.listening() as requests:
        try:
            if group.is_main:
                sweep(Path(tempfile.gettempdir()))
            inputs = build.build_inputs(recipe, rules=rules, allow_code=allow_code, say=say)
            group.form()
            if made:
                run = create_run(Path(recipe.output.folder), recipe.output.name or name)
                folder = run.path
            run = RunFolder(Path(group.text_of_main(str(folder.resolve()) if folder is not None else "")))
            lock = make_lock(recipe, inputs, command, tracker_id(recipe, f"{run.name}-{secrets.token_hex(3)}"), origins)
            accept(lock)
            refuse_differences(group, lock)
            with claimed(run, group), journal(run.log_of(group.rank), say) as tell:
                if group.is_main:
                    write_lock(run, lock, tell)
                parts = Parts(run, lock, inputs, group=group, checkpoint=None, requests=requests, say=tell)
                with deferring(requests, group):
                    made = False  # from here on the folder says what became of the run
                    summary = parts.train()
        except BaseException:
            if made and run is not None:
                shutil.rmtree(run.path)
            elif run is not None and group.is_main and not run.summary_path.exists():
                run.lock_path.unlink(missing_ok=True)  # so that the launcher knows: there is nothing to go on with
            raise
    group.leave()
    return summary


def resume(
    path: Path,
    *,
    recipe: Recipe | None,
    say: Say,
    allow_code: frozenset[str] = frozenset(),
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Go on with an interrupted run from its newest whole checkpoint, in the same tracker run; returns its summary.

    Raises CheckpointError where the run is finished, or its base, tokenizer, data or precision are not what they were, where
    a recipe is given that isn't the run's, or where DeepSpeed would load somebody else's checkpoint and `trust_checkpoint`
    doesn't allow it; LaunchError where another process trains it.
    """
    environment.settle_training()
    group = this_group()
    if trust_checkpoint and not environment.engine().startswith("zero"):
        raise CheckpointError("--trust-checkpoint is about DeepSpeed's checkpoints, and this is not DeepSpeed: leave it out.")
    run, say = open_run(path), say if group.is_main else _silent
    with signals.listening() as requests, claimed(run, group), journal(run.log_of(group.rank), say) as tell:
        lock = read_lock(run.lock_path)
        if run.finished:
            raise CheckpointError(
                f"{run.path} is finished, and its schedule came to its end; there is nothing to resume. To train its result "
                f"further, in a new run with a schedule of its own:\n    {command_to_train_further(run, lock)}"
            )
        if lock.rules != CURRENT_RULES:
            tell(f"this run goes on by the rules of the version that started it: {lock.rules}")
        if recipe is not None and recipe != lock.recipe:
            raise CheckpointError(
                f"the recipe differs from the one that {run.path} was started with. Leave it out, or start a new run."
            )
        inputs = build.build_inputs(lock.recipe, rules=lock.rules, allow_code=allow_code, say=tell)
        now = make_lock(lock.recipe, inputs, lock.command, lock.tracker_id)
        refuse_changes(lock, now)
        if any(run.checkpoints.iterdir()):
            refuse_another_engine_than(lock, now)
        for line in inexact_because(lock, now):
            tell(f"warning: {line}; the result may differ in its last digits from an uninterrupted run's")
        group.form()
        refuse_differences(group, now)
        if group.is_main:
            remove_incomplete(run.checkpoints)
        group.wait()
        checkpoint = latest_checkpoint(run.checkpoints, tell, check_checkpoint)
        if checkpoint is not None and not trust_checkpoint:
            refuse_foreign_pickles(checkpoint, group)
        parts = Parts(run, lock, inputs, group=group, checkpoint=checkpoint, requests=requests, say=tell)
        with deferring(requests, group):
            summary = parts.train()
    group.leave()
    return summary


def write_lock(run: RunFolder, lock: Lock, tell: Say) -> None:
    """What the run is made of, into its folder."""
    if lock.without_secrets() != lock.as_dict():
        tell(
            "warning: there is a secret in the recipe or the command; the run's files are written without it, so "
            "the run can't be resumed, merged or reproduced where it is needed. Give secrets by the environment."
        )
    write_private(run.lock_path, lock.to_yaml())


def _silent(line: str) -> None:
    """What the processes beside the main one say to the person."""


@contextmanager
def claimed(run: RunFolder, group: Group) -> Iterator[None]:
    """The run is this launch's while this lasts: the main process holds its lock."""
    with run.claimed() if group.is_main else nullcontext():
        yield


@contextmanager
def deferring(requests: signals.Requests, group: Group) -> Iterator[None]:
    """While this lasts a request to stop waits for the step's end; all processes begin, or none does.

    Raises KeyboardInterrupt where it came before.
    """
    requests.deferred = True
    try:
        with contact(group):
            if group.any(requests.stop is not None):
                raise KeyboardInterrupt
        yield
    finally:
        requests.deferred = False


class Parts:
    """The live parts of one run, from built to closed."""

    def __init__(
        self,
        run: RunFolder,
        lock: Lock,
        inputs: Inputs,
        *,
        group: Group,
        checkpoint: Path | None,
        requests: signals.Requests,
        say: Say,
    ):
        self.run, self.lock, self.recipe, self.inputs, self.checkpoint = run, lock, lock.recipe, inputs, checkpoint
        self.group, self.say = group, say
        requests.say = say
        for line in inputs.data.report.lines():
            say(line)
        self.keep_best, self.stop = KeepBest(self.recipe.train, say, inputs.rules.training), OrderlyStop(requests, group)
        with memory_advice():
            self.trainer = self._build()
        self.checkpoint = self._that_fits()
        refuse_other_engine(self.trainer, group)
        measures = bool(self.recipe.evaluate.metrics)
        self.metrics = TaskMetrics(self.recipe, inputs, self.trainer, group) if measures else None
        self.report: Report | None = None
        allowed = inputs.allow_code
        self.asked = asked(self.recipe, inputs.tokenizer, allow_code=allowed) if self.recipe.model.head is None else None
        self.changed: bool | None = None
        self.trainer.add_callback(StartHash(self.trainer, written_type(self.recipe, inputs)))
        if self.recipe.train.rehearsal and not self.trainer.is_deepspeed_enabled:
            # DeepSpeed reduces gradients while it goes backward, and has no way to take that back.
            self.trainer.add_callback(Rehearsal(self.trainer, self.recipe, say))
        # Last, because they are seen from outside: a tracker's run and a moving line, for a run that can start.
        config = scrubbed_recipe(self.recipe.model_dump(mode="json"))
        tracking = TrackingSection.model_validate(scrubbed_values(self.recipe.tracking.model_dump(mode="json")))
        if not group.is_main:
            tracking = TrackingSection(tracker="none", samples=tracking.samples if holds_shares() else None)
        self.tracker = start_tracker(tracking, lock.tracker_id, config, folder=run.path, say=say)
        self.progress = Progress(say)
        metrics = run.metrics_path if group.is_main else None
        log = MetricsLog(metrics, self.trainer, self.tracker, self.progress.show)
        self.trainer.add_callback(log)
        self.integration = add_integration(self.trainer, tracking.tracker, run.path, self.tracker)
        if tracking.samples is not None:
            clock = log.restart
            assert self.asked is not None  # noqa: S101 - the rules refuse samples of a head
            path, how = run.samples_path, self.asked
            texts = Samples(tracking.samples, self.trainer, inputs.tokenizer, path, self.tracker, say, clock, group, how)
            self.trainer.add_callback(texts)

    def _build(self) -> ExactTrainer:
        threads, device = choose_threads(), choose_device()
        where = f"the CPU, {threads} threads" if device.type == "cpu" else f"{device}, {threads} threads on the host"
        self.say(f"computing on {where}, with {allocator_name()}")
        model = build.build_model(self.recipe, self.inputs)
        trainable, total = count_parameters(model)
        precision = self.inputs.precision
        self.say(
            f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%}), in {precision.name}: {precision.reason}"
        )
        trainer = build.build_trainer(
            self.recipe,
            self.inputs,
            model,
            checkpoints=self.run.checkpoints,
            evaluate_first=self.checkpoint is None,
            callbacks=[self.keep_best, self.stop],
        )
        trainer.describe = lambda checkpoint: describe_checkpoint(checkpoint, self.recipe, self.inputs, trainer.model)
        return trainer

    def _that_fits(self) -> Path | None:
        """The checkpoint, or an earlier one where it is of another model than this."""
        if self.checkpoint is None:
            return None
        chosen, trainer = self.checkpoint, self.trainer

        def check(checkpoint: Path) -> None:
            if checkpoint != chosen:
                check_checkpoint(checkpoint)
            check_fit(checkpoint, trainer)

        return latest_checkpoint(self.run.checkpoints, self.say, check, newest=chosen)

    def train(self) -> dict[str, Any]:
        """Train to the end, or to an orderly stop; write the result and the summary."""
        status, error_text = "failed", None
        try:
            if self.group.is_main:
                # Whole from the start: a run that is killed is listed by it.
                known = self._summary("running", None)
                self.run.write_summary(known | self.run.read_summary() | {"status": "running", "error": None})
            self.say(f"run folder {self.run.path}")
            with memory_advice(), contact(self.group):
                self._take_steps()
                status = "finished" if self._complete else "stopped"
                if status == "finished":
                    self._write_result()
                    self._measure()
                    if self.run.adapter.is_dir():
                        self.tracker.upload(self.run.adapter)
        except KeyboardInterrupt:
            status = "stopped"
            raise
        except BaseException as error:
            status, error_text = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            self.progress.close()
            try:
                summary = self._write_summary(status, error_text)
            finally:
                self.integration.finish()
                self.tracker.finish()
        if status == "stopped":
            self.say(f"stopped after step {self.trainer.state.global_step}; go on with: {self._resume_command()}")
            self.group.leave()
            raise KeyboardInterrupt
        return summary

    def _resume_command(self) -> str:
        engine, allowed = environment.engine(), sorted(self.inputs.allow_code)
        launch = ["--launch", engine, "--processes", str(self.group.world_size)] if self.group.world_size > 1 else []
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
        return found | {"asked": self.asked}

    def _write_summary(self, status: str, error_text: str | None) -> dict[str, Any]:
        found = self._summary(status, error_text)
        if self.group.is_main:
            self.run.write_summary(found)
            if status == "finished":
                final = {name: value for name, value in found.items() if is_metric(name)}
                write_private(self.run.lock_path, replace(self.lock, final=final).to_yaml())
        return found

    def _take_steps(self) -> None:
        if self.checkpoint is None:
            self.trainer.train()
            return
        self.say(f"going on from {self.checkpoint.name}")
        self.trainer.load_counters(self.checkpoint)
        state = read_state(self.checkpoint)
        if state.global_step >= self.trainer.args.max_steps or self.keep_best.says_stop(state):
            self.say("all steps were taken; what is left is to write the result")
            self.trainer.load_finished(self.checkpoint)
        else:
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint))

    @property
    def _complete(self) -> bool:
        # An early stop is an end, also where Ctrl-C came in the same step.
        state = self.trainer.state
        return bool(state.global_step >= self.trainer.args.max_steps) or self.keep_best.says_stop(state)

    def _write_result(self) -> None:
        if isinstance(self.trainer.feed, StreamFeed):
            for line in self.trainer.feed.stream.report.lines()[:-1]:
                self.say(line)
        state = self.trainer.state
        best = best_checkpoint(self.trainer, self.run.checkpoints)
        if self.recipe.train.keeps_best and best is not None:
            state.best_model_checkpoint = str(best)
            self.trainer._load_best_model()
            self.say(self.keep_best.verdict(state))
        elif self.recipe.train.keeps_best:
            best_by = self.recipe.train.best_by or "loss"
            self.say(f"warning: no checkpoint is the best by {best_by} (was it ever a number?): the result is the last step's")
        written = write_result(self.run, self.lock, self.inputs, self.trainer, self.group)
        for line in notes_on_result(self.recipe, self.inputs):
            self.say(line)
        if self.trainer.start_hash:  # checkpoints of earlier versions don't say
            self.changed = written != self.trainer.start_hash
        if self.changed is False:
            self.say(
                "warning: nothing was learned: each trained weight is bit for bit what it was before the first step. "
                f"train.learning_rate ({self.recipe.train.learning_rate:g}) may be too small for it; metrics.jsonl has the "
                "gradient's norm of each step."
            )

    def _measure(self) -> None:
        """The recipe's metrics of the result, on all evaluation rows."""
        if self.metrics is None:
            return
        self.say("measuring the result on the evaluation rows")
        try:
            self.report = self.metrics.at_end()
        except FinetuneError as error:
            # The result is there, and good; what could be known before was refused before the training.
            self.say(f"warning: the metrics could not be measured: {error}")
            return
        for line in (*score_lines(self.report, None), *(f"note: {note}" for note in self.report.notes)):
            self.say(line)
        if self.group.is_main:
            write_metrics(self.run, self.report, self.trainer.state.global_step)
        final = {f"final/{name}": value for name, value in self.report.values.items()}
        self.tracker.log(final, self.trainer.state.global_step)
        self.integration.log_result(final)
