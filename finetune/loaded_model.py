"""A loaded model: what finetune.load returns, to generate, chat and score with."""

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

from finetune.errors import FinetuneError
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.runs.folder import RunFolder
from finetune.runs.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from data_prep.messages import Message
    from finetune.evaluation.predictions import OnProgress
    from finetune.generation.asking import Asked
    from finetune.generation.generate import Generated

logger = logging.getLogger(__name__)

Prompt: TypeAlias = "str | Sequence[Mapping[str, Any] | Message]"
"""A text, or a conversation: [{"role": "user", "content": "..."}, ...]."""


class LogLikelihood(NamedTuple):
    """How likely an answer is to a model."""

    log_probability: float
    """ln p(answer | prompt), in nats: the sum over its tokens, the end of its turn included."""
    tokens: int


@dataclass(frozen=True)
class Model:
    """A model that answers, with its tokenizer; see finetune.load."""

    target: Target
    """What was loaded."""
    model: "PreTrainedModel"
    """As transformers, or peft, has it."""
    tokenizer: "PreTrainedTokenizerFast"
    options: EvaluateSection
    """How its run generates: what is taken where a call doesn't say."""

    def __repr__(self) -> str:
        return f"Model({self.target.description})"

    @property
    def asked(self) -> "Asked":
        """How texts are asked: as the run's rows were written; a model of which that isn't known, by its chat
        template."""
        from data_prep.errors import DataError
        from finetune.generation.asking import asked

        target = self.target
        if target.recipe is None:
            return "by the chat template"
        known = RunFolder(target.run).read_summary().get("asked") if target.run is not None else None
        try:
            return known or asked(target.recipe, self.tokenizer)
        except DataError:
            return "by the chat template"  # a run of an earlier version, whose data have gone

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """An answer to each prompt; the options, and answers that were cut, are those of `answers`."""
        from finetune.generation.generate import cut_notes

        answers = self.answers(prompts, **options)
        for line in cut_notes([answer.cut for answer in answers]):
            logger.warning(line)
        return [answer.text for answer in answers]

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int | None = None,
        how: "Asked | None" = None,
        json_schema: Mapping[str, Any] | None = None,
        progress: "OnProgress | None" = None,
    ) -> "list[Generated]":
        """An answer to each text or conversation, and where it was cut.

        Temperature 0 takes the likeliest token each time; above, tokens are drawn from `seed`. `how` asks
        texts "plainly" or "by the chat template", as the run's rows were written where it is None. With a
        `json_schema` each answer is JSON that it describes, unless it is cut; the model isn't shown the
        schema. Raises FinetuneError for a classification head, a conversation without a chat template,
        prompts that leave no position for an answer, and a schema that can't be honoured.
        """
        from finetune.generation.generate import generate

        if isinstance(prompts, str):
            raise FinetuneError("got one text where a list of prompts is expected: generate([text]).")
        _check_options(max_new_tokens, temperature, batch_size, how)
        how = how or self.asked
        return generate(
            self._writer(),
            self.tokenizer,
            [self._ids(prompt, how, system) for prompt in prompts],
            max_new_tokens=max_new_tokens or self.options.max_new_tokens,
            batch_size=batch_size or self.options.batch_size,
            temperature=temperature,
            seed=seed,
            json_schema=json_schema,
            progress=progress,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        how: "Asked | None" = None,
    ) -> Generator[str, None, str | None]:
        """The answer to one prompt in pieces, as they come: together what `generate` gives. Returns where it
        was cut."""
        from finetune.generation.generate import stream

        _check_options(max_new_tokens, temperature, None, how)
        return stream(
            self._writer(),
            self.tokenizer,
            self._ids(prompt, how or self.asked, system),
            max_new_tokens=max_new_tokens or self.options.max_new_tokens,
            temperature=temperature,
            seed=seed,
        )

    def chat(self, system: str | None = None) -> "Chat":
        """A conversation that remembers its turns. Raises FinetuneError where the tokenizer has no chat
        template."""
        self._writer()
        if self.tokenizer.chat_template is None:
            raise FinetuneError(
                "this model's tokenizer has no chat template, so it can't hold a conversation: name one in "
                "the recipe's model.chat_template before training, or let it continue a text."
            )
        return Chat(self, [] if system is None else [{"role": "system", "content": system}])

    @overload
    def score(self, items: Sequence[tuple[str, str]]) -> "list[LogLikelihood] | list[list[float]]": ...

    @overload
    def score(self, items: Sequence[str]) -> list[list[float]]: ...

    def score(self, items: Sequence[Any]) -> "list[LogLikelihood] | list[list[float]]":
        """Of (prompt, answer) pairs, how likely each answer is; of a run of objective reward, the reward of
        each, as a list of one; of a classification head, its outputs (L) for each text.

        The prompt is asked as in `generate`; a prompt of "" leaves the answer a text of its own. Outputs are
        logits, or the number of a regression. Raises FinetuneError for items of the other kind, and for one
        with more tokens than the base has positions; DataError for one that can't be tokenised.
        """
        from finetune.evaluation.text_scores import (
            gives_rewards,
            log_likelihoods,
            outputs_of_texts,
            rewards_of_answers,
        )

        if isinstance(items, str):
            raise FinetuneError(
                "got one text, expected a list: of texts for a head, of (prompt, answer) pairs otherwise."
            )
        if head := self.target.model.head:
            if gives_rewards(self.target.recipe):
                return rewards_of_answers(self.model, self.tokenizer, items, head, self.options.batch_size)
            return outputs_of_texts(
                self.model, self.tokenizer, items, head, self.asked, self.options.batch_size
            )
        sums = log_likelihoods(self.model, self.tokenizer, items, self.asked, self.options.batch_size)
        return [LogLikelihood(-loss.loss_sum, loss.tokens) for loss in sums]

    def _writer(self) -> "PreTrainedModel":
        if self.target.model.classifies:
            raise FinetuneError(
                f"{self.target.description} has a classification head and writes no text: use score or "
                "evaluate."
            )
        return self.model

    def _ids(self, prompt: Prompt, how: "Asked", system: str | None) -> list[int]:
        from finetune.generation.asking import prompt_ids, turns_of
        from finetune.generation.generate import conversation_ids

        if isinstance(prompt, str):
            return prompt_ids(prompt, self.tokenizer, how, system)
        first = [{"role": "system", "content": system}] if system is not None else []
        return conversation_ids(turns_of([*first, *prompt]), self.tokenizer)


@dataclass
class Chat:
    """A conversation with a model."""

    model: Model
    messages: list[dict[str, str]] = field(default_factory=list)
    """The turns so far."""

    def __call__(self, text: str, **options: Any) -> str:
        """Say something; the answer. Options are those of Model.generate."""
        asked = [*self.messages, {"role": "user", "content": text}]
        (answer,) = self.model.generate([asked], **options)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer


def _check_options(
    max_new_tokens: int | None, temperature: float, batch_size: int | None, how: str | None
) -> None:
    """Raises FinetuneError for a value that an option doesn't have."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise FinetuneError(f"{name} is {value!r}; expected a whole number from 1.")
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature >= 0):
        raise FinetuneError(f"temperature is {temperature!r}; expected a number from 0.")
    if how not in (None, "plainly", "by the chat template"):
        raise FinetuneError(f'how is {how!r}; expected "plainly" or "by the chat template".')
