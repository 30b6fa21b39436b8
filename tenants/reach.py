"""Where the control plane may call an endpoint: the address that its driver reports, inside its provider's ranges.

A name is resolved once, every answer is checked, and the call goes to the checked number, so that a name cannot change
its mind in between.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from tenants.errors import Conflict
from tenants.models import Provider

LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
"""Where the endpoints of a simulated provider are, and nowhere else."""
REFUSED: Final = "Its address is outside the ranges that the provider declares; an operator must add them."
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A checked address: the URL to call, by number, and the name that goes with it."""

    url: str
    host: str
    """Value of the Host header."""
    name: str
    """For TLS; `""` for plain HTTP."""


def ranges_of(provider: Provider) -> tuple[Network, ...]:
    """Return the ranges in which a provider's endpoints may be (`address_ranges` of its configuration)."""
    declared = provider.config.get("address_ranges")
    if not isinstance(declared, list):
        declared = list(LOOPBACK) if provider.capabilities.get("simulated") else []
    found = []
    for text in declared:
        try:
            found.append(ipaddress.ip_network(str(text), strict=False))
        except ValueError:
            continue
    return tuple(found)


def resolved(name: str, port: int) -> list[str]:
    """Return the numbers of a name, as this machine resolves it. Raises `OSError`."""
    answers: Sequence[Any] = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


def checked(address: str, ranges: Sequence[Network], *, resolve: Resolver = resolved) -> Target:
    """Return where to call. Raises `Conflict` (`address-refused`) for an address outside the ranges."""
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise Conflict(REFUSED, code="address-refused")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        numbers = [ipaddress.ip_address(number) for number in resolve(parts.hostname, port)]
    except (OSError, ValueError) as error:
        raise Conflict(REFUSED, code="address-refused") from error
    if not numbers or not all(any(number in each for each in ranges) for number in numbers):
        raise Conflict(REFUSED, code="address-refused")
    first = numbers[0]
    shown = f"[{first}]" if first.version == 6 else str(first)
    url = urlunsplit(SplitResult(parts.scheme, f"{shown}:{port}", parts.path.rstrip("/"), "", ""))
    return Target(url, parts.netloc, parts.hostname if parts.scheme == "https" else "")
