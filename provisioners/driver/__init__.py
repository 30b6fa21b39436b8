"""The contract between the control plane and one kind of provider.

A driver is small, told everything, and knows nothing of Django, of our tables, or of other drivers.
It names the steps that make a spec true, starts one at a time without waiting for the provider's
work to end, and says what it sees. Deciding which step comes next is `plan.py`'s work and pure.

Invariants: refs and idempotency keys derive from our row's UUID, so repeating any step finds what an
earlier try left; *gone* is only ever a successful exact read; every call has a deadline; nothing but
`DriverError`s leaves a driver. Secrets travel as `Secret`, whose repr shows nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from provisioners.driver.errors import (
    Conflicting,
    DriverError,
    DriverRejected,
    NoCapacity,
    NotSupported,
    TransientDriverError,
)
from provisioners.driver.names import (
    FIELD_MANAGER,
    MARK_DOMAIN,
    Binding,
    BoundaryKind,
    Kind,
    Power,
    Presence,
    Ref,
    Secret,
    intent_hash,
    layout_ref,
    machine_uuid,
)
from provisioners.driver.observations import (
    SECURITY,
    Acceptance,
    Capabilities,
    Certificate,
    Console,
    Credential,
    EngineReport,
    IsolationCheck,
    LayoutChange,
    LogLine,
    Lot,
    Observed,
    ObservedGpu,
    ObservedHost,
    ObservedObject,
    ObservedProvider,
    ObservedUnit,
    ObservedUse,
    Part,
    Remark,
    RemarkKind,
    Restored,
)
from provisioners.driver.specs import (
    BoundarySpec,
    EndpointSpec,
    GatewaySpec,
    MachineSize,
    MachineSpec,
    NamespaceSpec,
    ServingSpec,
    Spec,
    UnitSpec,
)
from provisioners.driver.staging import ModelFiles, StagedModel, StageProgress
from provisioners.driver.steps import (
    Done,
    Handle,
    Poll,
    Step,
    removal_of,
)

__all__ = [
    "FIELD_MANAGER",
    "MARK_DOMAIN",
    "SECURITY",
    "Acceptance",
    "Binding",
    "BoundaryKind",
    "BoundarySpec",
    "Capabilities",
    "Certificate",
    "Certifies",
    "Conflicting",
    "Console",
    "Credential",
    "Done",
    "Driver",
    "DriverError",
    "DriverRejected",
    "EndpointSpec",
    "EngineReport",
    "GatewaySpec",
    "Handle",
    "IsolationCheck",
    "Kind",
    "LayoutChange",
    "LetsPeopleIn",
    "LogLine",
    "Lot",
    "MachineSize",
    "MachineSpec",
    "ModelFiles",
    "NamespaceSpec",
    "NoCapacity",
    "NotSupported",
    "Observed",
    "ObservedGpu",
    "ObservedHost",
    "ObservedObject",
    "ObservedProvider",
    "ObservedUnit",
    "ObservedUse",
    "Part",
    "Poll",
    "Power",
    "Presence",
    "Ref",
    "RefusesLayouts",
    "Remark",
    "RemarkKind",
    "RemovesLeftovers",
    "Restored",
    "Secret",
    "ServingSpec",
    "ShowsConsoles",
    "Spec",
    "StageProgress",
    "StagedModel",
    "StagesModels",
    "Step",
    "TellsChanges",
    "TransientDriverError",
    "UnitSpec",
    "intent_hash",
    "layout_ref",
    "machine_uuid",
    "removal_of",
]


class Driver(Protocol):
    """Makes what a spec says exist on one provider, step by step.

    Steps are idempotent, start provider work without waiting for it (under 30 s), run outside any
    transaction and raise only `DriverError`s. Refs are made from our row's UUID.
    """

    def capabilities(self) -> Capabilities:
        """Ask the provider what it can do."""
        ...

    def snapshot(self) -> ObservedProvider:
        """Read the whole provider, foreign use and health included; calls do not grow with objects."""
        ...

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly; `exists=False` is a successful read that found nothing.

        Raises `TransientDriverError` when it cannot know: an error is never absence.
        """
        ...

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`; pure. Raises `NotSupported`, `DriverRejected`."""
        ...

    def start(self, step: Step) -> Handle | Done:
        """Start one step (or its undo) and return at once."""
        ...

    def poll(self, handle: Handle) -> Poll:
        """Look at a running step."""
        ...

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network, keeping its memory, or restore it."""
        ...

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch an object's power."""
        ...

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Stop the provider from placing anything on `host`; return what still uses it, foreign use included."""
        ...

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        ...

    def acceptance(self, host: str) -> Acceptance:
        """Run a small GPU workload per device of a host and say what was seen."""
        ...

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:
        """Return the steps that make one GPU's MIG layout; pure. Raises `NotSupported`."""
        ...

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` log lines since an RFC 3339 time."""
        ...

    def close(self) -> None:
        """Give back sessions and connections."""
        ...


@runtime_checkable
class RemovesLeftovers(Protocol):
    """A driver that can take away what it remarked on as left behind (`Remark.removable`)."""

    def remove_left(self, subject: str) -> bool:
        """Remove one by its remark's subject; whether it is gone now. Raises `Conflicting` for what is in use."""
        ...


@runtime_checkable
class RefusesLayouts(Protocol):
    """A driver that can say beforehand that a layout cannot be made, so that nobody is moved for it."""

    def layout_refusal(self, change: LayoutChange) -> str:
        """Return why a layout cannot be made as the host is, in words for people; `""` if it may be, or for now.

        Raises `TransientDriverError` when it cannot know.
        """
        ...


@runtime_checkable
class LetsPeopleIn(Protocol):
    """A driver whose namespaces people work in with an account of their own."""

    def credential(
        self, boundary: Ref, principal: str, *, seconds: int, name: str, command: Sequence[str]
    ) -> Credential:
        """Return what lets a person into a boundary, for an hour at most; it ends with the person's membership.

        `name` is what people call it in their kubeconfig, `command` what prints a token when it is run.
        Raises `TransientDriverError` while the person has no account there.
        """
        ...


@runtime_checkable
class ShowsConsoles(Protocol):
    """A driver whose machines have a screen that people can open (capability `console`)."""

    def console(self, machine: Ref) -> Console:
        """Return a way to a machine's console, made for this call and good for some minutes.

        Raises `TransientDriverError` while the machine is not there or is off.
        """
        ...


@runtime_checkable
class StagesModels(Protocol):
    """A driver that brings a model's files to its provider before an endpoint asks (capability `model-staging`)."""

    def stage_model(self, files: ModelFiles) -> StagedModel:
        """Begin where nothing has begun, and say how far it is; safe to repeat. Raises `DriverError`."""
        ...

    def drop_model(self, files: ModelFiles) -> StagedModel:
        """Take them away; safe to repeat. What serves from them goes on until it is started anew."""
        ...


@runtime_checkable
class Certifies(Protocol):
    """A driver that tries to break out of a boundary and says what held."""

    def certify(self, boundary: Ref) -> Certificate:
        """Try everything against one boundary; takes some seconds. Raises `DriverError` where it cannot begin."""
        ...


@runtime_checkable
class TellsChanges(Protocol):
    """A driver whose provider tells at once what changed. Of one that does not, sweeps find out."""

    def changes(self, stop: threading.Event) -> Iterator[Ref]:
        """Yield whose objects have changed from now on, in any way, until `stop` is set; ends within a second of it.

        Hints: each may be missing, late, repeated or wrong. A provider that is away is waited for. What was changed
        before the call is not told. Raises `DriverError` where it cannot be listened to at all.
        """
        ...
