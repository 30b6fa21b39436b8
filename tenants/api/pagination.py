"""Cursor pagination on (created_at, id): constant cost at any depth, stable while rows are added.

The cursor is opaque and unsigned: it holds nothing but the last row's position, and a forged one only starts
somewhere else within what the caller may see.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, Literal, TypeVar
from uuid import UUID

from django.db.models import Model, Q, QuerySet

from tenants.errors import InvalidSpec

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
CURSOR: Final = r"^([0-9]{1,17}-[0-9a-f]{32})?$"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Slice(Generic[M]):
    """One page of rows and the cursor of the next, `""` at the end."""

    rows: list[M]
    next: str


def slice_of(
    rows: QuerySet[M], *, cursor: str, limit: int, order: Literal["newest", "oldest"], at: str = "created_at"
) -> Slice[M]:
    """Return one page of `rows` by (`at`, id). Raises `InvalidSpec` for a cursor that is none of ours."""
    newest = order == "newest"
    if cursor:
        moment, key = _decode(cursor)
        side = "lt" if newest else "gt"
        # The first condition bounds the index scan; the second drops the rows of the same moment already seen.
        rows = rows.filter(
            Q(**{f"{at}__{side}e": moment}) & (Q(**{f"{at}__{side}": moment}) | Q(**{f"id__{side}": key}))
        )
    sign = "-" if newest else ""
    found = list(rows.order_by(f"{sign}{at}", f"{sign}id")[: limit + 1])
    if len(found) <= limit:
        return Slice(found, "")
    last = found[limit - 1]
    return Slice(found[:limit], _encode(getattr(last, at), last.pk))


def _encode(moment: datetime, key: UUID) -> str:
    micros = (moment - EPOCH) // timedelta(microseconds=1)
    return f"{micros}-{key.hex}"


def _decode(cursor: str) -> tuple[datetime, UUID]:
    micros, _, key = cursor.partition("-")
    try:
        return EPOCH + timedelta(microseconds=int(micros)), UUID(hex=key)
    except (ValueError, OverflowError) as error:
        raise InvalidSpec("This cursor did not come from here.", field="cursor") from error
