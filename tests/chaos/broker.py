"""The broker taken away, emptied, and its messages repeated: what was accepted is done once, at most 30 s late."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from controlplane.embedded import ports
from tests.chaos import facts
from tests.chaos.clients import Acknowledged, Answers, Client
from tests.chaos.facts import Row
from tests.chaos.stack import Stack, pause, until

LATE_S: Final = 30.0
AT_ONCE: Final = 4
WITHIN_S: Final = 150.0


class Batch:
    """Things made together and followed to Ready, then to Released."""

    def __init__(self, stack: Stack, word: str) -> None:
        """Log in."""
        self.stack, self.word = stack, word
        self.client = Client(stack, Answers())
        self.made: list[Acknowledged] = []

    def run(self, harm: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Make them, do harm, follow them; return the slowest times to Ready and to Released."""
        for number in range(AT_ONCE):
            noun = "endpoints" if number == 0 else "allocations"
            self.made.append(self.client.create(noun, f"{self.word}-{number}"))
        harm()
        ready = self._all("Ready")
        for made in self.made:
            self.client.delete(made)
        released = self._all("Released")
        self.client.close()
        return ready, released

    def _all(self, phase: str) -> float:
        began = time.monotonic()
        until(
            lambda: all(self.client.read(made)["phase"] == phase for made in self.made),
            within_s=WITHIN_S,
            what=f"{self.word}: all are {phase}",
        )
        return time.monotonic() - began


def folder(*, short: bool = False) -> list[Row]:
    """The embedded broker: its folder replaced by a plain file, then emptied; messages six times."""
    with Stack() as stack:
        return run(stack, short=short)


def run(stack: Stack, *, short: bool) -> list[Row]:
    """Do it to the folder of a running stack; everything is released in the end."""
    broker = stack.places.broker

    def away() -> None:
        # first out of the way at once, then a plain file; a process may be in the middle of a message
        broker.rename(broker.with_name("broker-gone"))
        broker.write_text("in the way\n")

    def back_empty() -> None:
        broker.unlink()
        shutil.rmtree(broker.with_name("broker-gone"))

    return _scenario(stack, "broker folder", away, back_empty, short=short)


def redis(*, short: bool = False) -> list[Row]:
    """The same with Redis: killed, then started empty; messages six times."""
    program = shutil.which("redis-server")
    if program is None:
        return [Row("broker redis", "skipped: there is no redis-server on this machine", "", ok=True)]
    port = ports.choose(26379)
    home = Path(tempfile.mkdtemp(prefix="tenantry-redis-"))
    server = [_redis(program, port, home)]

    def away() -> None:
        server[0].kill()
        server[0].wait()

    def back_empty() -> None:
        server[0] = _redis(program, port, home)

    try:
        with Stack(variables={"CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0"}) as stack:
            return _scenario(stack, "broker redis", away, back_empty, short=short)
    finally:
        server[0].kill()
        server[0].wait()
        shutil.rmtree(home, ignore_errors=True)


def _redis(program: str, port: int, home: Path) -> subprocess.Popen[bytes]:
    words = f"--bind 127.0.0.1 --port {port} --appendonly no --dir {home}".split()
    child = subprocess.Popen([program, *words, "--save", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, within_s=10, what="Redis listens")
    return child


def _scenario(
    stack: Stack, name: str, away: Callable[[], None], back_empty: Callable[[], None], *, short: bool
) -> list[Row]:
    prefix = name.rsplit(maxsplit=1)[-1]
    stack.allow()
    plain = Batch(stack, f"{prefix}-plain").run()
    rows = [Row(name, "undisturbed", _seconds(plain), ok=True)]
    away()
    rows.append(_late(name, "made while it is away", Batch(stack, f"{prefix}-away").run(), plain))
    # taken away and given back empty between acceptance and work
    rows.append(_late(name, "given back empty on the way", Batch(stack, f"{prefix}-back").run(back_empty), plain))
    if not short:
        rows.append(_late(name, "stopped on the way", Batch(stack, f"{prefix}-mid").run(away), plain))
        back_empty()
    pause(1.0)
    repeater = stack.helper("tests.chaos.repeat")
    rows.append(_late(name, "each message six times", Batch(stack, f"{prefix}-six").run(), plain))
    out, _ = repeater.communicate(b"enough\n", timeout=30)
    sent = int(out or 0)
    rows.append(Row(name, "copies of messages sent", str(sent), sent >= 6 * AT_ONCE))
    took = facts.all_released(stack)
    rows.append(Row(name, "everything released", f"{took:.1f} s later", ok=True))
    return [*rows, *facts.once(stack, name), *facts.clean(stack, name, empty=True)]


def _late(name: str, what: str, took: Sequence[float], plain: Sequence[float]) -> Row:
    late = max(0.0, *(now - then for now, then in zip(took, plain, strict=True)))
    return Row(name, what, f"{_seconds(took)}; {late:.1f} s late", late <= LATE_S)


def _seconds(took: Sequence[float]) -> str:
    return f"ready {took[0]:.1f} s, released {took[1]:.1f} s"
