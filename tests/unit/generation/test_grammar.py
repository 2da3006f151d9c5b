"""An answer that has to be JSON of a schema is, whatever the tokenizer, the sampling and what shares the
batch."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from data_prep.tokenizers.tokenizer import load_tokenizer
from data_prep.tokenizers.tokens import text_of
from finetune import api
from finetune.errors import FinetuneError
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.grammar import LARGEST_SCHEMA_BYTES, Constraint, json_grammar, within
from finetune.generation.request import Request, Speaker
from finetune.models.adapters.adapter import load_adapter
from finetune.models.adapters.by_token import AdapterByToken
from tests.support.models import train_sentencepiece
from tests.unit.generation.answers import enlarged, finished, texts

ORDER = {
    "type": "object", "additionalProperties": False, "required": ["product", "quantity", "express"],
    "properties": {
        "product": {"enum": ["brass lamp", "Lämpchen 😀"]}, "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
        "express": {"type": "boolean"}, "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}, "maxItems": 2},
    },
    "$defs": {"note": {"type": "string", "maxLength": 6}},
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "order": ORDER,
    "number": {"type": "number", "minimum": -2, "exclusiveMaximum": 3},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}$"},
    "either": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 3}]},
    "date": {"type": "string", "format": "date"},
}


@pytest.fixture(scope="session")
def tokenizers(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PreTrainedTokenizerFast]:
    """Byte-level BPE, and SentencePiece's, which begin a text with a blank."""
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    folder = tmp_path_factory.mktemp("sentencepiece")
    return {
        "byte level": load_tokenizer(tiny_base),
        "llama": load_tokenizer(train_sentencepiece(folder / "llama")),
        "unigram": load_tokenizer(train_sentencepiece(folder / "unigram", model_type="unigram")),
    }


def walk(constraint: Constraint, draw: random.Random, ends: frozenset[int], most: int = 400) -> list[int]:
    """Tokens drawn from those that are allowed, until the text may end, or an end is drawn."""
    found: list[int] = []
    while not constraint.complete:
        allowed = constraint.allowed.nonzero()[:, 0].tolist()
        assert constraint.error is None
        assert allowed
        assert len(found) < most
        token = draw.choice(allowed)
        if token in ends:
            break
        found.append(token)
        constraint.take(token)
    return found


@pytest.mark.parametrize("kind", ["byte level", "llama", "unigram"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_any_walk_through_a_grammar_is_valid(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, name: str
) -> None:
    """Tokens drawn at random are JSON, as jsonschema sees it."""
    speaker, draw = Speaker(None, tokenizers[kind]), random.Random(3)  # noqa: S311 - no secret
    grammar = json_grammar(SCHEMAS[name], speaker)
    for _ in range(20):
        text = text_of(walk(grammar.begin(), draw, speaker.ends), speaker.tokenizer)
        jsonschema.validate(
            json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker(["date"])
        )


def test_a_grammar_lets_blanks_come_to_an_end(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    """A model that likes blanks best still answers."""
    tokenizer = tokenizers["byte level"]
    constraint = json_grammar(ORDER, Speaker(None, tokenizer)).begin()
    blanks, taken = [token for token in range(len(tokenizer)) if text_of([token], tokenizer).isspace()], 0
    (brace,) = tokenizer("{", add_special_tokens=False)["input_ids"]
    constraint.take(brace)
    while left := [token for token in blanks if constraint.allowed[token]]:
        constraint.take(left[0])
        taken += 1
    assert 0 < taken < 30


def test_what_is_not_allowed_has_no_probability() -> None:
    """Beyond the tokenizer's tokens nothing has; rows without a constraint, and the logits, stay as they are."""

    class Two:
        allowed = torch.tensor([True, False])

    scores = torch.ones(2, 3)
    found = within(scores, [None, Two()])  # type: ignore[list-item]
    assert found.tolist() == [[1, 1, 1], [1, -torch.inf, -torch.inf]]
    assert scores.tolist() == [[1, 1, 1]] * 2
    assert within(scores, [None, None]) is scores


def test_rows_with_and_without_a_grammar_answer_as_each_alone(
    tiny_base: Path, tokenizer: PreTrainedTokenizerFast, adapters: dict[str, Path]
) -> None:
    """Greedy and drawn, of two adapters and the base, joining in the middle of one another's answers."""
    mixed: Any = enlarged(tiny_base)
    for name in ("small", "large"):
        mixed = load_adapter(mixed, adapters[name], name=name)
    batch = ContinuousBatch(mixed, rows=16, router=AdapterByToken(mixed))
    speakers = [Speaker(name, tokenizer) for name in ("small", "large", None)]
    prompt = tokenizer("Send two lamps: ", add_special_tokens=False)["input_ids"]
    requests = [
        Request(speaker, prompt, 60, temperature, seed=1, grammar=grammar)
        for speaker in speakers
        for grammar in (None, json_grammar(ORDER, speaker))
        for temperature in (0.0, 1.5)
    ]
    together = texts(finished(batch, requests, join_every=1))
    assert together == [texts(finished(batch, [request]))[0] for request in requests]
    assert len(set(together)) == len(requests)


def test_no_property_hides_behind_escapes(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    """A name written so would be any other's, to which another part of the schema belongs."""
    tokenizer = tokenizers["byte level"]
    schema = {
        "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"},
    }  # fmt: skip
    constraint = json_grammar(schema, Speaker(None, tokenizer)).begin()
    for token in tokenizer('{"\\', add_special_tokens=False)["input_ids"]:
        assert constraint.allowed[token]
        constraint.take(token)
    allowed = "".join(text_of([token], tokenizer)[0] for token in constraint.allowed.nonzero()[:, 0].tolist())
    assert sorted(set(allowed)) == sorted('"\\bfnrt')


def test_an_answer_ends_when_nothing_can_come_any_more(
    tiny_base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Behind the last brace, and no token is wasted on the end of the turn."""
    speaker = Speaker(None, tokenizer)
    request = Request(speaker, [5, 6], 200, grammar=json_grammar({"const": {"a": 1}}, speaker))
    (pieces,) = finished(ContinuousBatch(enlarged(tiny_base)), [request])
    assert json.loads(texts([pieces])[0]) == {"a": 1}
    assert (pieces[-1].finish, pieces[-1].text[-1:]) == ("stop", "}")


def test_a_loaded_model_answers_by_a_schema(tiny_base: Path) -> None:
    """Each prompt."""
    found = api.load(tiny_base).generate(["Hi", "Two lamps."], json_schema=ORDER, max_new_tokens=150)
    for text in found:
        jsonschema.validate(json.loads(text), ORDER)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "llguidance can't honour the schema: .*uniqueItems"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ({"$ref": "https://example.com/schema.json"}, "retrieving it failed"),
        ({"$ref": "file:///etc/passwd"}, "retrieving it failed"),
        ({"$ref": "#"}, "no text fulfils it"),
        ({"items": {"exclusiveMinimum": 0, "maximum": 0.5}}, "bounds are less than 1 apart"),
        ({"type": "integer", "minimum": -(10**20), "maximum": -(10**19)}, "minimum -100.* rounds numbers"),
        ({"exclusiveMaximum": 10**400, "minimum": 1.5}, "exclusiveMaximum 100.*rounds numbers beyond"),
        ({"minProperties": 2, "additionalProperties": True}, "minProperties 2: it counts a name twice"),
        ({"enum": ["a", {"id": [2**53 + 1]}]}, "id 9007199254740993: it rounds"),
        ({"allOf": [{"pattern": f"a{number}"} for number in range(50)]}, "50 patterns: .* at most 16 where"),
        ({"patternProperties": {f"a{number}": {} for number in range(800)}}, "800 patterns: .* at most 200"),
        ({"const": {1, 2}}, "the schema is no JSON"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "llguidance can't honour the schema"),
        ({"enum": ["x" * LARGEST_SCHEMA_BYTES]}, "the schema has 65,[0-9]+ bytes; expected at most 65,536"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused(
    tokenizer: PreTrainedTokenizerFast, schema: dict[str, Any], message: str
) -> None:
    """With the reason, and nothing of it is left out."""
    with pytest.raises(FinetuneError, match=message):
        json_grammar(schema, Speaker(None, tokenizer))


def test_numbers_that_ask_nothing_may_be_large(tokenizer: PreTrainedTokenizerFast) -> None:
    """Those of examples, say."""
    schema = {"type": "integer", "default": 2**60, "examples": [2**61], "minimum": 0, "maximum": 2**53}
    assert json_grammar(schema, Speaker(None, tokenizer))


def test_without_llguidance_its_extra_is_named(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(FinetuneError, match=r'needs llguidance.*pip install "llama-finetune\[serve\]"'):
        json_grammar(ORDER, Speaker(None, tokenizer))
