"""Where a webhook may lead: its URL parsed once, strictly, and which IP addresses may be reached. Pure.

`https` to the public Internet only, unless the operator names further networks; `http` to loopback only, and
only where loopback is one of those networks (demo and tests). Link-local and metadata addresses never.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST: Final = 500
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?",
)
"""Narrower than RFC 3986 on purpose: no user, fragment, backslash or blank, nothing that two parsers read apart."""
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOP: Final = re.compile(r"[a-z][a-z0-9-]*")
"""A last label that begins with a digit would be an address in disguise (`0x7f.1`, `2130706433`)."""
LOWEST_PORT: Final = 1024
NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16", "fe80::/10",  # link-local, with the metadata services of most clouds
        "168.63.129.16/32",  # Azure's platform address, public by number
        "100.100.100.200/32", "192.0.0.192/32", "fd00:ec2::254/128", "fd20:ce::254/128",  # further metadata services
        "0.0.0.0/8", "::/96", "255.255.255.255/32", "224.0.0.0/4", "ff00::/8",
    )
)  # fmt: skip
"""Refused whatever an operator allows."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class BadUrl(ValueError):
    """A URL that no webhook may have; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts; no other parser reads it again."""

    scheme: str
    host: str
    """Lower case, without brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


@lru_cache(maxsize=16)
def networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a comma-separated list. Raises `ValueError` for one that is none."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse(url: str, allowed: Sequence[Network] = ()) -> Target:
    """Return the parts of a webhook's URL. Raises `BadUrl`.

    An address given by number is checked here already; a name is checked when it is resolved, before each attempt.
    """
    if len(url) > LONGEST:
        raise BadUrl(f"The URL is longer than {LONGEST} characters.")
    scheme, slashes, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    found = _URL.fullmatch(f"{scheme.lower()}{slashes}{authority.lower()}{slash}{tail}")
    if found is None:
        raise BadUrl("Give a plain https URL: host, port, path and query; no user, no fragment, ASCII only.")
    host = found["host"].strip("[]")
    port = int(found["port"] or _default_port(found["scheme"]))
    literal = _literal(host, bracketed=found["host"].startswith("["))
    loopback = literal is not None and literal.is_loopback and refusal(literal, allowed) == ""
    if found["scheme"] == "http" and not loopback:
        raise BadUrl("Use https: what is sent must not be read on its way.")
    if literal is not None and (why := refusal(literal, allowed)):
        raise BadUrl(why)
    if host == "localhost" or host.endswith(".localhost"):
        raise BadUrl("This host is not on the public Internet.")
    if not (port == _default_port(found["scheme"]) or LOWEST_PORT <= port <= 65535):
        raise BadUrl(f"Use port {_default_port(found['scheme'])} or one from {LOWEST_PORT}.")
    return Target(found["scheme"], host, port, found["target"] or "/")


def refusal(address: Address, allowed: Sequence[Network] = ()) -> str:
    """Return why an address may not be reached, `""` if it may. `allowed`: what the operator adds to the Internet."""
    inner = _inner(address)
    if any(inner in network for network in NEVER if network.version == inner.version):
        return "The address is link-local, a metadata service or no host at all."
    if any(inner in network for network in allowed if network.version == inner.version):
        return ""
    if not inner.is_global or inner.is_multicast:
        return "The address is not on the public Internet."
    return ""


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one only wraps: it is where the packets go."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _literal(host: str, *, bracketed: bool) -> Address | None:
    """Return the address a host is, None for a name. Raises `BadUrl` for what is neither."""
    try:
        return ipaddress.IPv6Address(host) if bracketed else ipaddress.IPv4Address(host)
    except ValueError:
        labels = host.split(".")
        if bracketed or not all(_LABEL.fullmatch(label) for label in labels) or not _TOP.fullmatch(labels[-1]):
            raise BadUrl("The host is neither a DNS name nor an IP address.") from None
        return None


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
