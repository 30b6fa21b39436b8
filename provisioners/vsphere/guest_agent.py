"""Keeps an endpoint's machine from the inside: its gateway and its model server as the control plane wants them.

Installed into the guest as it stands, so: this one file, the standard library, no import of ours. What vCenter's side
writes into guestinfo is a hint that anybody with rights on the VM may write: a one-time token that is good for this
machine only, and a pointer. What is really run is asked of the control plane over TLS with the gateway's credential,
whose answer alone holds secrets. What is reported back into guestinfo is a report, and nobody takes it for a proof.

Everything outside is behind `Guest`; a simulated guest of the lab gives another one and runs the same `Agent`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

PREFIX = "guestinfo.tenantry."
ENROLMENT = PREFIX + "enrolment"
SERVING = PREFIX + "serving"
GATEWAY_REPORT = PREFIX + "gateway"
REPLICA_REPORT = PREFIX + "replica"
CLEARED = "---"
"""Stands in a key that was read and must not be read again: the guest's channel takes no empty value."""
STOPPED = "stopped"
"""Reported of a model server that is not to run and does not."""
GATEWAY = "tenantry-gateway.service"
REPLICA = "tenantry-replica.service"
FOLDER = "/etc/tenantry"
GATEWAY_ENVIRONMENT = FOLDER + "/gateway.env"
REPLICA_ENVIRONMENT = FOLDER + "/replica.env"
CA_FILE = FOLDER + "/ca.pem"
CERTIFICATE = FOLDER + "/tls.crt"
CERTIFICATE_KEY = FOLDER + "/tls.key"
STATE = "/var/lib/tenantry-guest/state.json"
GATEWAY_STATE = "/var/lib/tenantry-gateway"
REPLICA_UNIT = "/etc/systemd/system/" + REPLICA
SERVING_PATH = "/agent/v1/serving"
PROGRAMS = {"vllm": "/opt/vllm/bin/vllm"}
"""First word of a call → where the image has the program; nothing else is ever started."""
ROUND_S = 2.0
FETCH_EVERY_S = 5.0
LICENCE_EVERY_S = 60.0
CALL_S = 20.0
LONGEST_MESSAGE = 200
LONGEST_ANSWER = 1 << 20
OK, UNAUTHORIZED = 200, 401
DOWN = ("inactive", "unknown", "")
"""Such a unit is nobody's; one that waits for its next try is systemd's, one that failed waits for another want."""
_MENDABLE = (OSError, ValueError, RecursionError, http.client.HTTPException, subprocess.SubprocessError)
"""What the next round may find otherwise; anybody in the guest may write any text."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DELIVERY = re.compile(r"[0-9a-f]{8,64}")


class Unusable(ValueError):
    """What was read or answered cannot be used; the text holds no secret."""


# --- systemd's texts ------------------------------------------------------------------------------


def unit_text(sections: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    """Return a unit file. Raises `Unusable` for a line break, which would begin another directive."""
    blocks = []
    for section, directives in sections.items():
        lines = [f"[{section}]"]
        for name, value in directives:
            if "\n" in value or "\r" in value or "\0" in value:
                msg = f"the value of {name} holds a line break"
                raise Unusable(msg)
            lines.append(f"{name}={value}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def command_line(argv: Sequence[str]) -> str:
    """Return a value of `ExecStart=` that means exactly `argv`: systemd.service(5), "Command lines"."""
    return " ".join(_word(word) for word in argv)


def _word(text: str) -> str:
    """Quote one word; `%` begins a specifier and `$` a variable unless doubled, and a quote ends what it began."""
    if "\0" in text:
        raise Unusable("an argument holds a NUL")
    made = []
    for character in text.replace("%", "%%").replace("$", "$$"):
        if character in '\\"':
            made.append("\\" + character)
        elif character < " " or character == "\x7f":
            made.append(f"\\x{ord(character):02x}")
        else:
            made.append(character)
    whole = "".join(made)
    return f'"{whole}"'


def environment_file(values: Mapping[str, str]) -> str:
    """Return the text of an `EnvironmentFile=`, whose values may hold anything but NUL: systemd.exec(5)."""
    lines = []
    for name, value in sorted(values.items()):
        if not _NAME.fullmatch(name) or "\0" in value:
            raise Unusable("an environment variable cannot be written")
        quoted = re.sub(r'([\\"$`])', r"\\\1", value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)


def replica_unit(argv: Sequence[str]) -> str:
    """Return the unit of the model server. Raises `Unusable` for a program that the image does not have."""
    program = PROGRAMS.get(argv[0]) if argv else None
    if program is None:
        raise Unusable("the control plane wants a program that this image does not have")
    service = [
        ("User", "vllm"),
        ("EnvironmentFile", REPLICA_ENVIRONMENT),
        # a MIG device's UUID in it ends vLLM at its start; the machine has exactly its own GPUs anyway
        ("UnsetEnvironment", "CUDA_VISIBLE_DEVICES"),
        ("ExecStart", command_line([program, *argv[1:]])),
        ("Restart", "on-failure"),
        ("RestartSec", "10"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", "60"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("StateDirectory", "vllm"),
        ("CacheDirectory", "vllm"),
        ("Environment", "HOME=/var/lib/vllm"),
    ]
    unit = [
        ("Description", "Model server of this endpoint"),
        ("After", "network-online.target nvidia-gridd.service"),
        ("Wants", "network-online.target"),
        ("StartLimitIntervalSec", "900"),
        ("StartLimitBurst", "5"),
    ]
    return unit_text({"Unit": unit, "Service": service, "Install": [("WantedBy", "multi-user.target")]})


# --- what is outside ------------------------------------------------------------------------------


class Guest(Protocol):
    """The machine around the agent. Every call may raise `OSError`."""

    def info_get(self, key: str) -> str:
        """Return a guestinfo value, "" where there is none."""

    def info_set(self, key: str, value: str) -> None:
        """Set one."""

    def machine_uuid(self) -> str:
        """Return what the firmware says."""

    def read(self, path: str) -> str:
        """Return a file's text, "" where it is not there."""

    def write(self, path: str, text: str, mode: int) -> None:
        """Replace a file whole."""

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    def fetch(self, url: str, ca_pem: str, credential: str) -> tuple[int, bytes]:
        """Return (status, body) of a GET with a bearer credential; the server's certificate is checked."""

    def status(self, unit: str) -> str:
        """Return systemd's word: `active`, `activating`, `failed` (it is not tried again), `inactive`."""

    def restart(self, unit: str) -> None:
        """Start a unit anew, with what its files say now, and at every boot."""

    def stop(self, unit: str) -> None:
        """Stop it, also for the next boot."""

    def gateway_health(self) -> Mapping[str, Any]:
        """Return what the gateway says of itself, nothing while it does not answer."""

    def is_replica_healthy(self) -> bool:
        """Whether the model server has loaded its model."""

    def licence(self) -> str:
        """Return what the driver says of the vGPU licence, "" where there is none to ask for."""

    def addresses(self) -> tuple[str, str]:
        """Return (gateway, model server) where a simulated guest has others than the usual; else ("", "")."""


# --- the agent ------------------------------------------------------------------------------------


@dataclass
class State:
    """What the agent remembers over a restart; no secret is in it."""

    delivery: str = ""
    """Of which token the gateway was started."""
    gateway_uid: str = ""
    control_plane_url: str = ""
    token_is_used: bool = False
    want: str = ""
    """What the model server was started with."""


class Agent:
    """One machine. `round` looks once and does what is missing; nothing is lost when it is cut short anywhere."""

    def __init__(self, guest: Guest, *, fetch_every_s: float = FETCH_EVERY_S) -> None:
        """Keep `guest`; ask the control plane at most so often while it has nothing new."""
        self._guest = guest
        self._fetch_every_s = fetch_every_s
        self._state = _state_of(guest.read(STATE))
        self._said: dict[str, str] = {}
        self._fetch_at = 0.0
        self._why = ""  # the model server could not be made as it is wanted
        self._licence, self._licence_at = "", 0.0

    def round(self) -> None:
        """Look once. Raises nothing that the next round may mend."""
        for part in (self._take_enrolment, self._look_at_gateway, self._look_at_replica):
            try:
                part()
            except _MENDABLE as error:
                sys.stderr.write(f"{part.__name__.strip('_')}: {_words(error)}\n")

    # --- the gateway ------------------------------------------------------------------------------

    def _take_enrolment(self) -> None:
        text = self._guest.info_get(ENROLMENT)
        if not text or text == CLEARED:
            return
        try:
            told = _enrolment_of(text)
        except (ValueError, RecursionError):
            self._guest.info_set(ENROLMENT, CLEARED)
            raise
        if told["delivery"] != self._state.delivery:
            self._guest.write(CA_FILE, told["ca_pem"], 0o644)
            self._write_gateway_environment(told, told["token"])
            fresh = State(told["delivery"], told["gateway_uid"], told["control_plane_url"], want=self._state.want)
            self._keep(fresh)
            self._guest.restart(GATEWAY)
        # after everything else: cut short before, it is read once more and found to be done
        self._guest.info_set(ENROLMENT, CLEARED)

    def _write_gateway_environment(self, told: Mapping[str, str], token: str) -> None:
        values = {
            "TENANTRY_GATEWAY_CONTROL_URL": told["control_plane_url"],
            "TENANTRY_GATEWAY_UID": told["gateway_uid"],
            "TENANTRY_GATEWAY_MACHINE_UUID": self._guest.machine_uuid(),
            # a folder for each token: what an older identity left would hide that this one never enrolled
            "TENANTRY_GATEWAY_FOLDER": f"{GATEWAY_STATE}/{told['delivery']}",
        }
        if self._guest.read(CA_FILE):
            values["TENANTRY_GATEWAY_CA_FILE"] = CA_FILE
        if token:
            values["TENANTRY_GATEWAY_TOKEN"] = token
        self._guest.write(GATEWAY_ENVIRONMENT, environment_file(values), 0o600)

    def _look_at_gateway(self) -> None:
        state = self._state
        if not state.delivery:
            return
        if self._guest.status(GATEWAY) in DOWN:
            self._guest.restart(GATEWAY)
        health = self._guest.gateway_health()
        told, message = "starting", ""
        if health.get("gateway") != state.gateway_uid:
            message = "the gateway does not answer yet"
        elif health.get("state") == "removed":
            told, message = "refused", "the control plane has removed this gateway"
        elif health.get("enrolled"):
            told = "enrolled"
        elif health.get("control_plane") == "token-refused":
            told, message = "refused", "the control plane refused the token"
        else:
            message = "the gateway has not enrolled yet"
        if told == "enrolled" and not state.token_is_used:
            self._write_gateway_environment(asdict(state), "")
            state.token_is_used = True
            self._keep(state)
        address = self._guest.addresses()[0]
        report = {"delivery": state.delivery, "state": told, "message": message, "address": address}
        self._say(GATEWAY_REPORT, report)

    # --- the model server -------------------------------------------------------------------------

    def _look_at_replica(self) -> None:
        want = _want_of(self._guest.info_get(SERVING))
        if not want:
            if self._state.want:
                self._guest.stop(REPLICA)
                self._guest.remove(REPLICA_ENVIRONMENT)
                self._state.want = ""
                self._keep(self._state)
            self._why = ""
            self._say(REPLICA_REPORT, {"want": "", "state": STOPPED})
            return
        if want != self._state.want and time.monotonic() >= self._fetch_at:
            self._fetch_at = time.monotonic() + self._fetch_every_s
            try:
                self._renew()
                self._why = ""
            except _MENDABLE as error:
                self._why = _words(error)
        self._report_replica(want)

    def _renew(self) -> None:
        """Ask what to run, and run it. Raises `Unusable` with what is to be said of it."""
        state = self._state
        credential = self._credential()
        if not credential:
            raise Unusable("waiting for the gateway to enrol")
        url = state.control_plane_url.rstrip("/") + SERVING_PATH
        status, body = self._guest.fetch(url, self._guest.read(CA_FILE), credential)
        if status == UNAUTHORIZED:
            raise Unusable("the control plane does not accept the gateway's credential any more")
        if status != OK:
            raise Unusable(f"the control plane has nothing to serve here ({status})")
        told = _serving_of(body)
        if told["want"] == state.want:
            return
        unit = replica_unit(told["argv"])
        self._guest.write(REPLICA_ENVIRONMENT, environment_file({**told["environment"], **told["secrets"]}), 0o600)
        self._guest.write(REPLICA_UNIT, unit, 0o644)
        self._guest.restart(REPLICA)
        state.want = told["want"]
        self._keep(state)
        self._fetch_at = 0.0

    def _report_replica(self, want: str) -> None:
        running = self._state.want
        if not running:
            self._say(REPLICA_REPORT, self._replica(want, "loading", self._why))
            return
        status = self._guest.status(REPLICA)
        if status == "failed":
            self._say(REPLICA_REPORT, self._replica(running, "failed", "the model server ends at its start"))
            return
        if status in DOWN:
            self._guest.restart(REPLICA)
        ready = status == "active" and self._guest.is_replica_healthy()
        message = self._why if running != want else "" if ready else "loading the model"
        self._say(REPLICA_REPORT, self._replica(running, "ready" if ready else "loading", message))

    def _replica(self, want: str, state: str, message: str) -> dict[str, str]:
        now = time.monotonic()
        if now >= self._licence_at:
            self._licence, self._licence_at = self._guest.licence(), now + LICENCE_EVERY_S
        backend = self._guest.addresses()[1]
        return {"want": want, "state": state, "message": message, "licence": self._licence, "backend": backend}

    def _credential(self) -> str:
        """Return what the gateway proves itself with: it enrolled for this machine, and we are this machine."""
        text = self._guest.read(f"{GATEWAY_STATE}/{self._state.delivery}/identity.json")
        told = json.loads(text) if text else {}
        return str(told.get("credential", "")) if isinstance(told, dict) and told.get("boundary_uid") else ""

    # --- remembering and saying -------------------------------------------------------------------

    def _keep(self, state: State) -> None:
        self._guest.write(STATE, json.dumps(asdict(state), sort_keys=True), 0o600)
        self._state = state

    def _say(self, key: str, report: Mapping[str, str]) -> None:
        text = json.dumps({name: value[:LONGEST_MESSAGE] for name, value in report.items()}, sort_keys=True)
        if self._said.get(key) != text:
            self._guest.info_set(key, text)
            self._said[key] = text


def _state_of(text: str) -> State:
    try:
        told = json.loads(text)
        return State(**{name: told[name] for name in asdict(State()) if name in told})
    except (ValueError, TypeError):
        return State()


def _enrolment_of(text: str) -> dict[str, str]:
    told = json.loads(text)
    if not isinstance(told, dict):
        raise Unusable("the enrolment is no object")
    found = {name: str(told.get(name, "")) for name in ("gateway_uid", "token", "control_plane_url", "ca_pem")}
    found["delivery"] = str(told.get("delivery", ""))
    if not _DELIVERY.fullmatch(found["delivery"]) or not found["control_plane_url"].startswith(("https://", "http://")):
        raise Unusable("the enrolment has not the agreed shape")
    return found


def _want_of(text: str) -> str:
    if not text or text == CLEARED:
        return ""
    told = json.loads(text)
    return str(told.get("want", "")) if isinstance(told, dict) else ""


def _serving_of(body: bytes) -> dict[str, Any]:
    told = json.loads(body)
    try:
        found: dict[str, Any] = {
            "want": str(told["want"]),
            "argv": [str(word) for word in told["argv"]],
            "environment": dict(told["environment"]),
            "secrets": dict(told["secrets"]),
        }
    except (KeyError, TypeError, ValueError):
        raise Unusable("the control plane's answer has not the agreed shape") from None
    if not all(isinstance(value, str) for part in ("environment", "secrets") for value in found[part].values()):
        raise Unusable("the control plane's answer has not the agreed shape")
    return found


def _words(error: Exception) -> str:
    """Return what may be shown of an error: our own words, or its class; never what was being read."""
    return str(error) if isinstance(error, Unusable) else type(error).__name__


# --- a real guest ---------------------------------------------------------------------------------


class RealGuest:
    """A Linux guest with open-vm-tools and systemd."""

    def info_get(self, key: str) -> str:
        """Return a guestinfo value; the tool fails where there is none."""
        answer = self._run(["vmware-rpctool", "info-get " + key])
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def info_set(self, key: str, value: str) -> None:
        """Set one. Raises `OSError`."""
        if self._run(["vmware-rpctool", f"info-set {key} {value}"]).returncode != 0:
            raise OSError("guestinfo cannot be written")

    def machine_uuid(self) -> str:
        """Return the UUID of the SMBIOS tables."""
        return Path("/sys/class/dmi/id/product_uuid").read_text(encoding="ascii").strip()

    def read(self, path: str) -> str:
        """Return a file's text."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def write(self, path: str, text: str, mode: int) -> None:
        """Replace a file whole; its folder is made."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, mode)
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(path + ".new").replace(target)

    def remove(self, path: str) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)

    def fetch(self, url: str, ca_pem: str, credential: str) -> tuple[int, bytes]:
        """Ask the control plane."""
        return fetch(url, ca_pem, credential)

    def status(self, unit: str) -> str:
        """Return what systemd says of a unit."""
        return self._run(["systemctl", "is-active", unit]).stdout.strip()

    def restart(self, unit: str) -> None:
        """Start a unit anew, now and at boot. Raises `OSError`."""
        if unit == GATEWAY:
            self._make_certificate()
        self._run(["systemctl", "daemon-reload"])
        self._run(["systemctl", "reset-failed", unit])
        self._run(["systemctl", "enable", unit])
        if self._run(["systemctl", "restart", "--no-block", unit]).returncode != 0:
            msg = f"{unit} cannot be started"
            raise OSError(msg)

    def stop(self, unit: str) -> None:
        """Stop it, also for the next boot."""
        self._run(["systemctl", "disable", "--now", unit])

    def _make_certificate(self) -> None:
        """Give the gateway a certificate of its own, unless somebody brought one."""
        if Path(CERTIFICATE).exists() and Path(CERTIFICATE_KEY).exists():
            return
        os.umask(0o077)
        name, addresses = self.machine_uuid().lower(), self._run(["hostname", "-I"]).stdout.split()
        names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
        key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout".split()  # noqa: SIM905 - as one types it
        about = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-days", "825"]
        made = self._run(["openssl", "req", "-x509", *about, *key, CERTIFICATE_KEY, "-out", CERTIFICATE])
        if made.returncode != 0:
            raise OSError("no certificate can be made")

    def gateway_health(self) -> Mapping[str, Any]:
        """Ask the gateway on loopback, whose certificate carries another name."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return health("https://127.0.0.1:443/healthz", context)

    def is_replica_healthy(self) -> bool:
        """Ask the model server on loopback."""
        return answers("http://127.0.0.1:8000/health")

    def licence(self) -> str:
        """Return the driver's word: `Licensed (Expiry: …)`, `Unlicensed (…)`."""
        try:
            lines = self._run(["nvidia-smi", "-q"]).stdout.splitlines()
        except OSError:
            return ""
        found = [line.partition(":")[2].strip() for line in lines if "License Status" in line]
        return "; ".join(sorted(set(found)))

    def addresses(self) -> tuple[str, str]:
        """Return nothing: vCenter knows the guest's address by its card."""
        return "", ""

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=60, check=False)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A credential goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""


def fetch(url: str, ca_pem: str, credential: str) -> tuple[int, bytes]:
    """Return (status, body) of a GET; `ca_pem` empty: the system's authorities. Raises `OSError`."""
    context = ssl.create_default_context(cadata=ca_pem or None)
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}), _NoRedirects()
    )
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {credential}"})  # noqa: S310 - checked before
    try:
        with opener.open(request, timeout=CALL_S) as answer:
            return answer.status, answer.read(LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        return error.code, b""


def health(url: str, context: ssl.SSLContext | None = None) -> Mapping[str, Any]:
    """Return the JSON object at an address of ours on loopback, an empty one where nothing proper answers."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=3) as answer:
            told = json.loads(answer.read(LONGEST_ANSWER))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    return told if isinstance(told, dict) else {}


def answers(url: str) -> bool:
    """Whether a plain GET on loopback is answered with 200."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=3) as answer:
            return bool(answer.status == OK)
    except (OSError, http.client.HTTPException):
        return False


def main() -> None:
    """Keep this machine until it is switched off."""
    agent, never = Agent(RealGuest()), threading.Event()
    while True:
        agent.round()
        never.wait(ROUND_S)


if __name__ == "__main__":
    main()
