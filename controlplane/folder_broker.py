"""Celery's broker in a folder, for the embedded running: kombu's, with messages that are there whole or not at all.

kombu creates a message's file before it writes it. A reader that comes between the two, or a sender that is
killed there, leaves an empty message, and that ends the worker that meets it. Here a message gets its name
when it is complete, and one that cannot be read is thrown away: messages are hints, and the sweep finds the work.
The same goes for the table of queues: it can be written anew at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from queue import Empty
from typing import Any, Final
from uuid import uuid4

from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, filesystem

log = logging.getLogger(__name__)

SCHEME: Final = "filesystem"
LONGEST_WAIT_S: Final = 0.3
MOST_UNREADABLE: Final = 100
"""Broken messages thrown away in one look; more wait for the next."""


class Channel(filesystem.Channel):
    """kombu's channel with atomic files."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override] # as kombu does
        folder = Path(self.data_folder_out)
        name = f"{round(time.monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        fresh = folder / f"{name}.new"
        try:
            fresh.write_text(json.dumps(payload), encoding="utf-8")
            fresh.replace(folder / name)
        except OSError as error:
            msg = f"the broker's folder takes no message: {error.strerror}"
            raise ChannelError(msg) from error

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        del timeout  # a look never waits
        for _ in range(MOST_UNREADABLE):
            try:
                return super()._get(queue)  # type: ignore[no-untyped-call] # kombu has few types
            except ValueError:
                log.warning("a message could not be read and was thrown away")
            except (OSError, ChannelError):
                break  # the folder is away; the dispatcher says so, and who waits here waits on
        raise Empty

    def get_table(self, exchange: str) -> Any:
        """Return the queues of an exchange; none where the table cannot be read."""
        try:
            return super().get_table(exchange)  # type: ignore[no-untyped-call] # as above
        except ValueError:
            return []

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Add a queue to the exchange's table, replacing the table as a whole."""
        file: Path = self._exchange_file(exchange)  # type: ignore[no-untyped-call] # as above
        bound = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        table = [tuple(each) for each in self.get_table(exchange)]
        if tuple(bound) in table:
            return
        fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
        try:
            self.control_folder.mkdir(exist_ok=True)
            fresh.write_text(json.dumps([tuple(bound), *table]), encoding="utf-8")
            fresh.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            msg = f"the broker's folder takes no table: {error.strerror}"
            raise ChannelError(msg) from error


class Transport(filesystem.Transport):
    """kombu's transport with that channel."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> Any:
        """Wait for messages, never long: a worker that is told to stop looks up only in between."""
        longest = LONGEST_WAIT_S if timeout is None else min(timeout, LONGEST_WAIT_S)
        return super().drain_events(connection, timeout=longest)  # type: ignore[no-untyped-call] # as above


def register() -> None:
    """Make `filesystem://` mean this transport in this process."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:{Transport.__name__}"
