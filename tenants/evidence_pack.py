"""A pack of evidence: one ZIP about one tenant and one time, made to be read and verified without this product.

Every file's SHA-256 stands in the manifest, events and checkpoints carry their hashes with the exact text that was
hashed, and `verify.py` in the pack recomputes all of it. Written to a stream in the caller's read block; nothing is
kept here. Names of people are display names; everything else names them by id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import IO, Any, Final
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection

from tenants import costs, evidence
from tenants.errors import InvalidSpec
from tenants.models import Price, Provider, Tenant

LONGEST: Final = timedelta(days=400)
MOST_EVENTS: Final = 250_000
FORMAT: Final = 1
WINDOW_COLUMNS: Final = (
    "tenant", "kind", "name", "allocation", "provider", "site", "host", "gpu", "gpu_ref", "gpu_index", "product",
    "profile", "start", "size", "held_from", "held_to", "billable_from", "billable_to", "hold",
)  # fmt: skip
README: Final = """\
Evidence about {tenant}{below}
From {start} up to, not including, {end} (UTC).
Made {made} by {by}.{simulated}

windows.csv        every GPU window that was held: which device, host and slots, from when to when, for what
decisions.json     every request that was filed or decided, its stages, each decision and the proof it was given
members.csv        who belonged to the tenant at the beginning and at the end; changes between are events
people.csv         display names of the people whose ids appear
prices.json        the price lists that applied
costs.csv          what was held and billed, by day, object and item, with the price that was applied
events.jsonl       what happened, each event with the text that was hashed, its hash and the hash before
checkpoints.jsonl  heads of all event chains at moments: the last of each day, and the first after the end
manifest.json      SHA-256 of each file
verify.py          verifies all of it: python3 verify.py <this file>.zip

An event's hash is SHA-256 over these fields joined by the byte 31: previous, chain, seq, at_us, tenant_id, kind,
object_kind, object_id, actor, person_id, data_text ("-" where there is none). A checkpoint's: previous, at_us,
heads_text. A checkpoint names the heads of all chains by opaque ids. Checkpoints of one pack are days apart: that each
follows from the one before is verified on the installation itself.
Compare the SHA-256 of manifest.json with the event evidence.made, which the installation wrote when it made this pack.
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pack is about."""

    tenant: Tenant
    start: datetime
    end: datetime
    children: bool


@dataclass(slots=True)
class Written:
    """What a pack holds."""

    digest: str = ""
    """SHA-256 of its manifest, hex."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → sha256, bytes, rows."""

    def rows(self, name: str) -> int:
        """Return how many rows a file has."""
        return int(self.files[name]["rows"])


def check(wanted: Wanted, *, now: datetime) -> None:
    """Raise `InvalidSpec` for a time that runs backwards, lies ahead, or is longer than a pack may be."""
    if wanted.end <= wanted.start:
        raise InvalidSpec("The end must be after the beginning.", field="until")
    if wanted.end > now:
        raise InvalidSpec("A pack is about what has happened: let it end now or earlier.", field="until")
    if wanted.end - wanted.start > LONGEST:
        raise InvalidSpec(f"A pack covers at most {LONGEST.days} days.", field="since")


def write(wanted: Wanted, out: IO[bytes], *, by: str, now: datetime) -> Written:
    """Write the pack to `out`, in the caller's read block, and return what is in it. Raises `InvalidSpec`."""
    check(wanted, now=now)
    names = evidence.tree(wanted.tenant, children=wanted.children)
    chains = _ranges(list(names), wanted.start, wanted.end)
    if sum(last - first + 1 for first, last in chains.values()) > MOST_EVENTS:
        raise InvalidSpec(f"More than {MOST_EVENTS:,} events: choose a shorter time.", field="since", code="too-much")
    written = Written()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        put = _Writer(archive, written, now)
        put.text("README.txt", _readme(wanted, by, now))
        put.text("verify.py", files("tenants").joinpath("evidence_verifier.py").read_text(encoding="utf-8"))
        put.table("windows.csv", WINDOW_COLUMNS, map(_window, evidence.windows_over(names, wanted.start, wanted.end)))
        decisions = list(evidence.decisions_over(names, wanted.start, wanted.end))
        put.json("decisions.json", decisions)
        members = _members(names, wanted)
        put.table("members.csv", ("moment", "tenant", "person", "name", "role"), members)
        put.json("prices.json", _prices(wanted))
        put.table("costs.csv", COST_COLUMNS, _costs(wanted, names, now=now))
        seen = {UUID(row[2]) for row in members} | _people_in(decisions)
        put.lines("events.jsonl", _events(chains, seen))
        put.lines("checkpoints.jsonl", _checkpoints(wanted))
        known = evidence.names_of(sorted(seen, key=lambda key: key.int))
        put.table("people.csv", ("person", "name"), ([str(key), name] for key, name in known.items()))
        manifest = {
            "format": FORMAT,
            "tenant": {"id": str(wanted.tenant.pk), "name": wanted.tenant.name, "with_children": wanted.children},
            "tenants": {str(key): name for key, name in names.items()},
            "from": wanted.start,
            "until": wanted.end,
            "made_at": now,
            "made_by": by,
            "chains": {str(chain): {"first": first, "last": last} for chain, (first, last) in chains.items()},
            "files": written.files,
        }
        body = json.dumps(manifest, cls=DjangoJSONEncoder, indent=1).encode()
        archive.writestr(put.entry("manifest.json"), body)
        written.digest = hashlib.sha256(body).hexdigest()
    return written


class _Writer:
    """Puts files into an archive and notes their digest, size and rows."""

    def __init__(self, archive: zipfile.ZipFile, written: Written, now: datetime) -> None:
        self.archive, self.written = archive, written
        self.moment = now.astimezone(UTC).timetuple()[:6]

    def entry(self, name: str) -> zipfile.ZipInfo:
        """Return an entry of the archive, dated when the pack was made."""
        found = zipfile.ZipInfo(name, date_time=self.moment)
        found.compress_type = zipfile.ZIP_DEFLATED
        found.external_attr = 0o644 << 16
        return found

    def pieces(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file piece by piece; a piece is a row."""
        digest, size, rows = hashlib.sha256(), 0, 0
        with self.archive.open(self.entry(name), "w", force_zip64=True) as target:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                rows += 1
                target.write(piece)
        self.written.files[name] = {"sha256": digest.hexdigest(), "bytes": size, "rows": rows}

    def text(self, name: str, text: str) -> None:
        """Write a text."""
        self.pieces(name, [text.encode()])

    def json(self, name: str, rows: Sequence[Any]) -> None:
        """Write a JSON list; its rows are counted."""
        body = json.dumps(rows, cls=DjangoJSONEncoder, indent=1).encode()
        self.pieces(name, [body])
        self.written.files[name]["rows"] = len(rows)

    def lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line."""
        self.pieces(name, (json.dumps(row, cls=DjangoJSONEncoder).encode() + b"\n" for row in rows))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file; its head is no row."""
        self.pieces(name, _csv([columns, *rows]))
        self.written.files[name]["rows"] -= 1


def _csv(rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in row])
        yield text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return a value as a file holds it; a text that a spreadsheet would take for a formula is kept a text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def _readme(wanted: Wanted, by: str, now: datetime) -> str:
    def written(moment: datetime) -> str:
        return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")

    simulated = Provider.objects.filter(capabilities__simulated=True).exists()
    return README.format(
        tenant=wanted.tenant.name,
        below=" and all tenants below it" if wanted.children else "",
        start=written(wanted.start),
        end=written(wanted.end),
        made=written(now),
        by=by,
        simulated="\nSimulated: providers of this installation are played by a sandbox." if simulated else "",
    )


# --- what the files hold ------------------------------------------------------------------------------


def _window(row: evidence.HeldWindow) -> list[Any]:
    return [
        row.tenant, row.subject.kind, row.subject.name, row.subject.short_id, row.provider, row.site, row.host, row.gpu,
        row.gpu_ref, row.gpu_index, row.product, row.profile, row.start, row.size, row.held_from, row.held_to,
        row.billable_from, row.billable_to, str(row.hold),
    ]  # fmt: skip


def _members(names: Mapping[UUID, str], wanted: Wanted) -> list[list[Any]]:
    return [
        [moment, one.tenant, str(one.person), one.name, one.role]
        for moment in (wanted.start, wanted.end)
        for one in evidence.members_at(names, moment)
    ]


def _people_in(decisions: Iterable[Mapping[str, Any]]) -> set[UUID]:
    found = set()
    for request in decisions:
        ids = [request["requester"]]
        ids += [one[key] for one in request["decisions"] for key in ("decider", "on_behalf_of")]
        found |= {UUID(each) for each in ids if each}
    return found


def _prices(wanted: Wanted) -> list[dict[str, Any]]:
    """Return the price lists that could apply: published to begin before the end."""
    rows = Price.objects.filter(price_list__valid_from__lt=wanted.end).select_related("price_list__provider")
    lists: dict[UUID, dict[str, Any]] = {}
    for row in rows.order_by("price_list__valid_from", "price_list__name", "item"):
        one = row.price_list
        found = lists.setdefault(
            one.pk,
            {
                "name": one.name,
                "provider": one.provider.name if one.provider is not None else None,
                "site": one.site,
                "currency": one.currency,
                "valid_from": one.valid_from,
                "published_at": one.created_at,
                "prices": {},
            },
        )
        found["prices"][row.item] = str(row.amount)
    return list(lists.values())


COST_COLUMNS: Final = (
    "day", "tenant", "kind", "name", "allocation", "provider", "site", "item", "held", "billable", "price", "cost",
    "currency",
)  # fmt: skip


def _costs(wanted: Wanted, names: Mapping[UUID, str], *, now: datetime) -> Iterator[list[Any]]:
    for line in costs.cost_lines(wanted.tenant, wanted.start, wanted.end, now=now, children=wanted.children):
        subject = line.subject
        yield [
            line.day.isoformat(), names.get(subject.tenant, str(subject.tenant)), subject.kind, subject.name,
            subject.short_id, line.provider, line.site, line.item, f"{float(line.held):.6f}",
            f"{float(line.billable):.6f}", "" if line.price is None else str(line.price), str(line.cost), line.currency,
        ]  # fmt: skip


def _ranges(chains: Sequence[UUID], start: datetime, end: datetime) -> dict[UUID, tuple[int, int]]:
    """Return chain → first and last number of its events of a time; everything between belongs to the pack.

    Events are numbered as they were committed and dated as they were begun, so a few may be dated a moment outside.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT chain, min(seq), max(seq) FROM tenants_event WHERE chain = ANY (%s) AND at >= %s AND at < %s "
            "GROUP BY chain ORDER BY chain",
            [list(chains), start, end],
        )
        return {chain: (first, last) for chain, first, last in cursor.fetchall()}


def _events(chains: Mapping[UUID, tuple[int, int]], seen: set[UUID]) -> Iterator[dict[str, Any]]:
    """Yield events by chain and number, with the text of their data as it was hashed; notes whom they name."""
    keys = (
        "chain", "seq", "at_us", "at", "tenant_id", "kind", "object_kind", "object_id", "actor", "person_id",
        "data_text", "previous", "hash",
    )  # fmt: skip
    query = (
        "SELECT chain::text, seq, (extract(epoch FROM at) * 1000000)::bigint, at, tenant_id::text, kind, object_kind, "
        "object_id::text, actor, person_id::text, data::text, previous, hash FROM tenants_event "
        "WHERE chain = %s AND seq BETWEEN %s AND %s ORDER BY seq"
    )
    for chain, (first, last) in chains.items():
        for row in _rows(query, [chain, first, last]):
            event = dict(zip(keys, row, strict=True))
            if event["person_id"]:
                seen.add(UUID(event["person_id"]))
            yield event


def _checkpoints(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the last checkpoint of each day (UTC) of the time, and the first at or after its end, by moment."""
    keys = ("at", "at_us", "heads_text", "previous", "hash")
    query = """
        SELECT at, (extract(epoch FROM at) * 1000000)::bigint, heads::text, previous, hash FROM tenants_checkpoint
        WHERE id IN (
          SELECT DISTINCT ON (date_trunc('day', at AT TIME ZONE 'UTC')) id FROM tenants_checkpoint
          WHERE at >= %s AND at < %s ORDER BY date_trunc('day', at AT TIME ZONE 'UTC'), at DESC)
        OR id = (SELECT id FROM tenants_checkpoint WHERE at >= %s ORDER BY at LIMIT 1)
        ORDER BY at"""
    for row in _rows(query, [wanted.start, wanted.end, wanted.end]):
        yield dict(zip(keys, row, strict=True))


def _rows(query: str, parameters: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the rows of a statement, a thousand at a time, through a cursor of the server."""
    with connection.chunked_cursor() as cursor:
        cursor.execute(query, parameters)
        while rows := cursor.fetchmany(1000):
            yield from rows
