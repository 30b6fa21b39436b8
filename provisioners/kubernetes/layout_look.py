"""A node as a layout change sees it: who is on which GPU, and whether it offers what was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from provisioners.kubernetes import gpu as gpus
from provisioners.kubernetes.inventory import Inventory
from provisioners.kubernetes.nodes import Node, Profiles, Strategy
from provisioners.kubernetes.objects import Object


@dataclass(frozen=True, slots=True)
class Look:
    """A node and who is on it."""

    raw: Object
    node: Node
    known: Inventory
    policy: Object | None

    @property
    def layout(self) -> dict[str, Profiles | None]:
        """Return what each GPU is carved into now, None where that is not known."""
        return {gpu.id: gpu.profiles for gpu in self.node.gpus}

    def users(self, devices: Iterable[str]) -> list[Object]:
        """Return the pods that have, or may have, one of some GPUs."""
        among = set(devices)
        found = []
        for pod in self.known.pods.get(self.node.name, ()):
            taken = gpus.taken_by(pod, self.node, self.known.claims, self.known.pools)
            if any(not one.device or one.device in among for one in taken):
                found.append(pod)
        return found

    def claims(self, devices: Iterable[str]) -> list[str]:
        """Return the claims that some GPUs are allocated to."""
        among = set(devices)
        return sorted(
            {
                f"{key[0]}/{key[1]}"
                for key, one in self.known.given.get(self.node.name, ())
                if one.device is not None and one.device.gpu in among
            }
        )

    def offers(self, layout: Mapping[str, Profiles]) -> bool:
        """Whether the node really offers what a layout makes: allocatable, or the published devices."""
        wanted = Counter(name for profiles in layout.values() for name in (profiles or ("",)))
        if self.node.strategy is Strategy.DRA:
            return all(gpu.profiles == layout.get(gpu.id) for gpu in self.node.gpus) and +self.node.carved == wanted
        return +self.node.carved == wanted
