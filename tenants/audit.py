"""`ledger audit`: compares holds, masks, counters, units, charges and usage records with each other.

Pure reading; each finding is one sentence with the numbers. Clean means an empty list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.db import connection

from tenants import usage_days


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One contradiction."""

    check: str
    subject: str
    detail: str


CHECKS: Final[dict[str, str]] = {
    "overlap": """
        SELECT a.id::text, format('holds %s and %s keep the same window', a.id, b.id)
        FROM tenants_hold a JOIN tenants_hold b ON a.id < b.id AND a.slots && b.slots AND a.during && b.during""",
    "window": """
        SELECT h.id::text, format('slots %s is not device %s start %s size %s', h.slots, g.number, h.start, h.size)
        FROM tenants_hold h JOIN tenants_gpudevice g ON g.id = h.device_id
        WHERE h.slots <> int8range(g.number * 16 + h.start, g.number * 16 + h.start + h.size)
           OR h.start + h.size > g.slots OR h.host_id <> g.host_id OR h.device_number <> g.number""",
    "mask": """
        SELECT g.id::text, format('free mask %s, holds leave %s', g.free, m.free) FROM tenants_gpudevice g
        CROSS JOIN LATERAL (SELECT ((1 << g.slots) - 1) & ~coalesce(bit_or(ledger_mask(h.start, h.size)), 0) AS free
          FROM tenants_hold h WHERE h.device_id = g.id AND (h.kind = 'tenant' OR EXISTS (
            SELECT 1 FROM tenants_usagerecord r WHERE r.hold_id = h.id AND r.held_to IS NULL))) m
        WHERE g.free <> m.free""",
    "media": """
        SELECT g.id::text, format('media unit free=%s against its holds', g.media_free) FROM tenants_gpudevice g
        WHERE g.media_free = EXISTS (SELECT 1 FROM tenants_hold h WHERE h.device_id = g.id AND h.media)""",
    "host-room": """
        SELECT h.id::text, format('free %s vCPU %s GiB, holds and units leave %s and %s', h.free_vcpu,
          h.free_memory_gib, h.total_vcpu - coalesce(u.vcpu, 0) - coalesce(f.vcpu, 0),
          h.total_memory_gib - coalesce(u.memory, 0) - coalesce(f.memory, 0))
        FROM tenants_host h
        LEFT JOIN LATERAL (SELECT sum(vcpu) AS vcpu, sum(memory_gib) AS memory FROM tenants_unit
          WHERE host_id = h.id) u ON true
        LEFT JOIN LATERAL (SELECT sum(o.vcpu) AS vcpu, sum(o.memory_gib) AS memory FROM tenants_hold o
          WHERE o.host_id = h.id AND o.kind <> 'tenant' AND EXISTS (SELECT 1 FROM tenants_usagerecord r
            WHERE r.hold_id = o.id AND r.held_to IS NULL)) f ON true
        WHERE h.free_vcpu <> h.total_vcpu - coalesce(u.vcpu, 0) - coalesce(f.vcpu, 0)
           OR h.free_memory_gib <> h.total_memory_gib - coalesce(u.memory, 0) - coalesce(f.memory, 0)""",
    "host-gpus": """
        SELECT h.id::text, format('counts %s GPUs %s empty %s unsettled, rows say %s %s %s', h.gpu_count, h.empty_gpus,
          h.unsettled, g.n, g.empty, o.unsettled)
        FROM tenants_host h
        CROSS JOIN LATERAL (SELECT count(*) AS n, count(*) FILTER (WHERE free = (1 << slots) - 1) AS empty
          FROM tenants_gpudevice WHERE host_id = h.id AND removed_at IS NULL) g
        CROSS JOIN LATERAL (SELECT count(*) AS unsettled FROM tenants_hold WHERE host_id = h.id AND NOT settled) o
        WHERE h.gpu_count <> g.n OR h.empty_gpus <> g.empty OR h.unsettled <> o.unsettled""",
    "layout": """
        SELECT g.id::text, format('layout %L, MIG devices say %L', g.layout, m.layout) FROM tenants_gpudevice g
        LEFT JOIN (SELECT device_id, string_agg(profile || '@' || start, ' ' ORDER BY start) AS layout
          FROM tenants_migdevice GROUP BY device_id) m ON m.device_id = g.id
        WHERE g.layout <> coalesce(m.layout, '')""",
    "host-carved": """
        SELECT h.id::text, format('counts %s carved GPUs, rows say %s', h.carved_gpus, coalesce(g.n, 0))
        FROM tenants_host h
        LEFT JOIN (SELECT host_id, count(*) AS n FROM tenants_gpudevice d WHERE gpu_device_is_carved(d)
          GROUP BY host_id) g ON g.host_id = h.id
        WHERE h.carved_gpus <> coalesce(g.n, 0)""",
    "device-unsettled": """
        SELECT g.id::text, format('counts %s unsettled, holds say %s', g.unsettled, o.n) FROM tenants_gpudevice g
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM tenants_hold WHERE device_id = g.id AND NOT settled) o
        WHERE g.unsettled <> o.n""",
    "unit-holds": """
        SELECT u.id::text, format('placed=%s with %s windows, wants %s', u.host_id IS NOT NULL, h.n, w.n)
        FROM tenants_unit u
        CROSS JOIN LATERAL (SELECT count(*) AS n, count(*) FILTER (WHERE host_id <> u.host_id) AS elsewhere
          FROM tenants_hold WHERE unit_id = u.id) h
        CROSS JOIN LATERAL (SELECT CASE WHEN u.product = '' THEN 0 ELSE greatest(1, u.gpu_count) END AS n) w
        WHERE (u.host_id IS NULL AND h.n > 0) OR (u.host_id IS NOT NULL AND h.n <> w.n) OR h.elsewhere > 0""",
    "hold-owner": """
        SELECT h.id::text, format('hold of unit %s whose allocation is released', h.unit_id) FROM tenants_hold h
        JOIN tenants_unit u ON u.id = h.unit_id JOIN tenants_allocation a ON a.id = u.allocation_id
        WHERE a.released_at IS NOT NULL OR u.released_at IS NOT NULL OR h.tenant_id <> a.tenant_id""",
    "usage": """
        SELECT h.id::text, format('hold has %s open usage records', r.n) FROM tenants_hold h
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM tenants_usagerecord r WHERE r.hold_id = h.id AND r.held_to IS NULL
          AND r.device_id = h.device_id AND r.start = h.start AND r.size = h.size) r
        WHERE h.kind = 'tenant' AND r.n <> 1""",
    "usage-open": """
        SELECT r.id::text, 'open usage record without its hold' FROM tenants_usagerecord r
        WHERE r.held_to IS NULL AND NOT EXISTS (SELECT 1 FROM tenants_hold h WHERE h.id = r.hold_id)""",
    "usage-overlap": """
        SELECT a.id::text, format('usage records %s and %s overlap in window and time', a.id, b.id)
        FROM tenants_usagerecord a JOIN tenants_usagerecord b ON a.device_id = b.device_id AND a.id < b.id
          AND a.start < b.start + b.size AND b.start < a.start + a.size
          AND tstzrange(a.held_from, a.held_to) && tstzrange(b.held_from, b.held_to)""",
    "charge": """
        SELECT a.id::text, format('charged %s, asks %s', coalesce(c.charged, '{}'), a.demand) FROM tenants_allocation a
        CROSS JOIN LATERAL (SELECT jsonb_object_agg(dimension, amount) AS charged FROM tenants_quotacharge
          WHERE allocation_id = a.id) c
        WHERE (a.released_at IS NOT NULL AND c.charged IS NOT NULL)
           OR (c.charged IS NOT NULL AND c.charged <> a.demand)
           OR (c.charged IS NULL AND a.released_at IS NULL AND EXISTS (
                SELECT 1 FROM tenants_unit u WHERE u.allocation_id = a.id AND u.host_id IS NOT NULL))""",
    "unit-size": """
        SELECT u.id::text, format('has its size since %s, its former ones ended %s', u.sized_at, z.until)
        FROM tenants_unit u
        LEFT JOIN (SELECT unit_id, max(until) AS until FROM tenants_unitsize GROUP BY 1) z ON z.unit_id = u.id
        WHERE u.sized_at IS DISTINCT FROM z.until
        UNION ALL
        SELECT z.id::text, format('a size of unit %s of another allocation or tenant', z.unit_id)
        FROM tenants_unitsize z JOIN tenants_unit u ON u.id = z.unit_id
        WHERE z.allocation_id <> u.allocation_id OR z.tenant_id <> u.tenant_id""",
    "machine-size": """
        SELECT m.id::text, format('was resized %s times, its unit had %s former sizes', m.resizes, z.n)
        FROM tenants_machine m
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM tenants_unitsize s WHERE s.allocation_id = m.allocation_id) z
        WHERE m.resizes <> z.n
        UNION ALL
        SELECT m.id::text, format('asks for %s vCPU and %s GiB, its unit has %s and %s', w.vcpu, w.memory, u.vcpu,
          u.memory_gib)
        FROM tenants_machine m JOIN tenants_allocation a ON a.id = m.allocation_id
        JOIN tenants_unit u ON u.allocation_id = a.id
        CROSS JOIN LATERAL (SELECT (a.spec #>> '{units,0,vcpu}')::int AS vcpu,
          (a.spec #>> '{units,0,memory_gib}')::int AS memory) w
        WHERE u.vcpu <> w.vcpu OR u.memory_gib <> w.memory""",
    "vlan": """
        SELECT v.id::text, format('VLAN %s of boundary %s is kept after its end, or is of another provider or tenant',
          v.number, v.boundary_id)
        FROM tenants_vlan v JOIN tenants_boundary b ON b.id = v.boundary_id
        WHERE b.released_at IS NOT NULL OR b.provider_id <> v.provider_id OR b.tenant_id <> v.tenant_id""",
    "chain": """
        SELECT e.id::text, format('event %s of chain %s does not follow from the one before', e.seq, e.chain)
        FROM tenants_event e LEFT JOIN tenants_event p ON p.chain = e.chain AND p.seq = e.seq - 1
        WHERE e.hash <> event_hash(e.previous, e.chain, e.seq, e.at, e.tenant_id, e.kind, e.object_kind, e.object_id,
                                   e.actor, e.person_id, e.data)
           OR e.previous <> coalesce(p.hash, repeat('0', 64))
        ORDER BY e.chain, e.seq""",
    "chain-head": """
        SELECT c.chain::text, format('head is at %s, the last event at %s', c.seq, coalesce(max(e.seq), 0))
        FROM tenants_chainhead c LEFT JOIN tenants_event e ON e.chain = c.chain
        GROUP BY c.chain, c.seq, c.hash
        HAVING c.seq <> coalesce(max(e.seq), 0)
            OR c.hash <> coalesce((array_agg(e.hash ORDER BY e.seq DESC))[1], repeat('0', 64))""",
    "checkpoint": """
        SELECT c.id::text, format('checkpoint of %s does not follow from the one before', c.at)
        FROM (SELECT *, lag(hash) OVER (ORDER BY at) AS before FROM tenants_checkpoint) c
        WHERE c.hash <> checkpoint_hash(c.previous, c.at, c.heads)
           OR c.previous <> coalesce(c.before, repeat('0', 64))""",
    "checkpoint-head": """
        SELECT c.id::text, format('chain %s: the checkpoint of %s names another event %s', h.key, c.at, h.value->>0)
        FROM tenants_checkpoint c CROSS JOIN LATERAL jsonb_each(c.heads) h
        LEFT JOIN tenants_event e ON e.chain = h.key::uuid AND e.seq = (h.value->>0)::bigint
        WHERE (h.value->>0)::bigint > 0 AND e.hash IS DISTINCT FROM h.value->>1""",
}
"""Name → query of (subject, detail) rows; no rows = clean. Run as cp_worker or cp_owner."""

TRAIL: Final = tuple(name for name in CHECKS if name.startswith(("chain", "checkpoint")))
"""Checks of the event chains: `audit verify`."""
USAGE_DAYS: Final = "usage-days"
"""The roll-up of usage against the records it is made from; by `usage_days.differences`."""
LEDGER: Final = (*(name for name in CHECKS if name not in TRAIL), USAGE_DAYS)
"""Checks of the ledger: `ledger audit`."""


def findings(checks: tuple[str, ...] | None = None) -> list[AuditFinding]:
    """Run the checks (all by default) and return what contradicts. Shows all rows only to a worker or owner role."""
    found: list[AuditFinding] = []
    for name in checks or (*LEDGER, *TRAIL):
        if name == USAGE_DAYS:
            found += [AuditFinding(name, str(tenant), detail) for tenant, detail in usage_days.differences()]
            continue
        with connection.cursor() as cursor:
            cursor.execute(CHECKS[name])
            found += [AuditFinding(name, str(subject), str(detail)) for subject, detail in cursor.fetchall()]
    return found
