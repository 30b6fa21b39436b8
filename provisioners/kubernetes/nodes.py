"""A node as its own objects tell it: readiness, room, GPUs, how they are carved and handed out. Pure.

Two ways to hand out GPUs. With the device plugin a node tells counts only (labels of GPU feature discovery,
allocatable), so its GPUs have derived ids (`<node>-gpu-<i>`) and which GPU is carved how is known only as far
as the layout that the MIG manager was told explains the counts. With DRA the published devices tell it.

What contradicts itself is listed in `problems` in words for people; nothing is guessed out of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from provisioners.driver import Binding
from provisioners.kubernetes.objects import Object, dig, labels, name_of, uid_of
from provisioners.kubernetes.slices import GPU, MIG, Published
from tenants import geometry, gpu_catalogue, host_binding
from tenants.gpu_catalogue import WHOLE, Product, SoldByWindow

HOSTNAME_LABEL: Final = "kubernetes.io/hostname"
PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
COUNT_LABEL: Final = "nvidia.com/gpu.count"
STRATEGY_LABEL: Final = "nvidia.com/mig.strategy"
CAPABLE_LABEL: Final = "nvidia.com/mig.capable"
CONFIG_LABEL: Final = "nvidia.com/mig.config"
STATE_LABEL: Final = "nvidia.com/mig.config.state"
MANAGER_LABEL: Final = "nvidia.com/gpu.deploy.mig-manager"
SIMULATED: Final = "lab.tenantry.internal/simulated"
"""Label or annotation of a node that a lab plays."""

WHOLE_RESOURCES: Final = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi")
MIG_PREFIX: Final = "nvidia.com/mig-"
SHARED_SUFFIX: Final = ".shared"
_CONTROL_PLANE: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_INVALID: Final = "-MIG-INVALID"
_SINGLE: Final = re.compile(r"-MIG-(?P<profile>\S+)$")
_SUFFIXES: Final = ((".me.all", "+me.all"), (".me", "+me"), (".gfx", "+gfx"))

Profiles = tuple[str, ...]
"""MIG profiles on one GPU, sorted; empty for a GPU that is not carved."""


class Strategy(StrEnum):
    """How a node hands out its GPUs."""

    NONE = "none"
    SINGLE = "single"
    MIXED = "mixed"
    DRA = "dra"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU of a node."""

    id: str
    index: int
    windows: tuple[tuple[int, int, str], ...] = ()
    """Carved MIG devices (start, size, profile)."""
    profiles: Profiles | None = ()
    """What it is carved into; None where nobody tells."""
    taint: str = ""
    sure: bool = True
    """`profiles` are told for this very GPU; False where counts of the node were spread over its GPUs."""
    trusted: bool = True
    """False where `windows` are the best legal guess for what is known of `profiles`."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node, read."""

    name: str
    uid: str
    hostname: str
    """Value of its label `kubernetes.io/hostname`, by which pods are pinned to it."""
    ready: bool
    message: str
    cordoned: bool
    vcpu: int
    memory_gib: int
    product: str
    """Catalogue id, else what the node calls it, `""` without a GPU."""
    strategy: Strategy
    binding: Binding
    partitions: bool
    """Its GPUs are carved when a claim asks for it."""
    gpus: tuple[Gpu, ...]
    allocatable: Mapping[str, int]
    """GPU resource of the device plugin → how many pods may have."""
    published: tuple[Published, ...]
    mig_config: str = ""
    mig_state: str = ""
    apart: bool = False
    """It is of the control plane: without GPUs it is no host."""
    managed: bool = False
    """A MIG manager carves it by label."""
    resource_version: str = ""
    simulated: bool = False
    problems: tuple[str, ...] = ()

    def gpu(self, device: str) -> Gpu | None:
        """Return one of its GPUs by id."""
        return next((gpu for gpu in self.gpus if gpu.id == device), None)

    @property
    def carved(self) -> Counter[str]:
        """MIG profile → how many the node offers, `""` for whole GPUs."""
        if self.strategy is Strategy.DRA:
            return Counter(one.profile for one in self.published if not one.partition)
        return counts(self.allocatable, self.strategy, single=self.single)

    @property
    def single(self) -> str:
        """The one profile of a node with strategy single whose GPUs are carved, `""` otherwise."""
        profiles = {name for gpu in self.gpus for name in gpu.profiles or ()}
        return profiles.pop() if self.strategy is Strategy.SINGLE and len(profiles) == 1 else ""


Entry = Mapping[int, Profiles]
"""A layout by number of the GPU."""


def read(node: Object, published: Sequence[Published] = (), *, layouts: Mapping[str, Any] | None = None) -> Node:
    """Return what a Node object and the devices published on it say.

    `layouts` are the `mig-configs` of the MIG manager: they tell which GPU holds what where the node is carved as
    the entry that its label names.
    """
    return _Reading(node, tuple(published), layouts or {}).node()


def derived_id(node: str, index: int) -> str:
    """Return our id of a GPU that the node does not name."""
    return f"{node}-gpu-{index}"


def is_single(node: Object) -> bool:
    """Whether a Node object says that MIG devices are handed out on it under the name of whole GPUs."""
    told = labels(node)
    return told.get(STRATEGY_LABEL) == Strategy.SINGLE and told.get(CAPABLE_LABEL) != "false"


# --- names of resources ---------------------------------------------------------------------------


def resource_of(product: str, profile: str) -> str:
    """Return the extended resource of the device plugin with strategy mixed. Raises `LookupError`."""
    return gpu_catalogue.profile(product, profile).resource_name


def profile_of(resource: str) -> str | None:
    """Return the MIG profile that an extended resource stands for, None where it stands for none.

    `nvidia.com/mig-1g.10gb.me` → `1g.10gb+me`.
    """
    if not resource.startswith(MIG_PREFIX):
        return None
    name = resource.removeprefix(MIG_PREFIX).removesuffix(SHARED_SUFFIX)
    for dotted, plus in _SUFFIXES:
        if name.endswith(dotted):
            return name.removesuffix(dotted) + plus
    return name


def is_gpu(resource: str) -> bool:
    """Whether an extended resource is GPU room, shared or not."""
    return resource.removesuffix(SHARED_SUFFIX) in WHOLE_RESOURCES or resource.startswith(MIG_PREFIX)


def counts(resources: Mapping[str, int], strategy: Strategy, *, single: str = "") -> Counter[str]:
    """Return profile (`""` whole) → number in a set of extended resources as a node of `strategy` means them."""
    found: Counter[str] = Counter()
    for resource, number in resources.items():
        if number <= 0 or not is_gpu(resource):
            continue
        profile = profile_of(resource)
        if profile is None:
            profile = single if strategy is Strategy.SINGLE else WHOLE
        found[profile] += number
    return found


# --- quantities -----------------------------------------------------------------------------------

_FACTORS: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY: Final = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")


def quantity(value: object) -> Decimal:
    """Return a Kubernetes quantity as a number; what cannot be read counts as 0."""
    match = _QUANTITY.match(str(value).strip())
    if match is None:
        return Decimal(0)
    try:
        return Decimal(match[1]) * _FACTORS[match[2] or ""]
    except InvalidOperation:
        return Decimal(0)


def gib(value: object) -> int:
    """Return a quantity of bytes in whole GiB, rounded down."""
    return int(quantity(value) / 2**30)


# --- layouts --------------------------------------------------------------------------------------


def entry_of(layouts: Mapping[str, Any], name: str, gpus: int) -> Entry | None:
    """Return what a `mig-configs` entry makes of each GPU of a node with `gpus`, None where it cannot be told.

    A GPU that the entry does not list is not in the answer: it keeps what it has.
    """
    parts = layouts.get(name)
    if not isinstance(parts, list):
        return None
    found: dict[int, Profiles] = {}
    for part in parts:
        if not isinstance(part, Mapping) or part.get("device-filter"):
            return None
        devices = part.get("devices")
        numbers = range(gpus) if devices == "all" else devices
        if not isinstance(numbers, (list, range)):
            return None
        wanted = part.get("mig-devices") or {} if part.get("mig-enabled") else {}
        names = sorted(str(profile) for profile, count in wanted.items() for _ in range(int(count)))
        for number in numbers:
            found[int(number)] = tuple(names)
    return found


@lru_cache(maxsize=4096)
def packed(product: str, profiles: Profiles) -> tuple[tuple[int, int, str], ...] | None:
    """Return a legal place (start, size, profile) for each of the profiles on one GPU, None if there is none."""
    return _pack(product, tuple(sorted(profiles, key=lambda name: _hardness(product, name))))


def _hardness(product: str, name: str) -> tuple[int, int, str]:
    try:
        part = gpu_catalogue.profile(product, name)
    except LookupError:
        return (0, 0, name)
    return (-part.size, len(part.starts), name)


def _pack(product: str, names: Profiles) -> tuple[tuple[int, int, str], ...] | None:
    try:
        full = geometry.full_mask(product)
        parts = [gpu_catalogue.profile(product, name) for name in names]
    except LookupError:
        return None

    def fill(at: int, free: int, media: str) -> tuple[tuple[int, int, str], ...] | None:
        if at == len(parts):
            return ()
        part = parts[at]
        if part.media and media:
            return None
        for start in reversed(geometry.legal_starts(product, part.name, free)):
            rest = fill(at + 1, free & ~geometry.window_mask(start, part.size), part.name if part.media else media)
            if rest is not None:
                return (*rest, (start, part.size, part.name))
        return None

    found = fill(0, full, "")
    return None if found is None else tuple(sorted(found))


@lru_cache(maxsize=1024)
def spread(product: str, gpus: int, profiles: Profiles) -> tuple[Profiles, ...] | None:
    """Return one way in which `gpus` GPUs carry `profiles` together, None if there is none within the search."""
    try:
        free = geometry.full_mask(product)
        held = [host_binding.HeldUnit(str(n), name, host_binding.NOWHERE, 0) for n, name in enumerate(profiles)]
        answer = host_binding.explain_report(product, [host_binding.Gpu(n, free) for n in range(gpus)], held, [])
    except LookupError:
        return None
    if isinstance(answer, host_binding.Unexplained):
        return None
    found: list[list[str]] = [[] for _ in range(gpus)]
    for number, name in enumerate(profiles):
        found[answer.windows[str(number)][0]].append(name)
    return tuple(tuple(sorted(one)) for one in found)


# --- reading --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """One node being read."""

    raw: Object
    published: tuple[Published, ...]
    layouts: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def node(self) -> Node:
        raw, name = self.raw, name_of(self.raw)
        told = labels(raw)
        product = self._product()
        strategy = self._strategy()
        allocatable = self._resources("allocatable")
        self._unhealthy(allocatable, self._resources("capacity"))
        gpus = self._published_gpus(product) if self.published else self._counted_gpus(product, strategy, allocatable)
        if self.published and any(allocatable.values()):
            self.problems.append(
                "its GPUs are handed out by the device plugin and by DRA at once "
                f"({', '.join(sorted(name for name, number in allocatable.items() if number))})"
            )
        self._state(told)
        ready, message = _readiness(raw)
        known = gpu_catalogue.find_by_provider_name(product) if product else None
        partitions = any(one.partition and one.kind == MIG for one in self.published)
        return Node(
            name=name,
            uid=uid_of(raw),
            hostname=told.get(HOSTNAME_LABEL, name),
            ready=ready,
            message=message,
            cordoned=bool(dig(raw, "spec", "unschedulable", default=False)),
            vcpu=int(quantity(dig(raw, "status", "allocatable", "cpu", default=0))),
            memory_gib=gib(dig(raw, "status", "allocatable", "memory", default=0)),
            product=known.id if known else product,
            strategy=strategy,
            binding=self._binding(gpus, partitions=partitions),
            partitions=partitions,
            gpus=gpus,
            allocatable=allocatable,
            published=self.published,
            mig_config=told.get(CONFIG_LABEL, ""),
            mig_state=told.get(STATE_LABEL, ""),
            apart=any(label in told for label in _CONTROL_PLANE),
            managed=any(label in told for label in (CONFIG_LABEL, STATE_LABEL, MANAGER_LABEL)),
            resource_version=str(dig(raw, "metadata", "resourceVersion", default="")),
            simulated=SIMULATED in told or SIMULATED in dig(raw, "metadata", "annotations", default={}),
            problems=tuple(dict.fromkeys(self.problems)),
        )

    def _resources(self, which: str) -> dict[str, int]:
        found = dig(self.raw, "status", which, default={})
        return {name: int(quantity(number)) for name, number in found.items() if is_gpu(name)}

    def _unhealthy(self, allocatable: Mapping[str, int], capacity: Mapping[str, int]) -> None:
        """A kubelet keeps a resource that is gone with 0: that is absence, less than all of it is a fault."""
        for resource, number in sorted(capacity.items()):
            offered = allocatable.get(resource, 0)
            if 0 < offered < number:
                self.problems.append(
                    f"{number - offered} of {number} {resource} are not healthy, it does not say which"
                )

    def _product(self) -> str:
        told = labels(self.raw).get(PRODUCT_LABEL, "")
        names = {one.product_name for one in self.published if one.product_name}
        ids = {known.id if (known := gpu_catalogue.find_by_provider_name(name)) else name for name in names}
        if len(ids) > 1:
            self.problems.append(f"GPUs of several products are published: {', '.join(sorted(names))}")
        if told.endswith(_INVALID):
            self.problems.append(
                f"the node calls its GPUs {told}: with strategy single every GPU must be carved alike; "
                "give all of them one layout or set the strategy to mixed"
            )
            told = told.removesuffix(_INVALID)
        if ids:
            return min(ids)
        known = gpu_catalogue.find_by_provider_name(told) if told else None
        return known.id if known else told

    def _strategy(self) -> Strategy:
        if self.published:
            return Strategy.DRA
        told = labels(self.raw).get(STRATEGY_LABEL, "")
        if told in {Strategy.SINGLE, Strategy.MIXED}:
            return Strategy(told)
        return Strategy.NONE

    def _binding(self, gpus: tuple[Gpu, ...], *, partitions: bool) -> Binding:
        if not self.published:
            return Binding.HOST
        if partitions or any(one.start is None for one in self.published):
            return Binding.GPU
        return Binding.DEVICE if gpus else Binding.HOST

    def _state(self, told: Mapping[str, str]) -> None:
        state = told.get(STATE_LABEL, "")
        if state and state != "success":
            config = told.get(CONFIG_LABEL, "")
            what = {
                "failed": f"the MIG manager could not carve it as {config}",
                "pending": f"the MIG manager is at work on {config}",
                "rebooting": f"it reboots to be carved as {config}",
            }
            self.problems.append(what.get(state, f"its MIG state is {state}"))

    # --- DRA ---------------------------------------------------------------------------------------

    def _published_gpus(self, product: str) -> tuple[Gpu, ...]:
        by_gpu: dict[str, list[Published]] = {}
        for one in self.published:
            if one.gpu:
                by_gpu.setdefault(one.gpu, []).append(one)
        taken = {one.index for one in self.published if one.index is not None}
        spare = iter(number for number in range(len(by_gpu) + len(taken) + 1) if number not in taken)
        found = []
        for gpu, devices in by_gpu.items():
            index = next((one.index for one in devices if one.index is not None), None)
            found.append(self._published_gpu(gpu, next(spare) if index is None else index, devices, product))
        return tuple(sorted(found, key=lambda one: (one.index, one.id)))

    def _published_gpu(self, gpu: str, index: int, devices: list[Published], product: str) -> Gpu:
        fixed = [one for one in devices if one.kind == MIG and not one.partition]
        if fixed and any(one.kind == GPU and not one.partition for one in devices):
            self.problems.append(f"{gpu} is published whole and carved at once")
        windows: list[tuple[int, int, str]] = []
        trusted = True
        for one in fixed:
            try:
                size = gpu_catalogue.profile(product, one.profile).size
            except LookupError as error:
                self.problems.append(f"{gpu}: {error.args[0]}")
                continue
            if one.start is None:
                trusted = False
            else:
                windows.append((one.start, size, one.profile))
        profiles = tuple(sorted(one.profile for one in fixed))
        if not trusted:
            windows = list(packed(product, profiles) or ())
        taint = next((one.taint for one in devices if one.taint), "")
        return Gpu(gpu, index, tuple(sorted(windows)), profiles, taint=taint, trusted=trusted)

    # --- device plugin -----------------------------------------------------------------------------

    def _counted_gpus(self, product: str, strategy: Strategy, allocatable: Mapping[str, int]) -> tuple[Gpu, ...]:
        told = labels(self.raw)
        name = name_of(self.raw)
        single = _SINGLE.search(told.get(PRODUCT_LABEL, ""))
        profile = _plus(single["profile"]) if single and strategy is Strategy.SINGLE else ""
        if profile == "INVALID":
            profile = ""
        carved = counts(allocatable, strategy, single=profile)
        whole = carved.pop(WHOLE, 0)
        if strategy is Strategy.NONE and carved:
            self.problems.append(f"it offers MIG devices ({', '.join(sorted(carved))}) with strategy none")
        number = self._physical(product, strategy, told, allocatable, profile)
        layout, sure = self._layout(product, number, whole, carved)
        if layout is None:
            return tuple(Gpu(derived_id(name, n), n, profiles=None, sure=False, trusted=False) for n in range(number))
        gpus = []
        for index, profiles in enumerate(layout):
            windows = packed(product, profiles) if _may_guess(product) else ()
            made = Gpu(derived_id(name, index), index, windows or (), profiles, sure=sure, trusted=not profiles)
            gpus.append(made)
        return tuple(gpus)

    def _physical(
        self, product: str, strategy: Strategy, told: Mapping[str, str], allocatable: Mapping[str, int], profile: str
    ) -> int:
        """Return the number of physical GPUs; with strategy single the label counts slices."""
        count = int(quantity(told.get(COUNT_LABEL, 0)))
        shared = any(resource.endswith(SHARED_SUFFIX) and number for resource, number in allocatable.items())
        if shared:
            self.problems.append("its GPUs are time-sliced or shared (MPS): no memory or fault isolation")
        replicas = int(quantity(told.get("nvidia.com/gpu.replicas", 1))) or 1
        if replicas > 1 and not shared:
            self.problems.append(f"each of its GPUs is handed out {replicas} times: no memory or fault isolation")
        if strategy is Strategy.SINGLE and profile:
            slices = count or sum(allocatable.values())
            entry = entry_of(self.layouts, told.get(CONFIG_LABEL, ""), 64)
            per_gpu = len(entry.get(0, ())) if entry else 0
            try:
                per_gpu = per_gpu or gpu_catalogue.profile(product, profile).max_instances
            except LookupError as error:
                self.problems.append(str(error.args[0]))
                return 0
            return -(-slices // per_gpu)
        whole = sum(number for resource, number in allocatable.items() if resource in WHOLE_RESOURCES)
        if count and strategy is not Strategy.SINGLE and whole > count * replicas:
            self.problems.append(f"it offers {whole} whole GPUs and has {count}")
        return max(count, 0) if count else whole

    def _layout(
        self, product: str, number: int, whole: int, carved: Counter[str]
    ) -> tuple[list[Profiles] | None, bool]:
        """Return what each GPU is carved into (None where the counts allow no answer), and whether that is sure."""
        told = labels(self.raw)
        if not carved:
            if whole < number:
                self.problems.append(f"it has {number} GPUs and offers {whole} whole and no MIG devices")
            return [()] * number, whole == number
        entry = entry_of(self.layouts, told.get(CONFIG_LABEL, ""), number)
        if entry is not None:
            layout = [entry.get(index, ()) for index in range(number)]
            if Counter(name for profiles in layout for name in profiles) == carved:
                return layout, told.get(STATE_LABEL, "success") == "success" and len(entry) == number
        names = tuple(sorted(carved.elements()))
        if whole >= number > 0:
            self.problems.append(
                f"it offers {whole} whole GPUs and MIG devices ({_listed(carved)}) at once, and has {number} GPUs"
            )
            return None, False
        found = spread(product, number - whole, names)
        if found is None:
            self.problems.append(
                f"its MIG devices ({_listed(carved)}) fit no legal layout of {number - whole} GPUs of {product}"
            )
            return None, False
        return [*found, *[()] * whole], number == 1


def _plus(dotted: str) -> str:
    return profile_of(MIG_PREFIX + dotted) or dotted


def _listed(carved: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(carved.items()))


def _may_guess(product: str) -> bool:
    """Whether a guess may be shown as a layout: where placements are inferred, only a report may prove them."""
    try:
        found: Product = gpu_catalogue.product(product)
    except LookupError:
        return False
    return found.sold_by_window is SoldByWindow.ALWAYS


def _readiness(raw: Object) -> tuple[bool, str]:
    conditions: Iterable[Mapping[str, Any]] = dig(raw, "status", "conditions", default=[])
    ready = next((one for one in conditions if one.get("type") == "Ready"), None)
    if ready is None:
        return False, "its kubelet has not reported yet"
    if ready.get("status") != "True":
        said = str(ready.get("message") or ready.get("reason") or "").strip()
        return False, f"it is not ready: {said}" if said else "it is not ready"
    return True, ""
