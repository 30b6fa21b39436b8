"""What a serving runtime is: a pure function from (revision, unit, boundary) to a program's call, and readiness.

A runtime touches no provider: its rendering goes into `ServingSpec`, which a driver turns into a pod or
into what runs in a VM. `RUNTIMES` is the only list. Adding one: a module beside this and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import UUID

from provisioners.driver import BoundaryKind, NotSupported, Secret


@dataclass(frozen=True, slots=True)
class RevisionFacts:
    """One revision of an endpoint, with the pinned model it serves."""

    uid: UUID
    number: int
    endpoint: str
    """The endpoint's name: what clients write into `model`."""
    source: str
    """Repository id of the weights, from the catalogue."""
    commit: str
    """Full commit of the weights; 40 to 64 hex digits."""
    quantisation: str
    arguments: Mapping[str, Any]
    """As `tenants.serving_arguments` has checked them."""
    context_length: int = 0
    """Longest context of the model in tokens, 0 unknown."""
    mirror: str = ""
    """Where its weights are instead of the hub: `s3://bucket/prefix` or `nfs://server/export`; `""` for the hub. In a
    mirror each model lies at `<source>/<commit>`, so what is named is pinned there too."""
    embeds: bool = False
    """Whether it turns texts into vectors instead of writing."""
    hop_key: Secret | None = None
    """What the program has to be shown by those who call it; None: it asks for nothing."""


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What one replica runs on."""

    gpus: int
    """Whole GPUs, or 1 for a MIG window."""
    profile: str
    """MIG profile, `""` for whole GPUs."""
    memory_gib: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where one replica listens, and what its machine has to add: an input of rendering, no part of a revision."""

    host: str
    """Address it listens at."""
    port: int = 8000
    environment: Mapping[str, str] = field(default_factory=dict)
    """Over the runtime's own, without secrets: where weights lie, that there is no hub."""


MIRROR_PATH: Final = "/mirror"
"""Where a mirror's file system is in each replica's sight, read-only."""

PLACES: Final[Mapping[BoundaryKind, Place]] = {
    BoundaryKind.VM: Place("127.0.0.1"),
    BoundaryKind.NAMESPACE: Place("0.0.0.0"),  # noqa: S104 - inside the pod's network
    BoundaryKind.CLUSTER: Place("0.0.0.0"),  # noqa: S104 - inside the pod's network
}
"""Where a replica listens in each kind of boundary: beside its gateway in a VM, on its own address in a pod."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A program's call. No value of a tenant's becomes a flag, and no secret stands in `argv`."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    readiness_path: str = "/health"
    """Answers 200 once the model is loaded."""
    metrics_path: str = "/metrics"
    port: int = 8000
    drain_signal: str = "SIGTERM"
    """Ends the program after its running requests."""


class Runtime(Protocol):
    """One program that serves models."""

    name: str

    def render(self, revision: RevisionFacts, unit: UnitFacts, place: Place) -> Rendered:
        """Return the call for one replica; pure. Raises `NotSupported`, `DriverRejected`."""
        ...

    def moved(self, argv: Sequence[str], environment: Mapping[str, str], place: Place) -> Rendered:
        """Return a rendered call as it would have been rendered for another place; its secrets are the caller's.

        For providers that choose the place of each replica themselves. Raises `DriverRejected` for a call that this
        runtime renders never.
        """
        ...


def runtime(name: str) -> Runtime:
    """Return a runtime by its name. Raises `NotSupported`."""
    from provisioners.serving.vllm import VLLM

    known: Final[Mapping[str, Runtime]] = {VLLM.name: VLLM}
    found = known.get(name)
    if found is None:
        msg = f"no runtime is called {name!r}; there are: {', '.join(known)}"
        raise NotSupported(msg)
    return found
