"""Everything the driver is told of one vCenter: where it is, whom to trust, who we are, what of it is ours to use.

Read once from a provider's config and credentials; frozen, no I/O. Names of objects in vCenter are compared exactly and
never built into a path, so a `/` or `%` in one is refused: vCenter itself writes them in another way than people do.
"""

from __future__ import annotations

import re
import ssl
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from provisioners.driver import Secret
from tenants import endpoint_tls
from tenants.vlan_ranges import vlan_ranges

ACCESS: Final = ("guest", "lab")
"""How an endpoint is reached: at the address of its guest, or in a lab at the address that the fake guest reports."""
WHOLE_GPUS: Final = ("vgpu", "passthrough")
"""How a whole GPU is given: as the vGPU type that fills it, or as the device itself."""
ENDPOINT_IMAGE: Final = "endpoint"
"""Image slug of endpoint VMs, where no other is configured."""
LONGEST_NAME: Final = 80
"""Characters of an object's name in vCenter."""
TENANT: Final = "{tenant}"
"""Stands for the tenant's id in the pattern of group names."""


_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*|[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)
"""A DNS name, an address of IPv4, or one of IPv6: what cannot be written in DNS fails in no way that is expected."""


class BadSettings(ValueError):
    """A setting of the provider cannot be used; the text says which and why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One vCenter as configured."""

    slug: str
    host: str
    user: str
    password: Secret
    port: int = 443
    ca_pem: str = ""
    """Certificates that the vCenter's is checked with; empty: the machine's own."""
    thumbprint: str = ""
    """SHA-256 of the vCenter's certificate, 64 hexadecimal digits: trusted in the place of any CA."""
    call_deadline_s: float = 30.0
    """For one call; without one a server that has lost itself is waited for without end."""
    page: int = 2000
    """Objects per page of a read."""
    clones_per_host: int = 4
    """Full clones at a time; a host takes no more, and what waits should wait where it is seen."""
    clones: int = 16
    datacenter: str = ""
    """Empty: the only one."""
    clusters: tuple[str, ...] = ()
    """Whose hosts are offered; empty: every cluster of the datacenter."""
    root_folder: str = "tenantry"
    """VM folder of ours. What carries our mark outside it belongs to another installation, or was moved."""
    root_pool: str = ""
    """Resource pool in each cluster under which boundaries get theirs; empty: the cluster's own."""
    dvs: str = ""
    """Distributed switch that gets the boundaries' port groups; empty: the only one."""
    vlans: tuple[tuple[int, int], ...] = ()
    """Ranges, both ends included, of which each boundary gets one; empty: no networks of its own are made."""
    datastores: tuple[str, ...] = ()
    """Where VMs may lie; empty: every shared one that a host sees."""
    storage_policy: str = ""
    """Id of a storage profile for VM home and disks; empty: the datastore's own."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Image slug → name of the template in vCenter."""
    libraries: tuple[str, ...] = ()
    """Content libraries whose OVF items are images too."""
    tags: bool = False
    """Whether objects of ours carry vCenter's tags beside their custom attributes."""
    endpoint_image: str = ENDPOINT_IMAGE
    """Image slug of which endpoint VMs are made."""
    access: str = ACCESS[0]
    zone: str = ""
    """DNS zone of endpoint addresses, `<endpoint>.<tenant>.<zone>`; empty: addresses are shown as they are."""
    certificates: str = endpoint_tls.NONE
    """Where gateways' certificates come from; `none`: what the image or its guest has."""
    dns_records: str = "show"
    """Whether people are asked to set records of endpoints; read by who looks at addresses, by no driver."""
    endpoint_ca_pem: str = ""
    """Who signed the endpoints' certificates; read by who looks at addresses from outside, by no driver."""
    tenant_group: str = ""
    """Pattern of the tenant's group, with `{tenant}` in it; empty: nobody is let into vCenter."""
    whole_gpus: str = WHOLE_GPUS[0]
    control_plane_ca_pem: str = ""
    """Certificates that guests check the control plane's with; empty: the image's own."""

    @property
    def url(self) -> str:
        """Its address for people."""
        return f"https://{self.host}:{self.port}"

    @property
    def is_lab(self) -> bool:
        """Whether what it answers is simulated."""
        return self.access == "lab"

    def group_of(self, tenant: str) -> str:
        """Return the name of a tenant's group, `""` where none is configured."""
        return self.tenant_group.replace(TENANT, tenant)

    def __repr__(self) -> str:
        """Show which vCenter, and no credential."""
        return f"Settings({self.slug}, {self.url}, {self.user})"


def settings_of(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Settings:
    """Return the settings of a provider's row: at least `url`, `user`, and the credential `password`.

    Raises `BadSettings`, and `KeyError` with the name of a setting or credential that is missing.
    """
    given = {name: value for name, value in config.items() if value is not None and value not in ("", [], {})}
    try:
        parts = urlsplit(str(given["url"]))
    except ValueError as error:
        raise BadSettings("url: this is no address") from error
    if parts.scheme != "https" or not parts.hostname:
        raise BadSettings("url: the address of a vCenter starts with https:// and names a host")
    if parts.username or parts.password:
        raise BadSettings("url: no credential belongs in an address")
    if not _HOST.fullmatch(parts.hostname):
        raise BadSettings("url: this names no host that can be looked up")
    if parts.path not in {"", "/", "/sdk"} or parts.query or parts.fragment:
        raise BadSettings("url: the address of a vCenter has no path")
    password = Secret(secrets["password"].reveal().rstrip("\r\n"))
    if not password.reveal():
        raise BadSettings("password: is empty")
    values: dict[str, Any] = {}
    for names, read in _READERS:
        values |= {name: read(name, given[name]) for name in names if name in given}
    return Settings(
        slug=str(given.get("slug") or parts.hostname),
        host=parts.hostname,
        port=_port(parts.netloc, parts.scheme),
        user=str(given["user"]),
        password=password,
        **values,
    )


def _port(netloc: str, scheme: str) -> int:
    try:
        return urlsplit(f"{scheme}://{netloc}").port or 443
    except ValueError as error:
        raise BadSettings("url: the port is a number up to 65535") from error


# --- readers of single settings -------------------------------------------------------------------


def name_fault(name: str) -> str:
    """Return why a text cannot be the name of an object in vCenter, `""` if it can."""
    if not name.strip() or name != name.strip():
        return "is empty or begins or ends with a space"
    if len(name) > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} characters"
    # compatibility forms too: a full-width solidus looks like a slash, and some clients fold it into one
    if any(sign in unicodedata.normalize("NFKC", name) for sign in "/\\%") or "\u2215" in name or "\u2044" in name:
        return "holds a slash or a percent sign"
    if any(unicodedata.category(sign).startswith("C") for sign in name):
        return "holds a character that cannot be seen"
    return ""


def _vlans(_name: str, value: object) -> tuple[tuple[int, int], ...]:
    try:
        return vlan_ranges(value)
    except ValueError as error:
        raise BadSettings(f"vlans: {error}") from error


def _ca(name: str, value: object) -> str:
    text = str(value)
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise BadSettings(f"{name}: holds no certificate (-----BEGIN CERTIFICATE-----)")
    if "PRIVATE KEY-----" in text:  # it would be shown, and be written into every guest
        raise BadSettings(f"{name}: holds a private key; give the certificate alone")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise BadSettings(f"{name}: what stands in it is no certificate that can be read") from error
    return text


def _thumbprint(_name: str, value: object) -> str:
    plain = str(value).replace(":", "").replace(" ", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise BadSettings("thumbprint: 64 hexadecimal digits, the SHA-256 of the vCenter's certificate")
    return plain


def _number(name: str, value: object, kind: type[int | float]) -> float:
    try:
        number = kind(str(value))
    except ValueError as error:
        raise BadSettings(f"{name}: no number") from error
    if not 0 < number < 1_000_000:
        raise BadSettings(f"{name}: must be above 0" if number <= 0 else f"{name}: is too large")
    return number


def _seconds(name: str, value: object) -> float:
    return float(_number(name, value, float))


def _whole(name: str, value: object) -> int:
    return int(_number(name, value, int))


def _name(name: str, value: object) -> str:
    text = str(value).strip()
    if fault := name_fault(text):
        raise BadSettings(f"{name}: {text[:40]!r} {fault}")
    return text


def _names(name: str, value: object) -> tuple[str, ...]:
    found = tuple(_name(name, item) for item in _items(name, value))
    if len(set(found)) != len(found):
        raise BadSettings(f"{name}: a name is written twice")
    return found


def _items(name: str, value: object) -> Iterator[str]:
    """Yield the entries of a list given as JSON, or as text with commas or in lines."""
    if isinstance(value, Mapping):
        raise BadSettings(f"{name}: a list of names, not a mapping")
    items = value if isinstance(value, (list, tuple)) else re.split(r"[,\n]", str(value))
    yield from (text for item in items if (text := str(item).strip()))


def _templates(name: str, value: object) -> dict[str, str]:
    """Return the templates of a mapping, or of text such as `ubuntu-24.04=Ubuntu 24.04 GPU, endpoint=vLLM`."""
    pairs: list[tuple[str, str]] = []
    if isinstance(value, Mapping):
        pairs = [(str(slug), str(template)) for slug, template in value.items()]
    else:
        for item in _items(name, value):
            slug, equals, template = item.partition("=")
            if not equals:
                raise BadSettings(f"{name}: {item[:40]!r} is not written image=template")
            pairs.append((slug, template))
    found: dict[str, str] = {}
    for slug, template in pairs:
        key = _slug(name, slug)
        if key in found:
            raise BadSettings(f"{name}: image {key} is named twice")
        found[key] = _name(name, template)
    return found


def _slug(name: str, value: object) -> str:
    text = str(value).strip()
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", text):
        raise BadSettings(f"{name}: an image is named with a-z, 0-9, '.', '_' and '-', not {text[:40]!r}")
    return text


def _zone(name: str, value: object) -> str:
    text = str(value).strip().rstrip(".").lower()
    label = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
    if not re.fullmatch(rf"{label}(\.{label})+", text) or len(text) > 253:
        raise BadSettings(f"{name}: a DNS zone such as models.example.net")
    return text


def _group(name: str, value: object) -> str:
    """Return the pattern of tenant groups: domain, backslash, a name with the tenant's id in it."""
    text = str(value).strip()
    if text.count(TENANT) != 1 or "{" in text.replace(TENANT, "") or "}" in text.replace(TENANT, ""):
        raise BadSettings(f"{name}: holds {TENANT} exactly once, or all tenants would share one group")
    if not re.fullmatch(r"[A-Za-z0-9._-]+\\[A-Za-z0-9 ._{}-]+", text):
        raise BadSettings(f"{name}: is written DOMAIN\\group-{TENANT}")
    return text


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if str(value) not in choices:
            raise BadSettings(f"{name}: one of {', '.join(choices)}")
        return str(value)

    return read


def _switch(name: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text not in {"on", "off", "true", "false"}:
        raise BadSettings(f"{name}: on or off")
    return text in {"on", "true"}


def _profile_id(name: str, value: object) -> str:
    text = str(value).strip()
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", text):
        raise BadSettings(f"{name}: the id of a storage policy, as vCenter shows it (letters, digits, '-')")
    return text


_READERS: Final[tuple[tuple[tuple[str, ...], Callable[[str, object], Any]], ...]] = (
    (("ca_pem", "control_plane_ca_pem", "endpoint_ca_pem"), _ca),
    (("thumbprint",), _thumbprint),
    (("call_deadline_s",), _seconds),
    (("page", "clones_per_host", "clones"), _whole),
    (("datacenter", "root_folder", "root_pool", "dvs"), _name),
    (("clusters", "datastores", "libraries"), _names),
    (("vlans",), _vlans),
    (("storage_policy",), _profile_id),
    (("templates",), _templates),
    (("endpoint_image",), _slug),
    (("tags",), _switch),
    (("access",), _one_of(*ACCESS)),
    (("whole_gpus",), _one_of(*WHOLE_GPUS)),
    (("zone",), _zone),
    (("certificates",), _one_of(endpoint_tls.NONE, *endpoint_tls.FROM_HOME)),
    (("dns_records",), _one_of("show", "none")),
    (("tenant_group",), _group),
)
KEYS: Final = frozenset({"url", "user", "slug"} | {name for names, _read in _READERS for name in names})
"""Every entry of a provider's configuration that is read here."""
