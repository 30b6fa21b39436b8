"""Connections that the network policies of a boundary let through and must not. Pure: no packet is sent.

Two rounds. The first asks about fixed strangers and ports, whatever our own policies say. The second asks about
everything that the live policies name (ports, blocks of addresses, pods, namespaces) and finds what ours would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final
from uuid import UUID

from provisioners.driver import Ref
from provisioners.kubernetes.boundary import allow_policies, cut_off_policy
from provisioners.kubernetes.isolation.scene import ANOTHER, MOST_NEIGHBOURS, is_another
from provisioners.kubernetes.network import Network, Peer, Port, network
from provisioners.kubernetes.objects import COMPONENT_LABEL, TENANT_LABEL, Object, dig, name_of, namespace_of
from provisioners.kubernetes.settings import GATEWAY_PORT, SERVING_PORT, Settings

PORTS: Final = (Port(22), Port(53), Port(53, "UDP"), Port(80), Port(443), Port(GATEWAY_PORT), Port(SERVING_PORT))
OUTSIDE: Final = (Peer("the internet", address="203.0.113.7"), Peer("the node's metadata", address="169.254.169.254"))
STAND_IN: Final = "another-tenant"
OPEN_NAMES: Final = ("default", "kube-system")
"""Namespaces of strangers that a certificate may name."""
NAME_LABEL: Final = "kubernetes.io/metadata.name"

_GATEWAY: Final = Port(GATEWAY_PORT)
_Block = IPv4Network | IPv6Network


def holes(namespaces: Sequence[Object], policies: Sequence[Object], settings: Settings, ref: Ref) -> Iterator[str]:
    """Yield each connection of a boundary that its policies let through and must not; some more than once."""
    live = [policy for policy in policies if namespace_of(policy) == ref.name]
    stand_in: Object = {"metadata": {"name": STAND_IN, "labels": {TENANT_LABEL: str(UUID(int=0))}}}
    others = [name_of(one) for one in namespaces if is_another(one, ref)][:MOST_NEIGHBOURS]
    strangers = [pod for name in (*others, STAND_IN, *OPEN_NAMES) for pod in _pods(name)]
    net = network((*namespaces, stand_in), live)
    mine = _pods(ref.name)
    for pod in mine:
        for port in PORTS:
            yield from _into(net, strangers, pod, port, settings)
            yield from _out_of(net, pod, strangers, port, settings)
    free, replica, gateway = mine[2], mine[1], mine[0]
    for target in (replica, gateway):
        for port in (Port(SERVING_PORT), Port(GATEWAY_PORT)):
            if net.lets(free, target, port):
                yield f"a pod of the tenant reaches its {target.name} past the gateway on port {port.number}"
    yield from _named((*namespaces, stand_in), live, settings, ref, strangers)


def _pods(namespace: str) -> tuple[Peer, Peer, Peer]:
    return (
        Peer("gateway", namespace, {COMPONENT_LABEL: "gateway"}),
        Peer("model server", namespace, {COMPONENT_LABEL: "replica"}),
        Peer("pod", namespace, {"app": "anything"}),
    )


def _into(net: Network, strangers: Sequence[Peer], pod: Peer, port: Port, settings: Settings) -> Iterator[str]:
    for stranger in (*strangers, OUTSIDE[0]):
        if stranger.namespace in {settings.monitoring_namespace, settings.proxy.namespace} - {""}:
            continue
        if settings.access == "load-balancer" and stranger.address and (pod.name, port) == ("gateway", _GATEWAY):
            continue  # whoever reaches the platform's load balancer; keys decide
        # Only our side counts: a stranger's own policies are his to open.
        if net.lets_in(stranger, pod, port):
            yield _words_in(net, stranger, pod, port)


def _out_of(net: Network, pod: Peer, strangers: Sequence[Peer], port: Port, settings: Settings) -> Iterator[str]:
    for target in (*strangers, *OUTSIDE):
        if target.namespace == settings.dns.namespace and port.number == 53:
            continue
        if net.lets_out(pod, target, port):
            yield _words_out(net, pod, target, port)


def _words_in(net: Network, stranger: Peer, pod: Peer, port: Port) -> str:
    by = ", ".join(net.by(stranger, pod, port))
    return f"{_place(net, stranger)} reaches a {pod.name} on port {port.number} ({f'by {by}' if by else 'unguarded'})"


def _words_out(net: Network, pod: Peer, target: Peer, port: Port) -> str:
    return f"a {pod.name} reaches {_place(net, target)} on port {port.number}"


def _place(net: Network, peer: Peer) -> str:
    if not peer.namespace:
        return peer.name
    if peer.namespace in OPEN_NAMES:
        return f"a {peer.name} of {peer.namespace}"
    return f"a {peer.name} of {ANOTHER if TENANT_LABEL in net.labels_of(peer.namespace) else 'another namespace'}"


# --- what live policies name ------------------------------------------------------------------------------


def _named(
    namespaces: Sequence[Object], live: Sequence[Object], settings: Settings, ref: Ref, strangers: Sequence[Peer]
) -> Iterator[str]:
    """Yield what the live policies let through of what they name, and the platform's own would not."""
    ours = [cut_off_policy(ref.name), *allow_policies(ref.name, settings)]
    known = [ip_network(cidr, strict=False) for cidr in _blocks(ours)]
    selectors = list(_selectors(live))
    made = [
        {"metadata": {"name": f"named-{number}", "labels": _fitting(one["namespaceSelector"])}}
        for number, one in enumerate(selectors)
        if one.get("namespaceSelector") is not None
    ]
    everywhere = (*namespaces, *made)
    net, wanted = network(everywhere, live), network(everywhere, ours)
    mine = [*_pods(ref.name), *(_pod(ref.name, policy["spec"].get("podSelector")) for policy in live)]
    peers = [
        *strangers,
        *OUTSIDE,
        *(peer for number, one in enumerate(selectors) for peer in _chosen(f"named-{number}", one, ref)),
        *(Peer(f"an address of {cidr}", address=at) for cidr in _blocks(live) for at in _addresses(cidr, known)),
    ]
    ports = list(dict.fromkeys((*PORTS, *_ports(live))))
    for pod in _unlike(mine):
        for peer in _unlike(peers):
            for port in ports:
                if net.lets_in(peer, pod, port) and not wanted.lets_in(peer, pod, port):
                    yield _words_in(net, peer, pod, port)
                if net.lets_out(pod, peer, port) and not wanted.lets_out(pod, peer, port):
                    yield _words_out(net, pod, peer, port)
    replica, gateway = mine[1], mine[0]
    inside = (_pod(ref.name, one.get("podSelector")) for one in selectors if one.get("namespaceSelector") is None)
    for free in _unlike(pod for pod in (*mine, *inside) if COMPONENT_LABEL not in pod.labels):
        for target in (replica, gateway):
            for port in ports:
                if net.lets(free, target, port) and not wanted.lets(free, target, port):
                    yield f"a pod of the tenant reaches its {target.name} past the gateway on port {port.number}"


def _rules(policies: Iterable[Object]) -> Iterator[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    """Yield each rule of policies with its peers."""
    for policy in policies:
        for rules, peers in (("ingress", "from"), ("egress", "to")):
            for rule in dig(policy, "spec", rules, default=[]):
                yield rule, rule.get(peers) or ()


def _ports(policies: Iterable[Object]) -> Iterator[Port]:
    """Yield the ends of every range of ports that is named; a name that only pods can tell fits any port."""
    for rule, _peers in _rules(policies):
        for one in rule.get("ports") or ():
            for number in (one.get("port"), one.get("endPort")):
                if str(number).isdigit():
                    yield Port(int(str(number)), str(one.get("protocol") or "TCP"))


def _blocks(policies: Iterable[Object]) -> Iterator[str]:
    """Yield every block of addresses that is named, those that are excepted as well."""
    for _rule, peers in _rules(policies):
        for one in peers:
            if "ipBlock" in one:
                yield str(one["ipBlock"].get("cidr"))
                yield from map(str, one["ipBlock"].get("except") or ())


def _addresses(cidr: str, known: Iterable[_Block]) -> Iterator[str]:
    """Yield an address of a block, and some of what is left of it without the blocks that our own policies name."""
    whole = ip_network(cidr, strict=False)
    left: list[_Block] = [whole]
    for block in known:
        left = [piece for one in left for piece in _without(one, block)]
    for one in (whole, *left[:3]):
        yield str(one[min(1, one.num_addresses - 1)])


def _without(one: _Block, block: _Block) -> list[_Block]:
    if isinstance(one, IPv4Network) and isinstance(block, IPv4Network) and block.overlaps(one):
        return [] if one.subnet_of(block) else list(one.address_exclude(block))
    if isinstance(one, IPv6Network) and isinstance(block, IPv6Network) and block.overlaps(one):
        return [] if one.subnet_of(block) else list(one.address_exclude(block))
    return [one]


def _selectors(policies: Iterable[Object]) -> Iterator[Mapping[str, Any]]:
    """Yield every peer that is named by labels."""
    for _rule, peers in _rules(policies):
        yield from (one for one in peers if "ipBlock" not in one)


def _chosen(name: str, peer: Mapping[str, Any], ref: Ref) -> Iterator[Peer]:
    """Yield pods that a peer of a policy means: in a namespace that it names, or one that fits its selector."""
    selector = peer.get("namespaceSelector")
    if selector is None:
        return  # pods of the boundary's own namespace
    called = _fitting(selector).get(NAME_LABEL, name)
    if called != ref.name:
        yield _pod(called, peer.get("podSelector"))


def _pod(namespace: str, selector: Mapping[str, Any] | None) -> Peer:
    fitting = _fitting(selector or {})
    name = {"gateway": "gateway", "replica": "model server"}.get(fitting.get(COMPONENT_LABEL, ""), "pod")
    return Peer(name, namespace, fitting or {"app": "anything"})


def _fitting(selector: Mapping[str, Any]) -> dict[str, str]:
    """Return labels that a selector takes, as far as it says which."""
    found = {str(key): str(value) for key, value in (selector.get("matchLabels") or {}).items()}
    for one in selector.get("matchExpressions") or ():
        if one.get("operator") == "In" and one.get("values"):
            found[str(one.get("key"))] = str(one["values"][0])
        elif one.get("operator") == "Exists":
            found.setdefault(str(one.get("key")), "any")
    return found


def _unlike(peers: Iterable[Peer]) -> list[Peer]:
    """Return peers without those that are like an earlier one."""
    found: dict[tuple[str, tuple[tuple[str, str], ...], str], Peer] = {}
    for one in peers:
        found.setdefault((one.namespace, tuple(sorted(one.labels.items())), one.address), one)
    return list(found.values())
