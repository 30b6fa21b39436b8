"""One request that passed the key check, from its beginning to its usage record.

When its answer is given, its rates, budgets and its place in the journal are settled at once; the record, and what is
counted for people, follow some milliseconds later, those of a burst together and in one write: nobody waits for them. A
kill in between loses nothing, for the journal says by then how each one ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Final
from uuid import UUID, uuid4

from provisioners.gateway.budgets import Hold
from provisioners.gateway.journal import Opening, Slot, between_us
from provisioners.gateway.limits import Admission
from provisioners.gateway.paths import Route
from provisioners.gateway.protocol import Backend, RequestOutcome, TokenSource, UsageRecord
from provisioners.gateway.routing import Grant
from provisioners.gateway.streams import EventStream, Usage

log = logging.getLogger("tenantry.gateway")

KEEP_AFTER_S: Final = 0.005
MOST_AT_ONCE: Final = 256


@dataclass(slots=True)
class Call:
    """What becomes a usage record: one request that passed the key check."""

    request_id: str
    route: Route
    grant: Grant
    model: str
    streamed: bool
    began: float
    began_at: datetime
    backend: Backend | None = None
    sent_at: float = 0.0
    """When `backend` was asked."""
    usage: Usage | None = None
    counted_whole: bool = False
    """Whether `usage` is that of the whole answer."""
    events: int = 0
    first_event_at: float | None = None
    last_event_at: float | None = None
    status: int = 0
    outcome: RequestOutcome = RequestOutcome.NO_BACKEND
    uid: UUID = field(default_factory=uuid4)
    slot: Slot | None = None
    """Its place in the journal, from the moment a backend is asked."""
    admission: Admission | None = None
    limit_headers: Mapping[str, str] = field(default_factory=dict)
    hold: Hold = field(default_factory=Hold)
    left_over: bool = False
    """Whether its caller left, and its answer is read without him: it ends with that, not with the request."""
    ended: float = 0.0

    def opening(self) -> Opening:
        """Return what the journal keeps before `backend` is asked."""
        assert self.backend is not None
        return Opening(
            uid=self.uid,
            request_id=self.request_id,
            key_id=self.grant.key_id,
            endpoint_uid=self.grant.endpoint.uid,
            unit_uid=self.backend.unit_uid,
            revision=self.backend.revision,
            route=self.route.value,
            model=self.model,
            streamed=self.streamed,
            started_at=self.began_at,
            charges=self.hold.charges(),
        )

    def came(self, events: EventStream, now: float) -> None:
        """Note how far a stream has come."""
        if self.first_event_at is None:
            self.first_event_at = now
        self.last_event_at = now
        self.read(events)
        if self.slot is not None:
            usage = self.usage or Usage(0, 0)
            self.slot.progress(
                status=self.status,
                prompt=usage.prompt_tokens,
                completion=usage.completion_tokens,
                events=self.events,
                first_us=self._us(self.first_event_at),
                last_us=self._us(now),
            )

    @property
    def used(self) -> int | None:
        """Return the tokens that it used, as its record has them; None where nobody said."""
        if self.usage is not None:
            return self.usage.prompt_tokens + self.usage.completion_tokens
        if self.events:
            return self.events
        return 0 if self.outcome is RequestOutcome.NO_BACKEND or self.status >= HTTPStatus.BAD_REQUEST else None

    def read(self, events: EventStream) -> None:
        """Take over what a stream has said so far."""
        self.usage, self.counted_whole, self.events = events.usage, events.counted_whole, events.data_events

    def _us(self, moment: float) -> int:
        return max(1, round((moment - self.began) * 1_000_000))

    @property
    def token_source(self) -> TokenSource:
        """Return where its tokens were said."""
        if self.usage is None:
            return TokenSource.COUNTED if self.events else TokenSource.NONE
        whole = self.counted_whole or self.outcome is RequestOutcome.COMPLETED
        return TokenSource.REPORTED if whole else TokenSource.LAST_SEEN

    def end(self, now: float) -> None:
        """Settle what others wait for, and write down how it ended: from here on only its record is to be kept."""
        self.ended = now
        if self.admission is not None:
            self.admission.settle(self.used)
        self.hold.settle(self.used or 0)
        if self.slot is not None:
            usage = self.usage or Usage(0, 0)
            self.slot.progress(
                status=int(self.status),
                prompt=usage.prompt_tokens,
                completion=usage.completion_tokens,
                events=self.events,
                first_us=0 if self.first_event_at is None else self._us(self.first_event_at),
                last_us=self._us(now if self.last_event_at is None else self.last_event_at),
            )
            self.slot.settle(self.outcome, self.token_source)

    def record(self) -> UsageRecord:
        """Return the record of a call that has ended."""
        usage = self.usage or Usage(0, self.events)
        first, last = self.first_event_at, self.last_event_at
        return UsageRecord(
            uid=self.uid,
            request_id=self.request_id,
            key_id=self.grant.key_id,
            endpoint_uid=self.grant.endpoint.uid,
            unit_uid=self.backend.unit_uid if self.backend else None,
            revision=self.backend.revision if self.backend else None,
            route=self.route.value,
            model=self.model,
            streamed=self.streamed,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            token_source=self.token_source,
            started_at=self.began_at,
            duration_ms=round((self.ended - self.began) * 1000),
            ttft_ms=None if first is None else round((first - self.began) * 1000),
            itl_us=None
            if first is None or last is None
            else between_us(self._us(first), self._us(last), usage.completion_tokens),
            status=self.status,
            outcome=self.outcome,
        )


class Ended:
    """Calls that have ended, until their records are kept. Used by the event loop only."""

    def __init__(self, *, keep: Callable[[Sequence[UsageRecord]], None], count: Callable[[Call], None]) -> None:
        """`keep` writes records down, and raises nothing; `count` counts one call for people."""
        self._keep = keep
        self._count = count
        self._waiting: list[Call] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many records are still to be kept."""
        return len(self._waiting)

    def add(self, call: Call) -> None:
        """End a call; its record is kept soon, or at once where the journal has no place for it."""
        call.end(time.monotonic())
        self._waiting.append(call)
        if call.slot is None or len(self._waiting) >= MOST_AT_ONCE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEEP_AFTER_S, self.flush)

    def flush(self) -> None:
        """Keep all that waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._waiting = self._waiting, []
        if not calls:
            return
        records = []
        for call in calls:
            try:
                self._count(call)
                records.append(call.record())
            except Exception:  # a bug in one must not cost the others their records
                log.exception("the record of request %s could not be made", call.request_id)
        self._keep(records)
        for call in calls:  # last: what the journal gives up is on disk
            if call.slot is not None:
                call.slot.close()
