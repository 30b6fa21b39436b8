"""`python -m provisioners.gateway --port P --state DIR`: run one gateway.

Environment: TENANTRY_GATEWAY_CONTROL_URL (base URL of the control plane), TENANTRY_GATEWAY_UID (row of this
gateway), TENANTRY_GATEWAY_TOKEN (one-time enrolment token; needed once, taken out of the environment when
read), TENANTRY_GATEWAY_CA_FILE (PEM, optional), TENANTRY_GATEWAY_MACHINE_UUID (what the firmware of the virtual
machine around it says; where there is one). Secrets come by environment only, never by argument.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import uvloop

from provisioners.driver import Secret
from provisioners.gateway.app import Gateway, Settings
from provisioners.gateway.state import StateError

USAGE_ERROR = 2
HOPELESS = 3
"""With `--end-when-hopeless`: only a start with a fresh token can help (what a provider that watches us looks for)."""


class JsonLines(logging.Formatter):
    """One JSON object per line. What is logged holds ids and states: no bodies, no keys, no addresses of callers."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def settings(arguments: list[str]) -> Settings:
    """Read arguments and environment. Raises `ValueError` naming the variable that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m provisioners.gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0 takes a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder for identity, configuration and usage")
    parser.add_argument("--metrics-port", type=int, help="serve /metrics here instead of on --port")
    parser.add_argument(
        "--end-when-hopeless", action="store_true", help=f"exit {HOPELESS} once only a fresh token can help"
    )
    parser.add_argument("--certificate", type=Path, help="PEM file to listen with TLS, with --key")
    parser.add_argument("--key", type=Path, help="PEM file with the certificate's key")
    parser.add_argument(
        "--tls",
        action="store_true",
        help="listen with TLS, with a certificate that the control plane gives, or as soon as its files are there",
    )
    given = parser.parse_args(arguments)
    if (given.certificate is None) != (given.key is None):
        parser.error("give --certificate and --key together")
    token = os.environ.pop("TENANTRY_GATEWAY_TOKEN", "").strip()
    control_url = os.environ.get("TENANTRY_GATEWAY_CONTROL_URL", "").strip()
    if urlsplit(control_url).scheme not in {"http", "https"} or not urlsplit(control_url).hostname:
        message = (
            "TENANTRY_GATEWAY_CONTROL_URL must be the control plane's base URL, for example https://tenantry.example"
        )
        raise ValueError(message)
    try:
        uid = UUID(os.environ.get("TENANTRY_GATEWAY_UID", ""))
    except ValueError:
        message = "TENANTRY_GATEWAY_UID must be the UUID of this gateway"
        raise ValueError(message) from None
    machine = os.environ.get("TENANTRY_GATEWAY_MACHINE_UUID", "").strip()
    try:
        machine_uuid = UUID(machine) if machine else None
    except ValueError:
        message = "TENANTRY_GATEWAY_MACHINE_UUID must be a UUID, or not set"
        raise ValueError(message) from None
    ca_file = os.environ.get("TENANTRY_GATEWAY_CA_FILE", "")
    return Settings(
        gateway_uid=uid,
        control_url=control_url,
        state=given.state,
        token=Secret(token) if token else None,
        host=given.host,
        port=given.port,
        metrics_port=given.metrics_port,
        ca_file=Path(ca_file) if ca_file else None,
        ends_when_hopeless=given.end_when_hopeless,
        certificate=(given.certificate, given.key) if given.certificate else None,
        tls=given.tls,
        machine_uuid=machine_uuid,
    )


async def _serve(chosen: Settings) -> int:
    gateway = Gateway(chosen)
    await gateway.run()
    return HOPELESS if gateway.hopeless else 0


def main(arguments: list[str]) -> int:
    """Run until told to stop; the exit status is 2 where it cannot start, 3 where it gave up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    os.umask(0o077)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings(arguments)))
    except (ValueError, StateError, OSError) as error:
        logging.getLogger("tenantry.gateway").error("cannot start: %s", error)  # noqa: TRY400 - a message for people
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
