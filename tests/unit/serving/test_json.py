"""Answers that have to be JSON: OpenAI's own client gets what it asks for, and no schema hurts the server."""

import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from finetune.generation.grammar import LIMITS
from tests.support.serving import Running

ASKED = [{"role": "user", "content": "Name a lamp."}]
ORDER = {
    "type": "object", "additionalProperties": False, "required": ["product", "quantity", "express"],
    "properties": {
        "product": {"enum": ["brass lamp", "sky"]}, "quantity": {"type": "integer", "minimum": 1, "maximum": 9},
        "express": {"type": "boolean"},
    },
}  # fmt: skip


def ordered(schema: Any, **options: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "order", "schema": schema} | options}


def chat(client: openai.OpenAI, response_format: Any, **options: Any) -> Any:
    given = {"model": "lamps", "messages": ASKED, "temperature": 0, "max_tokens": 150} | options
    return client.chat.completions.create(response_format=response_format, **given)


@pytest.mark.parametrize("strict", [True, False, None])
@pytest.mark.parametrize("model", ["lamps", "tuned"])
def test_an_answer_follows_its_schema(client: openai.OpenAI, model: str, strict: bool | None) -> None:
    """Strict or not, greedy and drawn, of the base and an adapter, each of its choices."""
    for options in ({"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 3}):
        for choice in chat(client, ordered(ORDER, strict=strict), model=model, **options).choices:
            jsonschema.validate(json.loads(choice.message.content), ORDER)
            assert choice.finish_reason == "stop"


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    """Piece by piece."""
    options = {"model": "tuned", "temperature": 1.2, "seed": 7}
    chunks = list(chat(client, ordered(ORDER), stream=True, **options))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == chat(client, ordered(ORDER), **options).choices[0].message.content
    assert len(chunks) > 5


def test_max_tokens_cuts_an_answer_short(client: openai.OpenAI) -> None:
    """The reason is the length, and what is there is the beginning of the whole."""
    whole, cut = (chat(client, ordered(ORDER), max_tokens=tokens).choices[0] for tokens in (150, 6))
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert whole.message.content.startswith(cut.message.content)


def test_json_object_is_any_object(client: openai.OpenAI) -> None:
    """A dictionary where it comes to its end."""
    options = {"model": "tuned", "temperature": 1.5, "seed": 1, "n": 8, "max_tokens": 120}
    choices = chat(client, {"type": "json_object"}, **options).choices
    whole = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
    assert {type(json.loads(text)) for text in whole} == {dict}


def test_the_clients_own_parse_makes_an_instance(client: openai.OpenAI) -> None:
    """Of the pydantic class whose schema it sent."""

    class Order(BaseModel):
        model_config = ConfigDict(extra="forbid")

        product: Literal["brass lamp", "sky"]
        quantity: int = Field(ge=1, le=9)
        note: str | None = Field(max_length=4)

    found = client.chat.completions.parse(
        model="tuned", messages=ASKED, response_format=Order, max_tokens=150, temperature=1.5, seed=1
    )
    assert isinstance(found.choices[0].message.parsed, Order)


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI) -> None:
    """Without the schema: what it forces is as unlikely as before."""
    found = chat(client, ordered({"const": "xyzzy"}), logprobs=True, top_logprobs=1).choices[0]
    assert json.loads(found.message.content) == "xyzzy"
    (first, *_) = found.logprobs.content
    (free,) = chat(client, {"type": "text"}, logprobs=True, top_logprobs=1, max_tokens=1).choices
    assert first.top_logprobs[0] == free.logprobs.content[0].top_logprobs[0]
    assert first.logprob < first.top_logprobs[0].logprob


def test_stop_ends_an_answer_before_its_schema_does(client: openai.OpenAI) -> None:
    """As it ends any other."""
    (choice,) = chat(client, ordered(ORDER), stop=["quantity"]).choices
    assert choice.finish_reason == "stop"
    assert "quantity" not in choice.message.content


TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type: .*'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is of type json_schema, and needed there"),
        ({"response_format": ordered(ORDER) | {"type": "json_object"}}, "json_schema is of type json_schema"),
        ({"response_format": ordered(ORDER, name="a b")}, "response_format.json_schema.name: .*pattern"),
        ({"response_format": ordered(ORDER, strict=1)}, "response_format.json_schema.strict: .*boolean"),
        ({"response_format": ordered(ORDER, unknown=1)}, "response_format.json_schema.unknown: "),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema is missing",
        ),
        ({"response_format": ordered(True)}, "response_format.json_schema.schema: .*dictionary"),
        ({"response_format": ordered({"not": {"type": "string"}})}, "llguidance can't honour the schema: .*not"),
        ({"response_format": ordered(ORDER), "tools": TOOLS}, "response_format with tools: no answer can be both"),
        ({"extra_body": {"guided_json": ORDER}}, "'guided_json' is not supported: leave it out"),
        ({"extra_body": {"structured_outputs": {"json": ORDER}}}, "'structured_outputs' is not supported"),
        ({"extra_body": {"json_schema": ORDER}}, "'json_schema' is not supported"),
        ({"extra_body": {"grammar": 'root ::= "a"'}}, "'grammar' is not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(
    client: openai.OpenAI, options: dict[str, Any], message: str
) -> None:
    """400, with the reason."""
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="lamps", messages=ASKED, **options)


def test_texts_have_no_response_format(client: openai.OpenAI) -> None:
    """OpenAI's completions have none either."""
    with pytest.raises(openai.BadRequestError, match="'response_format' is not supported"):
        client.completions.create(model="lamps", prompt="x", extra_body={"response_format": ordered(ORDER)})


def doubled(times: int, join: str) -> dict[str, Any]:
    """2 ** times parts, in a few lines."""
    parts: dict[str, Any] = {"p0": {"type": "string", "minLength": 1}}
    for number in range(1, times):
        below = {"$ref": f"#/$defs/p{number - 1}"}
        parts[f"p{number}"] = (
            {join: [below, below]} if join != "properties" else
            {"type": "object", "properties": {"x": below, "y": below}, "required": ["x", "y"]}
        )  # fmt: skip
    return {"$ref": f"#/$defs/p{times - 1}", "$defs": parts}


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"]}
    return found


HOSTILE: dict[str, dict[str, Any]] = {
    "itself": {"$ref": "#"},
    "each other": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "never ends": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "itself or null": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    "nested": nested(60),
    "nested beyond": nested(300),
    "doubled objects": doubled(40, "properties"),
    "doubled allOf": doubled(24, "allOf"),
    "doubled anyOf": doubled(24, "anyOf"),
    "huge enum": {"enum": [f"number {number}" for number in range(3_000)]},
    "too large": {"enum": [f"number {number}" for number in range(20_000)]},
    "many properties": {"type": "object", "properties": {f"k{number}": {} for number in range(1_000)}},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "long text": {"type": "string", "minLength": 10**9},
    "repetitions": {"type": "string", "pattern": "(((a{1,99}){1,99}){1,99}){1,99}"},
    "states": {"type": "string", "pattern": "[ab]*a[ab]{30}"},
    "parentheses": {"type": "string", "pattern": "(" * 5_000 + ")" * 5_000},
    "not a pattern": {"type": "string", "pattern": "("},
    "look ahead": {"type": "string", "pattern": "(?=a)b"},
    "steps": {"type": "number", "multipleOf": 1e-300},
    "range": {"type": "number", "minimum": 1e300, "maximum": 1.0000000001e300},
    "far away": {"$ref": "http://127.0.0.1:9/schema.json"},
    "a file": {"$id": "file:///etc/", "$ref": "passwd"},
    "blanks": {"type": "object", "x-guidance": {"whitespace_pattern": "(((a{1,99}){1,99}){1,99}){1,99}"}},
    "types": {"type": ["wizard", 5, None]},
    "properties": {"properties": [1], "required": {"a": 1}, "enum": 3},
    "nothing": {"enum": []},
    "control": {"const": "\x00\x1f\u2028🦙<|im_end|>"},
}  # fmt: skip


def test_a_schema_that_grows_too_large_ends_its_answer_with_the_reason(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle: 400 where nothing was sent, an error in a stream that has begun."""
    monkeypatch.setitem(LIMITS, "max_lexer_states", 400)
    grows = ordered({"type": "string", "pattern": "^(.*(a|b|c).{200}(d|e).{100}){3}$"})
    options = {"model": "tuned", "temperature": 2, "seed": 1}
    reason = "llguidance can't honour the schema: .*too many states"
    with pytest.raises(openai.BadRequestError, match=reason):
        chat(client, grows, **options)
    stream = chat(client, grows, stream=True, **options)
    with pytest.raises(openai.APIError, match=reason):
        list(stream)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_schema_hurts_the_server(served: Running, name: str) -> None:
    """Answered, or refused with a message, within a few seconds; the next request is answered as ever."""
    body = {"model": "tuned", "messages": ASKED, "max_tokens": 20, "response_format": ordered(HOSTILE[name])}
    with served.client() as client:
        client.timeout = httpx.Timeout(20)
        for stream in (False, True):
            found = client.post("/v1/chat/completions", json=body | {"stream": stream})
            assert found.status_code in (200, 400), found.text
            assert found.status_code == 200 or found.json()["error"]["message"]
            assert "server_error" not in found.text
        served.wait_idle()
        del body["response_format"]
        assert client.post("/v1/chat/completions", json=body).status_code == 200
