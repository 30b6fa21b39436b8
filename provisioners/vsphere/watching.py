"""What changed in a vCenter, at once: one property collector over everything that can carry our mark.

A doorbell and nothing more: a change tells whose object to look at, its content is never taken for what is so. What is
not heard, sweeps find. It has a session and a collector of its own: on a shared collector the waits of others end.

Invariants: what is there when it begins to listen rings nobody; `stop` ends it within a second, also while a vCenter
hangs: the thread that waits for that is left to its own deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any, Final

from pyVmomi import vim, vmodl

from provisioners.driver import DriverError, Ref, TransientDriverError
from provisioners.vsphere.client import MoRef, VCenterClient, reference
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.names import MARK_FIELD, parse_marker
from provisioners.vsphere.settings import Settings

HEARD: Final = {
    vim.VirtualMachine: (
        "customValue", "parent", "resourcePool", "runtime.powerState", "runtime.host", "runtime.connectionState",
        "config.changeVersion", "guest.toolsRunningStatus", "guest.ipAddress",
    ),
    vim.Folder: ("customValue", "parent"),
    vim.ResourcePool: ("customValue", "config.cpuAllocation.limit", "config.memoryAllocation.limit"),
    vim.dvs.DistributedVirtualPortgroup: ("customValue", "config.defaultPortConfig"),
}  # fmt: skip
"""Kind → paths whose change should be seen at once; no path whose value is large."""
WAIT_S: Final = 20
TICK_S: Final = 0.25
"""How soon `stop` is seen."""
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
_Collector: Final = vmodl.query.PropertyCollector
_log = logging.getLogger(__name__)


def changes(settings: Settings, stop: threading.Event) -> Iterator[Ref]:
    """Yield whose objects changed, until `stop` is set; a vCenter that is away is waited for.

    Has a thread and a session of its own meanwhile.
    """
    listener = _Listener(settings)
    listener.start()
    try:
        while not stop.is_set():
            try:
                yield listener.rung.get(timeout=TICK_S)
            except queue.Empty:
                if listener.error is not None:
                    raise listener.error from None
    finally:
        listener.end()


class _Listener(threading.Thread):
    """Waits for changes; what it hears lies in `rung`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name=f"changes-{settings.slug}", daemon=True)
        self.rung: queue.SimpleQueue[Ref] = queue.SimpleQueue()
        self.error: DriverError | None = None
        """Why it cannot listen at all."""
        self._settings = settings
        self._ended = threading.Event()
        self._waiting: Any = None
        """The collector that waits, to be told to stop."""

    def end(self) -> None:
        """Let the wait end; does not wait for it."""
        self._ended.set()
        waiting = self._waiting
        if waiting is not None:
            # not from here: vCenter may hang, and whoever ends us does not
            threading.Thread(target=_cancel, args=(waiting,), daemon=True).start()

    def run(self) -> None:
        pause = PAUSE_S
        while not self._ended.is_set():
            client = VCenterClient(self._settings)
            try:
                self._listen(client)
                pause = PAUSE_S
            except TransientDriverError as error:
                if not self._ended.is_set():
                    _log.info("listening to %s begins anew: %s", self._settings.slug, error.detail)
                    self._ended.wait(pause)
                    pause = min(pause * 2, LONGEST_PAUSE_S)
            except DriverError as error:
                self.error = error
                return
            finally:
                client.close()

    def _listen(self, client: VCenterClient) -> None:
        """Hear until something breaks. Raises `DriverError`s."""
        ground = Ground(self._settings, client)
        whose: dict[MoRef, Ref] = {}

        def wait(session: Any) -> None:
            collector = session.content.propertyCollector.CreatePropertyCollector()
            self._waiting = collector
            try:
                self._hear(session, collector, ground, whose)
            finally:
                self._waiting = None
                with contextlib.suppress(vmodl.MethodFault, OSError, http.client.HTTPException):
                    collector.DestroyPropertyCollector()

        client.reading(wait)

    def _hear(self, session: Any, collector: Any, ground: Ground, whose: dict[MoRef, Ref]) -> None:
        view = session.content.viewManager.CreateContainerView(session.content.rootFolder, list(HEARD), True)
        walk = _Collector.TraversalSpec(name="view", type=type(view), path="view", skip=False)
        spec = _Collector.FilterSpec(
            objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[_Collector.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in HEARD.items()],
        )
        collector.CreateFilter(spec, False)
        version, begun = "", False
        while not self._ended.is_set():
            told = collector.WaitForUpdatesEx(version, _Collector.WaitOptions(maxWaitSeconds=WAIT_S))
            if told is None:
                continue
            version = told.version
            for update in (one for part in told.filterSet for one in part.objectSet):
                for ref in _whose(update, ground, whose):
                    if begun:
                        self.rung.put(ref)
            begun = begun or not told.truncated


def _whose(update: Any, ground: Ground, whose: dict[MoRef, Ref]) -> set[Ref]:
    """Return whose object an update is about: whose it was, and whose it is now."""
    at = reference(update.obj)
    before = whose.get(at)
    found = {before} if before is not None else set()
    if str(update.kind) == "leave":
        whose.pop(at, None)
        return found
    for change in update.changeSet:
        if change.name == "customValue":
            marked = parse_marker(ground.attribute({"customValue": change.val}, MARK_FIELD))
            if marked is not None:
                whose[at] = marked[0]
                found.add(marked[0])
    return found


def _cancel(collector: Any) -> None:
    with contextlib.suppress(vmodl.MethodFault, OSError, http.client.HTTPException):
        collector.CancelWaitForUpdates()
