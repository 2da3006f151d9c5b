"""A Modelfile whose template writes what the tokenizer's does, or none."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.chat.rendering import ChatRenderer
from data_prep.config import CHAT_TEMPLATES
from data_prep.messages import Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import ExportError
from finetune.exporting.export import export
from finetune.exporting.ollama.go_template import render
from finetune.exporting.ollama.translation import TEMPLATES, translate, written_by_ollama
from finetune.exporting.options import ExportOptions
from tests.support.exports import whole
from tests.support.models import CHATML, save_tiny_llama

TALK = [
    Message("user", "Hello {{ x }}"),
    Message("assistant", "Hi, \"you\"\nthere."),
    Message("user", "你好?"),
]  # fmt: skip
DEFAULT = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"


@pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "alpaca"])
def test_a_named_template_is_written_as_ours_is(name: str, tiny_base: Path) -> None:
    """Of a conversation that the translation was not chosen by, with a system message and without."""
    tokenizer = load_tokenizer(tiny_base, chat_template=name)
    found, renderer = translate(tokenizer), ChatRenderer(tokenizer)
    assert found.name == name
    for messages in (TALK, [Message("system", "Say it."), *TALK]):
        assert written_by_ollama(found.text, messages, found.system) == renderer.render_prompt(messages)


def test_each_translation_is_of_a_named_template() -> None:
    """Alpaca's first sentence depends on the question, which Go's template can't look into."""
    assert set(CHAT_TEMPLATES) - set(TEMPLATES) == {"alpaca"}


def test_a_system_message_of_the_template_s_own_goes_into_the_modelfile(tmp_path: Path) -> None:
    """SmolLM2's and Qwen's templates have one."""
    save_tiny_llama(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = DEFAULT + CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    export(whole(tmp_path / "model"), tmp_path / "out", ExportOptions("ollama", "q8_0", check="tensors"))
    assert (tmp_path / "out" / "Modelfile").read_text() == (
        'FROM ./model.gguf\nTEMPLATE """{{ range $i, $_ := .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
        '{{ end }}<|im_start|>assistant\n"""\nSYSTEM """You help."""\nPARAMETER stop "<|im_end|>"\n'
    )


@pytest.mark.parametrize(
    "template",
    [
        "alpaca",
        "{% for message in messages %}{{ message['content'][::-1] }}<|im_end|>{% endfor %}",
        CHATML.replace("{{ message['role'] }}", "{{ 'user' if loop.index > 5 else message['role'] }}"),
    ],
    ids=["alpaca", "backwards", "another from the sixth message on"],
)
def test_a_template_that_go_can_t_write_is_refused(template: str, tiny_base: Path) -> None:
    """And not guessed."""
    with pytest.raises(ExportError, match="can't be written in Go's syntax"):
        translate(load_tokenizer(tiny_base, chat_template=template))


def test_blanks_that_a_template_takes_away_are_told(tiny_base: Path) -> None:
    """LLaMA 3's strips each message."""
    found = translate(load_tokenizer(tiny_base, chat_template="llama3"))
    assert "takes blanks away around a message" in found.notes[0]


@pytest.mark.parametrize(
    "text", ["{{ printf .X }}", "{{ range .Messages }}{{ end }}", "{{ end }}", "{{ .X | len }}"]
)
def test_go_beyond_this_part_of_it_is_an_error(text: str) -> None:
    """So that no translation goes beyond it."""
    with pytest.raises((ValueError, KeyError)):
        render(text, {"X": 1, "Messages": []})
