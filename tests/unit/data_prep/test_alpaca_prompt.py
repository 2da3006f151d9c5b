"""The published Alpaca prompt by the name of its chat template, and chat templates whose text is in the
recipe."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import prompt_and_reference, render_prompt
from data_prep.errors import DataError
from data_prep.messages import Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.alpaca import published
from tests.support.models import CHATML
from tests.unit.data_prep.rows import prepared_rows, talk

ROWS: list[dict[str, Any]] = [
    {"instruction": "Say blue.", "output": "blue"},
    {"instruction": "Say it twice.", "input": "blue lamp", "output": "blue lamp\nblue lamp"},
    {"instruction": " Add.\n", "input": "  3\n4  ", "output": " 7"},
    {"instruction": "Say blue.", "input": "", "output": "blue!"},
]


@pytest.fixture
def alpaca(llama_folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(llama_folder, chat_template="alpaca")


@pytest.mark.parametrize("supervise", ["assistant", "all"])
def test_each_row_is_the_published_prompt(
    tmp_path: Path, alpaca: PreTrainedTokenizerFast, supervise: str
) -> None:
    """With and without an input, a row is a BOS, the published prompt, the answer and an EOS, no more; the
    answer and the EOS are learned, and the model is asked with the prompt's tokens."""
    data = prepared_rows(tmp_path, alpaca, ROWS, supervise=supervise, allow_findings=["prompt_not_learned"])
    for row, document, (_, example) in zip(ROWS, data.train, data.training_rows(), strict=True):
        prompt = published(row["instruction"], row.get("input", ""))
        text = alpaca.decode(document.token_ids, clean_up_tokenization_spaces=False)
        assert text == f"<s>{prompt}{row['output']}</s>"
        learned = [token for token, own in zip(document.token_ids, document.supervised, strict=True) if own]
        if supervise == "assistant":
            assert alpaca.decode(learned, clean_up_tokenization_spaces=False) == f"{row['output']}</s>"
        ids, _ = prompt_and_reference(example, alpaca)
        assert alpaca.decode(ids, clean_up_tokenization_spaces=False) == f"<s>{prompt}"
    assert not data.report.findings().keys() - {"prompt_not_learned"}


def test_a_chat_says_the_input_below_its_heading(alpaca: PreTrainedTokenizerFast) -> None:
    """A chat writes the prompt without an input, unless its first question has the heading itself, as the
    saved template does in other programs."""
    assert render_prompt([Message("user", "Say blue.")], alpaca) == f"<s>{published('Say blue.')}"
    asked = [Message("user", "Add.\n\n### Input:\n3 4")]
    assert render_prompt(asked, alpaca) == f"<s>{published('Add.', '3 4')}"
    turns = [{"role": "user", "content": "Add.\n\n### Input:\n3 4"}]
    plain = alpaca.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert plain == f"<s>{published('Add.', '3 4')}"


def test_later_turns_and_a_system_message(alpaca: PreTrainedTokenizerFast) -> None:
    """A system message takes the introduction's place, and turns follow one another below their headings."""
    turns = [
        Message("system", "Be brief."), Message("user", "Hi."), Message("assistant", "Yes."), Message("user", "A?")
    ]  # fmt: skip
    assert render_prompt(turns, alpaca) == (
        "<s>Be brief.\n\n### Instruction:\nHi.\n\n### Response:\nYes.</s>\n\n### Instruction:\nA?\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_other_templates_write_the_input_on_the_next_line(
    tmp_path: Path, llama_folder: Path, name: str
) -> None:
    """Their rows are as they were: the instruction, a line break, the input."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    data = prepared_rows(
        tmp_path, tokenizer, ROWS, allow_findings=["unsupervised_end_of_turn", "prompt_not_learned"]
    )
    assert [example.messages[0].content for _, example in data.training_rows()][
        1
    ] == "Say it twice.\nblue lamp"


def test_earlier_runs_keep_their_prompt(tmp_path: Path, llama_folder: Path) -> None:
    """By preparation 3 the input is below the instruction, without a heading, and a blank line ends the
    row."""
    tokenizer = load_tokenizer(llama_folder, chat_template="alpaca", preparation=3)
    document = prepared_rows(tmp_path, tokenizer, ROWS).train[1]
    prompt = published("Say it twice.\nblue lamp")
    text = tokenizer.decode(document.token_ids, clean_up_tokenization_spaces=False)
    assert text == f"<s>{prompt}blue lamp\nblue lamp</s>\n\n"


def test_a_template_can_be_in_the_recipe(tmp_path: Path, base: Path) -> None:
    """The Jinja text is the template, as if it were in a file; messages call it the recipe's own."""
    (tmp_path / "own.jinja").write_text(CHATML)
    here, there = (load_tokenizer(base, chat_template=text) for text in (CHATML, str(tmp_path / "own.jinja")))
    assert here.chat_template == there.chat_template
    rows = [talk("Hi.", "Yes.")]
    assert list(prepared_rows(tmp_path, here, rows, "messages").train) == list(
        prepared_rows(tmp_path, there, rows, "messages").train
    )
    broken = load_tokenizer(base, chat_template="{% for message in messages %}")
    with pytest.raises(DataError, match=r"the chat template \(the recipe's own\) fails on this conversation"):
        prepared_rows(tmp_path, broken, rows, "messages")
