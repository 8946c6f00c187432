"""What requests look like: OpenAI's fields, ours (`steering`, `strict`, `readouts`, `unsteered`), and those of vLLM's server that
say how a reply is drawn and written.

An unknown field is an error: a misspelt `steering` must not be served unsteered. One that is null says nothing, and is left.
Fields that say nothing about the reply are taken and left (`LEFT`); those that would change it and aren't built must stand at
their default (`UNBUILT`). `fields` knows what else other servers take, and why it is refused here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import nearest
from .fields import ELSEWHERE
from .problems import Problem

M = TypeVar("M", bound="Strict")
LONGEST = 256  # characters of a stop string, a steering's name, the ends of a span
GREATEST_SEED = 2**62

Name = Annotated[str, Field(min_length=1, max_length=LONGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Span = Name | Annotated[list[Name], Field(min_length=2, max_length=2)]  # by name, or its begin and end


class Strict(BaseModel):
    """A body, or a part of one: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        """Clients send whatever their types have: null is nothing."""
        if not isinstance(given, dict):
            return given
        known, body = cls.model_fields, cast("dict[str, object]", given)
        return {k: v for k, v in body.items() if v is not None or (k in known and known[k].is_required())}


class Term(Strict):
    """One steering of a request: its name or digest, how strongly, and where instead of where it was fitted to act."""

    name: Name
    strength: Finite = 1.0
    positions: Annotated[str, Field(max_length=64)] | None = None


def _written_out(given: object) -> object:
    """A steering by its name alone, or a list of such, as terms."""
    if isinstance(given, list):
        return [{"name": one} if isinstance(one, str) else one for one in cast("list[object]", given)]
    return [{"name": given}] if isinstance(given, str) else given


WRITTEN = BeforeValidator(_written_out, json_schema_input_type=str | list[str | Term])


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextPart(Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class Function(Strict):
    """A tool: its name, what it is for, and a JSON schema of its arguments, to which calls are held where it is `strict`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Something that the model may ask for."""

    type: Literal["function"]
    function: Function


class Called(Strict):
    """Which tool was called, with its arguments as JSON."""

    name: Name
    arguments: str
    parsed_arguments: Any = None  # as the openai client dumps it; left


class ToolCall(Strict):
    """A call that the assistant made in an earlier turn."""

    id: Name
    type: Literal["function"] = "function"
    function: Called
    index: int | None = None  # as streams have it


class Named(Strict):
    """A tool by its name."""

    name: Name


class NamedChoice(Strict):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: Named


class JsonSchema(Strict):
    """A JSON schema that a reply must have."""

    name: Name | None = None
    description: str | None = None
    body: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of a reply: free text, some JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    body: Annotated[dict[str, Any] | None, Field(alias="schema")] = None  # where llama.cpp's server has it

    @model_validator(mode="after")
    def _checked(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response_format of type json_schema needs a json_schema, with a name and a schema")
        return self


class Structured(Strict):
    """The form of a reply as vLLM's server takes it: one of these."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: Annotated[str, Field(max_length=8192)] | None = None
    choice: Annotated[list[Name], Field(min_length=1, max_length=256)] | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _checked(self) -> Structured:
        if sum(given not in (None, False) for given in (self.json_, self.regex, self.choice, self.json_object)) != 1:
            raise ValueError("structured_outputs needs one of json, regex, choice and json_object")
        return self


def text_alone(given: object) -> object:
    """Say in one sentence that images and sounds aren't read."""
    parts = cast("list[object]", given) if isinstance(given, list) else []
    kinds = [cast("dict[str, object]", part).get("type") for part in parts if isinstance(part, dict)]
    for kind in kinds:
        if kind in NOT_TEXT:
            raise PydanticCustomError(
                "not_text",
                "{kind} can't be read: this server's models take text alone, so leave images, sounds, films and files out",
                {"kind": kind},
            )
    return given


NOT_TEXT = ("image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file")
Content = Annotated[str | Annotated[list[TextPart], Field(min_length=1, max_length=256)], BeforeValidator(text_alone)]


class ChatMessage(Strict):
    """One turn; what an answer held may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    refusal: None = None
    parsed: Any = None  # as the openai client dumps it; left
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _checked(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs a content (only the assistant's calls of tools may stand without)")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content):
            raise ValueError(f"tool_calls and reasoning_content are the assistant's; this is the {self.role}'s turn")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a tool's answer names its call (role 'tool' with tool_call_id), and nothing else does")
        return self

    @property
    def text(self) -> str:
        """Its text."""
        given = self.content or ""
        return given if isinstance(given, str) else "".join(part.text for part in given)


class TemplateArguments(Strict):
    """What a chat template may be told: whether to think."""

    enable_thinking: bool | None = None


class Asked(Strict):
    """What both kinds of completions share."""

    model: Annotated[str, Field(min_length=1, max_length=2048)]
    steering: Annotated[list[Term], Field(max_length=256), WRITTEN] | None = None
    strict: bool | None = None
    readouts: Annotated[list[Name], Field(max_length=64)] = []
    unsteered: Annotated[list[Span], Field(max_length=8)] = []
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[Name], Field(max_length=64)] | Name | None = None
    seed: Annotated[int, Field(ge=-GREATEST_SEED, le=GREATEST_SEED)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[Finite, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    structured_outputs: Structured | None = None
    echo: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    # at their default only
    use_beam_search: Literal[False] | None = None
    length_penalty: Annotated[Finite, Field(ge=1, le=1)] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    priority: Literal[0] | None = None

    # taken and left
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    cache_prompt: bool | None = None

    @property
    def terms(self) -> list[Term]:
        """The steerings asked for."""
        return self.steering or []

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a reply."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Asked):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=512)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    include_reasoning: Literal[True] | None = None
    add_special_tokens: Literal[False] | None = None


Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=1 << 20)]


class TextRequest(Asked):
    """The body of /v1/completions."""

    prompt: str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=1024)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt apart."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [one for one in self.prompt if isinstance(one, int)]
        rest = [one for one in self.prompt if not isinstance(one, int)]
        return [ids] if ids or not rest else rest


def parsed(kind: type[M], body: bytes) -> M:
    """A request's body. Raises `Problem` 400 with the first thing that is wrong with it, and the nearest legal field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as problem:
        found = problem.errors(include_url=False, include_context=False, include_input=False)
        first = max(
            found, key=lambda error: (error["type"] == "extra_forbidden", len(error["loc"]))
        )  # of a union the nearest
        where = tuple(at for at in first["loc"] if isinstance(at, int) or (at not in UNIONS and at.isidentifier()))
        raise _told(kind, first["type"], where or first["loc"], first["msg"]) from None


def _told(kind: type[Strict], what: str, where: tuple[int | str, ...], words: str) -> Problem:
    field = ".".join(str(at) for at in where)[:80]
    top = str(where[0]) if where else ""
    if what == "json_invalid":
        return Problem(400, f"the body isn't valid JSON: {words[:200]}.", "bad_json")
    if what == "extra_forbidden":
        name = str(where[-1])[:80]
        legal = kind.model_fields if len(where) == 1 else (Term.model_fields if top == "steering" else ())
        if len(where) == 1 and name in ELSEWHERE:
            return Problem(400, f"{name} isn't taken here: {ELSEWHERE[name]}.", "unsupported", param=name)
        near = nearest(name, legal) if legal else "Leave it out."
        return Problem(400, f"the field {field!r} isn't known here. {near}", "unknown_field", param=field)
    if top in UNBUILT:
        return Problem(400, f"{top} isn't built here ({UNBUILT[top]}); leave it out.", "unsupported", param=top)
    return Problem(400, f"{field or 'the body'}: {words[:200]}.", "bad_value", param=field or None)


UNIONS = ("str", "int", "Term", "TextPart", "ToolCall", "NamedChoice")  # what pydantic names a union's branches
LEFT = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "request_id", "cache_salt", "cache_prompt",
)  # fmt: skip
UNBUILT = {
    "reasoning_effort": "only none",
    "modalities": "only text",
    "verbosity": "only medium",
    "suffix": "no infilling",
    "best_of": "only 1",
    "use_beam_search": "only false",
    "length_penalty": "only 1",
    "include_stop_str_in_output": "only false",
    "skip_special_tokens": "only true",
    "spaces_between_special_tokens": "only true",
    "priority": "only 0",
    "include_reasoning": "only true: thinking is told apart, as reasoning_content",
    "add_special_tokens": "only false: the chat template writes them",
}
