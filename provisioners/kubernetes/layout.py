"""Changing the MIG layout of a node through the GPU operator's MIG manager.

mig-parted destroys every instance of a GPU whose layout differs, and changes a node as a whole, so a change is the
node's: cordon, let pods go (evicted, where they were told), name the new entry in the node's label and take the
old state away in the same patch, wait, compare with what the node then offers, uncordon. Entries are written
under new names ahead of the label: they reach the manager late, and an unknown name fails for good. What fails,
hangs or is lost is rolled back to the old layout, and said. Invariants: one change per node at a time (its annotation,
under the node's resourceVersion); anybody may call `poll` any number of times; every GPU of the node is in the entry.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import yaml

from provisioners.driver import (
    Conflicting,
    Done,
    DriverError,
    DriverRejected,
    Handle,
    Kind,
    LayoutChange,
    NotSupported,
    Observed,
    Part,
    Poll,
    Presence,
    Ref,
    Step,
    TransientDriverError,
    intent_hash,
    layout_ref,
)
from provisioners.kubernetes import gpu as gpus
from provisioners.kubernetes import inventory
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.inventory import Listed
from provisioners.kubernetes.layout_look import Look
from provisioners.kubernetes.layout_record import (
    CHANGE_ANNOTATION,
    OUTCOME_ANNOTATION,
    Change,
    Outcome,
    Phase,
    change_of,
    outcome_of,
)
from provisioners.kubernetes.nodes import CONFIG_LABEL, MANAGER_LABEL, STATE_LABEL, Node, Profiles, Strategy
from provisioners.kubernetes.objects import (
    Object,
    dig,
    is_deleting,
    is_ours,
    labels,
    marked,
    name_of,
    namespace_of,
    uid_of,
)
from provisioners.steps import make
from tenants import geometry

STEP: Final = "layout.apply"
CONFIG_MAP: Final = "tenantry-mig-layouts"
"""Where our entries are; the GPU operator's policy has to name it."""
OWNER: Final = layout_ref("", "")
"""Whose mark the ConfigMap carries: the layouts of a whole cluster."""
OURS: Final = "tn-"
"""What our entries begin with."""
BUSY_RETRY_S: Final = 30.0
PATCH_TRIES: Final = 5
"""A node changes with each heartbeat."""
NO_MANAGER: Final = "the cluster has no GPU operator with a MIG manager (no ClusterPolicy cluster-policy)"
REMEDY: Final = (
    "the GPU operator's MIG manager does not read our layouts: kubectl patch clusterpolicy cluster-policy --type merge "
    f'-p \'{{"spec":{{"migManager":{{"config":{{"name":"{CONFIG_MAP}"}}}}}}}}\''
)


class LayoutFailed(DriverRejected):
    """A node could not be given its layout; the text says why and what it has now."""

    reason = "LayoutFailed"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each part of a change may take, seconds."""

    entry_s: float = 150.0
    """A ConfigMap reaches the manager's mounted file within this; the label waits for it."""
    drain_s: float = 900.0
    carve_s: float = 900.0
    """Our own bound: a manager that gave up leaves `pending` for ever. With a reboot it takes ten minutes."""
    compare_s: float = 300.0
    """From `success` to the device plugin's new counts."""
    restore_s: float = 1200.0


LAB_TIMING: Final = Timing(entry_s=8.0, drain_s=60.0, carve_s=90.0, compare_s=60.0, restore_s=120.0)
"""For a lab whose kubelets' seconds are a tenth as long."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step makes: the layouts of some GPUs of one node."""

    host: str
    after: Mapping[str, Profiles]
    windows: Mapping[str, tuple[tuple[int, int, str], ...]]
    evict: bool


# --- steps ----------------------------------------------------------------------------------------


def layout_steps(change: LayoutChange) -> tuple[Step, ...]:
    """Return a step per GPU; all carry the whole change, so the first one started does them all.

    The manager chooses where MIG devices lie, so what is wanted of a GPU are its profiles.
    """
    windows = {change.device: change.windows, **dict(change.beside)}
    after = {device: tuple(sorted(name for _, _, name in found)) for device, found in windows.items()}
    wanted = Wanted(change.host, after, windows, change.evict)
    return tuple(
        make(layout_ref(change.host, device), STEP, _want(profiles), wanted) for device, profiles in after.items()
    )


def _want(profiles: Profiles) -> dict[str, object]:
    return {"profiles": sorted(profiles)}


def entries(layouts: Mapping[str, Profiles], order: Sequence[str]) -> list[dict[str, Any]]:
    """Return a `mig-configs` entry that says of every GPU (`order`: by number) what it is carved into."""
    made: list[dict[str, Any]] = []
    for number, device in enumerate(order):
        profiles = layouts[device]
        part: dict[str, Any] = {"devices": [number], "mig-enabled": bool(profiles)}
        if profiles:
            part["mig-devices"] = dict(sorted(Counter(profiles).items()))
        made.append(part)
    return made


def config_map(layouts: Mapping[str, Any]) -> Object:
    """Return the MIG manager's configuration with these entries, marked as ours."""
    text = yaml.safe_dump({"version": "v1", "mig-configs": dict(layouts)}, sort_keys=True)
    made: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": inventory.OPERATOR_NAMESPACE},
        "data": {inventory.LAYOUTS_KEY: text},
    }
    return marked(made, OWNER, step=STEP, want=intent_hash(text))


def eviction(pod: Object) -> Object:
    """Return what asks one very pod to leave."""
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name_of(pod), "namespace": namespace_of(pod)},
        "deleteOptions": {"preconditions": {"uid": uid_of(pod)}},
    }


class Layouts:
    """Layout changes of one cluster."""

    def __init__(self, cluster: Cluster, *, now: Callable[[], datetime], timing: Timing | None = None) -> None:
        """Change layouts of `cluster`; `now` gives aware times."""
        self._cluster = cluster
        self._now = now
        self._timing = timing or Timing()

    # --- looking ----------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read the layout of the GPU that a ref stands for."""
        found = self._find(ref)
        if found is None:
            return Observed(ref, exists=False)
        look, device = found
        change, profiles = change_of(look.raw), look.layout[device]
        presence, have, handle, message = Presence.PRESENT, "", "", look.node.message
        if profiles is None:
            presence, message = Presence.UNKNOWN, "; ".join(look.node.problems) or "the node does not tell its layout"
        else:
            have = intent_hash(_want(profiles))
        if change is not None and device in change.differing:
            presence = Presence.FAILED if change.phase is Phase.STUCK else Presence.CHANGING
            handle = "" if change.phase is Phase.STUCK else _handle(look.node.name, change.entry)
            message = change.why or _words(change)
        part = Part(STEP, presence, have=have, handle=handle, message=message, ready=look.node.ready)
        return Observed(ref, exists=True, parts=(part,), simulated=look.node.simulated)

    def _find(self, ref: Ref) -> tuple[Look, str] | None:
        listed = self._listed(self._cluster.list("v1", "Node").items, pods=())
        known = inventory.understood(listed)
        for raw in listed.nodes:
            node = known.nodes[name_of(raw)]
            for gpu in node.gpus:
                if layout_ref(node.name, gpu.id) == ref:
                    return Look(raw, node, known, listed.policy), gpu.id
        return None

    def _listed(self, nodes: Sequence[Object], pods: Sequence[Object]) -> Listed:
        dra = self._cluster.serves(gpus.API, "ResourceSlice")
        policy, layouts = inventory.layouts_of(self._cluster)
        return Listed(
            nodes=tuple(nodes),
            pods=tuple(pods),
            slices=self._cluster.list(gpus.API, "ResourceSlice").items if dra else (),
            claims=self._cluster.list(gpus.API, "ResourceClaim").items if dra else (),
            policy=policy,
            layouts=layouts,
        )

    def _look(self, host: str) -> Look | None:
        raw = self._cluster.get("v1", "Node", host)
        if raw is None:
            return None
        pods = self._cluster.list("v1", "Pod", fields=f"spec.nodeName={host}").items
        listed = self._listed((raw,), pods)
        known = inventory.understood(listed)
        return Look(raw, known.nodes[host], known, listed.policy)

    def refusal(self, change: LayoutChange) -> str:
        """Return why a layout cannot be made as the node is, `""` if it may be, also later. Raises `DriverError`."""
        wanted = layout_steps(change)[0].payload
        look = self._look(change.host)
        if look is None:
            return f"the cluster has no node {change.host}"
        try:
            self._check(look.node, wanted)
            self._planned(look, wanted, stuck=change_of(look.raw))
            self._check_manager(look)
        except TransientDriverError:
            return ""
        except (NotSupported, DriverRejected) as error:
            return error.detail
        return ""

    # --- starting ---------------------------------------------------------------------------------

    def start(self, step: Step) -> Handle | Done:
        """Begin a change, or take up the one that already makes this.

        Raises `NotSupported` where the node's layout cannot be set, `DriverRejected` for one that no GPU can have,
        `TransientDriverError` while its GPUs are in use or another change runs.
        """
        wanted = self._wanted(step)
        if wanted is None:
            return Done()  # the GPU is gone, and its layout with it
        look = self._look(wanted.host)
        if look is None:
            raise DriverRejected(f"the cluster has no node {wanted.host}")
        self._check(look.node, wanted)
        change = change_of(look.raw)
        if change is not None and change.phase is not Phase.STUCK:
            if all(change.after.get(device) == profiles for device, profiles in wanted.after.items()):
                return Handle(_handle(wanted.host, change.entry))
            msg = f"another layout change of {wanted.host} is running: {_words(change)}"
            raise TransientDriverError(msg, retry_after_s=BUSY_RETRY_S)
        change = self._planned(look, wanted, stuck=change)
        if not change.differing and look.offers(change.after):
            return Done()
        self._check_manager(look)
        self._check_idle(look, change)
        self._write_entries(look, change)
        self._mark(look.raw, change, {"spec": {"unschedulable": True}})
        return Handle(_handle(wanted.host, change.entry))

    def _wanted(self, step: Step) -> Wanted | None:
        """Return what a step asks for; the undo of one clears its GPU."""
        if not step.undo and isinstance(step.payload, Wanted):
            return step.payload
        found = self._find(step.ref)
        if found is None:
            return None
        look, device = found
        evict = isinstance(step.payload, Wanted) and step.payload.evict
        return Wanted(look.node.name, {device: ()}, {device: ()}, evict)

    def _check(self, node: Node, wanted: Wanted) -> None:
        if node.partitions:
            raise NotSupported(f"the GPUs of {node.name} are carved when a claim asks for it; nothing is to be set")
        if not node.managed:
            raise NotSupported(f"no MIG manager carves {node.name}: it has no label {MANAGER_LABEL}")
        for device, windows in wanted.windows.items():
            if node.gpu(device) is None:
                raise DriverRejected(f"{node.name} has no GPU {device}")
            try:
                fault = geometry.packing_fault(node.product, [(start, name) for start, _, name in sorted(windows)])
            except LookupError as error:
                raise DriverRejected(str(error.args[0])) from error
            if fault is not None:
                raise DriverRejected(f"{device}: {fault}")
        if node.strategy is Strategy.NONE and any(wanted.after.values()):
            raise NotSupported(f"{node.name} hands out whole GPUs only (MIG strategy none)")

    def _planned(self, look: Look, wanted: Wanted, *, stuck: Change | None) -> Change:
        """Return the change of the whole node: what is not meant keeps what it has."""
        before = dict(look.layout)
        if stuck is not None:
            before = {device: stuck.before.get(device, found) for device, found in before.items()}
        unknown = sorted(gpu.id for gpu in look.node.gpus if not gpu.sure) if stuck is None else []
        if any(device not in wanted.after for device in unknown):
            msg = f"what {', '.join(unknown)} of {look.node.name} hold is not told one by one; change all in one go"
            raise NotSupported(msg)
        known = {device: found or () for device, found in before.items()}
        after = known | dict(wanted.after)
        if look.node.strategy is Strategy.SINGLE and len({frozenset(names) for names in after.values()}) > 1:
            msg = f"{look.node.name} has MIG strategy single: every GPU is carved alike; change all of them in one go"
            raise DriverRejected(msg)
        now = self._now()
        stem = hashlib.sha256(look.node.name.encode()).hexdigest()[:8]
        entry = f"{OURS}{stem}-{intent_hash([sorted(after.items()), now.isoformat()])[:12]}"
        cordoned = stuck.cordoned if stuck is not None else not look.node.cordoned
        return Change(entry, f"{entry}-back", after, known, wanted.evict, cordoned, now, now)

    def _check_manager(self, look: Look) -> None:
        if look.policy is None:
            raise NotSupported(NO_MANAGER)
        if inventory.config_name(look.policy) != CONFIG_MAP:
            raise NotSupported(REMEDY)
        if look.node.mig_state in {"pending", "rebooting"}:
            msg = f"the MIG manager of {look.node.name} is at work on {look.node.mig_config}"
            raise TransientDriverError(msg, retry_after_s=BUSY_RETRY_S)
        if not look.node.ready:
            raise TransientDriverError(f"{look.node.name} cannot be carved: {look.node.message}")

    def _check_idle(self, look: Look, change: Change) -> None:
        users = [] if change.evict else look.users(change.differing)
        if users:
            msg = f"{look.node.name} is in use by {_listed(users)}; its layout can change only when it is idle"
            raise TransientDriverError(msg, retry_after_s=BUSY_RETRY_S)

    # --- the manager's configuration --------------------------------------------------------------

    def _write_entries(self, look: Look, change: Change) -> None:
        """Put the new and the old layout under names of their own into our ConfigMap, keeping what nodes still name."""
        order = [gpu.id for gpu in look.node.gpus]
        existing = self._config_map()
        found = inventory.parsed(existing)
        used: set[str] = set()
        for node in self._cluster.list("v1", "Node").items:
            other = change_of(node)
            used.add(labels(node).get(CONFIG_LABEL, ""))
            used |= {other.entry, other.back} if other is not None else set()
        kept = {name: parts for name, parts in found.items() if not name.startswith(OURS) or name in used}
        layouts = {
            **kept,
            "all-disabled": [{"devices": "all", "mig-enabled": False}],
            change.back: entries(change.before, order),
            change.entry: entries(change.after, order),
        }
        wanted = config_map(layouts)
        if existing is None:
            try:
                self._cluster.create(wanted)
            except Conflicting as error:
                raise TransientDriverError("the layouts were just written by another change", raw=error.raw) from error
            return
        wanted["metadata"]["resourceVersion"] = existing["metadata"]["resourceVersion"]
        self._cluster.apply(wanted)

    def _config_map(self) -> Object | None:
        found = self._cluster.get("v1", "ConfigMap", CONFIG_MAP, inventory.OPERATOR_NAMESPACE)
        if found is not None and not is_ours(found, OWNER):
            raise Conflicting(f"ConfigMap {CONFIG_MAP} in {inventory.OPERATOR_NAMESPACE} is not ours")
        return found

    # --- going on ---------------------------------------------------------------------------------

    def poll(self, handle: Handle) -> Poll:
        """Do what is next of a change and say how it is."""
        host, entry = _parts(handle)
        look = self._look(host)
        if look is None:
            return Poll("failed", error=LayoutFailed(f"node {host} is gone; its layout went with it"))
        change = change_of(look.raw)
        if change is None or change.entry != entry:
            return _ended(outcome_of(look.raw), entry)
        if change.phase is Phase.STUCK:
            return Poll("failed", error=LayoutFailed(change.why))
        step = {
            Phase.DRAIN: self._drain,
            Phase.CARVE: self._carve,
            Phase.COMPARE: self._compare,
            Phase.RESTORE: self._restore,
        }[change.phase]
        return step(look, change)

    def _late(self, change: Change, limit_s: float) -> bool:
        return (self._now() - change.since).total_seconds() > limit_s

    def _drain(self, look: Look, change: Change) -> Poll:
        users = look.users(change.differing)
        if users and not change.evict:
            return self._give_up(look, change, f"{_listed(users)} came to use it before it was carved")
        refusals = [text for pod in users if not is_deleting(pod) and (text := self._evicted(pod))]
        if users and self._late(change, self._timing.drain_s):
            why = "; ".join(dict.fromkeys(refusals)) or "they do not end"
            return self._give_up(look, change, f"{_listed(users)} did not leave it in time: {why}")
        if not users and (claims := look.claims(change.differing)):
            if self._late(change, self._timing.drain_s):
                return self._give_up(look, change, f"it is allocated to {', '.join(claims)}")
            return Poll("running", 0.2)
        if users or not self._late(change, self._timing.entry_s):
            return Poll("running", 0.1 if users else 0.3)
        if change.entry not in inventory.parsed(self._config_map()):
            self._write_entries(look, change)  # another change, which did not know of it yet, left it out
            self._mark(look.raw, change.at(Phase.DRAIN, self._now()))
            return Poll("running", 0.3)
        self._name(look, change.at(Phase.CARVE, self._now()), change.entry)
        return Poll("running", 0.4)

    def _evicted(self, pod: Object) -> str:
        """Ask a pod to leave; return why it may not yet, `""` if it may."""
        try:
            self._cluster.create(eviction(pod), subresource="eviction", name=name_of(pod))
        except DriverError as error:
            return f"{namespace_of(pod)}/{name_of(pod)}: {error.detail}"
        return ""

    def _carve(self, look: Look, change: Change) -> Poll:
        if look.node.mig_config != change.entry:
            return self._stuck(look, change, f"somebody else set its layout to {look.node.mig_config or 'nothing'}")
        if look.node.mig_state == "success":
            self._mark(look.raw, change.at(Phase.COMPARE, self._now()))
            return Poll("running", 0.8)
        if look.node.mig_state == "failed":
            return self._roll_back(look, change, "the MIG manager failed (see the log of its pod on that node)")
        if self._late(change, self._timing.carve_s):
            return self._roll_back(look, change, _why_late(look.node))
        return Poll("running", 0.6)

    def _compare(self, look: Look, change: Change) -> Poll:
        if look.node.ready and look.offers(change.after):
            self._end(look, change, "")
            return Poll("done")
        if self._late(change, self._timing.compare_s):
            has = ", ".join(f"{number} {name or 'whole'}" for name, number in sorted(look.node.carved.items()))
            why = f"the MIG manager says success and the node offers {has or 'nothing'}"
            return self._roll_back(look, change, look.node.message or why)
        return Poll("running", 0.9)

    def _roll_back(self, look: Look, change: Change, why: str) -> Poll:
        self._name(look, change.at(Phase.RESTORE, self._now(), why=why), change.back)
        return Poll("running", 0.5)

    def _restore(self, look: Look, change: Change) -> Poll:
        if look.node.mig_config != change.back:
            return self._stuck(look, change, f"{change.why}; then somebody else set it to {look.node.mig_config}")
        if look.node.mig_state == "failed":
            return self._stuck(look, change, f"{change.why}; the old layout could not be made again either")
        if look.node.mig_state == "success" and look.node.ready and look.offers(change.before):
            return self._give_up(look, change, change.why)
        if self._late(change, self._timing.restore_s):
            return self._stuck(look, change, f"{change.why}; the old layout did not come back: {_why_late(look.node)}")
        return Poll("running", 0.5)

    # --- writing on the node ----------------------------------------------------------------------

    def _name(self, look: Look, change: Change, entry: str) -> None:
        """Name an entry in the node's label; the state of an earlier one goes in the same patch.

        A state that says the manager is at work is its own to change.
        """
        told: dict[str, str | None] = {CONFIG_LABEL: entry}
        if look.node.mig_state not in {"pending", "rebooting"}:
            told[STATE_LABEL] = None
        self._mark(look.raw, change, {"metadata": {"labels": told}})

    def _mark(self, raw: Object, change: Change, more: Mapping[str, Any] | None = None) -> None:
        self._patch(raw, {CHANGE_ANNOTATION: change.text()}, more or {})

    def _give_up(self, look: Look, change: Change, why: str) -> Poll:
        """End a change that did not come about; the node has its old layout."""
        text = f"The layout of {look.node.name} was not changed: {why}. It has its old layout."
        self._end(look, change, text)
        return Poll("failed", error=LayoutFailed(text))

    def _stuck(self, look: Look, change: Change, why: str) -> Poll:
        text = f"The layout of {look.node.name} is neither the new nor surely the old one: {why}. It stays cordoned."
        self._mark(look.raw, change.at(Phase.STUCK, self._now(), why=text))
        return Poll("failed", error=LayoutFailed(text))

    def _end(self, look: Look, change: Change, why: str) -> None:
        spec = {"spec": {"unschedulable": None}} if change.cordoned else {}
        notes = {CHANGE_ANNOTATION: None, OUTCOME_ANNOTATION: Outcome(change.entry, why).text()}
        self._patch(look.raw, notes, spec)

    def _patch(self, raw: Object, notes: Mapping[str, str | None], more: Mapping[str, Any]) -> None:
        """Change a node as it was looked at; heartbeats are no matter, whoever else changed its layout wins."""
        seen = raw
        for left in reversed(range(PATCH_TRIES)):
            metadata = {
                "uid": uid_of(raw),
                "resourceVersion": seen["metadata"]["resourceVersion"],
                **more.get("metadata", {}),
                "annotations": dict(notes),
            }
            body = {**{key: value for key, value in more.items() if key != "metadata"}, "metadata": metadata}
            try:
                self._cluster.patch("v1", "Node", name_of(raw), "", body)
            except TransientDriverError:
                again = self._cluster.get("v1", "Node", name_of(raw)) if left else None
                if again is None or _matters(again) != _matters(raw):
                    raise
                seen = again
            else:
                return


def _matters(node: Object) -> object:
    """Return of a node what a change is decided on."""
    told = labels(node)
    change = dig(node, "metadata", "annotations", CHANGE_ANNOTATION)
    return uid_of(node), change, told.get(CONFIG_LABEL), told.get(STATE_LABEL), dig(node, "spec", "unschedulable")


def _handle(host: str, entry: str) -> str:
    return f"{Kind.LAYOUT} {host} {entry}"


def is_layout(handle: Handle) -> bool:
    """Whether a handle is one of ours."""
    return handle.value.startswith(f"{Kind.LAYOUT} ")


def _parts(handle: Handle) -> tuple[str, str]:
    _, host, entry = handle.value.split(" ")
    return host, entry


def _ended(outcome: Outcome | None, entry: str) -> Poll:
    if outcome is None or outcome.entry != entry:
        return Poll("unknown")
    return Poll("failed", error=LayoutFailed(outcome.why)) if outcome.why else Poll("done")


def _words(change: Change) -> str:
    return {
        Phase.DRAIN: "waiting for its pods to leave and its entry to arrive",
        Phase.CARVE: "being carved",
        Phase.COMPARE: "carved; its new devices are awaited",
        Phase.RESTORE: "its old layout is being restored",
        Phase.STUCK: "stuck",
    }[change.phase]


def _why_late(node: Node) -> str:
    if not node.ready:
        return node.message
    state = node.mig_state or "no state"
    return f"the MIG manager still says {state}"


def _listed(pods: Sequence[Object]) -> str:
    names = [f"{namespace_of(pod)}/{name_of(pod)}" for pod in pods]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
