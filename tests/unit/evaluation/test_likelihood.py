"""Likelihoods of labels, beside a plain forward pass of each row with each label."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from data_prep.chat.tokenization import Placed, tokenize
from data_prep.messages import Conversation, Example, Message, PlainText
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.evaluation.label_likelihood import label_likelihoods
from finetune.evaluation.predictions import with_answer
from finetune.models.bases.locate import Base
from finetune.models.load import load_model

LABELS = ("lamp", "lamps", "Ada", "a capital of France")


def rows() -> list[Placed]:
    chats = [
        Conversation((Message("user", text), Message("assistant", "lamp")))
        for text in ("Hi", "What is it? " * 5, "x")
    ]
    plain: list[Example] = [PlainText("The sky is ", "blue")]
    return [(f"row {index}", example) for index, example in enumerate([*chats, *plain])]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_they_are_those_of_whole_rows(model: LlamaForCausalLM, tiny_base: Path, batch_size: int) -> None:
    """Prompts once, with the labels behind them: the same to 1e-4 as each row by
    itself."""
    check_whole_rows(model, load_tokenizer(tiny_base), batch_size)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("window", [4, 20, 60, 90, 110, 200])
def test_they_are_those_of_whole_rows_under_a_window(
    kind: str, window: int, tiny_base: Path, tmp_path: Path
) -> None:
    """Also where layers forget the beginning of a row: in its prompt, in an answer, at its last token, or
    never."""
    tokenizer = load_tokenizer(tiny_base)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, sliding_window=window,
        **({"use_sliding_window": True, "max_window_layers": 1} if kind == "qwen2" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    base = Base(tmp_path, {"kind": "folder", "name": str(tmp_path)})
    check_whole_rows(load_model(base, dtype=torch.float64, attention="sdpa").eval(), tokenizer, 3)


def check_whole_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    """Compare with one forward pass for each row and label."""
    found = label_likelihoods(model, tokenizer, rows(), LABELS, batch_size)
    expected = np.zeros_like(found)
    for index, (place, example) in enumerate(rows()):
        documents = tokenize([(place, with_answer(example, label)) for label in LABELS], tokenizer)
        # A label's first letters may run together with the end of the prompt: they count from the first token
        # that differs.
        columns = zip(*(document.token_ids for document in documents), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        first = min(shared, *(document.spans[0][0] for document in documents))
        for column, document in enumerate(documents):
            with torch.no_grad():
                scores = model(torch.tensor([document.token_ids])).logits[0].double().log_softmax(-1)
            scored = range(first, document.spans[-1][1])
            expected[index, column] = sum(float(scores[at - 1, document.token_ids[at]]) for at in scored)
    assert found == pytest.approx(expected, abs=1e-4 * abs(expected).max())


def test_a_label_that_another_begins_with_gains_nothing(model: LlamaForCausalLM, tiny_base: Path) -> None:
    """The end of the turn counts: "lamp" isn't likelier than "lamps" because it is shorter."""
    tokenizer = load_tokenizer(tiny_base)
    found = label_likelihoods(model, tokenizer, rows()[:1], ("lamp", "lamps"), 4)
    ids = tokenizer("lamps", add_special_tokens=False)["input_ids"]
    shorter = tokenizer("lamp", add_special_tokens=False)["input_ids"]
    assert ids[: len(shorter)] == shorter
    (short,) = tokenize([("row", with_answer(rows()[0][1], "lamp"))], tokenizer)
    assert short.token_ids[short.spans[-1][1] - 1] == tokenizer.eos_token_id
    assert found[0, 0] != pytest.approx(found[0, 1])


def test_a_plain_text_keeps_the_blanks_around_its_answer(tiny_base: Path) -> None:
    """What is scored is what was learned: a completion that begins with a blank keeps it, whatever the
    label."""
    assert with_answer(PlainText("The sky is:", " blue\n"), "red") == PlainText("The sky is:", " red\n")
    assert with_answer(PlainText("The sky is ", "blue"), "red") == PlainText("The sky is ", "red")


def test_letters_that_run_together_with_the_prompt_count(model: LlamaForCausalLM, tiny_base: Path) -> None:
    """A label whose first letters stand in the prompt's last token is not only its end token."""
    tokenizer = load_tokenizer(tiny_base)
    example: Example = PlainText("the ca", "pital")
    likely = label_likelihoods(model, tokenizer, [("row", example)], ("pital", "x"), 1)[0, 0]
    (document,) = tokenize([("row", example)], tokenizer)
    with torch.no_grad():
        scores = model(torch.tensor([document.token_ids])).logits[0].double().log_softmax(-1)
    end_alone = float(scores[-2, document.token_ids[-1]])
    assert likely < end_alone - 1
