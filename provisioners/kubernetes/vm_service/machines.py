"""Machines on one Supervisor: looked at exactly, made, fitted, switched, removed. The only module here with I/O.

Steps return at once; the Supervisor's own operator does the work, and how far it is shows in `observe`. Invariants: a
machine is written only in a boundary's namespace that is ours and of its tenant; an object of its name without its
mark is a conflict; hardware is changed only while it is off.
"""

from __future__ import annotations

from provisioners.driver import (
    Conflicting,
    Done,
    Handle,
    Kind,
    MachineSpec,
    NotSupported,
    Observed,
    ObservedUse,
    Poll,
    Power,
    Ref,
    Step,
    TransientDriverError,
)
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import poll_of, removal_handle
from provisioners.kubernetes.failures import AccessDenied, AdmissionRefused
from provisioners.kubernetes.ground import Ground, payload
from provisioners.kubernetes.objects import Object, dig, name_of, namespace_of, title, uid_of
from provisioners.kubernetes.vm_service import bootstrap, classes, machine, reading
from provisioners.kubernetes.vm_service.kinds import CLASS, CLONE, CONFIGURE, POWER, STEPS, VM, api_of

NOT_HERE = "a cluster runs no virtual machines; use a vm boundary elsewhere"


class Machines:
    """The virtual machines of one cluster. Thread-safe."""

    def __init__(self, ground: Ground) -> None:
        """Work on `ground`."""
        self._ground = ground

    @property
    def api(self) -> str:
        """The API version of its VM Service, `""` where it has none."""
        return api_of(self._ground.cluster.serves)

    def steps(self, spec: MachineSpec) -> tuple[Step, ...]:
        """Return the steps of a machine. Raises `NotSupported` without a VM Service, `DriverRejected`."""
        if not self.api:
            raise NotSupported(NOT_HERE)
        return machine.steps(spec)

    # --- looking ----------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read one machine exactly."""
        simulated, vm = self._ground.is_simulated, self.find(ref)
        if vm is None:
            return Observed(ref, exists=False, simulated=simulated)
        found = reading.address(vm)
        return Observed(
            ref,
            exists=True,
            parts=reading.parts(ref, vm, has_secret=self._secret_of(ref, namespace_of(vm)) is not None),
            units=reading.units(vm),
            address=f"{found}:22" if found else "",
            reachable_from="tenant" if found else "",
            power=reading.power(vm),
            simulated=simulated,
        )

    def find(self, ref: Ref) -> Object | None:
        """Return a machine of ours, None by an exact read that found none."""
        api = self.api
        if not api:
            return None
        for namespace in self._ground.namespaces_of(ref.tenant_uid):
            found = self._ground.cluster.get(api, VM, ref.name, namespace)
            if found is not None and marks.is_ours(found, ref):
                return found
        within = self._ground.is_within(ref)  # a namespace that lost its own labels is not found by them
        listed = self._ground.cluster.list(api, VM, labels=marks.selector(ref)).items
        return next((one for one in listed if name_of(one) == ref.name and within(one)), None)

    def _secret_of(self, ref: Ref, namespace: str) -> Object | None:
        found = self._ground.cluster.get("v1", "Secret", bootstrap.secret_name(ref), namespace)
        return found if found is not None and marks.is_ours(found, ref) and not marks.is_deleting(found) else None

    # --- steps ------------------------------------------------------------------------------------

    def start(self, step: Step, bare: str) -> Handle | Done:
        """Start one of the steps, or its undo."""
        vm = self.find(step.ref)
        if step.undo:
            return self._undo(step, bare, vm)
        plan = payload(step, machine.Plan)
        self._ground.check_namespace(plan.spec.boundary)
        if bare == CLONE:
            return self._make(step, plan, vm)
        if vm is None or marks.is_deleting(vm):
            raise TransientDriverError(f"{step.ref.name} is not there")
        if bare == CONFIGURE:
            return self._configure(step, plan, vm)
        if bare == POWER:
            self._change(vm, machine.powered(step, plan, vm))
            return Done()
        raise NotSupported(f"not driven yet: {step.name}")

    def _make(self, step: Step, plan: machine.Plan, vm: Object | None) -> Done:
        if vm is not None and marks.is_deleting(vm):
            raise TransientDriverError(f"{title(vm)} is still being removed")
        if vm is not None:
            return Done()  # made before, and the answer was lost; of what, it says itself
        api, spec = self.api, plan.spec
        if self._ground.cluster.get(api, VM, spec.ref.name, spec.boundary.name) is not None:
            raise Conflicting(f"{VM} {spec.ref.name} is there and is not ours")
        name = self._class_for(plan)
        self._ground.cluster.create(machine.build(step, plan, api, name, self._ground.settings))
        return Done()

    def _class_for(self, plan: machine.Plan, *, has: str = "") -> str:
        """Return a VM class of a machine's shape: the one that it `has`, else ours, made where our account may.

        Raises `DriverRejected` where there is none.
        """
        api, boundary = self.api, plan.spec.boundary
        found = self._ground.cluster.list(api, CLASS, namespace=boundary.name).items
        types = classes.offered(found, self._ground.settings.vm_gpu_types)
        shape = classes.shape_of(plan.spec.unit, types)
        if any(name_of(one) == has and classes.fits(one, shape) for one in found):
            return has
        own = next((one for one in found if name_of(one) == shape.name), None)
        if own is not None and not marks.is_ours(own, boundary):
            raise Conflicting(f"{title(own)} is there and is not ours")
        if own is not None and classes.fits(own, shape):
            return shape.name
        if not classes.is_makeable(shape):
            return classes.chosen(found, shape, why="one of ours can name each vGPU type once only")
        try:
            self._ground.cluster.apply(classes.build(shape, api, boundary))
        except (AccessDenied, AdmissionRefused):
            return classes.chosen(found, shape, why="our account may make none")
        return shape.name

    def _configure(self, step: Step, plan: machine.Plan, vm: Object) -> Done:
        """Deliver what the guest is told, then give it the wanted class and disk. Raises while it has to go off."""
        name = self._class_for(plan, has=str(dig(vm, "spec", "className", default="")))
        patch = machine.configured(step, plan, name, vm)
        runs = reading.power(vm) is Power.ON or dig(vm, "spec", "powerState") != machine.OFF
        if runs and patch.get("spec"):
            if plan.spec.power is not Power.OFF:
                raise TransientDriverError(f"{name_of(vm)} has to be switched off before it gets another size")
            self._change(vm, machine.switched(vm, machine.OFF))
            return Done()
        self._deliver(step, plan, vm)
        self._change(vm, patch)
        return Done()

    def _deliver(self, step: Step, plan: machine.Plan, vm: Object) -> None:
        """Make the Secret of a machine, which goes with it; who has its name without its mark is left alone."""
        wanted = bootstrap.secret(plan.spec.ref, plan.spec.boundary.name, plan.seed)
        live = self._ground.cluster.get("v1", "Secret", name_of(wanted), namespace_of(wanted))
        if live is not None and not marks.is_ours(live, step.ref):
            raise Conflicting(f"{title(wanted)} is there and is not ours")
        made = marks.marked(wanted, step.ref, step=CONFIGURE, want=step.want)
        owner = {"apiVersion": vm["apiVersion"], "kind": VM, "name": name_of(vm), "uid": uid_of(vm)}
        made["metadata"]["ownerReferences"] = [owner]
        self._ground.cluster.apply(made)

    def _change(self, vm: Object, patch: Object) -> None:
        self._ground.cluster.patch(vm["apiVersion"], VM, name_of(vm), namespace_of(vm), patch)

    # --- undo -------------------------------------------------------------------------------------

    def _undo(self, step: Step, bare: str, vm: Object | None) -> Handle | Done:
        if vm is None:
            return Done()
        if bare == CLONE:
            return self._remove(step.ref, vm)
        if marks.is_deleting(vm):
            return removal_handle(step.ref, CLONE)
        self._change(vm, machine.undone(vm, bare))
        if bare == POWER and reading.state(vm) not in {"", machine.OFF}:
            return removal_handle(step.ref, POWER)
        return Done()

    def _remove(self, ref: Ref, vm: Object) -> Handle:
        """Take the Secret away first: while the machine is there, what is left is found by it."""
        secret = self._secret_of(ref, namespace_of(vm))
        cluster = self._ground.cluster
        if secret is not None:
            cluster.delete("v1", "Secret", name_of(secret), namespace_of(secret), uid=uid_of(secret))
        if not marks.is_deleting(vm):
            api, name = vm["apiVersion"], name_of(vm)
            cluster.delete(api, VM, name, namespace_of(vm), uid=uid_of(vm), propagation="Background")
        return removal_handle(ref, CLONE)

    def poll(self, ref: Ref, bare: str) -> Poll:
        """Look at an undo: a machine that goes, or one that is being switched off."""
        vm = self.find(ref)
        return poll_of(vm is None or (bare == POWER and reading.state(vm) in {"", machine.OFF}))

    def uses(self, host: str) -> list[ObservedUse]:
        """Return the vGPUs that machines of ours and of others have of a host."""
        found = self._ground.cluster.list(self.api, VM).items if self.api else ()
        return [use for vm in found for use in reading.uses(vm) if use.host == host]

    # --- at once ----------------------------------------------------------------------------------

    def power(self, ref: Ref, want: Power) -> Done:
        """Switch a machine; what its spec wants stays recorded."""
        vm = self.find(ref)
        if vm is not None:
            self._change(vm, machine.switched(vm, machine.state_of(want, cut_off=False, now="")))
        return Done()

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Suspend the machine, or all machines of a boundary, so that memory stays; or let it run again."""
        if not self.api:
            return Done()
        if ref.kind is Kind.MACHINE:
            found = self.find(ref)
            there: tuple[Object, ...] = () if found is None else (found,)
        else:
            there = self._ground.cluster.list(self.api, VM, namespace=ref.name, labels=marks.EVERYTHING).items
        before, after = (machine.ON, machine.SUSPENDED) if cut_off else (machine.SUSPENDED, machine.ON)
        for vm in there:
            if dig(vm, "spec", "powerState") == before and not marks.is_deleting(vm):
                self._change(vm, machine.switched(vm, after))
        return Done()


def is_one(ref: Ref, bare: str) -> bool:
    """Whether a step is one of a machine's."""
    return ref.kind is Kind.MACHINE and bare in STEPS
