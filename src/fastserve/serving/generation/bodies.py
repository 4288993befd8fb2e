"""The bodies of the OpenAI API that are understood, field by field. What is not understood is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import ConfigDict, Field, ValidationError

from fastserve.config import Section
from fastserve.errors import choices
from fastserve.generation.orders import TOP_LOGPROBS, Grammar
from fastserve.generation.sampling import Sampling
from fastserve.serving.messages import HttpError

MOST_STOPS, MOST_BIASES, MOST_TOOLS, MOST_GRAMMAR = 16, 1024, 128, 64 << 10
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "store": (None, False),
    "metadata": (None, {}),
    "parallel_tool_calls": (None, True),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"]),
}
"""Fields that are not supported, with the values that ask for nothing."""
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
)
Ids = list[Annotated[int, Field(ge=0)]]
B = TypeVar("B", bound="Body")


class Part(Section):
    """A part of a body: strict types, as JSON has them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Part):
    include_usage: bool = False


class JsonSchema(Part):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """How OpenAI says what form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object")
        if self.json_schema is None:
            raise HttpError(400, "response_format of type json_schema needs 'json_schema'", param="response_format")
        return Grammar("json_schema", dump(self.json_schema.schema_))


class StructuredOutputs(Part):
    """How vLLM says what form the answer must have: one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None

    def grammar(self) -> Grammar:
        asked = [
            grammar
            for grammar in (
                None if self.json_ is None else Grammar("json_schema", text_of(self.json_)),
                Grammar("json_object") if self.json_object else None,
                None if self.regex is None else Grammar("regex", self.regex),
                None if self.choice is None else Grammar("choice", dump(self.choice)),
            )
            if grammar is not None
        ]
        if len(asked) != 1:
            raise HttpError(
                400,
                "structured_outputs must have exactly one of json, json_object, regex and choice",
                param="structured_outputs",
            )
        return asked[0]


class Body(Part):
    """What all requests for texts have. Ranges of what steers the sampling are those of `Sampling`."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=MOST_BIASES)
    seed: int | None = None
    stop: str | list[str] | None = Field(None, max_length=MOST_STOPS * 256)
    n: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    user: str | None = Field(None, max_length=512)

    @classmethod
    def read(cls: type[B], content: Mapping[str, Any]) -> B:
        """From JSON. HttpError names the first field that is wrong."""
        body: B = read_part(cls, content)
        return body

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        if self.stream_options is not None and not self.streams:
            raise HttpError(400, "stream_options is for streams: set stream to true", param="stream_options")
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    def sampling(self, max_tokens: int) -> Sampling:
        """How tokens are chosen; HttpError where a value is out of its range."""
        values: dict[str, Any] = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS:
            raise HttpError(400, f"{len(stops)} stop strings; at most {MOST_STOPS} are taken", param="stop")
        biases = {_token(token): bias for token, bias in (self.logit_bias or {}).items()}
        try:
            return Sampling(**values, max_tokens=max_tokens, stop=tuple(stops), logit_bias=biases)
        except ValidationError as error:
            raise _fault(Sampling, error) from None

    def grammar(self) -> Grammar | None:
        """What the answer must look like, said in either way."""
        given = None if self.response_format is None else self.response_format.grammar()
        if self.structured_outputs is not None:
            if given is not None:
                raise HttpError(
                    400, "structured_outputs and response_format exclude each other", param="structured_outputs"
                )
            given = self.structured_outputs.grammar()
        if given is not None and len(given.text) > MOST_GRAMMAR:
            message = f"the form of the answer is longer than {MOST_GRAMMAR} characters"
            raise HttpError(400, message, param="response_format")
        return given


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: str | list[str] | Ids | list[Ids] = Field(max_length=1 << 22)
    logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    add_special_tokens: Literal[True] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt apart."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class ToolFunction(Part):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"] = "function"
    function: ToolFunction


class NamedFunction(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"] = "function"
    function: NamedFunction


class CalledFunction(Part):
    name: str
    arguments: str


class Called(Part):
    """A call that the assistant made earlier."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class TextPart(Part):
    type: Literal["text"]
    text: str


class ChatMessage(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TokenizeBody(Part):
    """`POST /tokenize`: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(Part):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Ids


def read_part(part: type[B] | type[Any], content: Mapping[str, Any]) -> Any:
    """A body from JSON. HttpError names the first field that is wrong."""
    known = {name: value for name, value in content.items() if value not in _NEUTRAL.get(name, ())}
    for name in known:
        if name in _NEUTRAL:
            raise HttpError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    try:
        return part.model_validate(known)
    except ValidationError as error:
        raise _fault(part, error) from None


def _fault(part: type[Section], error: ValidationError) -> HttpError:
    """The first thing that is wrong, in words."""
    fault = error.errors(include_url=False, include_context=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else None
    path = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        names = [one.alias or name for name, one in part.model_fields.items()]
        hint = f": {choices(str(field), names, most=0)}" if len(fault["loc"]) == 1 else ""
        return HttpError(400, f"{path} is not supported{_near(hint)}", param=field, code="unsupported_parameter")
    if fault["type"] == "missing":
        return HttpError(400, f"{path} is missing", param=field, code="missing_required_parameter")
    return HttpError(400, f"{path}: {fault['msg']}, found {repr(fault['input'])[:80]}", param=field)


def _near(hint: str) -> str:
    """Of a hint the nearest name alone."""
    return hint.partition("?")[0] + "?" if "?" in hint else ""


def _token(word: str) -> int:
    if not word.isdecimal() or len(word) > 9:
        raise HttpError(400, f"logit_bias: {word[:40]!r} is no token id", param="logit_bias")
    return int(word)


def dump(value: Any) -> str:
    """As JSON text."""
    try:
        return orjson.dumps(value).decode("utf-8")
    except orjson.JSONEncodeError as error:
        raise HttpError(400, f"this cannot be written as JSON: {error}") from None


def text_of(value: dict[str, Any] | str) -> str:
    return value if isinstance(value, str) else dump(value)
