"""What stands for DNS in the sandbox: an address of each endpoint's own that follows it from estate to estate.

Where the setting `names` is on, an endpoint is reached at a port of its own (or, of simulated gateways, at
`/names/<endpoint>/v1`), and not at its gateway's: behind it is whichever place of the endpoint got the name last. A
connection goes to the gateway that has the name when it is made, and stays there to its end, as with DNS. This is no
part of the product: names, certificates and load balancers are the customer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from provisioners.sandbox import views
from provisioners.sandbox.hosting import Hosting
from provisioners.sandbox.ports import free_port, is_free
from provisioners.sandbox.records import GatewayRecord, ObjectRecord
from provisioners.sandbox.state import State

ROUND_S: Final = 0.25
PORTS: Final = range(12000, 17000)
"""Below the ports that the kernel gives to outgoing connections, and apart from the gateways'."""
PIECE_BYTES: Final = 1 << 16
_log = logging.getLogger(__name__)


def place_of(hosting: Hosting, name: str) -> tuple[str, ObjectRecord] | None:
    """Return the estate and the object that has a name: the one that got it last, of those that are there."""
    found = [(estate, owner) for estate, owner in _named(hosting) if owner.public_name == name]
    return max(found, key=lambda one: one[1].named_at, default=None)


def gateways_of(hosting: Hosting, name: str) -> list[tuple[str, GatewayRecord]]:
    """Return (estate, gateway) of those that run in front of whatever has a name."""
    place = place_of(hosting, name)
    if place is None:
        return []
    estate, owner = place
    state = hosting.find(estate).state
    workloads = state.workloads_of(owner.uid)
    return [(estate, one) for one in views.gateways_in_front(state, _carrier(state, owner), workloads)]


def _carrier(state: State, owner: ObjectRecord) -> ObjectRecord:
    return owner if owner.boundary_kind == "vm" else state.objects.get(owner.boundary, owner)


def _named(hosting: Hosting) -> Iterator[tuple[str, ObjectRecord]]:
    """Yield the published endpoints of estates whose setting `names` is on."""
    for name in hosting.names():
        state = hosting.find(name).state
        if state.settings.names:
            yield from ((name, owner) for owner in state.objects.values() if owner.public_name and owner.published)


class NameKeeper:
    """Listens at a port for each name, and passes connections on; `wake` makes it look for new names at once."""

    def __init__(self, hosting: Hosting) -> None:
        """Listen for nothing yet."""
        self._hosting = hosting
        self._servers: dict[str, asyncio.Server] = {}
        self._awake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen."""
        self._loop = asyncio.create_task(self._keep(), name="names")

    async def stop(self) -> None:
        """Stop listening; connections that are open end."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        for server in self._servers.values():
            server.close()

    def wake(self) -> None:
        """Look for new names soon."""
        self._awake.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:  # noqa: BLE001  names that are there go on
                _log.exception("looking after names failed")
            self._awake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), ROUND_S)

    async def _look(self) -> None:
        """Listen for each name that has a real gateway, at one port wherever it is; give up those that are gone."""
        wanted: dict[str, list[tuple[str, ObjectRecord]]] = {}
        for estate, owner in _named(self._hosting):
            if self._hosting.find(estate).state.settings.gateways == "real":
                wanted.setdefault(owner.public_name, []).append((estate, owner))
        for name in [name for name in self._servers if name not in wanted]:
            self._servers.pop(name).close()
        for name, places in wanted.items():
            port = max(owner.name_port for _, owner in places)
            if name not in self._servers:
                port = await self._listen(name, port)
            for estate, owner in places:
                if owner.name_port != port:
                    with self._hosting.using(estate) as used:
                        owner.name_port = port
                        used.state.touch("objects", owner.uid)

    async def _listen(self, name: str, port: int) -> int:
        taken = {owner.name_port for _, owner in _named(self._hosting)}
        chosen = port if is_free(port) else free_port(PORTS, taken)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connected(name, reader, writer)

        self._servers[name] = await asyncio.start_server(
            connected, "127.0.0.1", chosen, limit=PIECE_BYTES, backlog=1024
        )
        return chosen

    async def _connected(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on to a gateway that has the name now; none of them there: close it."""
        try:
            for _, gateway in gateways_of(self._hosting, name):
                with contextlib.suppress(OSError):
                    there = await asyncio.open_connection("127.0.0.1", gateway.port, limit=PIECE_BYTES)
                    await _both_ways((reader, writer), there)
                    return
        finally:
            writer.close()


async def _both_ways(
    here: tuple[asyncio.StreamReader, asyncio.StreamWriter], there: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Copy until either side closes: a caller who leaves is to be noticed by the gateway at once."""
    copying = [asyncio.create_task(_copy(here[0], there[1])), asyncio.create_task(_copy(there[0], here[1]))]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)
        there[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
