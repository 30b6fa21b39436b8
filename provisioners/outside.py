"""Looking at endpoints' addresses as a caller would: does the name lead there, is the certificate good, who answers.

Runs beside the dispatcher, in a thread of its own. Called is only what lies in the provider's address ranges, by the
number that was resolved, and without a key: a gateway of ours refuses that in a way of its own.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import httpx
from django.utils import timezone

from provisioners import lookout
from tenants import addresses, endpoint_trust, reach
from tenants.actor import SYSTEM
from tenants.errors import Conflict
from tenants.models import Endpoint, Provider
from tenants.operations import address_checks
from tenants.operations.address_checks import Finding
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 5.0
AT_ONCE: Final = 20
PATIENCE_S: Final = 5.0
CA_SETTING: Final = endpoint_trust.CA_SETTING
RUNS_OUT: Final = 1 / 6
"""Part of a certificate's life: with less left it should have been renewed, whoever does that (usual is a third)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a call without a key."""

    status: int
    is_ours: bool
    """Whether it is an error in the shape of our gateway's."""
    valid: tuple[datetime, datetime] | None = None
    """From when to when the certificate is valid that was shown."""


Call = Callable[[reach.Target, ssl.SSLContext], Answered]


def call(target: reach.Target, tls: ssl.SSLContext) -> Answered:
    """Ask for the models without a key. Raises `httpx.HTTPError`."""
    extensions = {"sni_hostname": target.name} if target.name else {}
    with httpx.Client(verify=tls, timeout=PATIENCE_S, trust_env=False, follow_redirects=False) as http:
        request = http.build_request(
            "GET", f"{target.url}/models", headers={"Host": target.host}, extensions=extensions
        )
        answer = http.send(request, stream=True)
        valid = _validity(answer)
        answer.read()
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return Answered(answer.status_code, answer.status_code == httpx.codes.UNAUTHORIZED and bool(code), valid)


def _validity(answer: httpx.Response) -> tuple[datetime, datetime] | None:
    """Return how long the certificate of an open connection is valid, None without one."""
    stream = answer.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    shown = tls.getpeercert() if tls is not None else None
    if not shown:
        return None
    begins, ends = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown[key])), UTC) for key in ("notBefore", "notAfter")
    )
    return begins, ends


def examine(
    address: str,
    leads_to: str,
    provider: Provider,
    *,
    resolve: reach.Resolver = reach.resolved,
    call: Call = call,
    now: datetime | None = None,
) -> list[Finding]:
    """Return what is seen of an address, up to the first thing that is not well."""
    parts = urlsplit(address)
    name, target = parts.hostname or "", urlsplit(leads_to).hostname or ""
    found: list[Finding] = []
    try:
        numbers = sorted(set(resolve(name, parts.port or 443)))
    except OSError:
        numbers = []
    if addresses.records_of(provider.config) == addresses.NO_RECORDS:
        named, numbers = _resolved_elsewhere(name, numbers, target, resolve)
    else:
        named = _named(name, numbers, target, addresses.record_of(address, leads_to), resolve)
    found.append(named)
    if not found[-1].ok:
        return found
    try:
        where = reach.checked(address, reach.ranges_of(provider), resolve=lambda _name, _port: numbers)
    except Conflict:
        text = (
            f"{', '.join(numbers)} is outside the address ranges of {provider.name}, so it is not called from here. "
            "An operator adds them to the provider (address_ranges)."
        )
        return [*found, Finding("range", ok=False, text=text)]
    if parts.scheme != "https":
        text = "It answers without TLS: keys can be read on the way. An operator gives the provider a certificate."
        found.append(Finding("certificate", ok=False, text=text))
        return found
    return found + _answering(name, where, provider, call, now)


def _named(
    name: str, numbers: list[str], target: str, record: addresses.DnsRecord | None, resolve: reach.Resolver
) -> Finding:
    to_set = f" Set: {record.line}" if record is not None else ""
    if not numbers:
        return Finding("name", ok=False, text=f"DNS has no record of {name}.{to_set}")
    if record is not None:
        try:
            wanted = set(resolve(target, 443))
        except OSError:
            wanted = set()
        if wanted and not wanted & set(numbers):
            return Finding("name", ok=False, text=f"DNS says {', '.join(numbers)} for {name}.{to_set}")
    if addresses.number_of(name) is not None:
        return Finding("name", ok=True, text=f"{name} is a number and needs no record.")
    return Finding("name", ok=True, text=f"{name} leads to {', '.join(numbers)}.")


def _resolved_elsewhere(
    name: str, numbers: list[str], target: str, resolve: reach.Resolver
) -> tuple[Finding, list[str]]:
    """Return what is told where no record is asked for, and where to look: where it leads, if DNS here says nothing."""
    if numbers:
        return Finding("name", ok=True, text=f"{name} leads to {', '.join(numbers)}."), numbers
    try:
        numbers = sorted(set(resolve(target, 443)))
    except OSError:
        text = f"Neither {name} nor {target} can be resolved here."
        return Finding("name", ok=False, text=text), []
    text = f"{name} is resolved elsewhere; it is looked at where it leads to, {', '.join(numbers)}."
    return Finding("name", ok=True, text=text), numbers


def _answering(name: str, where: reach.Target, provider: Provider, call: Call, now: datetime | None) -> list[Finding]:
    tls = ssl.create_default_context(cadata=endpoint_trust.ca_pem_of(provider) or None)
    try:
        answered = call(where, tls)
    except httpx.ConnectError as error:
        if "CERTIFICATE" in str(error).upper() or "SSL" in str(error).upper():
            text = f"The certificate is not good for {name}: {_words(error)}."
            return [Finding("certificate", ok=False, text=text)]
        return [Finding("answer", ok=False, text=f"Nobody takes connections at {where.url}.")]
    except httpx.HTTPError as error:
        return [
            Finding("answer", ok=False, text=f"It does not answer within {PATIENCE_S:.0f} s ({type(error).__name__}).")
        ]
    trusted = _lasting(name, answered.valid, now or timezone.now())
    if not answered.is_ours:
        text = f"Something else answers there, with {answered.status}: the name leads to another server."
        return [trusted, Finding("answer", ok=False, text=text)]
    return [trusted, Finding("answer", ok=True, text="Its gateway answers, and refuses who shows no key.")]


def _lasting(name: str, valid: tuple[datetime, datetime] | None, now: datetime) -> Finding:
    """Return what is told of a certificate that is good: until when, and whether it should have been renewed by now."""
    if valid is None:
        return Finding("certificate", ok=True, text=f"The certificate is good for {name}.")
    begins, ends = valid
    text = f"The certificate is good for {name} until {ends:%Y-%m-%d %H:%M} UTC."
    if ends - now < (ends - begins) * RUNS_OUT:
        text = (
            f"The certificate for {name} ends on {ends:%Y-%m-%d %H:%M} UTC and has not been renewed: "
            "callers will refuse the address then."
        )
        return Finding("certificate", ok=True, text=text, warns=True)
    return Finding("certificate", ok=True, text=text)


def _words(error: Exception) -> str:
    """Return what OpenSSL says of a certificate, without its numbers."""
    text = str(error)
    _, mark, rest = text.partition("certificate verify failed: ")
    return (rest if mark else text).partition(" (_ssl.c")[0][:160]


def look(clock: Callable[[], datetime]) -> int:
    """Look at the addresses that are due; return how many there were."""
    with acting(SYSTEM):
        waiting = list(address_checks.due(clock())[:AT_ONCE])
    for row in waiting:
        address_checks.looked(endpoint=row, address=row.address, findings=_findings(row), actor=SYSTEM, now=clock())
    return len(waiting)


def _findings(row: Endpoint) -> list[Finding]:
    assert row.boundary is not None  # an address comes from a provider
    leads_to = str(row.observed.get(addresses.LEADS_TO) or row.address)
    return examine(row.address, leads_to, row.boundary.provider)


def beside(stop: threading.Event, *, clock: Callable[[], datetime] = timezone.now) -> threading.Thread:
    """Start the thread that looks until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start("outside", lambda: look(clock), stop, pause_s=PAUSE_S, waits="no address is looked at")
