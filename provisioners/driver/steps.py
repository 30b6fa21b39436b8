"""How a spec becomes true: idempotent steps, the handles of running ones, and what a poll says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from provisioners.driver.errors import DriverError
from provisioners.driver.names import Ref


@dataclass(frozen=True, slots=True)
class Step:
    """One provider call or one batch of idempotent applies, that makes one part of a spec true.

    The same step with `undo=True` removes that part. Steps of an object form one ordered list: create
    and change walk it forwards, delete walks it backwards. An undo needs `ref` and `name` only, so parts
    that no spec asks for any more (a replica after scaling down) are removed by `removal_of`.
    """

    name: str
    """From the registry in `steps.py`, for example `vm.power`; units carry a suffix: `endpoint.replica[0]`."""
    key: str
    """Idempotency key: object uid + name + want; equal keys are the same intent."""
    want: str
    """`intent_hash` of what this step makes true; compared with `Part.have`."""
    limit_s: int
    """After this long without an end the handle counts as lost and the object is looked at again."""
    ref: Ref
    payload: Any
    """The spec or part of it; opaque to everybody but the driver; never logged."""
    undo: bool = False
    replaces: bool = False
    """True where a changed `want` needs undo before apply (a VM on another host), False where apply alters."""
    dormant: bool = False
    """True where it can be made only while its unit runs, and the unit is to be off: it may wait for that."""

    def undoing(self) -> Step:
        """Return the step that removes what this one makes."""
        return Step(
            self.name, f"{self.key}:undo", "", self.limit_s, self.ref, self.payload, undo=True, replaces=self.replaces
        )


def removal_of(ref: Ref, part: str, *, limit_s: int = 120) -> Step:
    """Return the undo of a part that was seen but belongs to no step of the spec; remove the last part first."""
    return Step(part, f"{ref.uid}:{part}::undo", "", limit_s, ref, None, undo=True)


@dataclass(frozen=True, slots=True)
class Handle:
    """A provider's running task, to be polled; stored as text in the intent row."""

    value: str


@dataclass(frozen=True, slots=True)
class Done:
    """The step's effect is there."""


@dataclass(frozen=True, slots=True)
class Poll:
    """State of a running handle; `unknown` (forgotten, lost) means: observe, never repeat blindly."""

    state: str
    """`running`, `done`, `failed` or `unknown`."""
    progress: float | None = None
    """0..1 where the provider tells."""
    error: DriverError | None = None
