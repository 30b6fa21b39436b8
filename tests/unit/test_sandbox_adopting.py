"""An estate that was played in another process is taken over by the sandbox server, whole or not at all."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from provisioners.driver import Secret
from provisioners.sandbox import control, files
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.files import BadEstate
from provisioners.sandbox.gateways import GatewayKeeper
from provisioners.sandbox.hosting import open_hosting
from provisioners.sandbox.server import Server

DOCUMENT = {
    "schema": files.SCHEMA,
    "hosts": [
        {
            "host": "node-1", "name": "node-1", "binding": "device", "boundary_kinds": ["namespace"],
            "vcpu": 64, "memory_gib": 512, "gpus": [{"product": "H100-80GB", "count": 2}],
        }
    ],
}  # fmt: skip


def played():
    """Return the records of an estate in which something has happened, as JSON carries them."""
    estate = Estate(files.build(DOCUMENT), clock=lambda: 1000.0, url="http://sandbox.invalid")
    control.add_foreign_use(estate, "theirs", "node-1", [("node-1-gpu-1", 0, "3g.40gb")], vcpu=4, memory_gib=16)
    rows = [[table, key, row] for (table, key), row in estate.state.take_changes().items() if row is not None]
    return estate, json.loads(json.dumps(rows))


def test_the_records_make_the_same_estate_again_and_replace_one_of_that_name():
    hosting = open_hosting(None, url="http://sandbox.invalid")
    hosting.create("berlin", {**DOCUMENT, "hosts": []})
    estate, rows = played()

    hosting.adopt("berlin", rows)

    taken = hosting.find("berlin").state
    assert (taken.hosts, taken.gpus, taken.foreign_uses) == (
        estate.state.hosts, estate.state.gpus, estate.state.foreign_uses,
    )  # fmt: skip
    assert taken.occupied == estate.state.occupied


@pytest.mark.parametrize(
    "rows", [[["hosts", "a", {"no": "host"}]], [["nonsense", "a", {}]], [["settings", "", {"unknown": 1}]]]
)
def test_records_that_make_no_estate_change_nothing(rows):
    hosting = open_hosting(None, url="http://sandbox.invalid")
    hosting.create("berlin", DOCUMENT)

    with pytest.raises(BadEstate, match="make no estate"):
        hosting.adopt("berlin", rows)

    assert sorted(hosting.find("berlin").state.gpus) == ["node-1-gpu-0", "node-1-gpu-1"]


def test_the_server_takes_records_from_who_bears_its_token(tmp_path):
    _, rows = played()

    async def talk():
        hosting = open_hosting(None, url="http://sandbox.invalid")
        server = Server(hosting, GatewayKeeper(hosting, tmp_path), token=Secret("word"))
        async with TestClient(TestServer(server.application())) as client:
            bearer = {"Authorization": "Bearer word"}
            path = "/estates/berlin/records"
            stranger = await client.put(path, json={"records": rows})
            wrong = await client.put(path, json={"records": [["hosts", "a"]]}, headers=bearer)
            taken = await client.put(path, json={"records": rows}, headers=bearer)
            return stranger.status, wrong.status, taken.status, await taken.json(), hosting.names()

    stranger, wrong, taken, summary, names = asyncio.run(talk())

    assert (stranger, wrong, taken) == (401, 400, 200)
    assert (summary["hosts"], summary["gpus"], summary["simulated"]) == (1, 2, True)
    assert names == ["berlin"]
