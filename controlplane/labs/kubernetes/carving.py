"""The true MIG layout of the lab's GPUs and what a node publishes of it. Pure.

Placements are the product catalogue's (`tenants.gpu_catalogue`): a layout that no GPU could have is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tenants import gpu_catalogue
from tenants.gpu_catalogue import Product

Object = dict[str, Any]
GPU: Final = "nvidia.com/gpu"
MIG: Final = "nvidia.com/mig-"
STRATEGY: Final = "nvidia.com/mig.strategy"
PRODUCT: Final = "nvidia.com/gpu.product"


class BadLayout(ValueError):
    """No such layout can be made on this GPU."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """One carved MIG device."""

    start: int
    size: int
    profile: str


@dataclass(slots=True)
class Gpu:
    """One GPU of a node; `mig` with no windows is a GPU in MIG mode without instances."""

    product: str
    mig: bool = False
    windows: tuple[Window, ...] = ()

    def as_json(self) -> Object:
        """Return it for a file."""
        return {
            "product": self.product,
            "mig": self.mig,
            "windows": [[w.start, w.size, w.profile] for w in self.windows],
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Gpu:
        """Read it from a file."""
        windows = given.get("windows")
        carved = tuple(Window(int(start), int(size), str(profile)) for start, size, profile in windows or ())
        return cls(str(given["product"]), bool(given.get("mig", windows is None or bool(carved))), carved)


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """What a device plugin hands out: a whole GPU (`size` 0) or a MIG device."""

    gpu: int
    start: int = 0
    size: int = 0
    profile: str = ""

    def overlaps(self, other: Slot) -> bool:
        """Whether two slots share hardware."""
        if self.gpu != other.gpu:
            return False
        if not self.size or not other.size:
            return True
        return self.start < other.start + other.size and other.start < self.start + self.size


def place(product: str, counts: Mapping[str, int]) -> tuple[Window, ...]:
    """Return windows for profile → count on one GPU, as mig-parted finds them: the first that fit.

    Raises `BadLayout`.
    """
    found = _search(gpu_catalogue.product(product), _wanted(counts), ())
    if found is None:
        words = ", ".join(f"{count} × {name}" for name, count in counts.items())
        raise BadLayout(f"{product} has no room for {words}")
    return tuple(sorted(found))


def _wanted(counts: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name, count in counts.items() for _ in range(count))


def _search(product: Product, wanted: Sequence[str], placed: tuple[Window, ...]) -> tuple[Window, ...] | None:
    if not wanted:
        return placed
    try:
        profile = gpu_catalogue.profile(product, wanted[0])
    except LookupError as error:
        raise BadLayout(str(error)) from error
    if sum(window.profile == profile.name for window in placed) >= profile.max_instances:
        return None
    for start in profile.starts:
        if all(start + profile.size <= w.start or w.start + w.size <= start for w in placed):
            found = _search(product, wanted[1:], (*placed, Window(start, profile.size, profile.name)))
            if found is not None:
                return found
    return None


def resource_of(product: str, profile: str, strategy: str) -> str:
    """Return the resource under which a slot is published."""
    if not profile or strategy == "single":
        return GPU
    return gpu_catalogue.profile(product, profile).resource_name


def slots_of(gpus: Sequence[Gpu], strategy: str) -> dict[str, list[Slot]]:
    """Return resource → slots of a node, as the device plugin publishes them under a strategy."""
    found: dict[str, list[Slot]] = {}
    mixed = strategy == "single" and not _is_uniform(gpus)
    for index, gpu in enumerate(gpus):
        if not gpu.mig or strategy == "none":
            if not (gpu.mig or (strategy == "single" and any(other.mig for other in gpus))):
                found.setdefault(GPU, []).append(Slot(index))
            continue
        if mixed:
            continue
        for window in gpu.windows:
            resource = resource_of(gpu.product, window.profile, strategy)
            found.setdefault(resource, []).append(Slot(index, window.start, window.size, window.profile))
    return found


def _is_uniform(gpus: Sequence[Gpu]) -> bool:
    """Whether strategy `single` can work: every GPU in MIG mode, all windows of one profile."""
    profiles = {window.profile for gpu in gpus for window in gpu.windows}
    return len(profiles) <= 1 and len({gpu.mig for gpu in gpus}) <= 1


def published(gpus: Sequence[Gpu], strategy: str) -> dict[str, int]:
    """Return resource → count of a node."""
    return {resource: len(slots) for resource, slots in slots_of(gpus, strategy).items()}


def from_node(node: Object) -> list[Gpu]:
    """Return a layout that explains what a node's labels and allocatable say; for nodes whose truth nobody wrote.

    Raises `BadLayout` where nothing explains it.
    """
    labels = node["metadata"].get("labels") or {}
    product = gpu_catalogue.find_by_provider_name(labels.get(PRODUCT, ""))
    if product is None:
        return []
    strategy = labels.get(STRATEGY, "none")
    there = {
        name: int(count)
        for name, count in ((node.get("status") or {}).get("allocatable") or {}).items()
        if name == GPU or name.startswith(MIG)
    }
    by_resource = {profile.resource_name: profile.name for profile in product.profiles}
    single = labels.get(PRODUCT, "").partition("-MIG-")[2]
    counts: Counter[str] = Counter()
    whole = 0
    for name, count in there.items():
        if name != GPU:
            counts[by_resource.get(name, name)] += count
        elif strategy == "single" and single:
            counts[single] += count
        else:
            whole += count
    gpus = [Gpu(product.id) for _ in range(whole)]
    total = int(labels.get("nvidia.com/gpu.count", "0")) if not single else 0
    return gpus + _spread(product.id, counts, max(0, total - whole))


def _spread(product: str, counts: Counter[str], gpus: int) -> list[Gpu]:
    """Pack windows onto as few GPUs as it takes, largest first; at least `gpus`."""
    made: list[Counter[str]] = []
    sizes = {p.name: p.size for p in gpu_catalogue.product(product).profiles}
    for name in sorted(counts.elements(), key=lambda name: (-sizes.get(name, 0), name)):
        for held in made:
            trial = held + Counter([name])
            try:
                place(product, trial)
            except BadLayout:
                continue
            held[name] += 1
            break
        else:
            place(product, {name: 1})
            made.append(Counter([name]))
    made += [Counter() for _ in range(gpus - len(made))]
    return [Gpu(product, mig=True, windows=place(product, held)) for held in made]


@dataclass(slots=True)
class NodeTruth:
    """What is really on one node, and who really has what."""

    strategy: str
    gpus: list[Gpu]
    held: dict[str, list[tuple[str, Slot]]] = field(default_factory=dict)
    """Pod uid → (resource, slot)."""

    def slots(self) -> dict[str, list[Slot]]:
        """Return all slots that there are."""
        return slots_of(self.gpus, self.strategy)

    def free(self, resource: str) -> list[Slot]:
        """Return the slots of a resource that nobody has."""
        taken = [slot for held in self.held.values() for _, slot in held]
        return [slot for slot in self.slots().get(resource, ()) if not any(slot.overlaps(other) for other in taken)]

    def as_json(self) -> Object:
        """Return it for a file."""
        return {
            "strategy": self.strategy,
            "gpus": [gpu.as_json() for gpu in self.gpus],
            "held": {
                uid: [[resource, s.gpu, s.start, s.size, s.profile] for resource, s in held]
                for uid, held in self.held.items()
            },
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> NodeTruth:
        """Read it from a file."""
        held = {
            uid: [(str(e[0]), Slot(int(e[1]), int(e[2]), int(e[3]), str(e[4]))) for e in entries]
            for uid, entries in (given.get("held") or {}).items()
        }
        return cls(str(given.get("strategy", "none")), [Gpu.of(gpu) for gpu in given.get("gpus") or ()], held)


def double_use(truths: Iterable[tuple[str, NodeTruth]]) -> list[str]:
    """Return one sentence for each pair of pods that share hardware, and for each slot that does not exist."""
    found = []
    for node, truth in truths:
        there = {slot for slots in truth.slots().values() for slot in slots}
        held = [(uid, slot) for uid, entries in sorted(truth.held.items()) for _, slot in entries]
        for at, (uid, slot) in enumerate(held):
            if slot not in there:
                found.append(f"pod {uid} has {slot} of node {node}, which does not exist any more")
            found += [
                f"pods {uid} and {other} share {slot} of node {node}"
                for other, second in held[at + 1 :]
                if slot.overlaps(second)
            ]
    return found
