"""The Kubernetes driver: namespaces as boundaries, vLLM endpoints in them, GPUs by device plugin or DRA.

Where the cluster is a Supervisor, virtual machines too (`vm_service`).

Steps are pure; what hangs on the cluster (names of resources, facts of a node, what is served) is read when a
step is started. A step is a set of server-side applies and returns `Done` at once; whether it works shows in
`observe`. Removals return a handle that is looked at until nothing of the step is left.

Invariants: nothing is written into a namespace that is not ours, still there and the one we made; isolation is
made before anything that it isolates; a namespace goes last and only when nothing of ours is in it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from provisioners.driver import (
    Acceptance,
    BoundaryKind,
    BoundarySpec,
    Capabilities,
    Certificate,
    Credential,
    Done,
    Driver,
    DriverError,
    DriverRejected,
    EndpointSpec,
    Handle,
    Kind,
    LayoutChange,
    LogLine,
    MachineSpec,
    ModelFiles,
    NamespaceSpec,
    NotSupported,
    Observed,
    ObservedProvider,
    ObservedUse,
    Poll,
    Power,
    Ref,
    Restored,
    Secret,
    Spec,
    StagedModel,
    Step,
    TransientDriverError,
)
from provisioners.kubernetes import (
    acceptance,
    access,
    certificate,
    gpu,
    guarding,
    inventory,
    layout,
    reading,
    watching,
    workloads,
)
from provisioners.kubernetes import boundary as boundaries
from provisioners.kubernetes import capabilities as asking
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import poll_of
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.endpoints import Endpoints
from provisioners.kubernetes.ground import MADE_BY, Ground
from provisioners.kubernetes.namespaces import Namespaces
from provisioners.kubernetes.objects import Object, dig, name_of, namespace_of, uid_of
from provisioners.kubernetes.people import People
from provisioners.kubernetes.settings import Settings, settings_of
from provisioners.kubernetes.staging import stages
from provisioners.kubernetes.vm_service import boundary as vm_boundaries
from provisioners.kubernetes.vm_service import kinds, machines
from provisioners.steps import split

NO_MACHINES: Final = machines.NOT_HERE
_REMOVAL: Final = re.compile(
    r"^removal (?P<kind>[a-z]+)/(?P<uid>[0-9a-f-]{36})/(?P<tenant>[0-9a-f-]{36}) (?P<step>\S+)$"
)

_log = logging.getLogger(__name__)


class KubernetesDriver:
    """One cluster. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        *,
        cluster: Cluster | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Drive the cluster of `settings`; connects on first use."""
        self.settings = settings
        self.cluster = cluster or Cluster(settings)
        self._ground = Ground(settings, self.cluster, now)
        self._namespaces = Namespaces(self._ground)
        self._endpoints = Endpoints(self._ground)
        self._people = People(self._ground)
        self._machines = machines.Machines(self._ground)
        self._stages = stages.Stages(self.cluster, settings, now)
        self._layouts = layout.Layouts(
            self.cluster, now=now, timing=layout.LAB_TIMING if settings.lab else layout.Timing()
        )

    def __repr__(self) -> str:
        """Show which cluster, and no credential."""
        return f"KubernetesDriver({self.settings.slug}, {self.settings.url})"

    # --- the whole cluster ------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Ask the cluster what it can do."""
        found = asking.read(self.cluster, self.settings)
        self._ground.remember("capabilities", found)
        return found

    def snapshot(self) -> ObservedProvider:
        """Read the whole cluster: one list per kind."""
        known = self._ground.recall("capabilities", self.capabilities)
        listed = inventory.read(self.cluster)
        self._ground.remember("facts", self._ground.facts_of(listed.nodes))
        try:
            self._stages.sweep(listed.pods)
        except DriverError as error:
            _log.info("a pod that took files away is left in %s: %s", self.settings.slug, error.detail)
        restored: tuple[Restored, ...] | None = ()
        if inventory.boundaries_of(listed.marked):
            known, restored = self._guarded(known)
        return replace(inventory.provider(listed, known), restored=restored)

    def _guarded(self, known: Capabilities) -> tuple[Capabilities, tuple[Restored, ...] | None]:
        """Mend what watches over all boundaries at once, and return what had to be put back of late.

        What cannot be mended is said with the capabilities.
        """
        restored: tuple[Restored, ...] | None = None
        trouble: DriverError | None
        try:
            mended = guarding.mend(self.cluster, now=self._ground.now())
            restored, trouble = mended.restored, mended.trouble
        except DriverError as error:
            trouble = error
        if trouble is not None:
            _log.warning("admission policies of %s are not as they should be: %s", self.settings.slug, trouble.detail)
            known = replace(known, missing={**known.missing, "admission": f"Cannot be kept up: {trouble.detail}."})
        return known, restored

    def changes(self, stop: threading.Event) -> Iterator[Ref]:
        """Yield whose objects have changed, until `stop` is set; a cluster that is away is waited for."""
        try:
            held = kinds.held(self.cluster.serves)
        except DriverError:
            held = ()  # one that is away is waited for; until it is listened to anew, sweeps see its machines
        more = tuple(watching.Heard(one.api, one.kind, bare=False) for one in held)
        return watching.changes(self.cluster, stop, name=self.settings.slug, heard=(*watching.HEARD, *more))

    # --- one object -------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        if ref.kind is Kind.BOUNDARY:
            return self._namespaces.observe(ref)
        if ref.kind is Kind.MACHINE:
            return self._machines.observe(ref)
        if ref.kind is Kind.ENDPOINT:
            return self._endpoints.observe(ref)
        if ref.kind is Kind.NAMESPACE:
            return self._people.observe(ref)
        if ref.kind is Kind.LAYOUT:
            return self._layouts.observe(ref)
        raise NotSupported(f"not driven yet: {ref.kind}")

    # --- steps ------------------------------------------------------------------------------------

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`. Raises `NotSupported`, `DriverRejected`."""
        match spec:
            case BoundarySpec(kind=BoundaryKind.VM) if self._machines.api:
                return vm_boundaries.steps(spec)
            case BoundarySpec():
                return boundaries.steps(spec)
            case EndpointSpec():
                return workloads.endpoint_steps(spec)
            case MachineSpec():
                return self._machines.steps(spec)
            case NamespaceSpec():
                return access.steps(spec)

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        bare = split(step.name)[0]
        if bare == layout.STEP:
            return self._layouts.start(step)
        if machines.is_one(step.ref, bare):
            return self._machines.start(step, bare)
        if step.undo:
            return self._undo(step, bare)
        if bare == "namespace.create":
            return self._namespaces.make_namespace(step)
        if bare == reading.GATEWAY:
            return self._namespaces.make_gateway(step)
        if step.ref.kind is Kind.BOUNDARY:
            return self._namespaces.make_inside(step)
        if step.ref.kind is Kind.ENDPOINT:
            return self._endpoints.make_part(step, bare)
        if bare == access.ACCOUNTS:
            return self._people.make(step)
        raise NotSupported(f"not driven yet: {step.name}")

    def _undo(self, step: Step, bare: str) -> Handle | Done:
        if bare == reading.CREATE:
            return self._namespaces.remove(step.ref)
        if bare == access.ACCOUNTS:
            return self._people.remove(step)
        if bare == workloads.REPLICA_STEP:
            self._endpoints.unplace(step)
        places, may = self._places_of(step.ref), self._ground.is_within(step.ref)
        return self._ground.applier.remove(step, MADE_BY[bare], places=places, may=may)

    def poll(self, handle: Handle) -> Poll:
        """Look at a removal, which is done once nothing of its step is left, or go on with a layout change."""
        if layout.is_layout(handle):
            return self._layouts.poll(handle)
        match = _REMOVAL.match(handle.value)
        if match is None:
            return Poll("unknown")
        ref = Ref(Kind(match["kind"]), UUID(match["uid"]), UUID(match["tenant"]))
        step = match["step"]
        if machines.is_one(ref, step):
            return self._machines.poll(ref, step)
        if step == reading.CREATE:
            namespace = self.cluster.get("v1", "Namespace", ref.name)
            return poll_of(namespace is None or not marks.is_ours(namespace, ref))
        return poll_of(self._ground.applier.is_gone(ref, step, MADE_BY[split(step)[0]], self._places_of(ref)))

    def _places_of(self, ref: Ref) -> tuple[str, ...]:
        """Return where what steps of a ref made is looked for with and without its labels; none: by labels anywhere."""
        if ref.kind is Kind.BOUNDARY:
            return (ref.name,)
        return self._ground.namespaces_of(ref.tenant_uid) if ref.kind is Kind.ENDPOINT else ()

    def _namespace_of(self, ref: Ref) -> str:
        """Return where a ref's objects are looked for: a boundary's in its own namespace, endpoints' by their mark."""
        return ref.name if ref.kind is Kind.BOUNDARY else ""

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut off a boundary (its allow policies are replaced) or an endpoint (its pods take no connection)."""
        if ref.kind is Kind.BOUNDARY:
            self._ground.check_namespace(ref)
            self._machines.isolate(ref, cut_off=cut_off)
            return self._namespaces.cut_off(ref) if cut_off else self._namespaces.reconnect(ref)
        if ref.kind is Kind.MACHINE and self._machines.api:
            return self._machines.isolate(ref, cut_off=cut_off)
        if ref.kind is not Kind.ENDPOINT:
            raise NotSupported(NO_MACHINES)
        return self._endpoints.isolate(ref, cut_off=cut_off)

    # --- power, hosts, layouts --------------------------------------------------------------------

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Scale an endpoint's replicas to none or to one; switch a machine."""
        if ref.kind is Kind.MACHINE and self._machines.api:
            return self._machines.power(ref, want)
        if ref.kind is not Kind.ENDPOINT:
            raise NotSupported(NO_MACHINES)
        return self._endpoints.power(ref, want)

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Cordon a node; return what still uses its GPUs, foreign use included."""
        self._cordon(host, cordoned=True)
        return [*(use for use in self.snapshot().uses if use.host == host), *self._machines.uses(host)]

    def restore(self, host: str) -> Done:
        """Uncordon a node."""
        self._cordon(host, cordoned=False)
        return Done()

    def _cordon(self, host: str, *, cordoned: bool) -> None:
        node = self.cluster.get("v1", "Node", host)
        if node is None:
            raise DriverRejected(f"the cluster has no node {host}")
        if bool(dig(node, "spec", "unschedulable", default=False)) != cordoned:
            body = {"metadata": {"uid": uid_of(node)}, "spec": {"unschedulable": cordoned or None}}
            self.cluster.patch("v1", "Node", host, "", body)

    def acceptance(self, host: str) -> Acceptance:
        """Run the acceptance pod of a node; it is looked at again until it has ended."""
        seen = self._ground.inventory_of({host}, pods=True)
        node = seen.nodes.get(host)
        if node is None:
            raise DriverRejected(f"there is no node {host}")
        occupied = gpu.occupied(node, seen.pods.get(host, ()), seen.claims, seen.pools)
        return acceptance.run(self.cluster, self.settings, node, occupied, now=self._ground.now())

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:
        """Return the steps that carve one GPU."""
        return layout.layout_steps(change)

    def layout_refusal(self, change: LayoutChange) -> str:
        """Return why a node cannot be given a layout, `""` if it may be."""
        return self._layouts.refusal(change)

    # --- files of models --------------------------------------------------------------------------

    def stage_model(self, files: ModelFiles) -> StagedModel:
        """Bring a model's files into its mirror on NFS. Raises `NotSupported`, `DriverRejected`."""
        return self._stages.stage(files)

    def drop_model(self, files: ModelFiles) -> StagedModel:
        """Take them away from it."""
        return self._stages.drop(files)

    # --- people -----------------------------------------------------------------------------------

    def credential(
        self, boundary: Ref, principal: str, *, seconds: int, name: str, command: Sequence[str]
    ) -> Credential:
        """Return a token of one person in a boundary, an hour at most; it ends with the person's membership."""
        token = access.mint(self.cluster, boundary, principal, seconds=seconds)

        def file(**user: Any) -> str:
            return access.kubeconfig(
                name=name, url=self.settings.url, ca_pem=self.settings.ca_pem, namespace=boundary.name, **user
            )

        static = Secret(file(token=token.value))
        return Credential(token.value, token.expires_at, boundary.name, file(command=command), static)

    def certify(self, boundary: Ref) -> Certificate:
        """Try everything against one boundary and say what held."""
        return certificate.certify(self.cluster, self.settings, boundary, now=self._ground.now)

    # --- logs -------------------------------------------------------------------------------------

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` lines of an object's pods since an RFC 3339 time, oldest first."""
        lines: list[LogLine] = []
        for pod in self.cluster.list("v1", "Pod", namespace=self._namespace_of(ref), labels=marks.selector(ref)).items:
            for container in dig(pod, "spec", "containers", default=[]):
                try:
                    lines += self._log_of(pod, container["name"], since=since, tail=tail)
                except TransientDriverError:
                    continue  # a container that has not started has no log yet
        lines.sort(key=lambda line: line.at)
        yield from lines[-tail:] if tail > 0 else ()

    def _log_of(self, pod: Object, container: str, *, since: str, tail: int) -> Iterator[LogLine]:
        for line in self.cluster.logs(name_of(pod), namespace_of(pod), container, tail=tail, since=since):
            at, _, text = line.partition(" ")
            yield LogLine(at, text, f"{name_of(pod)}/{container}")

    def close(self) -> None:
        """Close the connections."""
        self.cluster.close()


def make(config: Mapping[str, Any], secrets: Mapping[str, Secret], *, processes: int = 1) -> Driver:
    """Return the driver of one provider row, which asks as much as its share of `processes` allows.

    Raises `KeyError` for what is missing, `BadSettings` for the unusable.
    """
    return KubernetesDriver(replace(settings_of(config, secrets), processes=processes))
