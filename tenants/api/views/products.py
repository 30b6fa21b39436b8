"""Endpoints, machines, namespaces; revisions and keys of endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import Prefetch, QuerySet

from tenants import access
from tenants.api.serializers.base import LabelledQuery, Out, Page, PageQuery, page_of
from tenants.api.serializers.capacity import LabelledIn
from tenants.api.serializers.products import (
    AbortIn,
    ConsoleOut,
    CredentialOut,
    DiffOut,
    DiffQuery,
    EndpointIn,
    EndpointOut,
    EndpointPut,
    EndpointReviseIn,
    IdleIn,
    KeyIn,
    KeyLimitsIn,
    KeyOut,
    MachineIn,
    MachineOut,
    MachinePut,
    NamespaceCredentialIn,
    NamespaceIn,
    NamespaceOut,
    NamespacePut,
    PowerIn,
    RebuildIn,
    ResizeIn,
    RevisionOut,
    RollbackIn,
    RollIn,
    RolloutOut,
    SshCertificateIn,
    SshCertificateOut,
)
from tenants.api.views.base import Answered, ApiView, Call, reads, writes
from tenants.api.views.filters import labelled
from tenants.errors import InvalidSpec, NotVisible
from tenants.models import (
    Endpoint,
    EndpointKey,
    Machine,
    MachineConsole,
    Move,
    Namespace,
    NamespaceCredential,
    Revision,
    Rollout,
    SshCertificate,
    Unit,
)
from tenants.models.fields import slug_validator
from tenants.operations import (
    endpoints,
    idling,
    machine_access,
    machine_changes,
    machine_consoles,
    machines,
    namespace_access,
    namespaces,
    replacements,
    rollouts,
)

UNITS = Prefetch("allocation__units", Unit.objects.select_related("host").order_by("index"))
LIVE = Prefetch(
    "rollouts",
    Rollout.objects.filter(ended_at__isnull=True).select_related("before", "revision"),
    to_attr="live_rollouts",
)
MOVING = Prefetch("moves", Move.objects.filter(ended_at__isnull=True).select_related("stand_in"), to_attr="live_moves")
EndpointPage = page_of(EndpointOut)
RolloutPage = page_of(RolloutOut)
MachinePage = page_of(MachineOut)
NamespacePage = page_of(NamespaceOut)
RevisionPage = page_of(RevisionOut)
KeyPage = page_of(KeyOut)


class ProductView(ApiView):
    """What the three products share. `PUT` makes an object or brings it to what is asked."""

    model: ClassVar[type[Any]]

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the products the actor may see."""
        return (
            access.scoped(self.model, call.actor, tenant=call.tenant)
            .select_related("tenant", "allocation", "boundary__provider")
            .prefetch_related(UNITS)
        )

    def put_target(self, call: Call) -> Any:
        """Return the live object of the name, None when it is to be made. Raises `InvalidSpec` for a bad name."""
        name = call.path["name"]
        found = self.rows(call).filter(name=name, released_at__isnull=True).first()
        if found is None:
            try:
                slug_validator(name)
            except Exception as error:
                raise InvalidSpec("Use a DNS label: a-z, 0-9, '-', at most 40 characters.", field="name") from error
        return found

    def find(self, call: Call) -> Any:
        """Return the named object; a `PUT` may name one that is not there yet."""
        if call.request.method != "PUT":
            return super().find(call)
        return self.put_target(call)


class EndpointView(ProductView):
    """Endpoints."""

    model = Endpoint

    def rows(self, call: Call) -> QuerySet[Endpoint]:
        """Return the endpoints the actor may see, with what they serve."""
        return super().rows(call).select_related("revision__model").prefetch_related(LIVE, MOVING)

    def show(self, row: Endpoint, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return an endpoint."""
        return EndpointOut.of(row, key=secrets.get("key"))

    def unwrap(self, result: Any) -> Any:
        """Return the endpoint of what `create` made."""
        return result.endpoint if isinstance(result, endpoints.Made) else result

    def secrets_of(self, result: Any) -> Mapping[str, str]:
        """Return the first key."""
        return {"key": result.secret} if isinstance(result, endpoints.Made) else {}


class EndpointsAnywhere(EndpointView):
    """Endpoints of all tenants that the caller sees."""

    @reads("endpoints.list", answers=EndpointPage, query=LabelledQuery)
    def get(self, call: Call) -> Page:
        """List endpoints."""
        return self.page(call, labelled(self.rows(call), call), EndpointPage)


class Endpoints(EndpointsAnywhere):
    """Endpoints of one tenant."""

    @writes("endpoints.create", body=EndpointIn, answers=EndpointOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Create an endpoint.

        The answer holds the first key in plain text, once. The phase says how far it is: `?wait=60` waits.
        """
        body: EndpointIn = call.body
        return endpoints.create(
            tenant=call.home, ask=body.ask(body.name), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class EndpointItem(EndpointView):
    """One endpoint."""

    key = "name"

    @reads("endpoints.read", answers=EndpointOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read an endpoint."""
        return call.target

    @writes("endpoints.put", body=EndpointPut, answers=EndpointOut, versioned=True, waitable=True)
    def put(self, call: Call) -> Any:
        """Create an endpoint, or bring the existing one to this.

        An existing one needs `If-Match`. Another model or other arguments make a new revision; capacity cannot
        change. The answer to a creation (201) holds the first key.
        """
        ask = call.body.ask(call.path["name"])
        who = {"managed_by": call.body.managed_by, "actor": call.actor, "now": call.now}
        if call.target is None:
            return Answered(endpoints.create(tenant=call.home, ask=ask, **who), 201)
        return replacements.replace_endpoint(endpoint=call.target, ask=ask, version=call.version, **who)

    @writes("endpoints.update", body=LabelledIn, answers=EndpointOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change labels or description."""
        return endpoints.update(
            endpoint=call.target, changes=call.body.changes(), actor=call.actor, now=call.now, version=call.version
        )

    @writes("endpoints.delete", answers=EndpointOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Delete an endpoint.

        Its keys stop at once; its GPUs come back when its replicas are seen to be gone (`?wait=60&for=Released`).
        """
        return endpoints.delete(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class OfEndpoint(ApiView):
    """Things of one endpoint."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and endpoint."""
        super().locate(declared, call)
        rows = access.scoped(Endpoint, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(rows, call.path["name"])


class Revisions(OfEndpoint):
    """Revisions of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Revision]:
        """Return the endpoint's revisions."""
        return Revision.objects.filter(endpoint=call.target).select_related("model")

    def show(self, row: Revision, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a revision."""
        return RevisionOut.of(row)

    @reads("revisions.list", answers=RevisionPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List revisions."""
        return self.page(call, self.rows(call), RevisionPage)

    @writes("endpoints.revise", body=EndpointReviseIn, answers=RevisionOut, status=201)
    def post(self, call: Call) -> Any:
        """Serve something else: add a revision, which takes over as `rollout` says.

        By default the old replicas stop first. A canary runs beside them on a unit of its own, within quota; without
        room for one it becomes a recreate, and its `note` says why.
        """
        body: EndpointReviseIn = call.body
        return endpoints.revise(
            endpoint=call.target,
            ask=body.revision(),
            rollout=body.rollout.ask(),
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class RevisionDiff(OfEndpoint):
    """What is different between two revisions."""

    @reads("revisions.diff", answers=DiffOut, query=DiffQuery)
    def get(self, call: Call) -> Out:
        """Compare two revisions: by default the one that serves with the one before it."""
        rows = Revision.objects.filter(endpoint=call.target).select_related("model").order_by("-number")
        after = self.named_revision(rows, call.query.after, Revision.objects.filter(pk=call.target.revision_id))
        older = rows.filter(number__lt=after.number)
        if not older.exists():  # the first differs from nothing
            older = rows.filter(pk=after.pk)
        before = self.named_revision(rows, call.query.before, older.order_by("-number"))
        return DiffOut.of(before, after)

    def named_revision(self, rows: QuerySet[Revision], number: int | None, otherwise: QuerySet[Revision]) -> Revision:
        """Return the revision of a number, else the first of others. Raises `NotVisible`."""
        found = rows.filter(number=number).first() if number is not None else otherwise.select_related("model").first()
        if found is None:
            raise NotVisible
        return found


class RolloutView(OfEndpoint):
    """Rollouts of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Rollout]:
        """Return the endpoint's rollouts."""
        return Rollout.objects.filter(endpoint=call.target).select_related("before", "revision")

    def show(self, row: Rollout, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a rollout."""
        return RolloutOut.of(row)

    def again(self, row: Any, call: Call) -> Any:
        """Return the rollout read anew."""
        return self.rows(call).get(pk=row.pk)


class Rollouts(RolloutView):
    """Rollouts of one endpoint."""

    @reads("rollouts.list", answers=RolloutPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List rollouts: the one that goes on has no `ended_at`."""
        return self.page(call, self.rows(call), RolloutPage)


class RolloutPromote(RolloutView):
    """Promoting what takes over."""

    @writes("endpoints.promote", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Let the new revision take over now, whatever steps are left."""
        return rollouts.promote(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class RolloutHold(RolloutView):
    """Holding what takes over."""

    @writes("endpoints.hold", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Keep a canary at its step; it is judged all the same. Safe to repeat."""
        return rollouts.hold(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class RolloutResume(RolloutView):
    """Letting go on what was held."""

    @writes("endpoints.resume", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Let a canary that is held go on; its step begins anew. Safe to repeat."""
        return rollouts.resume(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class RolloutAbort(RolloutView):
    """Going back."""

    @writes("endpoints.abort", body=AbortIn, answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Go back to the revision that served before. Safe to repeat while it goes back."""
        return rollouts.abort(
            endpoint=call.target, reason=call.body.reason, actor=call.actor, now=call.now, version=call.version
        )


class EndpointRollback(EndpointView):
    """Serving an earlier revision again."""

    key = "name"

    @writes("endpoints.rollback", body=RollbackIn, answers=EndpointOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Serve an earlier revision again, by default the one before; it takes over like any other."""
        body: RollbackIn = call.body
        ask = rollouts.STRAIGHT if body.rollout is None else body.rollout.ask()
        return rollouts.rollback(
            endpoint=call.target, number=body.revision, ask=ask, actor=call.actor, now=call.now, version=call.version
        )


class EndpointSleep(EndpointView):
    """Going to zero."""

    key = "name"

    @writes("endpoints.sleep", answers=EndpointOut)
    def post(self, call: Call) -> Any:
        """Let an endpoint go to zero: running requests end first, and the next one wakes it. Safe to repeat."""
        return idling.sleep(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class EndpointWake(EndpointView):
    """Waking."""

    key = "name"

    @writes("endpoints.wake", answers=EndpointOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Start the replicas of an endpoint at zero. Safe to repeat."""
        return idling.wake(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class EndpointIdle(EndpointView):
    """When it goes to zero by itself."""

    key = "name"

    @writes("endpoints.set_idle", body=IdleIn, answers=EndpointOut)
    def put(self, call: Call) -> Any:
        """Say when an endpoint goes to zero by itself, what becomes of its units, and how long requests wait then."""
        body: IdleIn = call.body
        return idling.set_idle(
            endpoint=call.target,
            after_s=body.after_s,
            units=body.units,
            wait_s=body.wait_s,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class KeyView(OfEndpoint):
    """Keys of one endpoint."""

    def rows(self, call: Call) -> QuerySet[EndpointKey]:
        """Return the endpoint's keys."""
        return EndpointKey.objects.filter(endpoint=call.target).select_related("replaced_by")

    def show(self, row: EndpointKey, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a key."""
        return KeyOut.of(row, key=secrets.get("secret"))

    def again(self, row: Any, call: Call) -> Any:
        """Return the key read anew."""
        return self.rows(call).get(pk=row.pk)

    def key_of(self, call: Call) -> EndpointKey:
        """Return the key that the path names. Raises `NotVisible`."""
        assert isinstance(call.target, Endpoint)
        found = self.rows(call).filter(public_id=call.path["key"]).first()
        if found is None:
            raise NotVisible
        return found


class Keys(KeyView):
    """Keys of one endpoint."""

    @reads("endpoint-keys.list", answers=KeyPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List keys, without their secrets."""
        return self.page(call, self.rows(call), KeyPage)

    @writes("endpoints.create_key", body=KeyIn, answers=KeyOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Create a key; the answer holds its plain text, once."""
        return endpoints.create_key(
            endpoint=call.target,
            name=call.body.name,
            expires_at=call.body.expires_at,
            limits=call.body.limits(),
            actor=call.actor,
            now=call.now,
        )


class KeyChange(KeyView):
    """One key."""

    found: EndpointKey

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant, endpoint and key."""
        super().locate(declared, call)
        self.found = self.key_of(call)


class KeyRoll(KeyChange):
    """Rolling a key."""

    @writes("endpoints.roll_key", body=RollIn, answers=KeyOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Replace a key; the old one goes on for `overlap_s`. The answer holds the new plain text, once."""
        return endpoints.roll_key(
            endpoint=call.target, key=self.found, overlap_s=call.body.overlap_s, actor=call.actor, now=call.now
        )


class KeyLimits(KeyChange):
    """What one key may use."""

    @writes("endpoints.limit_key", body=KeyLimitsIn, answers=KeyOut, plannable=False)
    def put(self, call: Call) -> Any:
        """Replace a key's rates and budgets; gateways follow within seconds.

        Keys that were rolled from or into it share them. What was used in the present period stays counted.
        """
        return endpoints.limit_key(
            endpoint=call.target, key=self.found, limits=call.body.limits(), actor=call.actor, now=call.now
        )


class KeyItem(KeyChange):
    """Ending a key."""

    @writes("endpoints.revoke_key", answers=KeyOut, plannable=False)
    def delete(self, call: Call) -> Any:
        """Revoke a key; gateways refuse it within 5 seconds. Safe to repeat."""
        return endpoints.revoke_key(endpoint=call.target, key=self.found, actor=call.actor, now=call.now)


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


class SshCertificates(ApiView):
    """Certificates for one machine."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and machine."""
        super().locate(declared, call)
        found = access.scoped(Machine, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(found, call.path["name"])

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


class ConsoleView(ApiView):
    """The screen of a machine."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and machine."""
        super().locate(declared, call)
        found = access.scoped(Machine, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(found, call.path["name"])

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


class NamespaceView(ProductView):
    """Namespaces."""

    model = Namespace

    def show(self, row: Namespace, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a namespace."""
        return NamespaceOut.of(row)


class NamespacesAnywhere(NamespaceView):
    """Namespaces of all tenants that the caller sees."""

    @reads("namespaces.list", answers=NamespacePage, query=LabelledQuery)
    def get(self, call: Call) -> Page:
        """List namespaces."""
        return self.page(call, labelled(self.rows(call), call), NamespacePage)


class Namespaces(NamespacesAnywhere):
    """Namespaces of one tenant."""

    @writes("namespaces.create", body=NamespaceIn, answers=NamespaceOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Create a namespace."""
        body: NamespaceIn = call.body
        return namespaces.create(
            tenant=call.home, ask=body.ask(body.name), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class CredentialView(ApiView):
    """What lets people into a namespace."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and namespace."""
        super().locate(declared, call)
        found = access.scoped(Namespace, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(found, call.path["name"])

    def rows(self, call: Call) -> QuerySet[NamespaceCredential]:
        """Return what the caller himself asked for."""
        return NamespaceCredential.objects.filter(
            namespace=call.target, person_id=call.actor.person_id or UUID(int=0)
        ).select_related("namespace")

    def show(self, row: NamespaceCredential, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a credential with its answer, where there is one."""
        return CredentialOut.of(row, namespace_access.unsealed(row))


class Credentials(CredentialView):
    """Asking for one."""

    @writes("namespaces.credential", body=NamespaceCredentialIn, answers=CredentialOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Ask for a credential of one's own in a namespace, for an hour at most; read it at its own address.

        It ends with the membership, whatever its expiry says.
        """
        return namespace_access.ask(namespace=call.target, seconds=call.body.seconds, actor=call.actor, now=call.now)


class CredentialItem(CredentialView):
    """One credential."""

    @reads("namespaces.read_credential", answers=CredentialOut)
    def get(self, call: Call) -> Any:
        """Read a credential that one asked for oneself; it is gone two minutes after the asking."""
        try:
            found = self.rows(call).filter(pk=UUID(call.path["credential"])).first()
        except ValueError:
            found = None
        if found is None:
            raise NotVisible
        return found


class NamespaceItem(NamespaceView):
    """One namespace."""

    key = "name"

    @reads("namespaces.read", answers=NamespaceOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read a namespace."""
        return call.target

    @writes("namespaces.put", body=NamespacePut, answers=NamespaceOut, versioned=True, waitable=True)
    def put(self, call: Call) -> Any:
        """Create a namespace, or bring the existing one to this. An existing one needs `If-Match`."""
        ask = call.body.ask(call.path["name"])
        who = {"managed_by": call.body.managed_by, "actor": call.actor, "now": call.now}
        if call.target is None:
            return Answered(namespaces.create(tenant=call.home, ask=ask, **who), 201)
        return replacements.replace_namespace(namespace=call.target, ask=ask, version=call.version, **who)

    @writes("namespaces.update", body=LabelledIn, answers=NamespaceOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change labels or description."""
        return namespaces.update(
            namespace=call.target, changes=call.body.changes(), actor=call.actor, now=call.now, version=call.version
        )

    @writes("namespaces.delete", answers=NamespaceOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Delete a namespace with everything in it."""
        return namespaces.delete(namespace=call.target, actor=call.actor, now=call.now, version=call.version)
