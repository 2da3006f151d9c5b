"""A chat template of a tokenizer in Go's syntax, for the conversations that Ollama renders.

Nothing is guessed: a translation counts where it writes what the tokenizer's own template does, of every kind
of conversation here. Ollama's template gets .Messages (of .Role and .Content) and .System, the system
message's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""BOS is the token that begins a text, where the tokenizer doesn't add one itself; AGAIN is it in between."""

ASKED, ANSWERED, AGAIN = (
    Message("user", "What is 3 + 4?"), Message("assistant", "7."), Message("user", "And 5 + 6?")
)  # fmt: skip
SYSTEM, PAIRED = Message("system", "Be brief."), Message("user", "Add.\n\n### Input:\n3 4")
CONVERSATIONS = (
    (ASKED,), (PAIRED,), (ASKED, ANSWERED, AGAIN), (SYSTEM, ASKED), (SYSTEM, ASKED, ANSWERED, AGAIN),
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
    for name in TEMPLATES:
        text = _with_tokens(TEMPLATES[name], tokenizer)
        bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""
        system = _system_of(text, bos, renderer)
        if _writes_the_same(text, bos, system, renderer):
            return GoTemplate(name, text, system, _notes(text, bos, system, renderer))
    raise ExportError(
        "the chat template can't be written in Go's syntax, which Ollama wants: it is none of "
        f"{', '.join(TEMPLATES)}, or says something of its own. Export --format gguf, which holds the "
        "template as it is for llama.cpp, or train with one of those (model.chat_template)."
    )


def _with_tokens(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    return text.replace("AGAIN", bos).replace("BOS", "" if adds_bos(tokenizer) else bos).replace("EOS", eos)


def written_by_ollama(text: str, messages: Sequence[Message], system: str | None) -> str:
    """What Ollama makes of a conversation; a system message of the Modelfile goes before one that has
    none."""
    if system is not None and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    turns = [{"Role": message.role, "Content": message.content} for message in messages]
    said = "\n\n".join(message.content for message in messages if message.role == "system")
    return render(text, {"Messages": turns, "System": said})


def _system_of(text: str, bos: str, renderer: ChatRenderer) -> str | None:
    """The system message that the tokenizer's template writes by itself."""
    ours = renderer.render_prompt([ASKED])
    before, _, after = (bos + written_by_ollama(text, [ASKED], MARKER)).partition(MARKER)
    if bos + written_by_ollama(text, [ASKED], None) == ours or not (
        ours.startswith(before) and ours.endswith(after)
    ):
        return None
    return ours[len(before) : len(ours) - len(after)]


def _writes_the_same(text: str, bos: str, system: str | None, renderer: ChatRenderer) -> bool:
    seen = 0
    for messages in CONVERSATIONS:
        try:
            ours = renderer.render_prompt(messages)
        except DataError:
            continue  # the template refuses system messages
        if bos + written_by_ollama(text, messages, system) != ours:
            return False
        seen += 1
    return seen > 0


def _notes(text: str, bos: str, system: str | None, renderer: ChatRenderer) -> tuple[str, ...]:
    if bos + written_by_ollama(text, BLANKS, system) == renderer.render_prompt(BLANKS):
        return ()
    return (
        "the chat template takes blanks away around a message, which Ollama's can't: send messages without",
    )
