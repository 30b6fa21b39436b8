"""Connections that the network policies of a boundary let through and must not. Pure: no packet is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from provisioners.driver import Ref
from provisioners.kubernetes.isolation.scene import ANOTHER, MOST_NEIGHBOURS, is_another
from provisioners.kubernetes.network import Network, Peer, Port, network
from provisioners.kubernetes.objects import COMPONENT_LABEL, TENANT_LABEL, Object, name_of
from provisioners.kubernetes.settings import GATEWAY_PORT, SERVING_PORT, Settings

PORTS: Final = (Port(22), Port(53), Port(53, "UDP"), Port(80), Port(443), Port(GATEWAY_PORT), Port(SERVING_PORT))
OUTSIDE: Final = (Peer("the internet", address="203.0.113.7"), Peer("the node's metadata", address="169.254.169.254"))
STAND_IN: Final = "another-tenant"
OPEN_NAMES: Final = ("default", "kube-system")
"""Namespaces of strangers that a certificate may name."""


def holes(namespaces: Sequence[Object], policies: Sequence[Object], settings: Settings, ref: Ref) -> Iterator[str]:
    """Yield each connection of a boundary that its policies let through and must not."""
    stand_in: Object = {"metadata": {"name": STAND_IN, "labels": {TENANT_LABEL: str(UUID(int=0))}}}
    net = network((*namespaces, stand_in), policies)
    others = [name_of(one) for one in namespaces if is_another(one, ref)][:MOST_NEIGHBOURS]
    mine = _pods(ref.name)
    strangers = [pod for name in (*others, STAND_IN, *OPEN_NAMES) for pod in _pods(name)]
    for pod in mine:
        for port in PORTS:
            yield from _into(net, strangers, pod, port, settings)
            yield from _out_of(net, pod, strangers, port, settings)
    free, replica, gateway = mine[2], mine[1], mine[0]
    for target in (replica, gateway):
        for port in (Port(SERVING_PORT), Port(GATEWAY_PORT)):
            if net.lets(free, target, port):
                yield f"a pod of the tenant reaches its {target.name} past the gateway on port {port.number}"


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
        # Only our side counts: a stranger's own policies are his to open.
        if net.lets_in(stranger, pod, port):
            by = ", ".join(net.by(stranger, pod, port))
            yield f"{_place(stranger)} reaches a {pod.name} on port {port.number} ({f'by {by}' if by else 'unguarded'})"


def _out_of(net: Network, pod: Peer, strangers: Sequence[Peer], port: Port, settings: Settings) -> Iterator[str]:
    for target in (*strangers, *OUTSIDE):
        if target.namespace == settings.dns.namespace and port.number == 53:
            continue
        if net.lets_out(pod, target, port):
            yield f"a {pod.name} reaches {_place(target)} on port {port.number}"


def _place(peer: Peer) -> str:
    if not peer.namespace:
        return peer.name
    return f"a {peer.name} of {peer.namespace if peer.namespace in OPEN_NAMES else ANOTHER}"
