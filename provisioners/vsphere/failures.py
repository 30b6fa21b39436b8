"""What a fault of vCenter means, mapped once: the API's name of the fault → the `DriverError` that decides what next.

Pure: pyVmomi's faults cannot be pickled, so nothing but their name and texts comes in here. The advice per fault is
that of reference/vsphere.md 1.6: later, elsewhere, relogin, look, no. `InvalidState` is what a host says that goes into
maintenance between our look and a power-on (6.5): the next look finds it so, and the machine is placed elsewhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from provisioners.driver import DriverError, DriverRejected, NoCapacity, TransientDriverError

_LONGEST_RAW: Final = 600
TRANSPORT: Final = "Transport"
"""Stands for a connection that broke: the call may have been carried out."""
TRUST: Final = "TlsTrust"
WRONG_LOGIN: Final = "InvalidLogin"


class Advice(StrEnum):
    """What to do after a fault."""

    LATER = "later"
    ELSEWHERE = "elsewhere"
    RELOGIN = "relogin"
    LOOK = "look"
    """Read the present state first, then decide."""
    NO = "no"


class LookFirst(TransientDriverError):
    """The outcome is not known, or somebody was there before us: read the present state, then decide."""


class SessionLost(TransientDriverError):
    """vCenter does not know our session any more."""


class AccessDenied(TransientDriverError):
    """Our account may not do this; an operator can mend it at any time."""


class Untrusted(TransientDriverError):
    """The certificate is not one we were told to trust."""


_ADVICE: Final = {
    Advice.LATER: (
        "TaskInProgress", "ResourceInUse", "ConcurrentAccess", "FileLocked", "HostCommunication", "HostNotConnected",
        "HostConnectFault", "Timedout", "RequestCanceled", "SystemError", "InvalidState",
    ),
    Advice.ELSEWHERE: (
        "InsufficientGraphicsResourcesFault", "InsufficientResourcesFault", "InsufficientMemoryResourcesFault",
        "InsufficientCpuResourcesFault", "NoCompatibleHost", "NoDiskSpace", "InsufficientStorageSpace",
    ),
    Advice.RELOGIN: ("NotAuthenticated",),
    Advice.LOOK: ("DuplicateName", "AlreadyExists", "InvalidPowerState", "ManagedObjectNotFound", TRANSPORT),
}  # fmt: skip
_OF: Final = {fault: advice for advice, faults in _ADVICE.items() for fault in faults}
_DENIED: Final = {
    WRONG_LOGIN: "vCenter does not accept our user and password",
    "NoPermission": "our account may not do this in vCenter",
}
_WORDS: Final = {
    Advice.LATER: "vCenter or a host is busy or away",
    Advice.ELSEWHERE: "there is no room for it where it should run",
    Advice.LOOK: "vCenter has to be looked at before this goes on",
    Advice.NO: "vCenter refuses it as it is written",
}


def advice_of(fault: str) -> Advice:
    """Return what to do after a fault by its API name; an unknown one is no retry."""
    return _OF.get(fault, Advice.NO)


def error_of(fault: str, *texts: str) -> DriverError:
    """Return what a fault means. `texts` are vCenter's own, for operators."""
    raw = ": ".join(part for part in (fault, *texts) if part)[:_LONGEST_RAW]
    if fault in _DENIED:
        return _told(AccessDenied(_DENIED[fault], raw=raw), fault)
    if fault == TRUST:
        return _told(Untrusted("the certificate of vCenter is not one that we trust", raw=raw), fault)
    if fault == TRANSPORT:
        return _told(LookFirst("the connection to vCenter broke", raw=raw), fault)
    advice = advice_of(fault)
    kinds: dict[Advice, type[DriverError]] = {
        Advice.LATER: TransientDriverError,
        Advice.ELSEWHERE: NoCapacity,
        Advice.LOOK: LookFirst,
        Advice.NO: DriverRejected,
    }
    if advice is Advice.RELOGIN:
        return _told(SessionLost("our session in vCenter has ended", raw=raw), fault)
    return _told(kinds[advice](_WORDS[advice], raw=raw), fault)


def distrusted(why: str, raw: str) -> DriverError:
    """Return the error of a certificate that is not trusted, with what a person can do about it."""
    return _told(Untrusted(why, raw=f"{TRUST}: {raw}"), TRUST)


def fault_of(error: DriverError) -> str:
    """Return the API name of the fault behind an error, `""` where there was none."""
    return str(vars(error).get("fault", ""))


def _told(error: DriverError, fault: str) -> DriverError:
    state: dict[str, Any] = vars(error)
    state["fault"] = fault  # kept by the error's own pickling
    return error
