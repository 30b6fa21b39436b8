"""Forked children: they do one thing, say what came of it in one line, and may be killed or stopped before.

The parent is warm (everything imported, no database connection of Django's), so a child costs milliseconds.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from provisioners import instants
from provisioners.connections import step_word
from provisioners.driver import Done, Driver, Handle, Step
from provisioners.instants import Instant

Say = Callable[[dict[str, Any]], None]
PATIENCE_S: Final = 60.0
"""A child that has neither ended nor stopped after this long hangs: the point fails."""


class ChildFailed(AssertionError):
    """A child did not do what it was forked for."""


@dataclass(slots=True)
class Child:
    """One forked process and the pipe it speaks through."""

    pid: int
    pipe: int
    said: str = ""
    status: int | None = None

    def answer(self) -> dict[str, Any]:
        """Wait for the end and return what it said. Raises `ChildFailed`."""
        self._listen()
        status = self._wait(0)
        last = self.lines()[-1] if self.lines() else None
        if not os.WIFEXITED(status) or os.WEXITSTATUS(status) != 0 or last is None:
            msg = f"the child ended with status {status}: {self.said or 'it said nothing'}"
            raise ChildFailed(msg)
        if "trouble" in last:
            raise ChildFailed(str(last["trouble"]))
        return last

    def killed(self) -> dict[str, Any]:
        """Wait until it is dead by SIGKILL and return the last thing it said. Raises `ChildFailed`."""
        self._listen()
        status = self._wait(0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            msg = f"the child was to be killed and ended with status {status}: {self.said or 'it said nothing'}"
            raise ChildFailed(msg)
        return self.lines()[-1]

    def stopped(self) -> dict[str, Any]:
        """Wait until it has stopped itself and return the last thing it said. Raises `ChildFailed`."""
        status = self._wait(os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._listen()
            msg = f"the child was to stop and ended with status {status}: {self.said or 'it said nothing'}"
            raise ChildFailed(msg)
        self.status = None
        self.said += os.read(self.pipe, 65536).decode()
        return self.lines()[-1]

    def go_on(self) -> dict[str, Any]:
        """Let a stopped child go on, and return its answer."""
        os.kill(self.pid, signal.SIGCONT)
        return self.answer()

    def end(self) -> None:
        """Make sure that it is gone, whatever it does."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait(0)
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has said so far."""
        return [json.loads(line) for line in self.said.splitlines()]

    def _listen(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                msg = f"the child hangs: {self.said or 'it said nothing'}"
                raise ChildFailed(msg)
            piece = os.read(self.pipe, 65536)
            if not piece:
                return
            self.said += piece.decode()

    def _wait(self, options: int) -> int:
        if self.status is None:
            _, self.status = os.waitpid(self.pid, options)
        return self.status


def fork(work: Callable[[Say], dict[str, Any]]) -> Child:
    """Fork a child that runs `work(say)` and says its result; it runs no clean-up of this process."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return Child(pid, out)
    code = 1
    try:
        gc.disable()  # it lives for a moment only
        os.close(out)

        def say(line: dict[str, Any]) -> None:
            os.write(into, (json.dumps(line) + "\n").encode())

        try:
            say(work(say))
            code = 0
        except BaseException as error:  # noqa: BLE001 - whatever it was must reach the parent
            say({"trouble": f"{error!r} {''.join(traceback.format_exc(limit=-4))}"})
            code = 0
    finally:
        os._exit(code)


class Bent:
    """A driver whose start of one step is sent twice, or only after this process was stopped and went on."""

    def __init__(self, driver: Driver, step: str, say: Say | None = None) -> None:
        """Bend `driver`'s start of `step` the first time: with `say` it is late, without it is sent twice."""
        self._driver, self._step, self._say = driver, step, say
        self.met = False

    def __getattr__(self, name: str) -> Any:
        """Leave everything else as it is."""
        return getattr(self._driver, name)

    def start(self, step: Step) -> Handle | Done:
        """Start a step as the product does, but for the one."""
        if self.met or step_word(step) != self._step:
            return self._driver.start(step)
        self.met = True
        if self._say is None:
            self._driver.start(step)
        else:
            self._say({"reached": f"the call of {self._step}"})
            os.kill(os.getpid(), signal.SIGSTOP)
        return self._driver.start(step)


@dataclass(slots=True)
class Fate:
    """A signal (SIGKILL, SIGSTOP) that a process sends itself when it comes to an instant for the nth time."""

    step: str
    instant: Instant
    nth: int
    number: signal.Signals
    say: Say
    met: bool = False
    """It came there, and went on if it could."""

    def install(self, **told: Callable[[], Any]) -> None:
        """Lie in wait; what is told just before is proof that it really came there."""
        left = self.nth

        def hook(reached: str, at: Instant) -> None:
            nonlocal left
            if (reached, at) != (self.step, self.instant):
                return
            left -= 1
            if left == 0:
                self.say({"reached": f"{reached}:{at}", **{name: value() for name, value in told.items()}})
                self.met = True
                os.kill(os.getpid(), self.number)

        instants.install(hook)
