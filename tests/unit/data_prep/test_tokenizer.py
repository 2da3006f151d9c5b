"""Loading tokenizers."""

# ruff: noqa: S105 - tokens of a vocabulary are no secrets
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.chat.rendering import render
from data_prep.errors import DataError
from data_prep.messages import Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from data_prep.tokenizers.tokens import check_ids, ids_of, text_of

HELLO = [Message("user", "hi")]


def test_no_torch(tiny_base: Path) -> None:
    """Loading a tokenizer, rendering and tokenising import neither torch nor datasets."""
    program = (
        "import sys, data_prep\n"
        "assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)\n"
        f"tokenizer = data_prep.load_tokenizer({str(tiny_base)!r})\n"
        "rows = data_prep.order_rows('train', 3, 0)\n"
        "examples = [('row', data_prep.parse_row(data_prep.Row('row', row), 'messages')[0][1]) for row in "
        "rows]\n"
        "documents = data_prep.tokenize(examples, tokenizer)\n"
        "assert len(documents) == 3 and data_prep.end_of_turn_ids(tokenizer)\n"
        "assert not {'torch', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ date_string }}", "26 Jul 2024"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ strftime_now('%Y-%m-%d %A') }}", "2024-07-26 Friday"),
        (
            "{% if strftime_now is defined %}{% for m in messages %}{{ strftime_now('%B %-d') }}{% endfor "
            "%}{% endif %}",
            "July 26",
        ),
        ("\n{{ strftime_now('%y') }}", "\n24"),
    ],
)
def test_date_is_pinned(template: str, expected: str, tiny_base: Path, tmp_path: Path) -> None:
    """A template gets the pinned date, however it asks for it and in the format it asks for."""
    path = tmp_path / "date.jinja"
    path.write_text(template)
    assert render(HELLO, load_tokenizer(tiny_base, chat_template=str(path))) == expected


def test_other_dates(tiny_base: Path, tmp_path: Path) -> None:
    """The date is the recipe's; one that is no date is written as it is."""
    path = tmp_path / "date.jinja"
    path.write_text("{{ strftime_now('%Y/%m') }}")
    assert (
        render(HELLO, load_tokenizer(tiny_base, chat_template=str(path), date_string="2025-01-31"))
        == "2025/01"
    )
    assert (
        render(HELLO, load_tokenizer(tiny_base, chat_template=str(path), date_string="Tuesday's"))
        == "Tuesday's"
    )


def test_saved_template_is_the_original(tiny_base: Path, tmp_path: Path) -> None:
    """What is saved with a model is the template as it was written, with no date in it."""
    path = tmp_path / "date.jinja"
    path.write_text("{{ strftime_now('%Y') }}")
    tokenizer = load_tokenizer(tiny_base, chat_template=str(path))
    render(HELLO, tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.chat_template == "{{ strftime_now('%Y') }}"
    assert render(HELLO, again) == "2024"


def test_pad_token(tiny_base: Path, llama_folder: Path) -> None:
    """The pad token is the one named, else the tokenizer's own, else its end token."""
    assert load_tokenizer(tiny_base).pad_token == "<|im_end|>"
    assert load_tokenizer(llama_folder).pad_token == "</s>"
    assert load_tokenizer(llama_folder, pad_token="<unk>").pad_token == "<unk>"
    with pytest.raises(DataError, match="pad_token '<pad>' is not in the vocabulary"):
        load_tokenizer(llama_folder, pad_token="<pad>")


@pytest.mark.parametrize("value", ["null", [None], {"x": 1}, True])
def test_a_length_that_is_no_number_is_named(value: Any, tiny_base: Path, tmp_path: Path) -> None:
    """transformers compares each text's length with it, and would fail there."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": value}))
    with pytest.raises(DataError, match=r"tokenizer_config.json: model_max_length is"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_pad_token_that_is_none(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """Rows can't be filled up with a text that the vocabulary lacks, be it named for it or stand in for
    it."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"pad_token": None, name: ""}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="has the pad token ''"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, pad_token="<|endoftext|>").pad_token_id == 0


def test_new_tokens(llama_folder: Path) -> None:
    """New tokens are one token each; those that look like control tokens are left out of decoded answers."""
    tokenizer = load_tokenizer(llama_folder, new_tokens=["<|pad|>", "[LAMP]"], pad_token="<|pad|>")
    ids = tokenizer("[LAMP]<|pad|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[LAMP]"
    assert tokenizer.pad_token_id == ids[1]


def test_unknown_template(tiny_base: Path) -> None:
    """A template that is neither a name nor a file is refused with the choices."""
    with pytest.raises(
        DataError, match=r"did you mean llama3\?.*alpaca, chatml, llama2, llama3, mistral, zephyr"
    ):
        load_tokenizer(tiny_base, chat_template="lama3")


def test_no_tokenizer(tmp_path: Path) -> None:
    """A folder without a fast tokenizer, or with a broken one, is a DataError."""
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="can't be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("index", [10_000_000, 2**31, 2**32 - 1])
def test_an_id_far_beyond_the_others_is_refused(index: int, tiny_base: Path, tmp_path: Path) -> None:
    """It takes memory for each number below it, of which the process can die."""
    changed = with_tokenizer(
        tiny_base, tmp_path / "base", lambda document: document["model"]["vocab"].update(far=index)
    )
    with pytest.raises(DataError, match=rf"'far' the id {index:,}.*expected ids below 10,000,000"):
        load_tokenizer(changed)


def test_a_gap_in_the_ids_needs_room_in_the_embedding(tiny_base: Path, tmp_path: Path) -> None:
    """A token without a row can't be read by the model; an embedding grows to the number of tokens, and no
    further."""
    size = len(load_tokenizer(tiny_base))
    changed = with_tokenizer(
        tiny_base, tmp_path / "base", lambda document: document["model"]["vocab"].update(far=size + 5)
    )
    tokenizer = load_tokenizer(changed)
    assert len(tokenizer) == size + 1
    check_ids(tokenizer, size + 6)
    with pytest.raises(DataError, match=f"'far' the id {size + 5}"):
        check_ids(tokenizer, size + 5)
    check_ids(load_tokenizer(tiny_base), 1)  # it will have grown


def test_a_post_processor_holds_the_text_once(tiny_base: Path, tmp_path: Path) -> None:
    """One that repeats texts or leaves them out would do so in every row, and say nothing."""
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    for single in ([], [text, text], [{"Sequence": {"id": "B", "type_id": 0}}]):
        template = {"type": "TemplateProcessing", "single": single, "pair": [text], "special_tokens": {}}
        for processor in (template, {"type": "Sequence", "processors": [template]}):
            folder = tmp_path / f"base{len(list(tmp_path.iterdir()))}"
            with_tokenizer(
                tiny_base, folder, lambda document, value=processor: document.update(post_processor=value)
            )
            with pytest.raises(DataError, match="expected the text, A, once"):
                load_tokenizer(folder)
    whole = {"type": "TemplateProcessing", "single": [text], "pair": [text], "special_tokens": {}}
    load_tokenizer(
        with_tokenizer(tiny_base, tmp_path / "whole", lambda document: document.update(post_processor=whole))
    )


def test_a_text_that_the_tokenizer_fails_at_is_named(tiny_base: Path, tmp_path: Path) -> None:
    """Words that a tokenizer of words doesn't know, and that it has no token for, are a DataError with the
    text."""

    def of_words(document: dict[str, Any]) -> None:
        vocabulary = {
            word: index for index, word in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "blue"))
        }
        document["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<nothing>"}

    tokenizer = load_tokenizer(with_tokenizer(tiny_base, tmp_path / "base", of_words))
    assert ids_of("blue", tokenizer) == [3]
    assert text_of([3], tokenizer) == "blue"
    with pytest.raises(DataError, match=r"the tokenizer can't read 'seven': WordLevel error"):
        ids_of("seven", tokenizer)


def with_tokenizer(base: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a base whose tokenizer.json was changed."""
    shutil.copytree(base, folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder
