"""What a request may ask: the fields of OpenAI's API that are honoured. Any other is refused by its name,
unless it asks for what happens anyway."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from data_prep.text import shown
from finetune.generation.grammar import ANY_OBJECT
from finetune.serving.errors import ApiError

MOST_CHOICES = 16
MOST_PROMPTS = 256
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_OF_PROMPTS = 1024
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "parallel_tool_calls": (True,),
    "store": (False,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "functions": ([],),
    "tools": ([],),
}  # fmt: skip """Fields of OpenAI's API, and values with which they change no answer."""
ABOUT_THE_CLIENT = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields that say who asks; nothing is kept of them."""


def _listed(value: Any) -> Any:
    """A single text, or the tokens of one, as a list of one."""
    alone = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if alone else value


Text = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Ids = list[Annotated[int, Field(ge=0)]]


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class JsonSchema(BaseModel):
    """The schema of an answer. `strict` or not, the answer follows it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    content: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """That an answer is JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema is of type json_schema, and needed there")
        return self

    @property
    def schema_asked(self) -> Mapping[str, Any]:
        """What the answer must fulfil."""
        return ANY_OBJECT if self.json_schema is None else self.json_schema.content


class Body(BaseModel):
    """What both kinds of requests may ask."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Text], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0

    @property
    def longest(self) -> int | None:
        """The longest answer, in tokens."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens the log-probabilities are told; None tells none."""
        raise NotImplementedError


class ChatBody(Body):
    """A conversation to be answered."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    logprobs: bool = False
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are the same: give one")
        if self.response_format is not None and self.tools and self.tool_choice == "auto":
            raise ValueError("response_format with tools: no answer can be both; leave one out")
        return self

    @property
    def longest(self) -> int | None:
        """The longest answer, in tokens."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens the log-probabilities are told; None tells none."""
        return self.top_logprobs if self.logprobs else None


class CompletionBody(Body):
    """Texts, or their tokens, to be continued."""

    prompt: Annotated[list[str | Ids], BeforeValidator(_listed), Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MOST_OF_PROMPTS)] | None = None
    """vLLM's: the same of the prompt's tokens, by their ids."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs are told with a whole answer: leave stream out")
        return self

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens the log-probabilities are told; None tells none."""
        return self.logprobs


AnyBody = TypeVar("AnyBody", bound=Body)


def read_body(content: bytes, kind: type[AnyBody]) -> AnyBody:
    """A request's body. Raises ApiError (400) for one that isn't JSON, a field that isn't supported, and a
    value that a field can't have."""
    try:
        found = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is {shown(found)}; expected an object")
    asked = {
        key: value for key, value in found.items() if value is not None and not _says_nothing(key, value)
    }
    for key in asked:
        if key not in kind.model_fields:
            message = f"{shown(key)} is not supported{_instead(key)}"
            raise ApiError(400, message, param=key, code="unsupported_field")
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise _refusal(error) from None


def _says_nothing(key: str, value: Any) -> bool:
    return key in ABOUT_THE_CLIENT or any(
        value == usual and isinstance(value, bool) == isinstance(usual, bool)
        for usual in NOTHING_ASKED.get(key, ())
    )


def _instead(key: str) -> str:
    values = NOTHING_ASKED.get(key)
    return f" but for {' or '.join(map(shown, values))}: leave it out" if values else ": leave it out"


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    # Of a prompt, what follows the place is which kind of one was tried.
    parts = first["loc"][:2] if first["loc"][:1] == ("prompt",) else first["loc"]
    place = ".".join(map(str, parts))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        return ApiError(400, f"{place} is missing", param=place)
    return ApiError(
        400, f"{place}: {message}; got {shown(first['input'])}" if place else message, param=place or None
    )
