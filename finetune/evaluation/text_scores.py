"""Texts of the caller's, scored: how likely an answer is, and what a classification head makes of a text."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.tokenization import Tokenization
from data_prep.config import HeadSection
from data_prep.encoding import RowEncoding
from data_prep.labels import LabelEncoding, answer_of
from data_prep.messages import Conversation, Example, Message, PlainText
from data_prep.pairs import RewardEncoding
from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluation.head_predictions import classify
from finetune.evaluation.losses import document_losses
from finetune.generation.asking import Asked
from finetune.generation.model import causal_model
from finetune.objectives import kind_of
from finetune.objectives.reward import Reward
from finetune.recipe.schema import Recipe
from finetune.scoring.measured import LossSum


def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    how: Asked,
    batch_size: int,
) -> list[LossSum]:
    """The cross-entropy of each (prompt, answer)'s answer, its end of turn included; an empty prompt leaves a
    plain text.

    Raises FinetuneError for an item that is no pair of texts, DataError for one that can't be tokenised.
    """
    examples = [_example(pair, number, how) for number, pair in enumerate(pairs)]
    documents = _documents(model, examples, Tokenization(tokenizer, "last"))
    return document_losses(model, documents, batch_size)


def _example(pair: tuple[str, str], number: int, how: Asked) -> Example:
    if not (
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
    ):
        raise FinetuneError(f"item {number} is {pair!r:.80}; expected a pair of texts, (prompt, answer).")
    prompt, answer = pair
    if how == "plainly" or not prompt:
        return PlainText(prompt, answer)
    return Conversation((Message("user", prompt), Message("assistant", answer)))


def outputs_of_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    head: HeadSection,
    how: Asked,
    batch_size: int,
) -> list[list[float]]:
    """A head's outputs (N x L) for N texts, each read as its rows were. Raises FinetuneError for an item that
    is no text."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise FinetuneError(f"item {number} is {text!r:.80}; expected a text.")
    any_answer = answer_of([0.0] * head.outputs, head)  # which the head doesn't read
    examples = [_example((text, any_answer), number, how) for number, text in enumerate(texts)]
    return _outputs(model, tokenizer, examples, head, LabelEncoding(head), batch_size)


def gives_rewards(recipe: Recipe | None) -> bool:
    """Whether a run's head ranks answers."""
    return recipe is not None and kind_of(recipe) is Reward


def rewards_of_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    head: HeadSection,
    batch_size: int,
) -> list[list[float]]:
    """A reward model's number (N x 1) for each (prompt, answer), read behind the answer as in training.
    Raises FinetuneError for an item that is no pair of texts, or has an empty prompt."""
    examples = [_example(pair, number, "by the chat template") for number, pair in enumerate(pairs)]
    for number, example in enumerate(examples):
        if isinstance(example, PlainText):
            raise FinetuneError(f"item {number} has no prompt: a reward is that of an answer to one.")
    return rewards_of_examples(model, tokenizer, examples, head, batch_size)


def rewards_of_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    head: HeadSection,
    batch_size: int,
) -> list[list[float]]:
    """A reward model's number (N x 1) for the last answer of each example."""
    return _outputs(model, tokenizer, examples, head, RewardEncoding(), batch_size)


def _outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    head: HeadSection,
    encoding: RowEncoding,
    batch_size: int,
) -> list[list[float]]:
    documents = _documents(model, examples, Tokenization(tokenizer, "last", encoding=encoding))
    outputs, _ = classify(model, documents, head, batch_size)
    found: list[list[float]] = outputs.tolist()
    return found


def _documents(
    model: PreTrainedModel, examples: Sequence[Example], tokenization: Tokenization
) -> list[Document]:
    """The examples as documents. Raises FinetuneError for one that is longer than the base."""
    placed = [(f"item {number}", example) for number, example in enumerate(examples)]
    documents = [document for document, _ in tokenization.run(placed)]
    positions = int(causal_model(model).config.max_position_embeddings)
    for document in documents:
        if len(document.token_ids) > positions:
            raise FinetuneError(
                f"{document.place} has {len(document.token_ids):,} tokens, and this base {positions:,} "
                "positions: shorten it."
            )
    return documents
