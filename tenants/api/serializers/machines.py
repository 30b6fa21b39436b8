"""Shapes of machines, of logging in to them and of their consoles."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import In, Name, Out
from tenants.api.serializers.capacity import Power, UnitIn
from tenants.api.serializers.products import ProductIn, ProductOut, product
from tenants.machine_images import FIRST
from tenants.models import (
    Machine,
    MachineConsole,
    SshCertificate,
)
from tenants.operations.machine_access import way_to
from tenants.operations.machine_consoles import Answer as ConsoleAnswer
from tenants.operations.machines import MAX_DISK_GIB, MAX_SSH_KEYS, SSH_KEY
from tenants.specs import (
    MOST_MEMORY_GIB,
    MOST_VCPU,
    MachineAsk,
)
from tenants.ssh_ca import LONGEST_LINE, principal_of

Image = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"),
    Field(description="Slug of an image: `/api/v1/machine-images` lists them.", json_schema_extra={"example": FIRST}),
]


class MachinePut(ProductIn):
    """A GPU VM with SSH (the name stands in the address)."""

    unit: UnitIn
    image: Image
    disk_gib: Annotated[int, Field(ge=10, le=MAX_DISK_GIB)] = 100
    ssh_keys: Annotated[
        list[Annotated[str, StringConstraints(max_length=2000), Field(json_schema_extra={"pattern": SSH_KEY.pattern})]],
        Field(max_length=MAX_SSH_KEYS),
    ] = []

    def ask(self, name: str) -> MachineAsk:
        """Return the domain's shape."""
        return MachineAsk(
            name,
            self.capacity([self.unit]),
            self.image,
            self.disk_gib,
            tuple(self.ssh_keys),
            self.labels,
            self.description,
        )


class MachineIn(MachinePut):
    """A GPU VM with SSH."""

    name: Name


class SshCertificateIn(In):
    """The key that a certificate is for."""

    public_key: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_LINE)]


class PowerIn(In):
    """What a machine should be."""

    power: Power


class RebuildIn(In):
    """Of what a machine is made anew."""

    image: Image | None = Field(None, description="Left out: the one that it was made of.")


class ResizeIn(In):
    """What a machine is to have beside its GPUs; what is left out stays."""

    vcpu: Annotated[int, Field(ge=1, le=MOST_VCPU)] | None = None
    memory_gib: Annotated[int, Field(ge=1, le=MOST_MEMORY_GIB)] | None = None
    disk_gib: Annotated[int, Field(ge=10, le=MAX_DISK_GIB)] | None = Field(None, description="It can only grow.")


class MachineOut(ProductOut):
    """A GPU VM with SSH."""

    image: str
    disk_gib: int
    ssh_keys: list[str]
    power: str
    address: str

    @classmethod
    def of(cls, row: Machine) -> MachineOut:
        """Return a machine."""
        return cls(
            **product(row),
            image=row.image,
            disk_gib=row.disk_gib,
            ssh_keys=row.ssh_keys,
            power=row.power,
            address=row.address,
        )


class SshCertificateOut(Out):
    """A certificate that opens one machine for some minutes, and how to get there."""

    id: str
    machine: str
    serial: str
    fingerprint: str = Field(description="Of the key that it is for.")
    principal: str = Field(description="What the machine looks for in it.")
    host: str
    port: int
    login: str = Field(description="Whom to log in as.")
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    certificate: str | None = Field(None, description="One line, for a file beside the private key: `…-cert.pub`.")

    @classmethod
    def of(cls, row: SshCertificate, *, certificate: str | None = None) -> SshCertificateOut:
        """Return a certificate; its machine must be loaded."""
        way = way_to(row.machine)
        return cls(
            id=str(row.pk),
            machine=row.machine.name,
            serial=str(row.serial),
            fingerprint=row.fingerprint,
            principal=principal_of(row.machine_id),
            host=way.host,
            port=way.port,
            login=way.login,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            certificate=certificate,
        )


class ConsoleOut(Out):
    """A way to a machine's screen: asked for, and answered by a worker some hundred milliseconds later."""

    id: str
    machine: str
    state: Literal["asked", "made", "refused"]
    error: str
    expires_at: datetime | None
    address: str | None = Field(
        None, description="A WebSocket (webmks) for one use: whoever has it is let in. Shows to who asked only."
    )
    fingerprint: str | None = Field(None, description="Of the certificate at the address.")
    simulated: bool

    @classmethod
    def of(cls, row: MachineConsole, answer: ConsoleAnswer | None) -> ConsoleOut:
        """Return a console; its machine must be loaded."""
        return cls(
            id=str(row.pk),
            machine=row.machine.name,
            state="made" if answer is not None else "refused" if row.answered_at is not None else "asked",
            error=row.error,
            expires_at=row.expires_at,
            address=None if answer is None else answer.address,
            fingerprint=None if answer is None else answer.fingerprint,
            simulated=row.simulated,
        )
