"""A renewed certificate is shown without a restart, and a broken one never takes the place of a good one."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest

from controlplane.labs.certificates import Authority
from provisioners.gateway.tls import Certificate
from tests.gateway_lab import until


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate of an authority of its own; return chain and key."""
    authority = Authority(folder / name)
    authority.make()
    authority.sign_server("gateway", "gateway", names=("localhost",), addresses=("127.0.0.1",))
    return authority.folder / "gateway.crt", authority.folder / "gateway.key"


async def shown(port: int) -> bytes:
    """Return the certificate that a new connection is shown."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=anybody)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "first"), pair(tmp_path, "second")
    live = tmp_path / "tls.crt", tmp_path / "tls.key"
    for source, target in zip(first, live, strict=True):
        shutil.copy(source, target)
    certificate = Certificate(*live)

    async def steps() -> None:
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=certificate.context)
        port = server.sockets[0].getsockname()[1]
        keeping = asyncio.create_task(certificate.keep(every_s=0.01))
        before = await shown(port)

        shutil.copy(second[0], live[0])  # the chain alone: it does not fit the key that is there still
        await asyncio.sleep(0.1)
        between = await shown(port)
        shutil.copy(second[1], live[1])
        after = await until(lambda: shown(port), lambda found: found != before)
        live[0].unlink()
        await asyncio.sleep(0.1)
        gone = await shown(port)
        keeping.cancel()
        server.close()

        assert between == before
        assert after != before
        assert gone == after

    asyncio.run(steps())


def test_at_the_start_a_pair_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "first"), pair(tmp_path, "second")

    with pytest.raises(OSError, match="mismatch"):
        Certificate(first[0], second[1])
