"""Which connections a set of NetworkPolicies lets through, as the API's documentation defines it. Pure.

It says what the policies mean, not whether a network plug-in enforces them. What it does not know (a named port) it
takes as open: a certificate must not overlook a hole. Traffic of a node to its own pods is exempt, as it is in truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from provisioners.kubernetes.objects import Object, labels, name_of, namespace_of


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection: a pod, or an address outside (`namespace` is `""`)."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """What is connected to."""

    number: int
    protocol: str = "TCP"


class Network:
    """The namespaces and policies of a cluster, as read."""

    def __init__(self, namespaces: Iterable[Object], policies: Iterable[Object]) -> None:
        """Know these."""
        self._namespaces = {name_of(one): dict(labels(one)) for one in namespaces}
        self._policies = tuple(policies)

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace, none of one that is not known."""
        return self._namespaces.get(namespace, {})

    def lets(self, source: Peer, target: Peer, port: Port) -> bool:
        """Whether a connection is let out of its source and into its target."""
        return not self.why_not(source, target, port)

    def why_not(self, source: Peer, target: Peer, port: Port) -> str:
        """Return which side refuses a connection: `egress`, `ingress` or `""` for neither."""
        if source.namespace and not self._side(source, target, port, "Egress"):
            return "egress"
        if target.namespace and not self._side(target, source, port, "Ingress"):
            return "ingress"
        return ""

    def lets_out(self, source: Peer, target: Peer, port: Port) -> bool:
        """Whether the source's own side lets a connection out, whatever the target's side says."""
        return self._side(source, target, port, "Egress")

    def lets_in(self, source: Peer, target: Peer, port: Port) -> bool:
        """Whether the target's own side lets a connection in, whatever the source's side says."""
        return self._side(target, source, port, "Ingress")

    def by(self, source: Peer, target: Peer, port: Port) -> tuple[str, ...]:
        """Return the names of the policies at the target that let a connection in."""
        return tuple(
            name_of(policy)
            for policy in self._of(target, "Ingress")
            if any(self._matches(rule, "from", source, port) for rule in policy["spec"].get("ingress") or [])
        )

    def _of(self, pod: Peer, direction: str) -> list[Object]:
        return [
            policy
            for policy in self._policies
            if namespace_of(policy) == pod.namespace
            and direction in _types(policy["spec"])
            and selects(policy["spec"].get("podSelector") or {}, pod.labels)
        ]

    def _side(self, pod: Peer, other: Peer, port: Port, direction: str) -> bool:
        applying = self._of(pod, direction)
        if not applying:
            return True  # a pod that no policy selects is open in that direction
        rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
        return any(
            self._matches(rule, peers, other, port) for policy in applying for rule in policy["spec"].get(rules) or []
        )

    def _matches(self, rule: Object, peers: str, other: Peer, port: Port) -> bool:
        listed = rule.get(peers)
        if listed and not any(self._is_peer(one, other, rule) for one in listed):
            return False
        ports = rule.get("ports")
        return not ports or any(_is_port(one, port) for one in ports)

    def _is_peer(self, peer: Object, other: Peer, rule: Object) -> bool:
        if "ipBlock" in peer:
            return bool(other.address) and _in_block(peer["ipBlock"], other.address)
        if not other.namespace:
            return False
        if peer.get("namespaceSelector") is not None:
            known = self._namespaces.get(other.namespace, {}) | {"kubernetes.io/metadata.name": other.namespace}
            if not selects(peer["namespaceSelector"], known):
                return False
        elif other.namespace != rule.get("_namespace", other.namespace):
            return False
        return peer.get("podSelector") is None or selects(peer["podSelector"], other.labels)


def network(namespaces: Iterable[Object], policies: Iterable[Object]) -> Network:
    """Return what these namespaces and policies mean; a peer without a namespace selector is of its policy's own."""
    return Network(namespaces, [_own(policy) for policy in policies])


def _own(policy: Object) -> Object:
    """Return a policy whose rules know their namespace."""
    spec = dict(policy.get("spec") or {})
    for direction in ("ingress", "egress"):
        if direction in spec:
            spec[direction] = [dict(rule) | {"_namespace": namespace_of(policy)} for rule in spec[direction] or []]
    return policy | {"spec": spec}


def _types(spec: Object) -> Sequence[str]:
    """Return the directions that a policy is about: ingress always, egress where it has such rules, unless it says."""
    given: Sequence[str] = spec.get("policyTypes") or ()
    return given or (("Ingress", "Egress") if "egress" in spec else ("Ingress",))


def selects(selector: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    if any(given.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(one, given) for one in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    key, values = str(expression.get("key")), expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return given.get(key) in values
        case "NotIn":
            return given.get(key) not in values
        case "Exists":
            return key in given
        case "DoesNotExist":
            return key not in given
        case _:
            return True


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    at = ip_address(address)
    if at not in ip_network(str(block.get("cidr")), strict=False):
        return False
    return not any(at in ip_network(str(one), strict=False) for one in block.get("except") or ())


def _is_port(given: Mapping[str, Any], port: Port) -> bool:
    if str(given.get("protocol") or "TCP") != port.protocol:
        return False
    wanted = given.get("port")
    if wanted is None or not str(wanted).isdigit():
        return True  # every port, or a name that only the pod can tell
    last = given.get("endPort") or wanted
    return int(wanted) <= port.number <= int(last)
