"""The proof of a gateway, and the long poll for its configuration: no thread or connection is held while it waits.

Served twice from here: by a Django view (tests, servers that know only Django) and, in front of Django, by
`asgi.py`, because Django keeps a thread busy for as long as a request lasts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from provisioners.agent_api import config
from provisioners.agent_api.watch import in_thread, look, watch
from provisioners.gateway import keys
from provisioners.gateway.protocol import LONGEST_WAIT_S, ConfigDocument, Envelope, canonical, parse
from tenants.actor import Actor, Kind
from tenants.errors import Gone, InvalidSpec, Unauthenticated
from tenants.models import GatewayReplica
from tenants.operations import agents
from tenants.operations.agents import Entry
from tenants.transactions import reading

NOBODY: Final = "0" * 64
"""Compared with when there is no such gateway, so that it takes the same time."""
MOST_VERSION: Final = 2**53


def acting_gateway(gateway: UUID) -> Actor:
    """Return the principal of a gateway."""
    return Actor(Kind.AGENT, gateway, name=f"gateway {gateway}")


def proof_of(authorization: str) -> tuple[UUID, str]:
    """Return (gateway, digest of the credential shown) of an `Authorization` header. Raises `Unauthenticated`."""
    scheme, _, plain = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        return keys.parse_agent_credential(plain.strip())
    except keys.MalformedKey as error:
        raise Unauthenticated from error


def checked(entry: Entry | None, digest: str) -> Entry:
    """Return the entry that this digest proves. Raises `Unauthenticated`; `Gone` for a gateway that was removed."""
    known = entry.credential_digest if entry is not None else ""
    if not keys.equal(known or NOBODY, digest) or entry is None or not known:
        raise Unauthenticated
    if entry.removed:
        raise Gone
    return entry


async def poll(authorization: str, query: Mapping[str, str]) -> Envelope | None:
    """Return a signed configuration newer than `have`, or None after `wait` seconds without one.

    Raises `Unauthenticated` and `Gone`, also when the credential ends while it waits; `InvalidSpec`.
    """
    gateway, digest = proof_of(authorization)
    have = _number(query, "have", most=MOST_VERSION)
    wait_s = _number(query, "wait", most=LONGEST_WAIT_S)
    entry = checked((await in_thread(look, [gateway])).get(gateway), digest)
    if 0 < have <= entry.config_version:
        await in_thread(_note_served, gateway, have)
    clock = asyncio.get_running_loop().time
    ends = clock() + wait_s
    while entry.config_version == have:
        left_s = ends - clock()
        news = await watch().news(entry, wait_s=left_s) if left_s > 0 else entry
        if news is entry:
            return None
        entry = checked(news, digest)
    return await in_thread(_offer, gateway, have)


def _note_served(gateway: UUID, version: int) -> None:
    agents.serves(gateway=gateway, version=version, actor=acting_gateway(gateway), now=datetime.now(UTC))


def _offer(gateway: UUID, have: int) -> Envelope:
    now = datetime.now(UTC)

    def render(row: GatewayReplica) -> str:
        return canonical(config.document_of(row, now=now)).decode()

    actor = acting_gateway(gateway)
    _, text = agents.take_config(gateway=gateway, have=have, render=render, actor=actor, now=now)
    with reading(actor):
        document = config.with_hop_keys(parse(ConfigDocument, text))
    return config.signer().sign(document)


def _number(query: Mapping[str, str], name: str, *, most: int) -> int:
    text = query.get(name, "")
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > most:
        raise InvalidSpec(f"Give a whole number from 0 to {most}.", field=name)
    return int(text)
