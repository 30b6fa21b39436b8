"""What was read of an endpoint (and of a gateway) → its parts, units and address. Pure.

What a part has is `reading.part`'s work; here is said whether it works: the pod that loads its model, the route that
no controller has taken, the gateway that only a fresh token can help (it shows as absent).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from typing import Final
from uuid import UUID

from provisioners.driver import Observed, ObservedUnit, Part, Power, Presence, Ref
from provisioners.kubernetes import admission, reading, symptoms
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import removal_handle
from provisioners.kubernetes.gateways import DELIVERY_ANNOTATION, GATEWAY_NAME, GATEWAY_STEP, HOPELESS_EXIT, delivery_in
from provisioners.kubernetes.objects import COMPONENT_LABEL, UNIT_LABEL, Object, dig, is_deleting, name_of, namespace_of
from provisioners.kubernetes.pods import GATEWAY
from provisioners.kubernetes.settings import SERVING_PORT, Settings
from provisioners.kubernetes.workloads import (
    HOST_ANNOTATION,
    MODEL_ANNOTATION,
    PROFILE_ANNOTATION,
    REPLICA_STEP,
    REVISION_ANNOTATION,
    SECRET_STEP,
    SECRETS_ANNOTATION,
    SERVICE_STEP,
)
from provisioners.steps import in_order, split

LAB_PORT_ANNOTATION: Final = "lab.tenantry.internal/port"
"""On a pod that a lab plays: where its process listens on loopback."""
_PROTECTING: Final = frozenset(
    {
        "foregroundDeletion",
        "orphan",
        "kubernetes.io/pvc-protection",
        "resource.kubernetes.io/delete-protection",
        "service.kubernetes.io/load-balancer-cleanup",
    }
)
"""Finalizers of Kubernetes itself, which go by themselves."""

UnitReader = Callable[[UUID, Object | None, str], tuple[ObservedUnit, ...]]
"""(unit, its pod, backend) → where it runs by what the cluster reports; empty where it has no node."""


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """The gateway in front of an endpoint."""

    pods: tuple[Object, ...] = ()
    service: Object | None = None


@dataclass(frozen=True, slots=True)
class EndpointSeen:
    """All that was read of one endpoint."""

    ref: Ref
    objects: tuple[Object, ...]
    """With its mark, of every kind that its steps can have made."""
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    """Warnings of its namespace; only read while something does not work."""
    gateway: GatewaySeen = GatewaySeen()


def observed(seen: EndpointSeen, settings: Settings, *, units: UnitReader, now: datetime) -> Observed:
    """Return an endpoint as it is."""
    if not seen.objects and not seen.pods:
        return Observed(seen.ref, exists=False, simulated=settings.lab)
    steps, running = _by_step(seen.objects), _by_step(seen.pods)
    deployments = [obj for obj in seen.objects if obj["kind"] == "Deployment" and not is_deleting(obj)]
    address, reachable_from = _address(seen, settings)
    models = [dig(one, "metadata", "annotations", MODEL_ANNOTATION, default="") for one in deployments]
    return Observed(
        ref=seen.ref,
        exists=True,
        parts=tuple(
            _part(name, steps.get(name, []), running.get(name, []), seen, settings, now)
            for name in in_order({*steps, *running})
        ),
        units=tuple(
            unit
            for deployment in sorted(deployments, key=name_of)
            for unit in _units(deployment, running.get(marks.step_of(deployment), []), settings, units)
        ),
        address=address,
        reachable_from=reachable_from,
        model=next(iter(models), ""),
        revision=min((number for one in deployments if (number := _revision(one)) is not None), default=None),
        power=_power(deployments, seen.pods),
        blocked_by=blocked_by(seen.objects),
        simulated=settings.lab,
    )


def misplaced(answer: Observed, objects: Iterable[Object], told: Object | None) -> Observed:
    """Show replicas as different of which admission is not told what it must be: no pod of theirs would come up again.

    `told` are the parameters of admission in their namespace, None where they are not there.
    """
    wrong = set()
    for one in objects:
        place = admission.place_of(one) if one["kind"] == "Deployment" and not is_deleting(one) else None
        if place is not None and dig(told, "data", place[0]) != place[1]:
            wrong.add(marks.step_of(one))
    if not wrong:
        return answer
    words = "its placement was changed by somebody else"
    parts = [
        replace(part, have="", message=words) if part.step in wrong and part.presence is Presence.PRESENT else part
        for part in answer.parts
    ]
    return replace(answer, parts=tuple(parts))


def _by_step(objects: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = defaultdict(list)
    for obj in objects:
        if step := marks.step_of(obj):
            found[step].append(obj)
    return found


# --- parts ----------------------------------------------------------------------------------------


def _part(
    name: str, objects: list[Object], pods: list[Object], seen: EndpointSeen, settings: Settings, now: datetime
) -> Part:
    bare = split(name)[0]
    if not objects:
        return _stopping(seen.ref, name)
    part = reading.part(seen.ref, name, objects, now=now)
    if bare == SECRET_STEP and part.presence is Presence.PRESENT and _is_secret_lost(objects):
        return replace(part, have="", message="the Secret of one of its revisions is missing")
    if bare == REPLICA_STEP:
        return _judged(part, why_not_ready(objects, pods, seen.events))
    if bare == SERVICE_STEP and settings.access == "route":
        return _judged(part, why_no_route(objects))
    return part


def _is_secret_lost(objects: Sequence[Object]) -> bool:
    """Whether Secrets name one of theirs that is not there: what a step says of its set leaves Secrets out."""
    there = {name_of(one) for one in objects}
    named = {name for one in objects for name in marks.annotations_of(one).get(SECRETS_ANNOTATION, "").split(",")}
    return not named - {""} <= there


def _judged(part: Part, waiting: str) -> Part:
    """Return a part that works unless `waiting` says why not; what it says of itself otherwise stays."""
    if part.presence is not Presence.PRESENT:
        return part
    if not waiting and part.ready:
        return part
    return replace(part, message=waiting, ready=not waiting)


def _stopping(ref: Ref, name: str) -> Part:
    """Return the part of which only pods are left."""
    handle = removal_handle(ref, name).value
    return Part(name, Presence.CHANGING, handle=handle, message="its pod is still stopping", ready=False)


def why_not_ready(objects: Sequence[Object], pods: Sequence[Object], events: Sequence[Object] = ()) -> str:
    """Return why a Deployment's one pod does not work as wanted yet, "" where it does."""
    deployment = next((obj for obj in objects if obj["kind"] == "Deployment"), None)
    if deployment is None:
        return "it is not complete"
    alive = [pod for pod in pods if dig(pod, "status", "phase") not in {"Succeeded", "Failed"}]
    if dig(deployment, "spec", "replicas", default=0) == 0:
        return "stopping" if alive else ""
    status = deployment.get("status") or {}
    if int(status.get("observedGeneration", 0)) < int(dig(deployment, "metadata", "generation", default=0)):
        return "the cluster has not taken the change yet"
    counts = [int(status.get(name, 0)) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    if counts == [1, 1, 1]:
        return ""
    refused = symptoms.of_deployment(deployment)
    if refused:
        return refused
    newest = _newest(pods)
    if newest is None:
        return "its pod is not there yet"
    words = symptoms.of_pod(newest, events)
    if not words:
        return "its former pod is still stopping"
    return f"{words} (it has been trying for long)" if symptoms.is_late(deployment) else words


def _newest(pods: Sequence[Object]) -> Object | None:
    """Return the pod that tells most: one that stays before one that goes, the newest first."""
    return max(
        pods,
        key=lambda pod: (not is_deleting(pod), str(dig(pod, "metadata", "creationTimestamp", default=""))),
        default=None,
    )


def why_no_route(objects: Sequence[Object]) -> str:
    """Return why a route does not lead to the gateway yet, "" where it does or there is none to be."""
    route = next((obj for obj in objects if obj["kind"] == "HTTPRoute"), None)
    if route is None:
        return ""
    generation = dig(route, "metadata", "generation", default=0)
    parents = dig(route, "status", "parents", default=[])
    if not parents:
        return "no gateway controller of the cluster has taken its route yet"
    for parent in parents:
        for kind in ("Accepted", "ResolvedRefs"):
            found = next((one for one in parent.get("conditions") or [] if one.get("type") == kind), None)
            if found is None or int(found.get("observedGeneration", generation)) < generation:
                return "the gateway controller has not looked at its route yet"
            if found.get("status") != "True":
                return _ROUTE_WORDS.get(str(found.get("reason")), "the cluster's gateway refuses its route")
    return ""


_ROUTE_WORDS: Final = {
    "NotAllowedByListeners": "the cluster's gateway takes no routes of this namespace",
    "NoMatchingListenerHostname": "the cluster's gateway does not serve this host name",
    "NoMatchingParent": "the cluster's gateway has no such listener",
    "Pending": "the gateway controller is at work on its route",
    "BackendNotFound": "its route does not find the gateway's service",
    "RefNotPermitted": "its route may not refer to the gateway's service",
}


def blocked_by(objects: Iterable[Object]) -> str:
    """Return what keeps an object of ours from going, by object and finalizer, "" where nothing foreign does."""
    for obj in objects:
        foreign = [one for one in dig(obj, "metadata", "finalizers", default=[]) if one not in _PROTECTING]
        if is_deleting(obj) and foreign:
            return f"{marks.title(obj)} waits for finalizer {foreign[0]}"
    return ""


# --- units ----------------------------------------------------------------------------------------


def _units(
    deployment: Object, pods: Sequence[Object], settings: Settings, units: UnitReader
) -> tuple[ObservedUnit, ...]:
    try:
        uid = UUID(marks.labels(deployment).get(UNIT_LABEL, ""))
    except ValueError:
        return ()
    staying = [pod for pod in pods if dig(pod, "status", "phase") not in {"Succeeded", "Failed"}]
    pod = _newest(staying)
    # What answers is the pod: one of the revision before may still be there while its Deployment wants the next.
    revision = _revision(pod) if pod is not None else _revision(deployment)
    found = units(uid, pod, _backend(deployment, pod, settings))
    if found:
        return tuple(replace(one, revision=revision) for one in found)
    told = dig(deployment, "metadata", "annotations", default={})
    host, profile = told.get(HOST_ANNOTATION, ""), told.get(PROFILE_ANNOTATION, "")
    return (ObservedUnit(uid, host, "", None, profile, exact=False, revision=revision),)


def _backend(deployment: Object, pod: Object | None, settings: Settings) -> str:
    """Return where a gateway reaches a replica: nowhere, before its program has been started."""
    if pod is None or is_deleting(pod) or dig(pod, "status", "phase") != "Running":
        return ""
    if settings.access == "lab":
        return _lab_address(pod)
    return f"http://{name_of(deployment)}.{namespace_of(deployment)}.svc:{SERVING_PORT}/v1"


def _revision(obj: Object) -> int | None:
    """Return which revision a Deployment wants, or a pod runs."""
    text = str(dig(obj, "metadata", "annotations", REVISION_ANNOTATION, default=""))
    return int(text) if text.isdecimal() else None


def _power(deployments: Sequence[Object], pods: Sequence[Object]) -> Power | None:
    if not deployments:
        return None
    wanted = any(dig(one, "spec", "replicas", default=0) for one in deployments)
    alive = any(dig(pod, "status", "phase") not in {"Succeeded", "Failed"} for pod in pods)
    return Power.ON if wanted or alive else Power.OFF


# --- addresses ------------------------------------------------------------------------------------


def _address(seen: EndpointSeen, settings: Settings) -> tuple[str, str]:
    published = next(
        (one for one in seen.objects if one["kind"] == "Service" and marks.step_of(one) == SERVICE_STEP), None
    )
    if published is None or is_deleting(published):
        return "", ""
    if not any(_is_ready(pod) for pod in seen.gateway.pods):
        return "", ""
    if settings.access == "route":
        route = next((one for one in seen.objects if one["kind"] == "HTTPRoute"), None)
        if route is None or why_no_route([route]):
            return "", ""
        plain = settings.route_parent is not None and settings.route_parent.section == "http"
        host = str(dig(route, "spec", "hostnames", 0, default=""))
        return (f"{'http' if plain else 'https'}://{host}/v1", "tenant") if host else ("", "")
    if settings.access == "cluster":
        return f"http://{name_of(published)}.{namespace_of(published)}.svc/v1", "cluster"
    return gateway_address(seen.gateway, settings)


def gateway_address(seen: GatewaySeen, settings: Settings) -> tuple[str, str]:
    """Return (base URL, from where it is reachable) of a namespace's gateway; both "" while it does not answer."""
    ready = next((pod for pod in seen.pods if _is_ready(pod)), None)
    if ready is None:
        return "", ""
    match settings.access:
        case "lab":
            address = _lab_address(ready)
            return address, "lab" if address else ""
        case "load-balancer":
            return balanced(seen.service, tls=settings.ends_tls)
        case "cluster":
            return f"http://{GATEWAY_NAME}.{namespace_of(ready)}.svc/v1", "cluster"
        case _:
            return "", ""  # a route belongs to an endpoint


def balanced(service: Object | None, *, tls: bool = False) -> tuple[str, str]:
    """Return (base URL, from where it is reachable) of a load balancer; both `""` while it has none.

    `tls`: the gateway behind it listens with TLS.
    """
    host = balanced_host(service)
    try:
        literal = ip_address(host)
    except ValueError:
        reachable_from = "tenant"
    else:
        reachable_from = "internet" if literal.is_global else "tenant"
        host = f"[{host}]" if literal.version == 6 else host
    return (f"{'https' if tls else 'http'}://{host}/v1", reachable_from) if host else ("", "")


def balanced_host(service: Object | None) -> str:
    """Return the number or name that a load balancer was given, `""` while it has none."""
    given = dig(service, "status", "loadBalancer", "ingress", 0) or {}
    return str(given.get("ip") or given.get("hostname") or "")


def _lab_address(pod: Object) -> str:
    port = str(dig(pod, "metadata", "annotations", LAB_PORT_ANNOTATION, default=""))
    return f"http://127.0.0.1:{port}/v1" if port.isdecimal() else ""


def _is_ready(pod: Object) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return ready and not is_deleting(pod)


# --- the gateway ----------------------------------------------------------------------------------


def gateway_part(
    ref: Ref, objects: Sequence[Object], pods: Sequence[Object], events: Sequence[Object] = (), *, now: datetime
) -> Part | None:
    """Return the part of a namespace's gateway, None where there is none, or one that only a fresh token can help.

    `objects` are those of its step, `pods` those of the namespace with its component's label.
    """
    deployment = next((obj for obj in objects if obj["kind"] == "Deployment" and not is_deleting(obj)), None)
    mine = [pod for pod in pods if marks.labels(pod).get(COMPONENT_LABEL) == GATEWAY]
    if not objects:
        return _stopping(ref, GATEWAY_STEP) if mine else None
    part = reading.part(ref, GATEWAY_STEP, objects, now=now)
    if part.presence is not Presence.PRESENT or deployment is None:
        return part
    current = [pod for pod in mine if _delivery(pod) == delivery_in(deployment) and not is_deleting(pod)]
    if any(is_hopeless(pod) for pod in current):
        return None
    waiting = why_not_ready(objects, mine, events) or _why_no_certificate(objects)
    return _judged(part, "the gateway has not enrolled yet" if waiting == symptoms.LOADING else waiting)


def _why_no_certificate(objects: Sequence[Object]) -> str:
    """Return why cert-manager has made no certificate yet, "" where it has or is not asked for one."""
    asked = next((one for one in objects if one["kind"] == "Certificate"), None)
    if asked is None:
        return ""
    conditions: Sequence[Object] = dig(asked, "status", "conditions", default=[])
    told: Object = next((one for one in conditions if one.get("type") == "Ready"), {})
    if told.get("status") == "True":
        return ""
    words = str(told.get("message") or "it has not looked at it yet")[:200]
    return f"cert-manager has not made its certificate: {words}"


def is_hopeless(pod: Object) -> bool:
    """Whether a gateway's pod gave up: its token was refused, or the control plane has removed it."""
    return symptoms.exit_code(pod) == HOPELESS_EXIT


def _delivery(pod: Object) -> str:
    return str(dig(pod, "metadata", "annotations", DELIVERY_ANNOTATION, default=""))
