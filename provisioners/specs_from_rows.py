"""Rows → what drivers are told. Pure given loaded rows: no query, no clock.

Every name and id at a provider derives from our rows' ids; slugs appear only as the model name that
clients write. Units are described with the windows that the ledger holds for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from provisioners.driver import (
    Binding,
    BoundaryKind,
    BoundarySpec,
    DriverRejected,
    EndpointSpec,
    GatewaySpec,
    Kind,
    MachineSize,
    MachineSpec,
    NamespaceSpec,
    Power,
    Ref,
    Secret,
    ServingSpec,
    UnitSpec,
)
from provisioners.serving.runtime import PLACES, RevisionFacts, UnitFacts, runtime
from tenants import addresses, hop_keys, ssh_ca
from tenants.ledger import Window
from tenants.models import Allocation, Boundary, Endpoint, Host, Machine, Namespace, Revision, Unit
from tenants.states import ModelTask, SuspensionDepth
from tenants.unit_sizes import Size
from tenants.vault import VaultError

Access = tuple[tuple[str, str], ...]


def ref_of(row: Boundary | Endpoint | Machine | Namespace) -> Ref:
    """Return the name of a row's object at its provider: by its own id, or by that of the place that it took over."""
    kind = {Boundary: Kind.BOUNDARY, Endpoint: Kind.ENDPOINT, Machine: Kind.MACHINE, Namespace: Kind.NAMESPACE}
    return Ref(kind[type(row)], getattr(row, "seat", None) or row.pk, row.tenant_id)


def cut_off(depth: SuspensionDepth | None) -> bool:
    """Whether a suspension takes the network away."""
    return depth in {SuspensionDepth.NETWORK, SuspensionDepth.POWER}


def power_of(depth: SuspensionDepth | None, wanted: str = "on") -> Power:
    """Return the power a workload should have."""
    return Power.OFF if depth is SuspensionDepth.POWER else Power(wanted)


def unit_spec(unit: Unit, host: Host, windows: Sequence[Window]) -> UnitSpec:
    """Return one placed unit; `windows` are its holds, ordered by device."""
    return UnitSpec(
        uid=unit.pk,
        index=unit.index,
        host=host.provider_ref,
        product=unit.product,
        profile=unit.profile,
        gpu_count=unit.gpu_count,
        binding=Binding(host.binding),
        devices=tuple(window.device for window in windows),
        starts=tuple(window.start for window in windows),
        vcpu=unit.vcpu,
        memory_gib=unit.memory_gib,
        role=unit.role,
    )


def unit_specs(
    units: Iterable[Unit], hosts: Mapping[UUID, Host], windows: Mapping[UUID, Sequence[Window]]
) -> tuple[UnitSpec, ...]:
    """Return placed units by index."""
    ordered = sorted((unit for unit in units if unit.host_id is not None), key=lambda unit: unit.index)
    return tuple(unit_spec(unit, hosts[unit.host_id], windows.get(unit.pk, ())) for unit in ordered if unit.host_id)


def gpu_resources(units: Iterable[Unit]) -> dict[str, int]:
    """Return (`<product>.<profile>` or `<product>`) → count over units."""
    counted: Counter[str] = Counter()
    for unit in units:
        if unit.profile:
            counted[f"{unit.product}.{unit.profile}"] += 1
        elif unit.product:
            counted[unit.product] += max(1, unit.gpu_count)
    return dict(sorted(counted.items()))


def boundary_spec(
    row: Boundary,
    *,
    allocations: Sequence[Allocation],
    units: Sequence[Unit],
    gateway: GatewaySpec | None,
    access: Access,
    depth: SuspensionDepth | None,
    vlan: int | None = None,
    rooms: Mapping[UUID, Size] | None = None,
) -> BoundarySpec:
    """Return a boundary with room for the placed units of `allocations`; `rooms`: of units that need another room."""
    room = [(rooms or {}).get(unit.pk) or Size(unit.vcpu, unit.memory_gib) for unit in units]
    return BoundarySpec(
        ref=ref_of(row),
        kind=BoundaryKind(row.kind),
        tier=row.tier,
        generation=row.generation,
        gateway=gateway,
        vcpu=sum(one.vcpu for one in room),
        memory_gib=sum(one.memory_gib for one in room),
        storage_gib=sum(int(allocation.spec.get("storage_gib", 0)) for allocation in allocations),
        gpu_resources=gpu_resources(units),
        access=access,
        cut_off=cut_off(depth),
        vlan=vlan,
    )


def serving_spec(row: Endpoint, revision: Revision, unit: UnitSpec | Unit, boundary: BoundaryKind) -> ServingSpec:
    """Return what every replica of a revision runs. Raises `NotSupported`, `DriverRejected`."""
    model = revision.model
    try:
        key = hop_keys.plain(revision)
    except VaultError as error:
        msg = "the key of this revision was sealed with a master key that is gone; a new revision gets a new one"
        raise DriverRejected(msg) from error
    facts = RevisionFacts(
        uid=revision.pk,
        number=revision.number,
        endpoint=row.served.name,
        source=model.repository,
        commit=model.commit,
        quantisation=model.quantisation,
        arguments=revision.arguments,
        mirror="" if model.source == "hub" else model.source,
        embeds=model.task == ModelTask.EMBED.value,
        hop_key=Secret(key) if key else None,
    )
    room = UnitFacts(gpus=1 if unit.profile else unit.gpu_count, profile=unit.profile, memory_gib=unit.memory_gib)
    rendered = runtime(revision.runtime).render(facts, room, PLACES[boundary])
    return ServingSpec(
        revision_uid=revision.pk,
        revision=revision.number,
        model=row.served.name,
        source=model.repository,
        commit=model.commit,
        mirror=facts.mirror,
        runtime=revision.runtime,
        argv=rendered.argv,
        environment=rendered.environment,
        secrets=rendered.secrets,
    )


def endpoint_spec(
    row: Endpoint,
    boundary: Boundary,
    revision: Revision,
    *,
    units: tuple[UnitSpec, ...],
    gateways: tuple[GatewaySpec, ...],
    depth: SuspensionDepth | None,
    beside: Revision | None = None,
    on_beside: frozenset[UUID] = frozenset(),
    at_zero: bool = False,
    named: bool = True,
) -> EndpointSpec:
    """Return an endpoint on its placed units (at least one), of which `on_beside` run `beside`."""
    kind = BoundaryKind(boundary.kind)
    stays_up = kind is BoundaryKind.VM  # the gateways that wake it run in its machines
    return EndpointSpec(
        ref=ref_of(row),
        boundary=ref_of(boundary),
        boundary_kind=kind,
        generation=row.generation,
        serving=serving_spec(row, revision, units[0], kind),
        units=units,
        gateways=gateways,
        power=power_of(depth, "off" if at_zero and not stays_up else "on"),
        asleep=at_zero and stays_up,
        cut_off=cut_off(depth),
        beside=None if beside is None else serving_spec(row, beside, units[0], kind),
        on_beside=on_beside,
        name_uid=row.served_id,
        named=named,
        host=addresses.host_of(row.served.name, row.tenant.name, str(boundary.provider.config.get("zone") or "")),
    )


def machine_spec(
    row: Machine,
    boundary: Boundary,
    *,
    unit: UnitSpec,
    depth: SuspensionDepth | None,
    url: str = "",
    made_with: Size | None = None,
) -> MachineSpec:
    """Return a machine on its placed unit; its SSH authority must be loaded. `url` is the control plane's.

    `made_with`: the first size of one that was resized.
    """
    authority = row.ssh_authority
    return MachineSpec(
        ref=ref_of(row),
        boundary=ref_of(boundary),
        generation=row.generation,
        unit=unit,
        image=row.image,
        disk_gib=row.disk_gib,
        ssh_keys=tuple(row.ssh_keys),
        build=row.build,
        made_with=MachineSize(made_with.vcpu, made_with.memory_gib, made_with.disk_gib) if made_with else None,
        power=power_of(depth, row.power),
        cut_off=cut_off(depth),
        ssh_ca=authority.public_key if authority is not None else "",
        ssh_principals=(ssh_ca.principal_of(row.pk),) if authority is not None else (),
        ssh_revoked_url=f"{url}/agent/v1/ssh/{authority.pk}/revoked" if authority is not None and url else "",
    )


def namespace_spec(
    row: Namespace, boundary: Boundary, *, units: tuple[UnitSpec, ...], access: Access, depth: SuspensionDepth | None
) -> NamespaceSpec:
    """Return a namespace that is handed to people."""
    return NamespaceSpec(
        ref=ref_of(row),
        boundary=ref_of(boundary),
        generation=row.generation,
        units=units,
        access=access,
        cut_off=cut_off(depth),
    )
