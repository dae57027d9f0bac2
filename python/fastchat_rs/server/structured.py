"""The fields that say what an answer has to be -> one StructuredOutput, with the field it came from. Knows no tools."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from fastchat_rs.server.api_error import ApiError, bad_field
from fastchat_rs.server.bridge import InvalidRequestError, StructuredOutput
from fastchat_rs.server.decode import nesting
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.protocol import ResponseFormat, SamplingFields, StructuredOutputs

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
_MAX_CHOICES = 1024


@dataclass(frozen=True)
class Wanted:
    """What the answer has to be, and the request's field to blame when that cannot be enforced."""

    field: str
    output: StructuredOutput


def structured_output(request: SamplingFields) -> Wanted | None:
    """At most one of the fields may ask; the second is refused by name."""
    found: Wanted | None = None
    for field, build in _given(request):
        if found is not None:
            raise bad_field(field, f"{field}: only one constraint on the answer is possible, and {found.field} is one")
        found = Wanted(field, build())
    return found


def reworded(error: ApiError, field: str) -> ApiError:
    """The engine's complaint about `structured` as one about the request's field."""
    if error.param == "structured":
        error.param = field
        error.message = f"{field}: {error.message.removeprefix('structured').lstrip(': ')}"
    return error


def check_schema(field: str, text: str | bytes) -> None:
    """Size and depth of a schema's JSON text."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_SCHEMA_BYTES:
        raise bad_field(field, f"{field}: the schema has {len(raw)} bytes, the limit is {MAX_SCHEMA_BYTES}")
    depth = nesting(raw)
    if depth > MAX_SCHEMA_DEPTH:
        raise bad_field(field, f"{field}: the schema is nested {depth} deep, the limit is {MAX_SCHEMA_DEPTH}")


def _given(request: SamplingFields) -> list[tuple[str, Callable[[], StructuredOutput]]]:
    given: list[tuple[str, Callable[[], StructuredOutput]]] = []
    form = request.response_format
    if form is not None and form.type != "text":
        given.append(("response_format", lambda: _response_format(form)))
    for field in ("regex", "guided_regex"):
        pattern: str | None = getattr(request, field)
        if pattern is not None:
            given.append((field, lambda field=field, pattern=pattern: _regex(field, pattern)))
    for field in ("grammar", "guided_grammar"):
        grammar: str | None = getattr(request, field)
        if grammar is not None:
            given.append((field, lambda field=field, grammar=grammar: _grammar(field, grammar)))
    if not _is_null(request.guided_json):
        given.append(("guided_json", lambda: _schema("guided_json", request.guided_json)))
    for field in ("choice", "guided_choice"):
        choices: list[str] | None = getattr(request, field)
        if choices is not None:
            given.append((field, lambda field=field, choices=choices: _choice(field, choices)))
    several = request.structured_outputs
    if several is not None:
        given.append(("structured_outputs", lambda: _structured_outputs(several)))
    return given


def _response_format(form: ResponseFormat) -> StructuredOutput:
    field = "response_format"
    if form.type == "json_object":
        return StructuredOutput.json_object() if _is_null(form.schema) else _schema(field, form.schema)
    if form.json_schema is None:
        raise bad_field(field, f"{field}: json_schema is needed with this type")
    if _is_null(form.json_schema.schema):
        raise bad_field(field, f"{field}: json_schema.schema is needed")
    return _schema(field, form.json_schema.schema)


def _structured_outputs(given: StructuredOutputs) -> StructuredOutput:
    field = "structured_outputs"
    builders: list[Callable[[], StructuredOutput]] = []
    if not _is_null(given.json):
        builders.append(lambda: _schema(field, given.json))
    if (pattern := given.regex) is not None:
        builders.append(lambda: _regex(field, pattern))
    if (choices := given.choice) is not None:
        builders.append(lambda: _choice(field, choices))
    if (grammar := given.grammar) is not None:
        builders.append(lambda: _grammar(field, grammar))
    if given.json_object:
        builders.append(StructuredOutput.json_object)
    if len(builders) != 1:
        raise bad_field(field, f"{field}: exactly one of json, regex, choice, grammar and json_object is needed")
    return builders[0]()


def _is_null(raw: Raw) -> bool:
    return bytes(raw).strip() == b"null"


def _schema(field: str, raw: Raw) -> StructuredOutput:
    """A schema as JSON, or as JSON in a string (vLLM takes both)."""
    data = bytes(raw)
    if data.lstrip().startswith(b'"'):
        data = msgspec.json.decode(data, type=str).encode("utf-8", "surrogatepass")
    check_schema(field, data)
    try:
        schema = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_field(field, f"{field}: the schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise bad_field(field, f"{field}: a schema is a JSON object")
    try:
        return StructuredOutput.json_schema(data.decode("utf-8"))
    except InvalidRequestError as error:
        raise reworded(to_api_error(error, ""), field) from error


def _regex(field: str, pattern: str) -> StructuredOutput:
    _check_text(field, pattern)
    return StructuredOutput.regex(pattern)


def _grammar(field: str, grammar: str) -> StructuredOutput:
    _check_text(field, grammar)
    return StructuredOutput.lark(grammar)


def _choice(field: str, choices: list[str]) -> StructuredOutput:
    if not 0 < len(choices) <= _MAX_CHOICES:
        raise bad_field(field, f"{field}: {len(choices)} texts, it takes 1 to {_MAX_CHOICES}")
    _check_text(field, "".join(choices))
    return StructuredOutput.choice(choices)


def _check_text(field: str, text: str) -> None:
    if not text:
        raise bad_field(field, f"{field}: is empty")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SCHEMA_BYTES:
        raise bad_field(field, f"{field}: {size} bytes, the limit is {MAX_SCHEMA_BYTES}")
