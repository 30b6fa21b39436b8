"""What is installed into an endpoint's guest at its first boot: the agent, its unit, and the gateway's unit. Pure.

Nothing in here is a secret or differs between tenants, so every guest gets the same bytes and a change of ours shows
as another intent. The image brings the programs: `/opt/tenantry` (the gateway's environment) and `/opt/vllm`.
Units as objects, written by `guest_agent.unit_text`; systemd.unit(5), systemd.exec(5), from systemd 250 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from provisioners.vsphere import guest_agent
from provisioners.vsphere.guest_agent import (
    CERTIFICATE,
    CERTIFICATE_KEY,
    GATEWAY,
    GATEWAY_ENVIRONMENT,
    GATEWAY_STATE,
    command_line,
    unit_text,
)

AGENT_FILE: Final = "/usr/local/sbin/tenantry-guest"
AGENT: Final = "tenantry-guest.service"
PYTHON: Final = "/usr/bin/python3"
GATEWAY_PYTHON: Final = "/opt/tenantry/bin/python"
_UNITS: Final = "/etc/systemd/system"
_ONLINE: Final = (("After", "network-online.target"), ("Wants", "network-online.target"))


def agent_unit() -> str:
    """Return the unit of the agent: root, because it writes units and reads the gateway's identity."""
    service = (
        ("ExecStart", command_line([PYTHON, AGENT_FILE])),
        ("Restart", "always"),
        ("RestartSec", "5"),
        ("StateDirectory", "tenantry-guest"),
        ("UMask", "0077"),
    )
    unit = (
        ("Description", "Keeps this endpoint as its control plane wants it"),
        *_ONLINE,
        ("StartLimitIntervalSec", "0"),
    )
    return unit_text({"Unit": unit, "Service": service, "Install": [("WantedBy", "multi-user.target")]})


def gateway_unit() -> str:
    """Return the unit of the gateway: nobody's account, its folder alone, the port of TLS and nothing else."""
    # `${…}` comes from the environment file and `%d` is the folder of credentials: both are meant, so not escaped
    program = command_line([GATEWAY_PYTHON, "-m", "provisioners.gateway", "--host=0.0.0.0", "--port=443"])
    service = (
        ("DynamicUser", "yes"),
        ("StateDirectory", GATEWAY_STATE.removeprefix("/var/lib/")),
        ("EnvironmentFile", GATEWAY_ENVIRONMENT),
        ("LoadCredential", f"tls.crt:{CERTIFICATE}"),
        ("LoadCredential", f"tls.key:{CERTIFICATE_KEY}"),
        ("ExecStart", f"{program} --state=${{TENANTRY_GATEWAY_FOLDER}} --certificate=%d/tls.crt --key=%d/tls.key"),
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("Restart", "always"),
        ("RestartSec", "2"),
        ("TimeoutStopSec", "45"),
    )
    unit = (
        ("Description", "Gateway of this endpoint"),
        *_ONLINE,
        ("ConditionPathExists", GATEWAY_ENVIRONMENT),
        ("StartLimitIntervalSec", "0"),
    )
    return unit_text({"Unit": unit, "Service": service, "Install": [("WantedBy", "multi-user.target")]})


@cache
def endpoint_files() -> Mapping[str, tuple[str, str]]:
    """Return path → (text, mode) of what an endpoint's guest gets."""
    return {
        AGENT_FILE: (Path(guest_agent.__file__).read_text(encoding="utf-8"), "0700"),
        f"{_UNITS}/{AGENT}": (agent_unit(), "0644"),
        f"{_UNITS}/{GATEWAY}": (gateway_unit(), "0644"),
    }


def endpoint_commands() -> tuple[tuple[str, ...], ...]:
    """Return what runs once after the files are there."""
    return (
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", AGENT),
        ("systemctl", "start", "--no-block", AGENT),
    )
