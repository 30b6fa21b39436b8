"""Budgets: a request goes on only where what it may use at most still fits; afterwards what it really used is counted.

What a gateway may spend of a budget in one period was leased to it by the control plane: all parts together are never
more than the budget, so several gateways keep one budget without asking each other. A part is renewed ahead, as large
as what is used in ten minutes, and so serves on while the control plane is away. Parts and what was spent of them are
in a file that is mapped into memory, as the journal is: both outlive SIGKILL, and what was being answered then is
counted from the journal; what may have been counted before the kill is counted again, so no budget is passed by it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from provisioners.gateway import refusals
from provisioners.gateway.protocol import (
    MAX_LEASES,
    MOST_AMOUNT,
    BudgetConfig,
    BudgetPeriod,
    BudgetUnit,
    Lease,
    LeaseAsk,
)

log = logging.getLogger("tenantry.gateway")

SLOTS: Final = 8192
SLOT_BYTES: Final = 160
WAIT_S: Final = 5.0
"""How long a request waits for a part before it is refused."""
AHEAD_S: Final = 600.0
"""For so long what is leased should last at the present rate."""
EARLY: Final = timedelta(minutes=15)
"""So long before its period begins a part is asked for."""
LATE: Final = timedelta(minutes=30)
"""So long after its period's end it is still told what was spent."""
QUIET_S: Final = 1.0
"""After a part was too small, nobody asks again for so long: who is refused meanwhile is refused at once."""
IDLE_S: Final = 60.0
"""A part of which nothing was spent is renewed so seldom."""
SHARED_IDLE_S: Final = 15.0
"""The same where others share the budget, who may lack what is kept here."""
FORGET: Final = timedelta(days=40)
"""So long after its beginning a period is over that is not known otherwise."""
FLOOR: Final = {BudgetUnit.TOKENS: 20_000, BudgetUnit.MONEY: 50_000_000}
"""Least to be had ahead, while it is not known what is used."""
_HEAD: Final = struct.Struct("<QQQII")
"""Taken or not, granted, spent, length and CRC-32 of the name."""
_NUMBER: Final = struct.Struct("<Q")
_MARK: Final = b"tntbudg1"
"""Begins the file, the id of which follows, in the place of a first slot."""
_AT_GRANTED: Final = 8
_AT_SPENT: Final = 16


@dataclass(slots=True)
class Account:
    """One budget in one period, as far as this gateway has a part of it. Amounts are of the period as a whole."""

    budget: str
    period_start: datetime
    file: AccountFile
    at: int | None
    """Its place in the file; None where that is full: then it is kept in memory only."""
    granted: int = 0
    spent: int = 0
    held: int = 0
    waiting: int = 0
    unlimited: bool = False
    short: bool = False
    """Whether the last answer gave less than was needed."""
    left: int | None = None
    """Of the whole budget, leased to nobody, as last told."""
    answered_at: float = -math.inf
    answered: int = 0
    """Number of the last ask that it was in and that was answered; `refused`: where the answer left it out."""
    refused: int = 0
    most_ahead: int | None = None
    """Beyond what is used, because others lack; None: as much as it likes."""
    asked_spent: int = -1
    looked_spent: int = -1
    known: tuple[int, int] | None = None
    """Granted and spent as the control plane has them."""
    rate: float = 0.0
    """Smoothed, per second."""
    largest: int = 0
    """Largest hold lately."""

    @property
    def name(self) -> str:
        """Return what it is called in the file and the journal."""
        return f"{self.budget}|{self.period_start.isoformat()}"

    @property
    def free(self) -> int:
        """Return what may still be held."""
        return self.granted - self.spent - self.held

    def grant(self, amount: int) -> None:
        """Count on `amount` from now on, but never on less than what is spent or held."""
        self.granted = max(amount, self.used)
        self.file.write(self.at, _AT_GRANTED, self.granted)

    def spend(self, amount: int) -> None:
        """Count what was used."""
        self.spent += amount
        self.file.write(self.at, _AT_SPENT, self.spent)

    def ahead(self, floor: int) -> int:
        """Return how much to have beyond what is spent and held."""
        wished = max(math.ceil(self.rate * AHEAD_S), 2 * self.largest, floor)
        return wished if self.most_ahead is None else min(wished, self.most_ahead)

    @property
    def used(self) -> int:
        """Return what is spent or held."""
        return self.spent + self.held

    def look(self, passed_s: float) -> None:
        """Note how fast it is spent, at every look; what was used largest is forgotten slowly."""
        if passed_s > 0 and self.looked_spent >= 0:
            weight = 1 - math.exp(-passed_s / 60)
            self.rate += weight * ((self.spent - self.looked_spent) / passed_s - self.rate)
            self.largest = math.ceil(self.largest * math.exp(-passed_s / 300))
        self.looked_spent = self.spent

    def ask(self, *, need: int, want: int) -> LeaseAsk:
        """Return what to ask; amounts beyond all reason are cut, so that nobody's request stops those of others."""
        keep = min(max(self.granted, self.used), MOST_AMOUNT)
        need = min(max(keep, need), MOST_AMOUNT)
        return LeaseAsk(
            budget=self.budget, period_start=self.period_start, spent=min(self.spent, keep), keep=keep, need=need,
            want=min(max(need, want), MOST_AMOUNT),
        )  # fmt: skip


@dataclass(slots=True)
class Hold:
    """What one request may use at most, set aside in each of its budgets."""

    parts: list[tuple[Account, int, int]] = field(default_factory=list)
    """Account, units of a token there, and what is held."""

    def charges(self) -> tuple[tuple[str, int], ...]:
        """Return what the journal keeps: names of accounts, and units of a token."""
        return tuple((account.name, units) for account, units, _ in self.parts)

    def at_most(self, tokens: int) -> None:
        """Hold less, once it is known that no more than `tokens` can be used."""
        for at, (account, units, amount) in enumerate(self.parts):
            if tokens * units < amount:
                account.held -= amount - tokens * units
                self.parts[at] = (account, units, tokens * units)

    def settle(self, tokens: int) -> None:
        """Count what was used, and set nothing aside any more."""
        for account, units, amount in self.parts:
            account.held -= amount
            account.spend(tokens * units)
        self.parts = []


class AccountFile:
    """The file of accounts: fixed slots, mapped into memory."""

    def __init__(self, path: Path, *, slots: int = SLOTS) -> None:
        """Open or make `path`. Raises `OSError` where there is no room."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = max((1 + slots) * SLOT_BYTES, path.stat().st_size)
            os.posix_fallocate(file, 0, size)
            self._map = mmap.mmap(file, size)
            self._numbers = memoryview(self._map)[: size - size % 8].cast("Q")
        finally:
            os.close(file)
        if self._map[: len(_MARK)] != _MARK:
            self._map[:] = bytes(size)
            self._map[len(_MARK) : len(_MARK) + 16] = uuid4().bytes
            self._map[: len(_MARK)] = _MARK
        self.memory: Final = UUID(bytes=self._map[len(_MARK) : len(_MARK) + 16])
        """Made with the file: who counts on in another one has lost count."""
        self._free = [
            at for at in range(size - SLOT_BYTES, 0, -SLOT_BYTES) if not _NUMBER.unpack_from(self._map, at)[0]
        ]

    def accounts(self) -> Iterable[Account]:
        """Yield what an earlier process left; what does not hold up is forgotten."""
        for at in range(SLOT_BYTES, len(self._map) - SLOT_BYTES + 1, SLOT_BYTES):
            taken, granted, spent, length, checksum = _HEAD.unpack_from(self._map, at)
            if not taken:
                continue
            name = self._map[at + _HEAD.size : at + _HEAD.size + min(length, SLOT_BYTES - _HEAD.size)]
            if zlib.crc32(name) != checksum:
                self.free(at)
                continue
            budget, _, start = name.decode().partition("|")
            yield Account(budget, datetime.fromisoformat(start), self, at, granted, spent)

    def take(self, name: str) -> int | None:
        """Return a place for an account that has nothing yet; None where the file is full."""
        text = name.encode()
        if not self._free or len(text) > SLOT_BYTES - _HEAD.size:
            return None
        at = self._free.pop()
        self._map[at + _HEAD.size : at + _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._map, at, 0, 0, 0, len(text), zlib.crc32(text))
        self.write(at, 0, 1)  # last: it is there once all of it is
        return at

    def write(self, at: int | None, where: int, number: int) -> None:
        """Write one number of the account at `at`."""
        if at is not None:
            # Not by `struct`, which writes zeros first: a kill in between would forget what was spent.
            self._numbers[(at + where) // _NUMBER.size] = number

    def free(self, at: int | None) -> None:
        """Give a place back."""
        if at is not None:
            self.write(at, 0, 0)
            self._free.append(at)

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.release()
        self._map.close()


class Budgets:
    """All accounts of one gateway. Used by the event loop only."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the file at `path`. Raises `OSError`."""
        self._clock, self._now = clock, now
        self._file = AccountFile(path)
        self.memory: Final = self._file.memory
        self._accounts = {account.name: account for account in self._file.accounts()}
        self._configured: tuple[BudgetConfig, ...] = ()
        self._is_configured = False
        self._asked = 0
        self._failed = 0
        self._last_look = clock()
        self._news = asyncio.Event()
        self.wanted = asyncio.Event()
        """Set while somebody waits for a part."""

    # --- requests -----------------------------------------------------------------------------------

    async def hold(self, budgets: Sequence[BudgetConfig], *, tokens: int, nano: int) -> Hold:
        """Set aside what a request may use at most: `tokens`, each at a price of `nano`.

        All budgets have room, or none is touched. Waits up to `WAIT_S` for a part. Raises `Refusal`: 402 where a
        budget has no room, 503 where it is not known whether it has.
        """
        if not budgets:
            return Hold()
        now = self._now()
        wanted = [(self._account(each, now), each, 1 if each.unit is BudgetUnit.TOKENS else nano) for each in budgets]
        lacking = self._lacking(wanted, tokens)
        if lacking:
            await self._wait(wanted, tokens)
        hold = Hold()
        for account, _, units in wanted:
            if not account.unlimited:
                account.held += tokens * units
                account.largest = max(account.largest, tokens * units)
                hold.parts.append((account, units, tokens * units))
        return hold

    async def _wait(self, wanted: list[tuple[Account, BudgetConfig, int]], tokens: int) -> None:
        ends = self._clock() + WAIT_S
        number = self._asked + 1  # the first ask that knows of us
        for account, _, units in wanted:
            account.waiting += tokens * units
        try:
            while lacking := self._lacking(wanted, tokens):
                account, config, units = lacking[0]
                settled = account.short and self._clock() < account.answered_at + QUIET_S
                if settled or (account.answered >= number and account.short):
                    raise _exhausted(account, config, tokens * units)
                if account.answered >= number:  # it was enough, but somebody who came later was faster
                    number = self._asked + 1
                if max(self._failed, account.refused) >= number or self._clock() >= ends:
                    raise refusals.unavailable(
                        "budget_unavailable", "The budget cannot be asked for right now.", retry_after_s=2
                    )
                self.wanted.set()
                news = self._news
                try:
                    async with asyncio.timeout(max(ends - self._clock(), 0)):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            for account, _, units in wanted:
                account.waiting -= tokens * units

    @staticmethod
    def _lacking(
        wanted: Iterable[tuple[Account, BudgetConfig, int]], tokens: int
    ) -> list[tuple[Account, BudgetConfig, int]]:
        return [each for each in wanted if not each[0].unlimited and each[0].free < tokens * each[2]]

    def settle_left(self, charges: Iterable[tuple[str, int]], tokens: int) -> None:
        """Count a request that an earlier process was answering when it was killed."""
        for name, units in charges:
            account = self._accounts.get(name)
            if account is not None:
                account.spend(tokens * units)

    # --- the control plane --------------------------------------------------------------------------

    def configure(self, budgets: Iterable[BudgetConfig]) -> None:
        """Know which budgets there are; new ones are asked for at once, and the parts of others given back."""
        before = {each.id for each in self._configured}
        self._configured = tuple({each.id: each for each in budgets}.values())
        self._is_configured = True
        now = self._now()
        for each in self._configured:
            self._account(each, now)
        if {each.id for each in self._configured} != before:
            self.wanted.set()

    def asks(self) -> list[LeaseAsk]:
        """Return what to ask for now, those first that somebody waits for; at most as many as go into one request."""
        self.wanted.clear()
        self._asked += 1
        now, clock = self._now(), self._clock()
        self._forget(now)
        passed = clock - self._last_look
        self._last_look = clock
        found: list[tuple[Account, LeaseAsk]] = []
        for account, config in self._live(now):
            account.look(passed)
            floor = FLOOR[config.unit] if config.amount is None else min(FLOOR[config.unit], config.amount // 20)
            ahead = account.ahead(floor)
            idle = not account.waiting and account.spent == account.asked_spent
            rests_s = IDLE_S if account.most_ahead is None else SHARED_IDLE_S
            if idle and clock < account.answered_at + rests_s:
                continue
            # What was granted to those who wait is theirs, also while they have not got round to taking it.
            need = account.used + account.waiting
            if account.granted > need + (2 * ahead if account.most_ahead is None else ahead):
                account.grant(need + ahead)  # before it is said: what we give back we must not count on
            found.append((account, account.ask(need=need, want=need + ahead)))
        found.sort(key=lambda each: not each[0].waiting)
        found += [(account, account.ask(need=0, want=0)) for account in self._leftovers(now)]
        if len(found) > MAX_LEASES:
            self.wanted.set()  # the rest goes with the next one, at once
        for account, _ in found[:MAX_LEASES]:
            account.asked_spent = account.spent
        return [ask for _, ask in found[:MAX_LEASES]]

    def farewell(self) -> list[LeaseAsk]:
        """Give everything back that is not used: nothing is answered here any more, maybe for ever."""
        self._asked += 1
        found = []
        for account in self._accounts.values():
            if account.granted > account.used and self._is_now(account.period_start, self._now()):
                account.grant(account.used)
                found.append(account.ask(need=0, want=0))
        return found[:MAX_LEASES]

    def answered(self, asked: Sequence[LeaseAsk], leases: Iterable[Lease]) -> None:
        """Take what was granted. What was asked for and not answered is of no period that the control plane knows."""
        open_ = {(ask.budget, ask.period_start): ask for ask in asked}
        for lease in leases:
            start = lease.period_start.astimezone(UTC)
            ask = open_.pop((lease.budget, start), None)
            account = self._accounts.get(f"{lease.budget}|{start.isoformat()}")
            if account is None or ask is None:
                continue
            account.unlimited, account.left = lease.granted is None, lease.left
            account.most_ahead = lease.ahead
            account.answered_at, account.answered = self._clock(), self._asked
            account.known = (ask.keep if lease.granted is None else lease.granted, ask.spent)
            if lease.granted is not None:
                account.grant(lease.granted)
                account.short = lease.granted < ask.need
        for budget, start in open_:
            if (account := self._accounts.get(f"{budget}|{start.isoformat()}")) is not None:
                account.refused = self._asked
        self._tell()

    def failed(self) -> None:
        """Say that nobody answered: who waits is told so."""
        self._failed = self._asked
        self._tell()

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _account(self, config: BudgetConfig, now: datetime) -> Account:
        start = config.period.start(now)
        name = f"{config.id}|{start.isoformat()}"
        found = self._accounts.get(name)
        if found is None:
            at = self._file.take(name)
            if at is None:
                log.error("there is no room to keep account %s", hashlib.sha256(name.encode()).hexdigest()[:12])
            found = self._accounts[name] = Account(config.id, start, self._file, at)
        return found

    def _live(self, now: datetime) -> Iterable[tuple[Account, BudgetConfig]]:
        """Yield the accounts of this period, of the next one when that is near, and of one that has just ended."""
        for config in self._configured:
            moments = {config.period.start(at) for at in (now - LATE, now, now + EARLY)}
            for start in sorted(moments):
                name = f"{config.id}|{start.isoformat()}"
                if start >= config.period.start(now) or name in self._accounts:
                    yield self._account(config, start), config

    def _leftovers(self, now: datetime) -> Iterable[Account]:
        """Yield accounts of budgets that are configured no more, of which the control plane thinks that we need a part.

        A key's part must not stay with a gateway that its endpoint was moved away from.
        """
        if not self._is_configured:
            return
        known = {config.id for config in self._configured}
        for account in self._accounts.values():
            if account.budget in known or not self._is_now(account.period_start, now):
                continue
            account.grant(account.used)
            if account.known != (account.granted, account.spent):
                yield account

    @staticmethod
    def _is_now(start: datetime, now: datetime) -> bool:
        return any(period.start(now) == start for period in BudgetPeriod)

    def _forget(self, now: datetime) -> None:
        """Forget accounts of periods that are long over."""
        periods = {config.id: config.period for config in self._configured}
        for name, account in tuple(self._accounts.items()):
            period, start = periods.get(account.budget), account.period_start
            ends = start + FORGET if period is None else period.end(start) + 2 * LATE
            if ends < now and not account.held and not account.waiting:
                self._file.free(account.at)
                del self._accounts[name]


def _exhausted(account: Account, config: BudgetConfig, amount: int) -> refusals.Refusal:
    free = max(account.free, 0) + (account.left or 0)
    return refusals.budget_exhausted(config, needed=amount, left=free, ends_at=config.period.end(account.period_start))
