"""The address of an endpoint as a contract: `https://<endpoint>.<tenant>.<zone>/v1`, whatever it leads to. Pure.

The zone is a setting of the provider. A driver says where an endpoint answers; under a zone that is only where its name
leads to, so the address outlives revisions, rollbacks and a move. Laboratories and addresses inside a cluster have no
names of ours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

LONGEST: Final = 253
"""Characters of a DNS name (RFC 1035, 2.3.4, less the root's)."""
LEADS_TO: Final = "leads_to"
"""Where an endpoint's row remembers (`observed`) where its address leads to, in its driver's words."""
NO_RECORDS: Final = "none"
"""Setting `dns_records`: whoever resolves the zone's names does it by himself, and no record is asked for."""
UNNAMED: Final = frozenset({"lab", "cluster"})
"""From where an address can be reached that is not published under a zone."""


def host_of(endpoint: str, tenant: str, zone: str) -> str:
    """Return the DNS name of an endpoint, `""` without a zone or where it would be too long."""
    zone = zone.strip(".").lower()
    found = f"{endpoint}.{tenant}.{zone}" if zone else ""
    return found if len(found) <= LONGEST else ""


def published(leads_to: str, reachable_from: str, host: str) -> str:
    """Return the address that people get, where a driver says that an endpoint answers at `leads_to`."""
    if not leads_to or not host or reachable_from in UNNAMED:
        return leads_to
    parts = urlsplit(leads_to)
    port = f":{parts.port}" if parts.port else ""  # of simulated providers, whose gateways share one machine
    return f"{parts.scheme}://{host}{port}/v1"


def records_of(config: Mapping[str, Any]) -> str:
    """Return who sets the records of a provider's endpoints: `show` (people), `external-dns`, or `none` of ours."""
    return str(config.get("dns_records") or "show")


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """A record that is to be set."""

    name: str
    kind: str
    """`A`, `AAAA` or `CNAME`."""
    value: str

    @property
    def line(self) -> str:
        """Return it as a zone file has it."""
        return f"{self.name}. {self.kind} {self.value}{'.' if self.kind == 'CNAME' else ''}"


def record_of(address: str, leads_to: str) -> DnsRecord | None:
    """Return the record with which a published address leads where it should; None where none is known or needed."""
    name, target = urlsplit(address).hostname or "", urlsplit(leads_to).hostname or ""
    if not name or not target or name == target or number_of(name) is not None:
        return None
    number = number_of(target)
    kind = "CNAME" if number is None else f"A{'AAA' if number.version == 6 else ''}"
    return DnsRecord(name, kind, target)


def record_to_set(address: str, leads_to: str, config: Mapping[str, Any]) -> DnsRecord | None:
    """Return the record that people are to set, None where a provider's setting says that nobody is."""
    return None if records_of(config) == NO_RECORDS else record_of(address, leads_to)


def number_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host that is written as a number, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
