"""Base classes and field types of every body, query and answer.

Input is strict: unknown fields, coercions and unbounded text are refused. The JSON Schema that pydantic makes
of these classes is what the OpenAPI document shows (`tenants.api.schema`), so the two cannot differ.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tenants import field_help
from tenants.api.pagination import CURSOR, DEFAULT_LIMIT, MAX_LIMIT
from tenants.api.parsing import unsafe_text
from tenants.models.fields import SLUG_PATTERN
from tenants.states import Phase

LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
LABEL_KEY: Final = r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$"
LABEL_VALUE: Final = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
LABEL: Final = f"{LABEL_KEY[:-1]}(={LABEL_VALUE[1:-1]})?$"
"""`key` or `key=value`."""


class Explained(BaseModel):
    """Input whose schema says what each field is for, in the words of the portal and the help."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the sentence of `tenants.field_help` to each field that has none of its own."""
        found = handler(core_schema)
        for name, field in handler.resolve_ref_schema(found).get("properties", {}).items():
            known = field_help.help_of(name, cls.__name__)
            if known is not None:
                field.setdefault("description", known.sentence)
        return found


class In(Explained):
    """A body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Change(In):
    """A body that changes what it names and leaves the rest."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name at least one field to change")
        return self


def absent(description: str | None = None) -> Any:
    """Return the default of a field that may be left out but is never null; left out it reads as None."""
    return Field(default=None, description=description)


class Query(Explained):
    """Query parameters: text, turned into the declared types."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_timedelta="float")


def _one_line(text: str) -> str:
    if reason := unsafe_text(text, lines=False):
        raise ValueError(reason)
    if text != text.strip():
        raise ValueError("begins or ends with a space")
    return text


def _clamped(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("needs a time zone, as in 2026-06-01T12:00:00Z")
    try:
        return min(max(at.astimezone(UTC), EARLIEST), LATEST)
    except OverflowError:
        return EARLIEST if at.year < EARLIEST.year else LATEST


def _in_time(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("needs a time zone, as in 2026-06-01T12:00:00Z")
    try:
        at = at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is out of range") from error
    if not EARLIEST <= at <= LATEST:
        raise ValueError("lies outside 2000 to 2100")
    return at


# What `parsing.unsafe_text` refuses, for the document; \t and \n may stand in text of several lines.
_MARKS: Final = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LINE_CHARACTER: Final = rf"\u0000-\u001f\u007f-\u009f{_MARKS}"
_TEXT_CHARACTER: Final = rf"\u0000-\u0008\u000b-\u001f\u007f-\u009f{_MARKS}"
_LINE: Final = rf"^([^\s{_LINE_CHARACTER}]([^{_LINE_CHARACTER}]*[^\s{_LINE_CHARACTER}])?)?$"
_TEXT: Final = rf"^[^{_TEXT_CHARACTER}]*$"


def line(least: int = 1, most: int = 200) -> Any:
    """Return the type of one line of text without control characters and direction marks."""
    shown = Field(json_schema_extra={"pattern": _LINE})
    return Annotated[str, StringConstraints(min_length=least, max_length=most), AfterValidator(_one_line), shown]


def text(most: int = 1000, least: int = 0) -> Any:
    """Return the type of text that may have several lines; `parsing.tree` has looked at its characters."""
    shown = Field(json_schema_extra={"pattern": _TEXT})
    return Annotated[str, StringConstraints(min_length=least, max_length=most), shown]


def word(most: int = 64) -> Any:
    """Return the type of a query parameter that names something; `parsing.query_as` has looked at its characters."""
    shown = Field(json_schema_extra={"pattern": rf"^[^{_LINE_CHARACTER}]*$"})
    return Annotated[str, StringConstraints(max_length=most), shown]


ID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
IdWord = Annotated[str, StringConstraints(pattern=f"^({ID_PATTERN[1:-1]})?$")]
"""A query parameter that is an id, or empty."""


Name = Annotated[
    str,
    StringConstraints(pattern=SLUG_PATTERN, max_length=40),
    Field(description="A DNS label: a-z, 0-9 and '-', starting with a letter, at most 40 characters."),
]


def _written_out(value: object) -> object:
    """Read a moment as people and programs write it; what pydantic would take for seconds since 1970 is refused."""
    if isinstance(value, str) and _MOMENT.match(value):
        return datetime.fromisoformat(value.upper())
    if isinstance(value, datetime):
        return value
    raise ValueError("write a date and a time of day, such as 2030-01-31T12:00:00Z")


_MOMENT: Final = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}")
Moment = Annotated[
    datetime,
    BeforeValidator(_written_out),
    AfterValidator(_in_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Bound = Annotated[
    datetime,
    BeforeValidator(_written_out),
    AfterValidator(_clamped),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""Where a search begins or ends; nothing lies before 2000 or after 2100."""
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY, max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
ManagedBy = Literal["portal", "api", "git", "cli"]


class Condition(Out):
    """One thing passes say about an object."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_at: str
    observed_generation: int


class Named(Out):
    """A pointer to another object."""

    id: str
    name: str


class PageQuery(Query):
    """What every list takes."""

    cursor: Annotated[str, StringConstraints(pattern=CURSOR)] = Field("", description="`next` of the page before.")
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    order: Literal["newest", "oldest"] = "newest"


class LabelledQuery(PageQuery):
    """Filters of objects with a name, labels and a phase."""

    name: word(40) = ""  # type: ignore[valid-type]
    label: list[Annotated[str, StringConstraints(pattern=LABEL, max_length=130)]] = Field(
        default=[], description="`key=value` or `key`; may be given several times, all must hold.", max_length=16
    )
    managed_by: ManagedBy | None = None
    phase: Phase | None = None
    provider: word() = Field("", description="Name or id of a provider.")  # type: ignore[valid-type]
    tenant: word() = Field("", description="Name or id, in lists across tenants.")  # type: ignore[valid-type]
    live: bool | None = Field(None, description="true: without released ones; false: only those.")


class NoQuery(Query):
    """No query parameters."""


O = TypeVar("O", bound=Out)  # noqa: E741 - the usual short name


class Page(Out):
    """One page of a list."""

    next: str = Field(description="Cursor of the next page; empty at the end.")


def page_of(item: type[Out]) -> type[Page]:
    """Return the page type of an answer type, named after it."""
    name = item.__name__.removesuffix("Out")
    made = create_model(f"{name}Page", __base__=Page, items=(list[item], ...))  # type: ignore[valid-type]
    made.__doc__ = f"One page of {name} objects."
    return cast("type[Page]", made)


class Problem(Out):
    """An error as RFC 9457 describes it, with a stable `code` and the fields at fault."""

    class Fault(Out):
        """One field and what is wrong with it."""

        field: str | None
        reason: str

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[Fault]
    data: dict[str, Any] | None = None
    request_id: str | None = None
