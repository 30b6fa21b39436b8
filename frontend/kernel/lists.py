"""Lists of people's things: filters in the address, pages by key (constant cost at any depth), CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model, Q, QuerySet
from django.http import HttpResponse

PAGE_ROWS: Final = 50
MOST_EXPORTED: Final = 10_000
READ_FOR_EXPORT: Final = MOST_EXPORTED + 1
"""Read one more than a file holds, so that it can say that it is not all."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DANGEROUS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""A cell that begins so, after blanks too, is a formula to a spreadsheet."""

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """One page of a list, newest first."""

    rows: list[M]
    after: str
    """Cursor of the next page, `""` at the end."""
    is_first: bool


def page_of(rows: QuerySet[M], cursor: str, *, size: int = PAGE_ROWS, moment: str = "created_at") -> Page[M]:
    """Return one page by (`moment`, id), newest first; a cursor that is none of ours starts from the top."""
    at = _decode(cursor)
    if at is not None:
        when, key = at
        rows = rows.filter(Q((f"{moment}__lte", when)) & (Q((f"{moment}__lt", when)) | Q(id__lt=key)))
    found = list(rows.order_by(f"-{moment}", "-id")[: size + 1])
    more = len(found) > size
    last = found[size - 1] if more else None
    return Page(found[:size], _encode(last, moment) if last is not None else "", at is None)


def _encode(row: Any, moment: str) -> str:
    micros = (getattr(row, moment) - EPOCH) // timedelta(microseconds=1)
    return f"{micros}-{row.pk.hex}"


def _decode(cursor: str) -> tuple[datetime, UUID] | None:
    micros, _, key = cursor.partition("-")
    try:
        return EPOCH + timedelta(microseconds=int(micros)), UUID(hex=key)
    except (ValueError, OverflowError):
        return None


def exported(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    name: str,
    form: str,
    most: int | None = MOST_EXPORTED,
) -> HttpResponse:
    """Return rows as a file: `csv` or `json`. One that holds only the first `most` says so in its name."""
    if most is not None and len(rows) > most:
        rows, name = rows[:most], f"{name}-first-{most}"
    if form == "json":
        body = json.dumps([{key: row.get(key) for key in columns} for row in rows], cls=DjangoJSONEncoder, indent=1)
        response = HttpResponse(body, content_type="application/json")
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(key)) for key in columns] for row in rows)
        response = HttpResponse(text.getvalue(), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}.{"json" if form == "json" else "csv"}"'
    return response


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and (value.startswith(DANGEROUS) or value.lstrip(" ").startswith(DANGEROUS)):
        return f"'{value}"
    return value


def as_text(value: Any) -> str:
    """Return something with parts as the one cell that a CSV has for it."""
    return json.dumps(value, cls=DjangoJSONEncoder, sort_keys=True)
