"""Between a driver and its vCenter: which step changes what is heard, and one change loses its answer or its session.

The harm is the lab's own: the call is carried out and the connection cut before the answer, the session is ended as by
an idle time-out, or the task that the call starts does not end before it is let go. It strikes one call exactly: the
nth of a method within (all starts of) one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from controlplane.labs.vsphere.control import Control
from provisioners.connections import step_word
from provisioners.driver import Done, Handle, Poll, Step
from provisioners.vsphere.client import VCenterClient
from provisioners.vsphere.driver import VSphereDriver
from tests.crash.told import Told

LOST: Final = "lost answer"
ENDED: Final = "ended session"
HELD: Final = "held task"
START: Final = "start"
"""The beginning of a step: the first that it does is to look."""
POLL: Final = "poll"
_READS: Final = frozenset({"Fetch", "RetrieveServiceContent"})


@dataclass(slots=True)
class Wire:
    """What happens on the way between one client and its vCenter."""

    control: Callable[[], Control]
    met: list[tuple[str, str]] = field(default_factory=list)
    """(step, method that changes something, or `START` or `POLL`), in order."""
    step: str = ""
    """The step that is being started, `""` outside of one."""
    begun: Callable[[], None] | None = None
    """Called when a held task was begun and its caller knows it."""
    _aim: tuple[str, str] = ("", "")
    _harm: str = ""
    _left: int = 0

    def harm(self, mode: str, step: str, method: str, nth: int) -> None:
        """Let the nth such call be harmed."""
        self._harm, self._aim, self._left = mode, (step, method), nth

    @property
    def has_struck(self) -> bool:
        """Whether the harm was done, where there was one to do."""
        return not self._harm or self._left <= 0

    def meet(self, step: str, method: str) -> None:
        """Note a call that is about to be made, and harm it if it is the one."""
        if not step or method in _READS:
            return
        self.met.append((step, method))
        if (step, method) != self._aim or not self._harm:
            return
        self._left -= 1
        if self._left:
            return
        if self._harm == LOST:
            self.control().lose_answer(method)
        elif self._harm == HELD:
            self.control().hang_task(method)
        else:
            self.control().end_sessions()

    def listen(self, client: VCenterClient) -> None:
        """Hear everything that `client` changes."""
        changing = client.changing

        def heard(change: Callable[[Any], Any]) -> Any:
            def watched(si: Any) -> Any:
                stub = si._stub
                invoke = stub.InvokeMethod

                def told(on: Any, info: Any, *given: Any, **named: Any) -> Any:
                    method = str(info.wsdlName)
                    self.meet(self.step, method)
                    answer = invoke(on, info, *given, **named)
                    if self.begun is not None and self._harm == HELD and (self.step, method) == self._aim:
                        self.begun()
                    return answer

                stub.InvokeMethod = told
                try:
                    return change(si)
                finally:
                    del stub.InvokeMethod

            return changing(watched)

        setattr(client, "changing", heard)  # noqa: B010 - a method of this one client


class Heard(Told):
    """A driver whose wire knows which step is under way."""

    def __init__(self, driver: VSphereDriver, wire: Wire) -> None:
        """Listen to `driver`."""
        super().__init__(driver)
        self._wire = wire
        self._steps: dict[str, str] = {}
        wire.listen(driver.client)

    def start(self, step: Step) -> Handle | Done:
        """Start a step."""
        word = step_word(step)
        self._wire.meet(word, START)
        self._wire.step = word
        try:
            answer = super().start(step)
        finally:
            self._wire.step = ""
        if isinstance(answer, Handle):
            self._steps[answer.value] = word
        return answer

    def poll(self, handle: Handle) -> Poll:
        """Look at what has a handle."""
        self._wire.meet(self._steps.get(handle.value, ""), POLL)
        return super().poll(handle)
