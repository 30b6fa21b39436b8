"""What changed in a cluster, at once: one list and one stream per kind that our steps make.

A doorbell and nothing more. An event tells whose object to look at; its content is never taken for what is so. What is
not heard (a stream that is away, a kind that our account may not watch) is found by the sweeps' own lists.

Invariants: the first list rings nobody; an event or a list that is older than what was seen rings nobody; an object
that shows the same as before, as far as a pass cares, rings nobody; `stop` ends everything within a second.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from provisioners.driver import DriverError, Kind, NotSupported, Ref
from provisioners.kubernetes.client import Cluster, Expired, Listing
from provisioners.kubernetes.failures import AccessDenied
from provisioners.kubernetes.objects import EVERYTHING, Object, dig, fingerprint, ref_of, uid_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """One kind that is listened to."""

    api: str
    kind: str
    bare: bool = True
    """Its metadata say all that a pass cares for; otherwise its status counts too."""


HEARD: Final = (
    Heard("v1", "Pod", bare=False),
    Heard("v1", "Namespace"),
    Heard("networking.k8s.io/v1", "NetworkPolicy"),
    Heard("v1", "ResourceQuota"),
    Heard("v1", "LimitRange"),
    Heard("v1", "ConfigMap"),
    Heard("v1", "ServiceAccount"),
    Heard("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Heard("v1", "Secret"),
    Heard("apps/v1", "Deployment", bare=False),
    Heard("v1", "Service"),
    Heard("resource.k8s.io/v1", "ResourceClaim", bare=False),
    Heard("gateway.networking.k8s.io/v1", "HTTPRoute", bare=False),
)
"""Kinds whose change should be seen at once. Of Secrets only the metadata are ever sent. Others wait for a sweep."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a listener is, in seconds."""

    stream_s: int = 300
    """Length of one stream; a fifth more or less, so that streams do not end together."""
    pause_s: float = 0.5
    """First pause after a stream that broke or ended at once; doubles with each further one."""
    longest_pause_s: float = 30.0
    denied_s: float = 300.0
    """Between tries of a kind that is not served or that our account may not watch."""
    lived_s: float = 5.0
    """A stream that lasted so long was one: the next is opened without a pause."""


STALE_LISTS: Final = 3
"""So many lists in a row that are older than what was seen are no stale answers: the store was put back."""
RESUMES: Final = 2
"""After so many failures in a row the list is read anew: the version may be one that the server does not know."""
TICK_S: Final = 0.25
"""How soon `stop` is seen."""


class Watches(Protocol):
    """What of `Cluster` is needed."""

    def serves(self, api: str, kind: str = "") -> bool:
        """Whether a kind is served."""
        ...

    def list(self, api: str, kind: str, *, labels: str = "", bare: bool = False) -> Listing:
        """Return all objects of a kind."""
        ...

    def watch(
        self,
        api: str,
        kind: str,
        *,
        since: str,
        labels: str = "",
        timeout_s: int = 300,
        bare: bool = False,
        opened: Callable[[Callable[[], None]], None] = ...,
    ) -> Iterator[tuple[str, Object]]:
        """Yield what happens to them."""
        ...


def changes(
    cluster: Cluster | Watches,
    stop: threading.Event,
    *,
    name: str = "",
    heard: tuple[Heard, ...] = HEARD,
    timing: Timing | None = None,
) -> Iterator[Ref]:
    """Yield whose objects changed, until `stop` is set; a cluster that is away is waited for.

    Has a thread per kind while it is iterated. `name`: the cluster's, for the log.
    """
    rung: queue.SimpleQueue[Ref] = queue.SimpleQueue()
    line = _Line(name)
    streams = [_Stream(one, cluster, rung.put, line, timing or Timing()) for one in heard]
    threads = [
        threading.Thread(target=stream.run, name=f"watch-{name}-{stream.heard.kind}", daemon=True)
        for stream in streams
    ]  # fmt: skip
    try:
        for thread in threads:
            thread.start()
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                yield rung.get(timeout=TICK_S)
    finally:
        for stream in streams:
            stream.end()


class _Line:
    """Says once that a cluster is not heard, and once that it is again, whatever number of streams noticed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._broken: set[str] = set()
        self._is_denied = False

    def lost(self, kind: str, error: DriverError) -> None:
        with self._lock:
            first = not self._broken
            self._broken.add(kind)
        if first:
            _log.warning("changes in %s are not heard, sweeps find them: %s", self._name, error.detail)

    def denied(self, error: DriverError) -> None:
        with self._lock:
            first, self._is_denied = not self._is_denied, True
        if first:
            _log.warning("not all changes in %s are heard, sweeps find them: %s", self._name, error.detail)

    def back(self, kind: str) -> None:
        with self._lock:
            was_broken = kind in self._broken
            self._broken.discard(kind)
            last = was_broken and not self._broken
        if last:
            _log.warning("changes in %s are heard again", self._name)


@dataclass(frozen=True, slots=True)
class _Known:
    """What an object showed last."""

    ref: Ref | None
    version: str
    shows: str
    """Fingerprint of what a pass cares for."""


class _Stream:
    """One kind of one cluster, listened to by one thread."""

    def __init__(
        self, heard: Heard, cluster: Cluster | Watches, ring: Callable[[Ref], None], line: _Line, timing: Timing
    ) -> None:
        self.heard = heard
        self._cluster, self._ring, self._line, self._timing = cluster, ring, line, timing
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._break_off: Callable[[], None] | None = None
        self._known: dict[str, _Known] = {}
        self._version = ""
        """The newest version of the store that was seen; "" before the first list."""
        self._since = ""
        """From where the next stream goes on; "" if a list comes first."""
        self._stale = 0
        self._opened_at: float | None = None

    def end(self) -> None:
        """End it, whatever its thread waits for."""
        self._ended.set()
        with self._lock:
            if self._break_off is not None:
                with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has just ended by itself
                    self._break_off()

    def run(self) -> None:
        """Listen until the end."""
        failures = 0
        while not self._ended.is_set():
            self._opened_at = None
            pause: float | None = None
            try:
                if not self._since or failures >= RESUMES:
                    self._list()
                self._follow()
            except Expired:
                self._since = ""
            except (NotSupported, AccessDenied) as error:
                self._since, pause = "", self._timing.denied_s
                self._line.back(self.heard.kind)  # it is none that the cluster's being back hangs on
                if isinstance(error, AccessDenied):
                    self._line.denied(error)
            except DriverError as error:
                if failures and not self._ended.is_set():  # the first is as good as none: it goes on where it was
                    self._line.lost(self.heard.kind, error)
            except Exception:  # noqa: BLE001  a thread of its own: nobody else would tell
                _log.exception("a watch failed")
                self._since, pause = "", self._timing.longest_pause_s
            failures = 1 if self._has_lived() else failures + 1
            # One that worked for a while is gone on with at once, one that breaks or ends again and again is not.
            self._ended.wait((0.0 if self._has_lived() else self._pause(failures)) if pause is None else pause)

    def _has_lived(self) -> bool:
        return self._opened_at is not None and time.monotonic() - self._opened_at >= self._timing.lived_s

    def _pause(self, failures: int) -> float:
        longest = min(self._timing.longest_pause_s, self._timing.pause_s * 2.0 ** (failures - 1))
        return longest * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing

    # --- list -------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Read all, and ring for what changed since they were seen last."""
        heard = self.heard
        if not self._cluster.serves(heard.api, heard.kind):
            raise NotSupported(f"the cluster does not serve {heard.kind} of {heard.api}")
        listing = self._cluster.list(heard.api, heard.kind, labels=EVERYTHING, bare=heard.bare)
        version = listing.resource_version
        if version != self._version and _is_old(version, self._version):
            self._stale += 1
            if self._stale < STALE_LISTS:
                raise _StaleList("the cluster's answer is older than what it had shown")
            self._known = {uid: replace(one, version="") for uid, one in self._known.items()}
        self._stale = 0
        first = not self._version
        there = {uid_of(obj) for obj in listing.items}
        for obj in listing.items:
            self._saw(obj, silently=first)
        for uid in self._known.keys() - there:
            self._gone(uid)
        self._version = self._since = version

    # --- stream -----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Take what comes until the stream ends or breaks."""
        heard = self.heard
        length = self._timing.stream_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing
        events = self._cluster.watch(
            heard.api, heard.kind, since=self._since, labels=EVERYTHING, timeout_s=max(1, round(length)),
            bare=heard.bare, opened=self._opened,
        )  # fmt: skip
        try:
            for what, obj in events:
                if self._ended.is_set():
                    return
                self._line.back(heard.kind)
                self._take(what, obj)
        finally:
            with self._lock:
                self._break_off = None

    def _opened(self, break_off: Callable[[], None]) -> None:
        with self._lock:
            self._break_off = break_off
        self._opened_at = time.monotonic()
        self._line.back(self.heard.kind)
        if self._ended.is_set():
            self.end()

    def _take(self, what: str, obj: Object) -> None:
        version = _version_of(obj)
        if _is_old(version, self._version):
            return
        if what == "DELETED":
            ref = ref_of(obj)
            if ref is not None and uid_of(obj) not in self._known:
                self._ring_for(ref)
            self._gone(uid_of(obj))
        elif what != "BOOKMARK":
            self._saw(obj)
        self._version = self._since = version

    # --- what an object shows -----------------------------------------------------------------------

    def _saw(self, obj: Object, *, silently: bool = False) -> None:
        """Remember what an object shows; ring whose it is, and whose it was, where that is news."""
        before = self._known.get(uid_of(obj))
        version = _version_of(obj)
        if before is not None and _is_old(version, before.version):
            return
        now = self._known[uid_of(obj)] = _Known(ref_of(obj), version, fingerprint([obj]))
        if silently or (before is not None and before.shows == now.shows and before.ref == now.ref):
            return
        for ref in {now.ref, before.ref if before is not None else None} - {None}:
            self._ring_for(ref)

    def _gone(self, uid: str) -> None:
        before = self._known.pop(uid, None)
        if before is not None:
            self._ring_for(before.ref)

    def _ring_for(self, ref: Ref | None) -> None:
        if ref is not None and ref.kind is not Kind.LAYOUT:
            self._ring(ref)


class _StaleList(DriverError):
    """A list that shows an earlier state than one before it."""

    reason = "Transient"


def _version_of(obj: Object) -> str:
    return str(dig(obj, "metadata", "resourceVersion", default=""))


def _is_old(version: str, seen: str) -> bool:
    """Whether a version is no newer than another of the same kind; words that are no numbers only by being the same."""
    if version.isdigit() and seen.isdigit():
        return int(version) <= int(seen)
    return version == seen
