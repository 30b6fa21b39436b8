"""Faults that an estate can be told to have: which call they strike, what they do to it, how often.

A fault matches a call by pattern (`fnmatch`) on words such as `start:vm.power[0]`, `undo:vm.clone[*]`,
`poll`, `observe`, `snapshot`, `capabilities`, `isolate`, `power`, `report:<host>`. Effects:

- `fail`: the call fails with `error` and does nothing;
- `lost-answer`: the call does its work, the caller gets a `TransientDriverError`;
- `slow`: the call does its work and the answer comes `seconds` later;
- `hang`: no answer for `seconds` (before or, with `after_effect`, after the work), then as `lost-answer`;
- `task-fail`: the call succeeds, its task ends failed with `error` (refused at power-on, for example);
- `delay`: the task takes `seconds` longer;
- `forget`: the task cannot be found any more; its work goes on, or with `lying` is never done;
- `stale`: lists repeat an older state, marked incomplete, or with `lying` passed off as complete;
- `duplicates`: lists show everything twice;
- `wrong-report`: the device report of the next workload names another window of its host;
- `no-report`: the device of the next workload is never reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from provisioners.driver import (
    Conflicting,
    DriverError,
    DriverRejected,
    NoCapacity,
    NotSupported,
    TransientDriverError,
)
from provisioners.sandbox.records import FaultRecord
from provisioners.sandbox.state import State

ERRORS: Final[Mapping[str, type[DriverError]]] = {
    "transient": TransientDriverError,
    "no-capacity": NoCapacity,
    "not-supported": NotSupported,
    "rejected": DriverRejected,
    "conflicting": Conflicting,
}
"""Error class by the word used in faults, tasks and answers."""
EFFECTS: Final = frozenset(
    {
        "fail", "lost-answer", "slow", "hang", "task-fail", "delay", "forget",
        "stale", "duplicates", "wrong-report", "no-report",
    }
)  # fmt: skip


class Hanging(Exception):
    """The provider does not answer; whoever serves the call waits this long first."""

    def __init__(self, seconds: float) -> None:
        """Hang for `seconds`."""
        super().__init__(f"no answer for {seconds} s")
        self.seconds = seconds


def strike(state: State, call: str, *effects: str) -> FaultRecord | None:
    """Return the fault that strikes this call with one of `effects` and count it, or None."""
    for fault in list(state.faults.values()):
        if fault.effect not in effects or fault.times == 0 or not _matches(fault.match, call):
            continue
        state.touch("faults", fault.uid)
        if fault.skip > 0:
            fault.skip -= 1
            continue
        if fault.times > 0:
            fault.times -= 1
        return fault
    return None


def _matches(pattern: str, call: str) -> bool:
    # Indexes are written `[0]`, which fnmatch would read as a set of characters.
    return fnmatchcase(call.replace("[", "<"), pattern.replace("[", "<"))


def error_of(fault: FaultRecord, call: str) -> DriverError:
    """Return the error that `fault` makes of `call`."""
    return ERRORS[fault.error](fault.detail or f"injected fault in {call}", raw="simulated by the sandbox")


def error_as_json(error: DriverError) -> dict[str, Any]:
    """Return an error as JSON types; `error_from_json` gives it back."""
    word = next(word for word, kind in ERRORS.items() if type(error) is kind)
    retry = getattr(error, "retry_after_s", None)
    return {"error": word, "detail": error.detail, "raw": error.raw, "retry_after_s": retry}


def error_from_json(value: Mapping[str, Any]) -> DriverError:
    """Return the error that `error_as_json` wrote; an unknown word is transient: nothing can be concluded."""
    kind = ERRORS.get(str(value.get("error")), TransientDriverError)
    detail, raw = str(value.get("detail", "")), str(value.get("raw", ""))
    if kind is TransientDriverError:
        return TransientDriverError(detail, raw=raw, retry_after_s=value.get("retry_after_s"))
    return kind(detail, raw=raw)
