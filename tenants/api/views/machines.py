"""Machines, certificates for logging in, consoles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from tenants.api.serializers.base import LabelledQuery, Out, Page, page_of
from tenants.api.serializers.capacity import LabelledIn
from tenants.api.serializers.machines import (
    ConsoleOut,
    MachineIn,
    MachineOut,
    MachinePut,
    PowerIn,
    RebuildIn,
    ResizeIn,
    SshCertificateIn,
    SshCertificateOut,
)
from tenants.api.views.base import Answered, Call, reads, writes
from tenants.api.views.filters import labelled
from tenants.api.views.products import ProductView, WithinProduct
from tenants.errors import NotVisible
from tenants.models import (
    Machine,
    MachineConsole,
    SshCertificate,
)
from tenants.operations import (
    machine_access,
    machine_changes,
    machine_consoles,
    machines,
    replacements,
)

MachinePage = page_of(MachineOut)


class MachineView(ProductView):
    """Machines."""

    model = Machine

    def show(self, row: Machine, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a machine."""
        return MachineOut.of(row)


class MachinesAnywhere(MachineView):
    """Machines of all tenants that the caller sees."""

    @reads("machines.list", answers=MachinePage, query=LabelledQuery)
    def get(self, call: Call) -> Page:
        """List machines."""
        return self.page(call, labelled(self.rows(call), call), MachinePage)


class Machines(MachinesAnywhere):
    """Machines of one tenant."""

    @writes("machines.create", body=MachineIn, answers=MachineOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Create a machine."""
        body: MachineIn = call.body
        return machines.create(
            tenant=call.home, ask=body.ask(body.name), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class MachineItem(MachineView):
    """One machine."""

    key = "name"

    @reads("machines.read", answers=MachineOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read a machine."""
        return call.target

    @writes("machines.put", body=MachinePut, answers=MachineOut, versioned=True, waitable=True)
    def put(self, call: Call) -> Any:
        """Create a machine, or bring the existing one to this. An existing one needs `If-Match`."""
        ask = call.body.ask(call.path["name"])
        who = {"managed_by": call.body.managed_by, "actor": call.actor, "now": call.now}
        if call.target is None:
            return Answered(machines.create(tenant=call.home, ask=ask, **who), 201)
        return replacements.replace_machine(machine=call.target, ask=ask, version=call.version, **who)

    @writes("machines.update", body=LabelledIn, answers=MachineOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change labels or description."""
        return machines.update(
            machine=call.target, changes=call.body.changes(), actor=call.actor, now=call.now, version=call.version
        )

    @writes("machines.delete", answers=MachineOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Delete a machine and its disk."""
        return machines.delete(machine=call.target, actor=call.actor, now=call.now, version=call.version)


class MachinePower(MachineView):
    """Power of one machine."""

    key = "name"

    @writes("machines.power", body=PowerIn, answers=MachineOut)
    def post(self, call: Call) -> Any:
        """Switch a machine on or off; its GPUs stay held."""
        return machines.power(
            machine=call.target, want=call.body.power, actor=call.actor, now=call.now, version=call.version
        )


class MachineRebuild(MachineView):
    """Making one machine anew."""

    key = "name"

    @writes("machines.rebuild", body=RebuildIn, answers=MachineOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Make a machine anew of its image, or of another; what is on its disk is lost."""
        return machine_changes.rebuild(
            machine=call.target, image=call.body.image or "", actor=call.actor, now=call.now, version=call.version
        )


class MachineResize(MachineView):
    """Another size for one machine."""

    key = "name"

    @writes("machines.resize", body=ResizeIn, answers=MachineOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Give a machine that is off other vCPUs, memory or a larger disk, on the host where it is; its GPUs stay."""
        body = call.body
        return machine_changes.resize(
            machine=call.target, vcpu=body.vcpu, memory_gib=body.memory_gib, disk_gib=body.disk_gib, actor=call.actor,
            now=call.now, version=call.version,
        )  # fmt: skip


class SshCertificates(WithinProduct):
    """Certificates for one machine."""

    within = Machine

    def rows(self, call: Call) -> QuerySet[SshCertificate]:
        """Return what the caller himself got."""
        return SshCertificate.objects.filter(
            machine=call.target, principal_id=call.actor.id or UUID(int=0)
        ).select_related("machine")

    def show(self, row: SshCertificate, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a certificate as it was signed."""
        return SshCertificateOut.of(row, certificate=secrets.get("secret"))

    @writes("machines.ssh_certificate", body=SshCertificateIn, answers=SshCertificateOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Sign a key of one's own for logging in to a machine by SSH.

        The certificate opens this machine only, for some minutes, and ends with the membership. `tenantry ssh` asks
        for one by itself.
        """
        return machine_access.certify(
            machine=call.target, public_key=call.body.public_key, actor=call.actor, now=call.now
        )


class ConsoleView(WithinProduct):
    """The screen of a machine."""

    within = Machine

    def rows(self, call: Call) -> QuerySet[MachineConsole]:
        """Return what the caller himself asked for."""
        return MachineConsole.objects.filter(
            machine=call.target, person_id=call.actor.person_id or UUID(int=0)
        ).select_related("machine")

    def show(self, row: MachineConsole, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a console with its address, where there is one."""
        return ConsoleOut.of(row, machine_consoles.unsealed(row))


class Consoles(ConsoleView):
    """Asking for one."""

    @writes("machines.console", answers=ConsoleOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Ask for the console of a machine; read its address at its own address, once and within a minute."""
        return machine_consoles.ask(machine=call.target, actor=call.actor, now=call.now)


class ConsoleItem(ConsoleView):
    """One console."""

    @reads("machines.read_console", answers=ConsoleOut)
    def get(self, call: Call) -> Any:
        """Read a console that one asked for oneself; it is gone a minute after the asking."""
        try:
            found = self.rows(call).filter(pk=UUID(call.path["console"])).first()
        except ValueError:
            found = None
        if found is None:
            raise NotVisible
        return found
