"""What is being answered, kept so that a gateway that is killed settles it at its next start.

One file of fixed slots, mapped into memory: a request takes a slot before a backend is asked, notes there how far its
answer has come, and gives the slot back after its usage record is in the spool. Writing to the map is writing to the
kernel's page cache: it costs no system call and outlives SIGKILL at any instruction, so a stream that is cut by a kill
is settled to the last event read. The machine's own death loses what the kernel had not written yet. The file is
allocated whole at the start: a full disk is found there, not in the middle of an answer.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from provisioners.gateway.protocol import RequestOutcome, TokenSource, UsageRecord

SLOT_BYTES: Final = 2048
_STATE: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<II")
"""Length and CRC-32 of the opening."""
_PROGRESS: Final = struct.Struct("<QQQQQQ")
"""Status, prompt tokens, completion tokens, events, first event and last event in µs since the beginning (0: none).

Aligned, and written one by one (`struct` would write zeros first), so that a kill leaves each at its old or its new
value."""
_FREE: Final = 0
_TAKEN: Final = 1
_SETTLED: Final = 256
"""From here on: the answer was given and its budgets are settled; which outcome and which source of tokens."""
_OUTCOMES: Final = tuple(RequestOutcome)
_SOURCES: Final = tuple(TokenSource)
_AT_HEAD: Final = 8
_AT_PROGRESS: Final = 16
_AT_OPENING: Final = _AT_PROGRESS + _PROGRESS.size
_encoded: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Opening:
    """A request as it goes to a backend."""

    uid: UUID
    request_id: str
    key_id: str
    endpoint_uid: UUID
    unit_uid: UUID
    revision: int
    route: str
    model: str
    streamed: bool
    started_at: datetime
    charges: tuple[tuple[str, int], ...] = ()
    """Accounts of budgets (`provisioners.gateway.budgets`) and what a token is there, to be counted if we die."""

    def as_bytes(self) -> bytes:
        """Return it as JSON; what people use to find it is shortened where it would not fit."""
        text = self._as_text(self.request_id, self.model)
        return text if len(text) <= SLOT_BYTES - _AT_OPENING else self._as_text(self.request_id[:64], self.model[:64])

    def _as_text(self, request_id: str, model: str) -> bytes:
        same = _same(self.key_id, self.endpoint_uid, self.unit_uid, self.revision, self.route, model)
        charges = _encoded(self.charges) if self.charges else "[]"
        streamed = "true" if self.streamed else "false"
        return (
            f'{{"uid":"{self.uid.hex}","request_id":{quoted(request_id)},"streamed":{streamed},'
            f'"started_at":"{self.started_at.isoformat()}","charges":{charges},{same}}}'
        ).encode()


@lru_cache(maxsize=4096)
def _same(key_id: str, endpoint_uid: UUID, unit_uid: UUID, revision: int, route: str, model: str) -> str:
    """Return what the openings of many requests have in common, as members of a JSON object."""
    fields = {
        "key_id": key_id,
        "endpoint_uid": endpoint_uid.hex,
        "unit_uid": unit_uid.hex,
        "revision": revision,
        "route": route,
        "model": model,
    }
    return _encoded(fields)[1:-1]


@dataclass(frozen=True, slots=True)
class Left:
    """A request that was being answered when its gateway died."""

    record: UsageRecord
    charges: tuple[tuple[str, int], ...]

    @property
    def tokens(self) -> int:
        """Return what it used, as far as it had come."""
        return self.record.prompt_tokens + self.record.completion_tokens


class Slot:
    """One request's place. Used by the event loop only."""

    __slots__ = ("_at", "_journal")

    def __init__(self, journal: Journal, at: int) -> None:
        self._journal = journal
        self._at = at

    def progress(self, *, status: int, prompt: int, completion: int, events: int, first_us: int, last_us: int) -> None:
        """Note how far the answer has come."""
        self._journal.note(self._at, status, prompt, completion, events, first_us, last_us)

    def settle(self, outcome: RequestOutcome, source: TokenSource) -> None:
        """Note that the request is over, and how: only its record is still to be kept."""
        self._journal.settle(self._at, _SETTLED + _OUTCOMES.index(outcome) * len(_SOURCES) + _SOURCES.index(source))

    def close(self) -> None:
        """Give the slot back: the request is settled."""
        self._journal.free(self._at)


class Journal:
    """The file of slots."""

    def __init__(self, path: Path, *, slots: int) -> None:
        """Open or make `path` with room for `slots` requests at once. Raises `OSError` where there is no room."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            content = path.read_bytes()
            self._left = list(_taken(content))
            size = max(slots * SLOT_BYTES, len(content))
            os.posix_fallocate(file, 0, size)
            self._map = mmap.mmap(file, size)
            self._numbers = memoryview(self._map)[: size - size % 8].cast("Q")
        finally:
            os.close(file)
        taken = {at for at, _ in self._left}
        self._free = [at for at in range(size - SLOT_BYTES, -1, -SLOT_BYTES) if at not in taken]

    def left(self) -> Iterator[tuple[Slot, Left]]:
        """Yield what an earlier process left open, as far as it had come; its slot is taken until it is closed."""
        for at, found in self._left:
            yield Slot(self, at), found
        self._left = []

    def open(self, opening: Opening) -> Slot | None:
        """Take a slot; None where all are taken (the request is then counted only if we live to its end)."""
        if not self._free:
            return None
        at = self._free.pop()
        text = opening.as_bytes()
        _HEAD.pack_into(self._map, at + _AT_HEAD, len(text), zlib.crc32(text))
        _PROGRESS.pack_into(self._map, at + _AT_PROGRESS, 0, 0, 0, 0, 0, 0)
        start = at + _AT_OPENING
        self._map[start : start + len(text)] = text
        self._numbers[at // _STATE.size] = _TAKEN  # last: a slot is taken once all of it is there
        return Slot(self, at)

    def note(self, at: int, *numbers: int) -> None:
        """Write the progress of the slot at `at`."""
        first = (at + _AT_PROGRESS) // _STATE.size
        for place, number in enumerate(numbers, first):
            self._numbers[place] = number

    def settle(self, at: int, state: int) -> None:
        """Write that the request of the slot at `at` is over."""
        self._numbers[at // _STATE.size] = state

    def free(self, at: int) -> None:
        """Free the slot at `at`."""
        self._numbers[at // _STATE.size] = _FREE
        self._free.append(at)

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.release()
        self._map.close()


def _taken(content: bytes) -> Iterator[tuple[int, Left]]:
    """Yield (place, request) of each taken slot of a file; a slot that does not hold up is nothing."""
    for at in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        (state,) = _STATE.unpack_from(content, at)
        if state != _TAKEN and not _SETTLED <= state < _SETTLED + len(_OUTCOMES) * len(_SOURCES):
            continue
        length, checksum = _HEAD.unpack_from(content, at + _AT_HEAD)
        text = content[at + _AT_OPENING : at + _AT_OPENING + min(length, SLOT_BYTES - _AT_OPENING)]
        if zlib.crc32(text) != checksum:
            continue
        opening = json.loads(text)
        record = _record(opening, *_PROGRESS.unpack_from(content, at + _AT_PROGRESS))
        if state == _TAKEN:
            charges = tuple((str(name), int(units)) for name, units in opening.get("charges", ()))
            yield at, Left(record, charges)
        else:
            outcome, source = divmod(state - _SETTLED, len(_SOURCES))
            yield at, Left(_as_it_ended(record, _OUTCOMES[outcome], _SOURCES[source]), ())


def _record(
    opening: dict[str, Any], status: int, prompt: int, completion: int, events: int, first_us: int, last_us: int
) -> UsageRecord:
    source = TokenSource.LAST_SEEN if prompt or completion else TokenSource.COUNTED if events else TokenSource.NONE
    return UsageRecord(
        uid=UUID(opening["uid"]),
        request_id=opening["request_id"],
        key_id=opening["key_id"],
        endpoint_uid=UUID(opening["endpoint_uid"]),
        unit_uid=UUID(opening["unit_uid"]),
        revision=opening["revision"],
        route=opening["route"],
        model=opening["model"],
        streamed=opening["streamed"],
        prompt_tokens=prompt,
        completion_tokens=completion if source is not TokenSource.COUNTED else events,
        token_source=source,
        started_at=datetime.fromisoformat(opening["started_at"]).astimezone(UTC),
        duration_ms=last_us // 1000,
        ttft_ms=first_us // 1000 if first_us else None,
        itl_us=between_us(first_us, last_us, completion),
        status=status,
        outcome=RequestOutcome.GATEWAY_DIED,
    )


def _as_it_ended(record: UsageRecord, outcome: RequestOutcome, source: TokenSource) -> UsageRecord:
    counted = record.completion_tokens if source is not TokenSource.NONE else 0
    return record.model_copy(update={"outcome": outcome, "token_source": source, "completion_tokens": counted})


def between_us(first_us: int, last_us: int, completion_tokens: int) -> int | None:
    """Return the mean time between two tokens of a stream; None with less than two."""
    if not first_us or completion_tokens < 2:
        return None
    return max(last_us - first_us, 0) // (completion_tokens - 1)
