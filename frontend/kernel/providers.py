"""Providers in words: how they are, what they can do, who waits for them, what their last test found.

Reads in the caller's read block; the number of queries does not depend on how many providers or hosts there are.
Nothing here calls a provider: a worker does, and writes what it saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Count, Q, Sum
from django.urls import NoReverseMatch, reverse
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.kernel import estate
from tenants import access, provider_kinds
from tenants.actor import Actor
from tenants.models import Boundary, Endpoint, Finding, Host, Machine, Namespace, Provider
from tenants.operations.providers import ASKED, TESTED
from tenants.policies import ROUTES
from tenants.states import HostState, Phase

Text = str | Promise
UNDER_WAY: Final = (Phase.PROVISIONING.value, Phase.DELETING.value)
PATIENCE: Final = timedelta(seconds=30)
"""A worker that runs has answered a test by then, or is calling a provider that hangs."""
LATE: Final = 3
"""After so many missed readings a provider's picture is called old."""

LOTS: Final[Mapping[str, Text]] = {
    "datastore": gettext_lazy("Datastores"),
    "switch": gettext_lazy("Switches"),
    "network": gettext_lazy("Networks of others"),
    "driver": gettext_lazy("Hosts' drivers"),
}
"""What a provider is made of beside hosts, in the order of its page."""
FEATURES: Final[Mapping[str, Text]] = {
    "console": gettext_lazy("Show the screens of machines"),
    "libraries": gettext_lazy("Images from content libraries"),
    "tags": gettext_lazy("Tag what is ours"),
    "storage-policy": gettext_lazy("The storage policy of machines"),
    "isolate": gettext_lazy("Cut one tenant off the network and back"),
    "power": gettext_lazy("Switch machines on and off"),
    "layout-change": gettext_lazy("Carve GPUs into parts"),
    "logs": gettext_lazy("Read logs"),
    "evacuate": gettext_lazy("Empty a host before work on it"),
    "acceptance": gettext_lazy("Test a host before it is used"),
    "faults": gettext_lazy("Play faults, for tests"),
    "cluster": gettext_lazy("A cluster of its own for a tenant"),
    "real-gateways": gettext_lazy("Endpoints that really answer"),
    "certificate": gettext_lazy("Certify a tenant's isolation by trying to break out of it"),
    "dra": gettext_lazy("Name the very GPU (Dynamic Resource Allocation)"),
    "admission": gettext_lazy("Check what tenants start"),
    "admission-pinning": gettext_lazy("Pin what tenants start to their node"),
    "people": gettext_lazy("Hand namespaces to people"),
    "policies-enforced": gettext_lazy("Enforce network policies"),
    "gateway-api": gettext_lazy("Publish addresses by routes (Gateway API)"),
    "inference-extension": gettext_lazy("Spread requests by load (Inference Extension)"),
    "kueue": gettext_lazy("Queue batch work (Kueue)"),
    "keda": gettext_lazy("Scale endpoints by their load (KEDA)"),
    "prometheus-operator": gettext_lazy("Show endpoints in the cluster's monitoring (Prometheus operator)"),
    "kyverno": gettext_lazy("Check signatures of images (Kyverno)"),
    "gatekeeper": gettext_lazy("Gatekeeper"),
    "cilium": gettext_lazy("Network rules by name (Cilium)"),
    "gpu-operator": gettext_lazy("NVIDIA GPU operator"),
    "gpu-hosts": gettext_lazy("Hosts with GPUs that are ready"),
    "mig": gettext_lazy("Parts of GPUs on every host (MIG-backed vGPU)"),
    "networks": gettext_lazy("A network of its own for each tenant"),
    "templates": gettext_lazy("Templates that machines can be made of"),
    "datastores": gettext_lazy("Datastores for machines"),
    "vm-service": gettext_lazy("Machines as objects of a cluster (VM Service)"),
    "version": gettext_lazy("A version that is supported"),
    "control-plane-cidrs": gettext_lazy("Gateways of endpoints call home"),
    "model-mirror-cidrs": gettext_lazy("Model servers load models from a mirror"),
    "storage-class": gettext_lazy("The storage class of the settings"),
    "gateway-storage-class": gettext_lazy("The storage class of gateways"),
    "cache": gettext_lazy("Keep models on a volume"),
    "vm-storage": gettext_lazy("Disks for machines"),
    "runtime-class": gettext_lazy("The runtime class of the settings"),
    "shared-gateway": gettext_lazy("Routes attach to the shared Gateway"),
    "routes": gettext_lazy("Endpoints are reached by routes"),
    "dns": gettext_lazy("Endpoints look up names"),
    "monitoring": gettext_lazy("Metrics of endpoints are read"),
    "proxy": gettext_lazy("Who may call endpoints is there"),
    "canary": gettext_lazy("Two revisions of an endpoint beside each other"),
    "zero": gettext_lazy("Endpoints sleep while nobody asks"),
    "move": gettext_lazy("Addresses of endpoints follow them to another place"),
    "model-staging": gettext_lazy("Hold files of models before an endpoint asks"),
    "model-staging:hub": gettext_lazy("Hold files of models whose source is the hub"),
    "model-staging:s3": gettext_lazy("Hold files of models whose source is a bucket (S3)"),
}
RIGHT: Final = "right:"
"""What the names of checks begin with that are about one right of the account."""
CHECKS: Final[Mapping[str, Text]] = {
    "connect": gettext_lazy("It answers and takes the credentials"),
    "inventory": gettext_lazy("Hosts, GPUs and what runs on them can be read"),
}
BOUNDARY_KINDS: Final[Mapping[str, Text]] = {
    "vm": gettext_lazy("virtual machines"),
    "namespace": gettext_lazy("Kubernetes namespaces"),
    "cluster": gettext_lazy("clusters"),
}
BINDINGS: Final[Mapping[str, Text]] = {
    "device": gettext_lazy("we name GPU and place"),
    "gpu": gettext_lazy("we name the GPU, it chooses the place"),
    "host": gettext_lazy("it chooses the GPU on the host"),
}
"""Who chooses the GPU."""


# --- small things every page of operators needs ------------------------------------------------------------


def address(route: str, **where: str) -> str:
    """Return the address of a page, `""` while it does not exist."""
    try:
        return reverse(f"frontend:{route}", kwargs=where)
    except NoReverseMatch:
        return ""


def host_address(host: Host | None) -> str:
    """Return the page of a host, `""` without one."""
    return "" if host is None else address("host", key=host.short_id)


def may(actor: Actor, operation_id: str) -> bool:
    """Whether an actor may do something to platform objects."""
    return not actor.read_only and access.allowed(actor, None, ROUTES[operation_id])


def host_state(state: str) -> dict[str, Any]:
    """Return a host's state for a badge."""
    word, tone, sentence = estate.STATES[state]
    return {"text": str(word), "tone": tone, "icon": "", "title": str(sentence)}


def feature(name: str) -> str:
    """Return a capability in words."""
    return str(FEATURES.get(name, name.replace("-", " ").capitalize()))


# --- health -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Health:
    """How a provider is."""

    key: str
    """`off`, `draft`, `down`, `unseen`, `late`, `ok`, `gone`."""
    word: str
    tone: str
    icon: str
    sentence: str
    next_step: str = ""


def is_draft(row: Provider, counts: Counts) -> bool:
    """Whether a provider is still being connected: switched off, and no host was ever handed over."""
    return not row.enabled and row.released_at is None and counts.hosts == counts.joining


def health(row: Provider, counts: Counts, *, now: datetime) -> Health:
    """Return how a provider is, why, and what to do."""
    if row.released_at is not None:
        return Health("gone", _("Given up"), "quiet", "x", _("It was given up; its rows are kept for the record."))
    if is_draft(row, counts):
        return Health(
            "draft", _("Being connected"), "info", "plug",
            _("Nothing is placed there before its hosts are handed over."), _("Go on connecting it."),
        )  # fmt: skip
    if not row.enabled:
        return Health(
            "off", _("Switched off"), "quiet", "power",
            _("Nothing is built or changed there. What runs goes on."), _("Switch it on to use it again."),
        )  # fmt: skip
    if row.snapshot_at is None and row.breaker_failures == 0:
        return Health("unseen", _("Not seen yet"), "info", "hourglass", _("A worker reads it within a minute."))
    if not row.healthy:
        again = row.breaker_open_until
        text = ngettext(
            "It could not be read %(n)d time in a row.", "It could not be read %(n)d times in a row.",
            row.breaker_failures,
        ) % {"n": row.breaker_failures}  # fmt: skip
        if again is not None and again > now:
            text += " " + _("It is left alone for a while and tried again by itself.")
        return Health(
            "down", _("Does not answer"), "bad", "octagon-x", text,
            _("Test it: the answer names what does not work. Endpoints there go on answering meanwhile."),
        )  # fmt: skip
    if row.snapshot_at is not None and now - row.snapshot_at > timedelta(seconds=LATE * settings.TENANTRY_INVENTORY_S):
        return Health(
            "late", _("Not read lately"), "warn", "clock",
            _("What is shown of it may be old."), _("Look at System whether workers run."),
        )  # fmt: skip
    return Health("ok", _("Answers"), "ok", "circle-check", _("It is read every %(n)s seconds.") % {"n": _interval()})


def _interval() -> int:
    return round(settings.TENANTRY_INVENTORY_S)


# --- numbers ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Counts:
    """What a provider has."""

    hosts: int = 0
    open: int = 0
    joining: int = 0
    accepted: int = 0
    gpus: int = 0
    empty: int = 0
    findings: int = 0
    building: int = 0
    """Objects of tenants that are being built or given back there."""
    here: int = 0
    """Objects of tenants there, whatever their phase."""


PRODUCTS: Final = (("endpoint", Endpoint), ("machine", Machine), ("namespace", Namespace))


def counts_of(providers: Iterable[Provider]) -> Mapping[UUID, Counts]:
    """Return provider → what it has, in six statements."""
    keys = [row.pk for row in providers]
    found: dict[UUID, Counts] = defaultdict(Counts)
    hosts: Any = Host.objects.filter(provider_id__in=keys).exclude(state=HostState.REMOVED.value)
    for one in hosts.values("provider_id").annotate(
        hosts=Count("pk"),
        gpus=Sum("gpu_count"),
        empty=Sum("empty_gpus", filter=Q(state=HostState.OPEN.value)),
        open=Count("pk", filter=Q(state=HostState.OPEN.value)),
        joining=Count("pk", filter=Q(state=HostState.JOINING.value)),
        accepted=Count("pk", filter=Q(state=HostState.ACCEPTED.value)),
    ):
        into = found[one["provider_id"]]
        into.hosts, into.gpus, into.empty = one["hosts"], one["gpus"] or 0, one["empty"] or 0
        into.open, into.joining, into.accepted = one["open"], one["joining"], one["accepted"]
    findings: Any = Finding.objects.filter(provider_id__in=keys, resolved_at__isnull=True)
    for one in findings.values("provider_id").annotate(n=Count("pk")):
        found[one["provider_id"]].findings = one["n"]
    boundaries: Any = Boundary.objects.filter(provider_id__in=keys, released_at__isnull=True)
    for one in boundaries.values("provider_id").annotate(n=Count("pk", filter=Q(phase__in=UNDER_WAY))):
        found[one["provider_id"]].building += one["n"]
    for _word, model in PRODUCTS:
        rows: Any = model._base_manager.filter(boundary__provider_id__in=keys, released_at__isnull=True)
        for one in rows.values("boundary__provider_id").annotate(
            all=Count("pk"), n=Count("pk", filter=Q(phase__in=UNDER_WAY))
        ):
            found[one["boundary__provider_id"]].here += one["all"]
            found[one["boundary__provider_id"]].building += one["n"]
    return found


def gpus_of(row: Provider) -> list[dict[str, Any]]:
    """Return product, mode, layout_change, binding → gpus and hosts; one statement, GPUs being summed by host first."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT g.product, g.mode, g.layout_change, h.binding, sum(g.gpus)::int AS gpus, count(*)::int AS hosts
            FROM (SELECT host_id, product, mode, layout_change, count(*) AS gpus FROM tenants_gpudevice
                  WHERE provider_id = %s AND removed_at IS NULL GROUP BY 1, 2, 3, 4) AS g
            JOIN tenants_host h ON h.id = g.host_id GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
            """,
            [row.pk],
        )
        names = ("product", "mode", "layout_change", "binding", "gpus", "hosts")
        return [dict(zip(names, found, strict=True)) for found in cursor.fetchall()]


# --- tests ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a test."""

    label: str
    passed: bool
    is_gap: bool
    """It only takes something away; the provider can be used without."""
    seen: str
    raw: str
    field: str = ""
    """The setting or secret that would mend it, as forms call it: `config.ca_pem`, `secret.password`."""
    field_label: str = ""


@dataclass(frozen=True, slots=True)
class Tested:
    """What is known of a provider's test."""

    is_pending: bool
    asked_at: datetime | None
    at: datetime | None
    passed: bool
    took_ms: int | None
    by: str
    checks: tuple[Check, ...]
    is_late: bool = False
    """It waits for longer than a worker that runs lets it."""

    @property
    def trouble(self) -> list[Check]:
        """Return what makes it unusable."""
        return [check for check in self.checks if not check.passed and not check.is_gap]

    @property
    def at_fields(self) -> dict[str, str]:
        """Return setting or secret → what the test found wrong with it; nothing while another test waits."""
        return {} if self.is_pending else {check.field: check.seen for check in self.trouble if check.field}


def tested(row: Provider, *, now: datetime) -> Tested:
    """Return the last test of a provider, and whether one waits for a worker."""
    asked: Mapping[str, Any] = row.observed.get(ASKED) or {}
    last: Mapping[str, Any] = row.observed.get(TESTED) or {}
    asked_at = parse_datetime(asked["at"]) if asked else None
    return Tested(
        is_pending=bool(asked),
        asked_at=asked_at,
        is_late=asked_at is not None and now - asked_at > PATIENCE,
        at=parse_datetime(last["at"]) if last else None,
        passed=bool(last.get("passed")),
        took_ms=last.get("took_ms"),
        by=str(last.get("asked_by") or ""),
        checks=tuple(_check(each, row.kind) for each in last.get("checks", [])),
    )


def _check(given: Mapping[str, Any], kind: str) -> Check:
    name = str(given["name"])
    gap = name.startswith("feature:")
    if name.startswith(RIGHT):
        label = _("Its account may: %(right)s") % {"right": name.removeprefix(RIGHT)}
    else:
        label = feature(name.removeprefix("feature:")) if gap else str(CHECKS.get(name, name))
    seen = str(given["seen"])
    is_gap = gap or not given.get("needed", True)
    field = str(given.get("field") or "")
    return Check(
        label, bool(given["passed"]), is_gap, _sentence(seen), str(given["raw"]), field, _label_of(kind, field)
    )


def _label_of(kind: str, field: str) -> str:
    """Return what a form calls a setting or secret, `""` for one that it does not ask for."""
    described = provider_kinds.kind_of(kind)
    where, _dot, name = field.partition(".")
    if described is None:
        return ""
    asked = described.credential(name) if where == "secret" else described.setting(name)
    return _(asked.label) if asked is not None else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def capabilities(row: Provider) -> list[dict[str, Any]]:
    """Return what a provider can and cannot do, gaps first with the line that mends them."""
    given: Mapping[str, Any] = row.capabilities
    missing: Mapping[str, str] = given.get("missing") or {}
    found = [
        {"name": name, "label": feature(name), "has": bool(has), "remedy": _sentence(missing.get(name, ""))}
        for name, has in (given.get("features") or {}).items()
    ]
    named = {one["name"] for one in found}
    found += [
        {"name": name, "label": feature(name), "has": False, "remedy": _sentence(text)}
        for name, text in missing.items()
        if name not in named
    ]
    return sorted(found, key=lambda one: (bool(one["has"]), str(one["label"])))


def _is_well(line: Mapping[str, Any]) -> bool:
    return not line["problem"]


def lots(row: Provider) -> list[dict[str, Any]]:
    """Return what a provider is made of beside hosts, kind by kind; within a kind what is to be mended comes first."""
    found: list[dict[str, Any]] = []
    told = [one for one in row.capabilities.get("lots") or () if isinstance(one, Mapping)]
    for kind, title in LOTS.items():
        lines: list[dict[str, Any]] = [
            {
                "name": one.get("name", ""),
                "words": one.get("words", ""),
                "free": one.get("free_gib"),
                "size": one.get("size_gib"),
                "problem": one.get("problem", ""),
            }
            for one in told
            if one.get("kind") == kind
        ]
        if lines:
            found.append({"title": str(title), "lines": sorted(lines, key=_is_well)})
    return found


def is_simulated(row: Provider) -> bool:
    """Whether a provider is played by the sandbox, as far as it has said."""
    return bool(row.capabilities.get("simulated"))
