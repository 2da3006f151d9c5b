"""Loading tokenizers."""

# ruff: noqa: S105, S106 - tokens of a vocabulary are no secrets
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.messages import Message
from data_prep.render import render
from data_prep.tokenizer import load_tokenizer

HELLO = [Message("user", "hi")]


def test_no_torch(tiny_base: Path) -> None:
    """Loading a tokenizer, rendering and tokenising import neither torch nor datasets."""
    program = (
        "import sys, data_prep\n"
        "assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)\n"
        f"tokenizer = data_prep.load_tokenizer({str(tiny_base)!r})\n"
        "rows = data_prep.order_rows('train', 3, 0)\n"
        "examples = [('row', data_prep.parse_row(data_prep.Row('row', row), 'messages')[0][1]) for row in rows]\n"
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
            "{% if strftime_now is defined %}{% for m in messages %}{{ strftime_now('%B %-d') }}{% endfor %}{% endif %}",
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
    assert render(HELLO, load_tokenizer(tiny_base, chat_template=str(path), date_string="2025-01-31")) == "2025/01"
    assert render(HELLO, load_tokenizer(tiny_base, chat_template=str(path), date_string="Tuesday's")) == "Tuesday's"


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


def test_new_tokens(llama_folder: Path) -> None:
    """New tokens are one token each; those that look like control tokens are left out of decoded answers."""
    tokenizer = load_tokenizer(llama_folder, new_tokens=["<|pad|>", "[LAMP]"], pad_token="<|pad|>")
    ids = tokenizer("[LAMP]<|pad|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[LAMP]"
    assert tokenizer.pad_token_id == ids[1]


def test_unknown_template(tiny_base: Path) -> None:
    """A template that is neither a name nor a file is refused with the choices."""
    with pytest.raises(DataError, match=r"did you mean llama3\?.*alpaca, chatml, llama2, llama3, mistral, zephyr"):
        load_tokenizer(tiny_base, chat_template="lama3")


def test_no_tokenizer(tmp_path: Path) -> None:
    """A folder without a fast tokenizer, or with a broken one, is a DataError."""
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="can't be loaded"):
        load_tokenizer(tmp_path)
