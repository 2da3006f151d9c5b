"""A model's figures on the evaluation rows of a recipe."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.messages import Example, PlainText
from data_prep.render import prompt_and_reference
from finetune.errors import FinetuneError
from finetune.evaluate.data import prepare_data
from finetune.evaluate.generation import generate
from finetune.evaluate.metrics import exact_match, token_loss
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Scores:
    """What was measured; each figure over the same rows."""

    rows: int
    tokens: int
    """Supervised tokens, which the loss is the mean over."""
    loss: float
    perplexity: float
    exact_match: float | None
    """None where no row has a prompt, as plain texts."""
    loss_seconds: float
    generation_seconds: float


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    allow_code: Collection[str] = (),
) -> Scores:
    """Loss, perplexity and exact match on the first evaluate.max_rows evaluation rows (all where that is absent).

    Raises FinetuneError for a recipe without evaluation rows.
    """
    if recipe.data.evaluation is None:
        raise FinetuneError(
            "this recipe has no data.evaluation, so there is nothing to score on: add data.evaluation.fraction or .sources."
        )
    data = prepare_data(recipe, tokenizer, allow_code=allow_code)
    documents = data.evaluation[: recipe.evaluate.max_rows]
    started = time.perf_counter()
    loss = token_loss(model, documents, recipe.evaluate.batch_size)
    measured = time.perf_counter()
    answers = answer_rows(model, tokenizer, recipe, data.evaluation_examples[: recipe.evaluate.max_rows])
    return Scores(
        rows=len(documents),
        tokens=loss.tokens,
        loss=loss.mean,
        perplexity=loss.perplexity,
        exact_match=match_of(answers) if answers else None,
        loss_seconds=round(measured - started, 2),
        generation_seconds=round(time.perf_counter() - measured, 2),
    )


@dataclass(frozen=True)
class Answer:
    """A row, the answer that it holds, and the model's."""

    example: Example
    expected: str
    given: str


def answer_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, examples: Sequence[Example]
) -> list[Answer]:
    """Greedy answers to the rows that have a prompt, in their order, in batches of evaluate.batch_size."""
    asked = [example for example in examples if not (isinstance(example, PlainText) and not example.prompt)]
    pairs = [prompt_and_reference(example, tokenizer) for example in asked]
    given = generate(
        model,
        tokenizer,
        [prompt for prompt, _ in pairs],
        max_new_tokens=recipe.evaluate.max_new_tokens,
        batch_size=recipe.evaluate.batch_size,
    )
    return [Answer(*row) for row in zip(asked, (reference for _, reference in pairs), given, strict=True)]


def match_of(answers: Sequence[Answer]) -> float:
    """The exact match of answers."""
    return exact_match([answer.given for answer in answers], [answer.expected for answer in answers])
