"""Bytes → checked input. Strict on purpose: what is not exactly JSON of the declared shape is refused by field.

Refused here: other content types, bad UTF-8, duplicate keys, NaN and Infinity, integers beyond 2^53, nesting
beyond `MAX_DEPTH` (checked before parsing, so that no recursion limit is met), control characters, lone
surrogates, unknown and repeated query parameters.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from django.http import HttpRequest, QueryDict, UnreadablePostError
from pydantic import BaseModel, ValidationError
from rest_framework.parsers import BaseParser

from tenants.errors import InvalidSpec, PayloadTooLarge, UnsupportedMediaType

MAX_BODY: Final = 1_048_576
MAX_DEPTH: Final = 24
MAX_INTEGER: Final = 2**53 - 1
MAX_ERRORS: Final = 50

_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")
_ALLOWED_CONTROL: Final = frozenset("\n\t")
_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Model = TypeVar("Model", bound=BaseModel)


class StrictJSONParser(BaseParser):
    """DRF's way in; the views read bodies through `read` and `body_as`."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:  # noqa: ARG002
        """Return the parsed body. Raises `InvalidSpec`, `PayloadTooLarge`."""
        return tree(_limited(stream))


def read(request: HttpRequest) -> bytes:
    """Return the body. Raises `PayloadTooLarge`, and `UnsupportedMediaType` for a body that is not declared as JSON."""
    body = _limited(request)
    if body.strip():
        kind, _, parameters = request.META.get("CONTENT_TYPE", "").partition(";")
        if kind.strip().lower() != "application/json":
            raise UnsupportedMediaType(field="Content-Type")
        charset = parameters.lower().partition("charset=")[2].strip().strip('"')
        if charset not in {"", "utf-8", "utf8"}:
            raise UnsupportedMediaType("Send application/json in UTF-8.", field="Content-Type")
    return body


def _limited(stream: Any) -> bytes:
    try:
        body = bytes(stream.read(MAX_BODY + 1))
    except (UnreadablePostError, OSError) as error:
        raise InvalidSpec("The body ended before it was complete.") from error
    if len(body) > MAX_BODY:
        raise PayloadTooLarge(limit_bytes=MAX_BODY)
    return body


def tree(body: bytes) -> Any:
    """Return the parsed JSON. Raises `InvalidSpec` naming the place at fault."""
    _check_depth(body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"The body is not UTF-8: byte {error.start}.", field="") from error
    try:
        found = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_integer,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"The body is not JSON: line {error.lineno}, column {error.colno}.", field="") from error
    except RecursionError as error:  # the depth check comes first; a second fence costs nothing
        raise InvalidSpec("The body is nested too deeply.", field="") from error
    faults = [{"field": place, "reason": reason} for place, reason in _unsafe(found, "")][:MAX_ERRORS]
    if faults:
        raise InvalidSpec("The body holds characters that are not allowed.", errors=faults)
    return found


def body_as(model: type[Model], found: Any) -> Model:
    """Return a body that `tree` has read as `model`. Raises `InvalidSpec` listing every field at fault.

    It is read from its canonical text: strict types allow in JSON (dates, UUIDs) what they refuse among Python's.
    """
    try:
        return model.model_validate_json(canonical(found), strict=True)
    except ValidationError as error:
        raise _invalid(error, "The body is not valid.") from error


def query_as(model: type[Model], query: QueryDict) -> Model:
    """Return the query parameters as `model`. Raises `InvalidSpec`; unknown and repeated parameters are refused."""
    values: dict[str, Any] = {}
    for name, found in query.lists():
        for value in (name, *found):
            if reason := unsafe_text(value, lines=False):
                raise InvalidSpec(f"A query parameter {reason}.", errors=[{"field": name[:80], "reason": reason}])
        field = model.model_fields.get(name)
        if field is not None and "list" in str(field.annotation):
            values[name] = found
        elif len(found) == 1:
            values[name] = found[0]
        else:
            raise InvalidSpec("A query parameter is given twice.", field=name[:80])
    try:
        return model.model_validate_strings(values) if not _has_lists(values) else model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, "The query parameters are not valid.") from error


def unsafe_text(text: str, *, lines: bool = True) -> str:
    """Return why a string is not allowed, `""` if it is."""
    if text.isascii() and text.isprintable():
        return ""
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            return "holds half of a character (a lone surrogate)"
        if kind == "Cc" and not (lines and character in _ALLOWED_CONTROL):
            return f"holds the control character U+{ord(character):04X}"
        if character in _DIRECTION:
            return f"holds the direction mark U+{ord(character):04X}"
    return ""


def canonical(found: Any) -> bytes:
    """Return one spelling of a parsed body, for its hash."""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _has_lists(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, list) for value in values.values())


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidSpec(f"The body is nested more than {MAX_DEPTH} levels deep.", field="")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidSpec("A field is given twice.", field=_shown(name))
        found[name] = value
    return found


def _no_constant(word: str) -> float:
    raise InvalidSpec(f"{word} is no JSON number.", field="")


def _bounded_integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise InvalidSpec("An integer is larger than 2^53.", field="")
    return int(digits)


def _finite(digits: str) -> float | int:
    """Return a number; an integer where its fraction is zero, as JSON Schema counts (2020-12 validation, 6.1.1)."""
    number = float(digits)
    if not math.isfinite(number):
        raise InvalidSpec("A number is too large.", field="")
    return int(number) if number.is_integer() and abs(number) <= MAX_INTEGER else number


def _unsafe(found: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, str):
        if reason := unsafe_text(found):
            yield place, reason
    elif isinstance(found, dict):
        for name, value in found.items():
            inner = f"{place}.{_shown(name)}" if place else _shown(name)
            if reason := unsafe_text(name, lines=False):
                yield inner, f"the name {reason}"
            yield from _unsafe(value, inner)
    elif isinstance(found, list):
        for index, value in enumerate(found):
            yield from _unsafe(value, f"{place}[{index}]")


def _shown(name: str) -> str:
    """Return a field's name as an answer may repeat it: short, printable."""
    return "".join(c if c.isprintable() and unicodedata.category(c) != "Cs" else "?" for c in name[:80])


def _invalid(error: ValidationError, detail: str) -> InvalidSpec:
    """Return pydantic's findings as fields and reasons, without repeating the input."""
    faults = [
        {"field": _place(fault["loc"]), "reason": _reason(fault["type"], fault["msg"])}
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    named = ", ".join(sorted({fault["field"] for fault in faults if fault["field"]})[:5])
    return InvalidSpec(f"{detail[:-1]}: {named}." if named else detail, errors=faults[:MAX_ERRORS])


def _place(location: tuple[int | str, ...]) -> str:
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part != "[key]" and not part.startswith(("function-", "literal[")):
            place += ("." if place else "") + _shown(part)
    return place


def _reason(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ")
