"""Calls of tools in an answer, found by the form in which the model's own chat template writes one."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import ChatRenderer
from data_prep.errors import DataError
from data_prep.messages import Message, ToolCall
from data_prep.tokenizers.tokens import ids_of, text_of

TOOL, PARAMETER, VALUE = "a_tool_7d1f", "a_parameter_7d1f", "a_value_7d1f"


@dataclass(frozen=True)
class CallForm:
    """How a call is written: a JSON object between two texts."""

    before: str
    after: str
    name: str
    """The object's key of the tool's name."""
    arguments: str

    def split(self, answer: str) -> tuple[str, list[dict[str, Any]]]:
        """The text of an answer before its calls, and the calls in OpenAI's form; an answer that isn't
        written so to its end is text."""
        start = answer.find(self.before) if self.before else 0
        if start < 0:
            return answer, []
        calls, rest = [], answer[start:]
        while rest.strip():
            call, rest = self._first(rest.strip())
            if call is None:
                return answer, []
            calls.append(call)
        return answer[:start].strip(), calls

    def _first(self, text: str) -> tuple[dict[str, Any] | None, str]:
        """The call that a text begins with, and what comes behind it."""
        inner = text.removeprefix(self.before) if text.startswith(self.before) else text
        try:
            found, end = json.JSONDecoder().raw_decode(inner.lstrip())
        except (ValueError, RecursionError):
            return None, ""
        inner = inner.lstrip()[end:]
        if not isinstance(found, dict) or not isinstance(found.get(self.name), str):
            return None, ""
        arguments = found.get(self.arguments) or {}
        if not isinstance(arguments, str):  # some models write them as OpenAI's API has them
            arguments = json.dumps(arguments, ensure_ascii=False)
        call = {"name": found[self.name], "arguments": arguments}
        rest = inner.lstrip().removeprefix(self.after.strip()) if self.after else inner
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": call}, rest


def call_form(tokenizer: PreTrainedTokenizerFast) -> CallForm:
    """The form in which the chat template writes a call. Raises DataError where that is no JSON object."""
    renderer = ChatRenderer(tokenizer)
    function = {"name": TOOL, "description": "", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    question = Message("user", "u")
    call = Message("assistant", "", tool_calls=(ToolCall(TOOL, {PARAMETER: VALUE}, "call00001"),))
    prompt = renderer.render_prompt([question], tools)
    written = renderer.render([question, call], tools=tools)[len(prompt) :]
    text = text_of(ids_of(written, tokenizer), tokenizer)  # as an answer is, without special tokens
    start = max(text.find("{"), 0)
    try:
        found, end = json.JSONDecoder().raw_decode(text[start:])
    except ValueError:
        found, end = None, 0
    keys = {repr(value): key for key, value in found.items()} if isinstance(found, dict) else {}
    name, arguments = keys.get(repr(TOOL)), keys.get(repr({PARAMETER: VALUE}))
    if name is None or arguments is None:
        raise DataError(
            "this model's chat template doesn't write a call of a tool as a JSON object with its name and "
            "arguments, so calls can't be told from text: leave tools out"
        )
    return CallForm(text[:start].strip(), text[start + end :].strip(), name, arguments)
