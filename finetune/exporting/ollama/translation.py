"""A chat template of a tokenizer in Go's syntax, for the conversations that Ollama renders.

Nothing is guessed: a translation counts where it writes what the tokenizer's own template does, of every kind
of conversation here. Ollama's template gets .Messages (of .Role and .Content) and .System, the system
message's text.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from transformers import PreTrainedTokenizerFast

from data_prep.chat.chat_templates import adds_bos
from data_prep.chat.rendering import MARKER, ChatRenderer
from data_prep.errors import DataError
from data_prep.messages import Message
from finetune.errors import ExportError
from finetune.exporting.ollama.go_template import render

EACH, END = "{{ range $i, $_ := .Messages }}", "{{ end }}"
ROLE, CONTENT = "{{ .Role }}", "{{ .Content }}"
OF_USER, OF_ASSISTANT = '{{ if eq .Role "user" }}', '{{ if eq .Role "assistant" }}'
BEHIND_SYSTEM = "{{ if and $.System (eq $i 1) }}"
"""The first question, where it follows a system message."""
TEMPLATES = {
    "chatml": f"BOS{EACH}<|im_start|>{ROLE}\n{CONTENT}<|im_end|>\n{END}<|im_start|>assistant\n",
    "llama3": (
        f"BOS{EACH}<|start_header_id|>{ROLE}<|end_header_id|>\n\n{CONTENT}<|eot_id|>{END}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "zephyr": f"BOS{EACH}<|{ROLE}|>\n{CONTENT}EOS\n{END}<|assistant|>\n",
    "mistral": (
        f"BOS{EACH}{OF_USER}[INST] {BEHIND_SYSTEM}{{{{ $.System }}}}\n\n{END}{CONTENT} [/INST]{END}"
        f"{OF_ASSISTANT} {CONTENT}EOS{END}{END}"
    ),
    "llama2": (
        f"BOS{EACH}{OF_USER}{{{{ if gt $i 1 }}}}AGAIN{END}[INST] {BEHIND_SYSTEM}<<SYS>>\n{{{{ $.System }}}}\n"
        f"<</SYS>>\n\n{END}{CONTENT} [/INST]{END}{OF_ASSISTANT} {CONTENT} EOS{END}{END}"
    ),
}
"""BOS is the token that begins a text, where the template writes it and the tokenizer adds none; AGAIN is it
between turns."""

ASKED, ANSWERED, AGAIN = (
    Message("user", "What is 3 + 4?"), Message("assistant", "7."), Message("user", "And 5 + 6?")
)  # fmt: skip
SYSTEM, PAIRED = Message("system", "Be brief."), Message("user", "Add.\n\n### Input:\n3 4")
CONVERSATIONS = (
    (ASKED,), (PAIRED,), (ASKED, ANSWERED, AGAIN), (SYSTEM, ASKED), (SYSTEM, ASKED, ANSWERED, AGAIN),
    (*(ASKED, ANSWERED) * 4, AGAIN), (SYSTEM, *(ASKED, ANSWERED) * 4, AGAIN),
)  # fmt: skip
BLANKS = (Message("user", "  What? "),)


@dataclass(frozen=True)
class GoTemplate:
    """What Ollama is given."""

    name: str
    text: str
    system: str | None
    """What the template says where a conversation has no system message."""
    notes: tuple[str, ...]


def translate(tokenizer: PreTrainedTokenizerFast) -> GoTemplate:
    """The tokenizer's template for Ollama. Raises ExportError where none of TEMPLATES writes the same."""
    try:
        renderer = ChatRenderer(tokenizer)
    except DataError as error:
        raise ExportError(f"an Ollama model is asked by its chat template: {error}.") from None
    ours = _rendered(renderer)
    # Ollama's tokens begin as the tokenizer's do: where it adds the first one itself, the text has none.
    added, bos = adds_bos(tokenizer), str(tokenizer.bos_token or "")
    for name, head in product(TEMPLATES, [""] if added else dict.fromkeys(["", bos])):
        text = TEMPLATES[name].replace("AGAIN", bos).replace("BOS", head)
        text = text.replace("EOS", str(tokenizer.eos_token or ""))
        before = bos if added else ""
        system = _system_of(text, before, ours.get((ASKED,), ""))
        if ours and all(
            before + written_by_ollama(text, messages, system) == its for messages, its in ours.items()
        ):
            return GoTemplate(name, text, system, _notes(text, before, system, renderer))
    raise ExportError(
        "the chat template can't be written in Go's syntax, which Ollama wants: it is none of "
        f"{', '.join(TEMPLATES)}, or says something of its own. Export --format gguf, which holds the "
        "template as it is for llama.cpp, or train with one of those (model.chat_template)."
    )


def _rendered(renderer: ChatRenderer) -> dict[tuple[Message, ...], str]:
    """What the tokenizer's template writes of each conversation that it takes."""
    found: dict[tuple[Message, ...], str] = {}
    for messages in CONVERSATIONS:
        with contextlib.suppress(DataError):  # some take no system message
            found[messages] = renderer.render_prompt(messages)
    return found


def written_by_ollama(text: str, messages: Sequence[Message], system: str | None) -> str:
    """What Ollama makes of a conversation; the Modelfile's system message goes before one that has none."""
    if system is not None and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    turns = [{"Role": message.role, "Content": message.content} for message in messages]
    said = "\n\n".join(message.content for message in messages if message.role == "system")
    return render(text, {"Messages": turns, "System": said})


def _system_of(text: str, before: str, ours: str) -> str | None:
    """The system message that the tokenizer's template writes by itself, of what it makes of a question."""
    if before + written_by_ollama(text, [ASKED], None) == ours:
        return None
    start, _, end = (before + written_by_ollama(text, [ASKED], MARKER)).partition(MARKER)
    return ours[len(start) : len(ours) - len(end)] if ours.startswith(start) and ours.endswith(end) else None


def _notes(text: str, before: str, system: str | None, renderer: ChatRenderer) -> tuple[str, ...]:
    if before + written_by_ollama(text, BLANKS, system) == renderer.render_prompt(BLANKS):
        return ()
    return (
        "the chat template takes blanks away around a message, which Ollama's can't: send messages without",
    )
