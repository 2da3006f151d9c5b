"""What a request asks as tokens: conversations by the chat template, texts plainly."""

import secrets
from collections.abc import Sequence
from typing import Any

from data_prep.chat.rendering import ChatRenderer
from data_prep.errors import DataError
from data_prep.formats.chat import tool_list
from data_prep.messages import Conversation
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import FinetuneError
from finetune.generation.asking import turns_of
from finetune.generation.generate import plain_ids
from finetune.generation.grammar import Grammar, json_grammar
from finetune.generation.request import Request
from finetune.serving.bodies import Body, ChatBody, CompletionBody
from finetune.serving.errors import ApiError
from finetune.serving.models import ServedModel
from finetune.serving.tool_calls import CallForm, call_form


def chat_requests(body: ChatBody, model: ServedModel) -> tuple[list[Request], CallForm | None]:
    """A request for each choice, and how the model writes calls where it has tools. Raises ApiError (400)
    for a conversation that the model can't answer."""
    tokenizer = model.speaker.tokenizer
    if tokenizer.chat_template is None:
        raise ApiError(400, f"{model.name} has no chat template: ask /v1/completions", param="model")
    try:
        messages = turns_of([_without_nothing(message) for message in body.messages])
    except FinetuneError as error:
        raise ApiError(400, str(error), param="messages") from None
    try:
        tools = tool_list({"tools": body.tools if body.tool_choice == "auto" else []})
    except ValueError as error:
        raise ApiError(400, str(error), param="tools") from None
    try:
        renderer = ChatRenderer(tokenizer)
        if tools:
            example = Conversation(tuple(messages), tools=tools)
            renderer.check_tools(example, renderer.render(messages, tools=tools))
        form = call_form(tokenizer) if tools else None
        ids = ids_of(renderer.render_prompt(messages, tools), tokenizer)
    except DataError as error:
        raise ApiError(400, str(error), param="tools" if tools else "messages") from None
    return _choices(body, model, [ids], _grammar(body, model)), form


def _grammar(body: ChatBody, model: ServedModel) -> Grammar | None:
    if body.response_format is None:
        return None
    try:
        return json_grammar(body.response_format.schema_asked, model.speaker)
    except FinetuneError as error:
        raise ApiError(400, str(error), param="response_format") from None


def _without_nothing(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's client sends an answer back with each field that it knows, null where there is nothing."""
    return {key: value for key, value in message.items() if value is not None}


def completion_requests(body: CompletionBody, model: ServedModel) -> list[Request]:
    """A request for each choice of each prompt. Raises ApiError (400) for a prompt that the model can't
    continue."""
    try:
        prompts = [_text_ids(prompt, model) for prompt in body.prompt]
    except DataError as error:
        raise ApiError(400, str(error), param="prompt") from None
    return _choices(body, model, prompts)


def _text_ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        return plain_ids(prompt, model.speaker.tokenizer)
    tokens = len(model.speaker.tokenizer)
    beyond = next((token for token in prompt if token >= tokens), None)
    if beyond is not None:
        message = f"prompt has the token {beyond:,}, and {model.name} has {tokens:,} tokens"
        raise ApiError(400, message, param="prompt")
    return prompt


def _choices(
    body: Body, model: ServedModel, prompts: Sequence[Sequence[int]], grammar: Grammar | None = None
) -> list[Request]:
    """`n` requests for each prompt, drawn from one seed."""
    seed = body.seed if body.seed is not None else secrets.randbits(63)
    options: dict[str, Any] = {
        "max_new_tokens": body.longest or model.max_new_tokens, "temperature": body.temperature,
        "top_p": body.top_p, "seed": seed, "stop": tuple(body.stop), "logprobs": body.likeliest,
        "grammar": grammar,
        "prompt_logprobs": body.prompt_logprobs if isinstance(body, CompletionBody) else None,
    }  # fmt: skip
    requests = [
        Request(model.speaker, prompt, index=index, **options)
        for prompt in prompts
        for index in range(body.n)
    ]
    for request in requests:
        try:
            model.batch.check(request)
        except FinetuneError as error:
            place = "messages" if isinstance(body, ChatBody) else "prompt"
            raise ApiError(400, str(error), param=place, code="context_length_exceeded") from None
    return requests
