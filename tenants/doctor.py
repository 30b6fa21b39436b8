"""The doctor: looks whether everything that keeps the control plane going does its work, and says how to mend it.

A worker runs the checks (it sees what no page may), stores codes, states and figures, and pages put them into words
from `CHECKS`. A check that cannot look says `unknown`, never `ok`. Each runs in a transaction of its own, so that one
that fails or takes too long spoils no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models import Q
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tenants import audit, hop_keys, ssh_ca, vault
from tenants.actor import SYSTEM
from tenants.models import Endpoint, GatewayReplica, Provider, ProviderCredential, Revision, SshAuthority
from tenants.transactions import acting

log = logging.getLogger(__name__)

OLDEST_POSTGRES: Final = 160000
STUCK_FAILURES: Final = 5
"""Passes in a row that ended in an error."""
LONGEST_LOOK_MS: Final = 60_000
"""Of one check; a longer one is broken off and says so."""
TOO_SLOW: Final = "57014"
"""SQLSTATE query_canceled."""
NAMED: Final = 5
"""Things that a check names; it counts all."""
PRODUCTS: Final = ("allocation", "boundary", "endpoint", "machine", "namespace", "provider", "hostplan")
"""Tables of rows that passes move."""


class State(StrEnum):
    """How a check came out, the worst first."""

    BAD = "bad"
    WARN = "warn"
    UNKNOWN = "unknown"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Check:
    """What a check is about, for people."""

    title: str | Promise
    meaning: str | Promise
    """Why it matters: what does not work while it is not well."""
    remedy: str | Promise
    """What to do when it is not well."""
    detail: str | Promise
    """What was seen, to be filled with the result's data."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one check came out."""

    code: str
    state: State
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as a report stores it."""
        return {"code": self.code, "state": self.state.value, "data": dict(self.data)}


CHECKS: Final[Mapping[str, Check]] = {
    "database": Check(
        _("Database"),
        _("Everything is kept there. Nothing is accepted and nothing moves while it does not answer."),
        _("Give the server more connections, or start fewer processes; at least PostgreSQL 16 is needed."),
        _("PostgreSQL %(version)s, %(connections)s of %(most)s connections in use, %(size)s."),
    ),
    "migrations": Check(
        _("Tables"),
        _("A release runs only on the tables that it was written for."),
        _("Run: python -m controlplane migrate, as the owner of the database; then restart all processes."),
        _("%(pending)s changes of tables wait; the newest applied is %(newest)s."),
    ),
    "clock": Check(
        _("Clocks"),
        _("Terms, prices and evidence are dated: workers and database must agree on the time."),
        _("Let a time service run on both machines."),
        _("Worker and database are %(difference_ms)s ms apart."),
    ),
    "passes": Check(
        _("Passes"),
        _("What people ask for is built by passes. Late ones mean that everybody waits."),
        _("Look whether workers run: make status. Add workers where they are all busy."),
        _("%(due)s things are due; the oldest has waited %(oldest_s)s s."),
    ),
    "stuck": Check(
        _("Stuck things"),
        _("A thing whose passes fail again and again does not get better by itself."),
        _("Open the thing: its reason says what the provider answers. A finding may need an operator."),
        _("%(count)s fail again and again, %(overdue)s steps have passed their limit. %(named)s"),
    ),
    "housekeeping": Check(
        _("Housekeeping"),
        _("Once a minute ends that have come are carried out, and a checkpoint seals what happened."),
        _("Look whether workers and the clock of the schedule (beat) run: make status."),
        _("The last checkpoint is %(age_s)s s old."),
    ),
    "outbox": Check(
        _("Outbox"),
        _("News waits there for the dispatcher. Old ones mean that changes are acted on late."),
        _("Look whether the dispatcher runs: make status. Sweeps take the news meanwhile."),
        _("%(count)s changes wait; the oldest for %(oldest_s)s s."),
    ),
    "notifications": Check(
        _("Notifications"),
        _("People and webhooks are told what happened. Late ones mean that nobody knows."),
        _("Look at the webhooks' log of deliveries, and at the mail server. Dead messages can be sent again."),
        _("%(untold)s events are not told yet; %(pending)s messages wait, the oldest for %(oldest_s)s s; "
          "%(dead)s were given up in a day."),
    ),
    "providers": Check(
        _("Providers"),
        _("Nothing is built or taken back at a provider that does not answer; what runs there goes on."),
        _("Open the provider: its page says what it answers. Check its address, its credential and the network."),
        _("%(count)s in use; do not answer: %(down)s; not looked at lately: %(stale)s."),
    ),
    "gateways": Check(
        _("Gateways"),
        _("A gateway that does not report serves on, but revoked keys and new revisions reach it late."),
        _("Look at the network between gateways and this address, and whether the process runs."),
        _("%(count)s enrolled; %(silent)s have not been heard for two minutes. %(named)s"),
    ),
    "broker": Check(
        _("Broker"),
        _("It carries hints to workers. Without it everything is still done, only slower."),
        _("Start the broker or correct CELERY_BROKER_URL; nothing has to be repeated."),
        _("%(answer)s"),
    ),
    "secrets": Check(
        _("Secrets"),
        _("Credentials and keys are sealed with the key ring. Without it no provider can be reached."),
        _("Give every process the same TENANTRY_MASTER_KEYS, with every key that was ever used."),
        _("%(answer)s"),
    ),
    "mail": Check(
        _("Mail"),
        _("Invitations, resets and warnings go out by mail."),
        _("Set TENANTRY_SMTP_URL and TENANTRY_MAIL_FROM."),
        _("%(answer)s"),
    ),
    "backups": Check(
        _("Backups"),
        _("What is lost with the database is lost for good; providers can be read again, people's asks cannot."),
        _("Archive the write-ahead log (archive_mode), or run pg_dump every day and try it out: "
          "docs/backups.md says what a copy must hold."),
        _("%(answer)s"),
    ),
    "ledger": Check(
        _("Books"),
        _("Windows, free room, quotas and usage are kept twice over and must say the same."),
        _("Run: python -m controlplane ledger_audit. It names each contradiction; nothing is placed on a device "
          "with a finding."),
        _("%(checks)s comparisons, %(count)s contradictions. %(named)s"),
    ),
    "trail": Check(
        _("Evidence"),
        _("Every event's hash follows from the one before; checkpoints seal all of them."),
        _("Run: python -m controlplane audit_verify. Keep a copy of the database as it is before anything else."),
        _("%(events)s events in %(chains)s chains and %(checkpoints)s checkpoints recomputed: %(count)s do not fit. "
          "%(named)s"),
    ),
}  # fmt: skip
"""Code → words, in the order in which pages show them."""
THOROUGH: Final = frozenset({"ledger", "trail"})
"""Checks that recompute everything; only in thorough reports."""


def examine(*, now: datetime, thorough: bool, outside: Mapping[str, Callable[[], Result]]) -> list[Result]:
    """Run every check as a worker and return the results in order. Raises `DependencyDown` without a database.

    `outside` has the checks of things that the domain does not know, such as the broker.
    """
    inside: dict[str, Callable[[datetime], Result]] = {
        "database": _database, "migrations": _migrations, "clock": _clock, "passes": _passes, "stuck": _stuck,
        "housekeeping": _housekeeping, "outbox": _outbox, "notifications": _notifications, "providers": _providers,
        "gateways": _gateways, "secrets": _secrets, "mail": _mail, "backups": _backups, "ledger": _ledger,
        "trail": _trail,
    }  # fmt: skip
    found = []
    for code in CHECKS:
        if code in THOROUGH and not thorough:
            continue
        if code in outside:
            found.append(outside[code]())
        elif code in inside:
            found.append(_look(code, inside[code], now))
    return found


def _look(code: str, check: Callable[[datetime], Result], now: datetime) -> Result:
    with acting(SYSTEM):
        try:
            with transaction.atomic():
                _all("SELECT set_config('statement_timeout', %s, true)", [str(LONGEST_LOOK_MS)])
                return check(now)
        except DatabaseError as error:
            log.warning("a check of the doctor could not look", extra={"check": code}, exc_info=True)
            slow = getattr(error.__cause__, "sqlstate", "") == TOO_SLOW
            return Result(code, State.UNKNOWN, {"unseen": "too-slow" if slow else "failed"})


def worst(results: list[dict[str, Any]]) -> State:
    """Return the worst state of stored results; without any it is unknown."""
    order = list(State)
    states = [State(result["state"]) for result in results]
    return min(states, key=order.index, default=State.UNKNOWN)


# --- the checks -----------------------------------------------------------------------------------------


def _database(_now: datetime) -> Result:
    version, number, used, most, size = _all(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, "
        "(SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database), "
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, "
        "pg_database_size(current_database())"
    )[0]
    state = State.BAD if number < OLDEST_POSTGRES else State.WARN if used > 0.8 * most else State.OK
    return Result(
        "database", state, {"version": version.split()[0], "connections": used, "most": most, "size_bytes": size}
    )


def _migrations(_now: datetime) -> Result:
    loader = MigrationLoader(connection)
    applied = set(loader.applied_migrations)
    known = set(loader.graph.nodes) if loader.graph is not None else set()
    pending = sorted(known - applied)
    newest = max((name for app, name in applied if app == "tenants"), default="--")
    return Result(
        "migrations",
        State.BAD if pending else State.OK,
        {"pending": len(pending), "newest": newest, "named": ", ".join(name for _app, name in pending[:NAMED])},
    )


def _clock(now: datetime) -> Result:
    there = _all("SELECT clock_timestamp()")[0][0]
    difference = abs((there - now).total_seconds())
    return Result("clock", State.WARN if difference > 2 else State.OK, {"difference_ms": round(difference * 1000)})


def _passes(now: datetime) -> Result:
    parts = " UNION ALL ".join(
        f"SELECT due_at FROM tenants_{table} WHERE released_at IS NULL AND due_at <= %(now)s "  # noqa: S608 - our tables
        "AND (lease_expires_at IS NULL OR lease_expires_at <= %(now)s)"
        + (" AND enabled" if table == "provider" else "")
        for table in PRODUCTS
    )
    due, oldest = _all(f"SELECT count(*), min(due_at) FROM ({parts}) d", {"now": now})[0]  # noqa: S608 - our tables
    return _late("passes", oldest, now, {"due": due})


def _stuck(now: datetime) -> Result:
    parts = " UNION ALL ".join(
        f"SELECT '{table}' AS kind, short_id, failures FROM tenants_{table} "  # noqa: S608 - our tables
        "WHERE released_at IS NULL AND failures >= %(failures)s"
        for table in PRODUCTS
    )
    rows = _all(f"SELECT kind, short_id FROM ({parts}) s ORDER BY failures DESC", {"failures": STUCK_FAILURES})  # noqa: S608
    overdue = _all("SELECT count(*) FROM tenants_intent WHERE settled_at IS NULL AND deadline_at < %s", [now])[0][0]
    named = ", ".join(f"{kind} {short_id}" for kind, short_id in rows[:NAMED])
    state = State.WARN if rows or overdue else State.OK
    return Result("stuck", state, {"count": len(rows), "overdue": overdue, "named": named})


def _housekeeping(now: datetime) -> Result:
    last = _all("SELECT max(at) FROM tenants_checkpoint")[0][0]
    if last is None:
        return Result("housekeeping", State.WARN, {"age_s": "--"})
    age = max(0, round((now - last).total_seconds()))
    return Result(
        "housekeeping",
        State.BAD if age > 600 else State.WARN if age > 180 else State.OK,
        {"age_s": age, "at": _iso(last)},
    )


def _outbox(now: datetime) -> Result:
    count, oldest = _all("SELECT count(*), min(at) FROM tenants_outbox WHERE published_at IS NULL")[0]
    return _late("outbox", oldest, now, {"count": count})


def _notifications(now: datetime) -> Result:
    untold = _all(
        "SELECT coalesce(sum(greatest(0, h.seq - coalesce(c.seq, 0))), 0)::bigint FROM tenants_chainhead h "
        "LEFT JOIN tenants_fanoutcursor c ON c.chain = h.chain"
    )[0][0]
    pending, oldest = _all(
        "SELECT count(*), min(next_at) FILTER (WHERE next_at <= %s) FROM tenants_delivery WHERE state = 'pending'",
        [now],
    )[0]
    dead = _all(
        "SELECT count(*) FROM tenants_delivery WHERE state = 'dead' AND done_at > %s", [now - timedelta(days=1)]
    )[0][0]
    found = _late("notifications", oldest, now, {"untold": untold, "pending": pending, "dead": dead}, patience=6)
    return Result("notifications", State.WARN, found.data) if dead and found.state is State.OK else found


def _providers(now: datetime) -> Result:
    rows = list(Provider.objects.filter(enabled=True, released_at__isnull=True).order_by("name"))
    old = now - timedelta(seconds=3 * settings.TENANTRY_INVENTORY_S + 60)
    down = [row.name for row in rows if not row.healthy]
    stale = [row.name for row in rows if row.healthy and (row.snapshot_at is None or row.snapshot_at < old)]
    state = State.BAD if rows and len(down) == len(rows) else State.WARN if down or stale else State.OK
    data = {"count": len(rows), "down": ", ".join(down[:NAMED]) or "--", "stale": ", ".join(stale[:NAMED]) or "--"}
    return Result("providers", state, data)


def _gateways(now: datetime) -> Result:
    rows = GatewayReplica.objects.filter(removed_at__isnull=True, enrolled_at__isnull=False)
    silent = rows.filter(Q(last_seen_at__isnull=True) | Q(last_seen_at__lt=now - timedelta(minutes=2)))
    count, quiet = rows.count(), silent.count()
    named = ", ".join(sorted({row.boundary.short_id for row in silent.select_related("boundary")[:NAMED]}))
    return Result("gateways", State.WARN if quiet else State.OK, {"count": count, "silent": quiet, "named": named})


def _secrets(_now: datetime) -> Result:
    place: dict[str, Any] = {"table": "doctor", "column": "trial", "row": UUID(int=0)}
    vault.unseal(vault.seal("trial", **place), **place)
    wanted = Endpoint.objects.filter(released_at__isnull=True).values("revision")
    given = ProviderCredential.objects.only("sealed")
    revisions = Revision.objects.filter(pk__in=wanted, hop_key_sealed__isnull=False).only("hop_key_sealed")
    authorities = SshAuthority.objects.only("sealed")
    opens: list[Callable[[], object]] = [
        *(partial(vault.unseal, one.sealed, table=one._meta.db_table, column="sealed", row=one.pk) for one in given),
        *(partial(hop_keys.plain, row) for row in revisions),
        *(partial(vault.unseal, row.sealed, **ssh_ca.PLACE, row=row.pk) for row in authorities),
    ]
    closed = 0
    for each in opens:
        try:
            each()
        except vault.VaultError:
            closed += 1
    state = State.BAD if closed else State.OK
    return Result("secrets", state, {"word": "closed" if closed else "open", "count": len(opens), "closed": closed})


def _mail(_now: datetime) -> Result:
    if settings.TENANTRY_MAIL_REACHES_PEOPLE:
        return Result("mail", State.OK, {"word": "server"})
    return Result("mail", State.OK if settings.TENANTRY_DEMO else State.WARN, {"word": "kept"})


def _backups(_now: datetime) -> Result:
    mode, archived, last, failed_at = _all(
        "SELECT current_setting('archive_mode'), archived_count, last_archived_time, last_failed_time "
        "FROM pg_stat_archiver"
    )[0]
    if mode == "off":
        return Result("backups", State.UNKNOWN, {"word": "unseen"})
    failing = failed_at is not None and (last is None or failed_at > last)
    data = {"word": "failing" if failing else "archived", "count": archived, "last": _iso(last) if last else None}
    return Result("backups", State.BAD if failing else State.OK if last else State.UNKNOWN, data)


def _ledger(_now: datetime) -> Result:
    found = audit.findings(audit.LEDGER)
    named = "; ".join(f"{one.check}: {one.detail}" for one in found[:NAMED])
    data = {"checks": len(audit.LEDGER), "count": len(found), "named": named}
    return Result("ledger", State.BAD if found else State.OK, data)


def _trail(_now: datetime) -> Result:
    events, chains = _all("SELECT coalesce(sum(seq), 0)::bigint, count(*) FROM tenants_chainhead")[0]
    checkpoints, sealed = _all("SELECT count(*), max(at) FROM tenants_checkpoint")[0]
    found = audit.findings(audit.TRAIL)
    return Result(
        "trail",
        State.BAD if found else State.OK,
        {
            "events": events,
            "chains": chains,
            "checkpoints": checkpoints,
            "sealed_at": _iso(sealed) if sealed else None,
            "count": len(found),
            "named": "; ".join(one.detail for one in found[:NAMED]),
        },
    )


# --- plain ----------------------------------------------------------------------------------------------


def _late(code: str, oldest: datetime | None, now: datetime, data: dict[str, Any], *, patience: int = 3) -> Result:
    """Return a result by the age of the oldest thing that waits, in sweeps."""
    age = max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0
    sweep = float(settings.TENANTRY_SWEEP_S)
    state = State.BAD if age > 4 * patience * sweep else State.WARN if age > patience * sweep else State.OK
    return Result(code, state, {**data, "oldest_s": round(age)})


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _all(query: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters or None)
        return list(cursor.fetchall())
