"""What should be true: one frozen spec per kind of object, told in full, with no row of ours in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from provisioners.driver.names import Binding, BoundaryKind, Power, Ref, Secret


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit of an allocation with its placement in the ledger."""

    uid: UUID
    index: int
    host: str
    """Provider's id of the host (from the snapshot)."""
    product: str
    """GPU product id as in the catalogue, `""` for a unit without a GPU."""
    profile: str
    """MIG profile name, `""` for whole GPUs."""
    gpu_count: int
    """Whole GPUs of this unit (0 with a profile or without a GPU)."""
    binding: Binding
    devices: tuple[str, ...]
    """Provider's stable ids of the GPUs; binding `device` and `gpu` must honour them, `host` ignores them."""
    starts: tuple[int, ...]
    """Window starts beside `devices`; only binding `device` honours them."""
    vcpu: int
    memory_gib: int
    role: str = "replica"
    """`replica`, `surge` or `machine`."""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The gateway program to run: in a namespace boundary once, in a VM boundary once per endpoint VM."""

    uid: UUID
    """Row of the gateway replica; in a VM boundary equal to the unit's uid."""
    control_plane_url: str
    enrolment_token: Secret | None
    """One-time token; None once the replica has enrolled (then nothing is re-delivered)."""
    names: tuple[str, ...] = ()
    """Names that its tenant's endpoints have here, as a certificate has them; empty without a zone."""
    certificates: str = ""
    """Where the certificate for `names` comes from: `home` (it gets it from the control plane), `cert-manager`; empty:
    the control plane asks nobody for one."""
    issuer: str = ""
    """Whom cert-manager has sign it, as `Kind/name` or `group/Kind/name`."""

    @property
    def tls(self) -> bool:
        """Whether it listens with TLS, with a certificate that it gets from the control plane."""
        return self.certificates == "home"


@dataclass(frozen=True, slots=True)
class BoundarySpec:
    """What isolates one tenant on one provider."""

    ref: Ref
    kind: BoundaryKind
    tier: str
    generation: int
    gateway: GatewaySpec | None
    """Set for namespace boundaries."""
    vcpu: int
    memory_gib: int
    storage_gib: int
    gpu_resources: Mapping[str, int]
    """(`<product>.<profile>` or `<product>`) → count granted inside this boundary."""
    access: tuple[tuple[str, str], ...]
    """(opaque principal id, role) of people with direct access (namespace product); of a vm boundary the tenant."""
    cut_off: bool = False
    """True while suspended at depth `network` or deeper."""
    vlan: int | None = None
    """VLAN of its own, from the provider's range; None where the provider has none to give (1 to 4094)."""


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """One revision of a served model, rendered by a runtime into argv and environment."""

    revision_uid: UUID
    revision: int
    model: str
    """Name clients use (the endpoint's name)."""
    source: str
    """Repository id of the weights."""
    commit: str
    runtime: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    estimated_tokens_s: float = 0.0
    mirror: str = ""
    """Where its weights are instead of the hub: `s3://bucket/prefix`, or `nfs://server/export`, which a driver shows to
    the replica at `/mirror`, read-only; `""` for the hub."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Replicas of a served model inside a boundary."""

    ref: Ref
    boundary: Ref
    boundary_kind: BoundaryKind
    generation: int
    serving: ServingSpec
    units: tuple[UnitSpec, ...]
    gateways: tuple[GatewaySpec, ...]
    """One per unit in a `vm` boundary, empty in a namespace (the boundary's own gateway serves it)."""
    power: Power = Power.ON
    """In a namespace, and of machines that a suspension switches off."""
    asleep: bool = False
    """At zero in machines: no replica runs, and machines with their gateways stay; only with capability `zero`."""
    cut_off: bool = False
    beside: ServingSpec | None = None
    """Another revision, for as long as one takes over from the other; only where capability `canary` is there."""
    on_beside: frozenset[UUID] = frozenset()
    """The units whose replicas run `beside`."""
    name_uid: UUID | None = None
    """Whose name it answers by: the same for both places of an endpoint that moves. None: it has none of its own."""
    named: bool = True
    """Whether that name is to lead here; only where capability `move` is there can it lead elsewhere."""
    host: str = ""
    """Its DNS name in the provider's zone; `""`: it has none."""

    def serving_of(self, unit: UnitSpec) -> ServingSpec:
        """Return what the replica of a unit runs."""
        return self.beside if self.beside is not None and unit.uid in self.on_beside else self.serving

    @property
    def servings(self) -> tuple[ServingSpec, ...]:
        """Return all that its replicas run, what serves first."""
        return (self.serving,) if self.beside is None else (self.serving, self.beside)


@dataclass(frozen=True, slots=True)
class MachineSize:
    """What a machine has beside its GPUs."""

    vcpu: int
    memory_gib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One GPU VM with SSH."""

    ref: Ref
    boundary: Ref
    generation: int
    unit: UnitSpec
    image: str
    disk_gib: int
    ssh_keys: tuple[str, ...]
    power: Power = Power.ON
    cut_off: bool = False
    ssh_ca: str = ""
    """OpenSSH public key of the tenant's CA, on one line; certificates of it are let in. Empty: nobody's are."""
    ssh_principals: tuple[str, ...] = ()
    """Names, of which a certificate must carry one."""
    ssh_revoked_url: str = ""
    """Where the machine asks, at each login, which certificates count no more: lines of `serial: <number>`."""
    build: int = 1
    """How often it was asked for: another number is another disk, made anew of the image."""
    made_with: MachineSize | None = None
    """Its first size, where it has another one now (in `unit` and `disk_gib`); it is fitted, not made anew for that."""


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """A namespace boundary handed to people: access objects on top of the boundary."""

    ref: Ref
    boundary: Ref
    generation: int
    units: tuple[UnitSpec, ...]
    access: tuple[tuple[str, str], ...]
    cut_off: bool = False


Spec = BoundarySpec | EndpointSpec | MachineSpec | NamespaceSpec
