"""The one card of a machine, in the network of its namespace or in a named one. Pure.

On a Supervisor a namespace has a network of its own (a segment or VPC of NSX, or a port group); which one is the
affair of whoever set the Supervisor up. Network policies of Kubernetes do not reach virtual machines.
"""

from __future__ import annotations

from typing import Final

from provisioners.driver import Ref
from provisioners.kubernetes.objects import Object

CARD: Final = "eth0"


def of(ref: Ref, named: str) -> Object:
    """Return `spec.network`; `named`: `group/version/Kind/name` of a network in the namespace, `""` for its default."""
    card: Object = {"name": CARD}
    if named:
        api, kind, name = named.rsplit("/", 2)
        card["network"] = {"apiVersion": api, "kind": kind, "name": name}
    return {"hostName": ref.name, "interfaces": [card]}
