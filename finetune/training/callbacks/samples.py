"""Texts that the model writes while it trains, for a person to see what it learns."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from data_prep.disk import append_own, write_private
from data_prep.text import one_line
from finetune.engines.group import Group
from finetune.engines.sharded import evaluable
from finetune.generation.asking import Asked, prompt_ids
from finetune.generation.base_options import unused_options
from finetune.generation.generate import generate
from finetune.recipe.schema.tracking import SamplesSection
from finetune.recipe.secrets import scrubbed
from finetune.runs.folder import whole_entries
from finetune.runs.tracking.base import GeneratedSample, Tracker
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 100


class Samples(TrainerCallback):
    """Greedy answers to the recipe's prompts: before the first step, every so many, and at the end.

    Where each process holds a share of the model all take part, and the main one writes. Greedy decoding
    draws no random number and dropout is off, so a run with samples is bit for bit the one without.
    """

    def __init__(
        self,
        section: SamplesSection,
        trainer: ExactTrainer,
        tokenizer: PreTrainedTokenizerFast,
        path: Path,
        tracker: Tracker,
        restart_clock: Callable[[], None],
        group: Group,
        how: Asked,
    ):
        self.section, self.trainer, self.tokenizer, self.group = section, trainer, tokenizer, group
        self.path, self.tracker, self.restart_clock = path, tracker, restart_clock
        self.last = -1
        self.prompts = [prompt_ids(prompt, tokenizer, how) for prompt in section.prompts]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Before the first step; texts of steps that are taken again go, and a line that a kill cut short."""
        if self.group.is_main and self.path.exists():
            self._keep_up_to(state.global_step)
        if self.trainer.cut_up:
            self.last = int(self.group.text_of_main(str(self.last)))
        if state.global_step == 0 or (self._is_due(state.global_step) and self.last < state.global_step):
            self._write(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Every so many steps."""
        if self._is_due(state.global_step):
            self._write(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last ones, wherever the end came; and each prompt's first and last answer for a person."""
        if self.last != state.global_step:
            self._write(state.global_step)
        if not self.group.is_main:
            return
        entries = list(whole_entries(self.path))
        for number, prompt in enumerate(self.section.prompts):
            before, after = (
                next(
                    islice((entry for entry in entries if entry["step"] == step), number, None),
                    {"answer": ""},
                )
                for step in (0, state.global_step)
            )
            logger.info(f"sample {_short(prompt)!r}")
            logger.info(f"  before {_shown(before['answer'], before.get('cut'))}")
            logger.info(f"  after  {_shown(after['answer'], after.get('cut'))}")

    def _keep_up_to(self, last_step: int) -> None:
        entries = list(whole_entries(self.path))
        counts = Counter(entry["step"] for entry in entries)
        whole = {step for step, count in counts.items() if count == len(self.prompts) and step <= last_step}
        kept = [entry for entry in entries if last_step and entry["step"] in whole]
        write_private(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.last = kept[-1]["step"] if kept else -1

    def _is_due(self, step: int) -> bool:
        return step % self.section.every_steps == 0

    def _write(self, step: int) -> None:
        with evaluable(self.trainer) as model:
            answers = generate(
                model,
                self.tokenizer,
                self.prompts,
                max_new_tokens=self.section.max_new_tokens,
                batch_size=len(self.prompts),
            )
            unused = unused_options(model, self.tokenizer) if step == 0 else []
        self.last = step
        if not self.group.is_main:
            return
        for line in unused:
            logger.info(f"note: {line}")
        pairs = zip(self.section.prompts, answers, strict=True)
        samples = [GeneratedSample(scrubbed(prompt), scrubbed(answer.text)) for prompt, answer in pairs]
        with append_own(self.path) as file:
            for sample, answer in zip(samples, answers, strict=True):
                cut = {} if answer.cut is None else {"cut": answer.cut}
                file.write(
                    json.dumps({"step": step, "prompt": sample.prompt, "answer": sample.answer} | cut) + "\n"
                )
        logger.info(f"sample after step {step}: {_shown(samples[0].answer, answers[0].cut)}")
        self.tracker.log_samples(samples, step)
        self.restart_clock()


def _shown(answer: str, cut: str | None) -> str:
    return f"{_short(answer)!r}" + (f" (cut {cut})" if cut is not None else "")


def _short(text: str) -> str:
    return one_line(text, SHOWN_CHARACTERS)
