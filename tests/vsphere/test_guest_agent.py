"""The program inside an endpoint's machine: what it takes, asks, writes, starts and says, cut short anywhere."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.labs.vsphere.guest_texts import argv_of, directive, environment_of
from provisioners.vsphere import cloud_init, guest_agent, units
from provisioners.vsphere.guest_agent import (
    CLEARED,
    ENROLMENT,
    GATEWAY,
    GATEWAY_ENVIRONMENT,
    GATEWAY_REPORT,
    GATEWAY_STATE,
    REPLICA,
    REPLICA_ENVIRONMENT,
    REPLICA_REPORT,
    REPLICA_UNIT,
    SERVING,
    STOPPED,
    Agent,
    Unusable,
)

UID = "0b0f3c52-7d4e-4a4f-9f3b-3c7a4d0f1a22"
MACHINE = "9d2f4a50-1111-4a4f-9f3b-3c7a4d0f1a22"
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), max_size=5)
VALUES = st.dictionaries(
    st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,20}\Z"),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    max_size=5,
)


class Cut(Exception):
    """The machine lost its power."""


class FakeGuest:
    """A guest in memory whose control plane answers what it is told to, and that may lose its power at any call."""

    def __init__(self) -> None:
        self.info: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.modes: dict[str, int] = {}
        self.units: dict[str, str] = {}
        self.started: list[str] = []
        self.asked: list[tuple[str, str, str]] = []
        self.answer: tuple[int, bytes] = (204, b"")
        self.health: dict[str, Any] = {}
        self.healthy = False
        self.cut_after = -1

    def _call(self) -> None:
        self.cut_after -= 1
        if self.cut_after == 0:
            raise Cut

    def info_get(self, key: str) -> str:
        return self.info.get(key, "")

    def info_set(self, key: str, value: str) -> None:
        self._call()
        self.info[key] = value

    def machine_uuid(self) -> str:
        return MACHINE

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def write(self, path: str, text: str, mode: int) -> None:
        self._call()
        self.files[path], self.modes[path] = text, mode

    def remove(self, path: str) -> None:
        self.files.pop(path, None)

    def fetch(self, url: str, ca_pem: str, credential: str) -> tuple[int, bytes]:
        self._call()
        self.asked.append((url, ca_pem, credential))
        return self.answer

    def status(self, unit: str) -> str:
        return self.units.get(unit, "inactive")

    def restart(self, unit: str) -> None:
        self._call()
        self.started.append(unit)
        self.units[unit] = "active"

    def stop(self, unit: str) -> None:
        self.units.pop(unit, None)

    def gateway_health(self) -> Mapping[str, Any]:
        return self.health

    def is_replica_healthy(self) -> bool:
        return self.healthy

    def licence(self) -> str:
        return "Licensed"

    def addresses(self) -> tuple[str, str]:
        return "", ""

    def told(self, key: str) -> dict[str, str]:
        return dict(json.loads(self.info.get(key, "{}")))

    def environment(self, path: str) -> dict[str, str]:
        return environment_of(self.files[path])


def enrolment(delivery: str = "aa" * 8, **changes: str) -> str:
    told = {
        "gateway_uid": UID, "token": f"tne_{delivery}", "control_plane_url": "https://control.example",
        "ca_pem": "CA", "delivery": delivery, **changes,
    }  # fmt: skip
    return json.dumps(told)


def serving(want: str = "w1", **changes: Any) -> bytes:
    told = {
        "want": want, "revision_uid": UID, "revision": 1, "model": "alpha", "port": 8000,
        "argv": ["vllm", "serve", "a/b", "--port=8000"], "environment": {"A": "1"},
        "secrets": {"VLLM_API_KEY": "hop%secret$"}, **changes,
    }  # fmt: skip
    return json.dumps(told).encode()


def enrolled(guest: FakeGuest, delivery: str = "aa" * 8) -> None:
    """Do what the gateway program does when its token was taken."""
    identity = {"credential": f"tna_{delivery}", "boundary_uid": UID}
    guest.files[f"{GATEWAY_STATE}/{delivery}/identity.json"] = json.dumps(identity)
    guest.health = {"gateway": UID, "enrolled": True}


def pointer(want: str) -> str:
    return json.dumps({"revision_uid": UID, "revision": 1, "want": want})


def test_a_token_starts_the_gateway_and_is_taken_out_of_guestinfo_and_later_off_the_disk() -> None:
    guest = FakeGuest()
    guest.info[ENROLMENT] = enrolment()
    agent = Agent(guest)

    agent.round()
    first = guest.environment(GATEWAY_ENVIRONMENT)
    starting = guest.told(GATEWAY_REPORT)
    enrolled(guest)
    agent.round()

    assert first["TENANTRY_GATEWAY_TOKEN"] == "tne_" + "aa" * 8
    assert (first["TENANTRY_GATEWAY_UID"], first["TENANTRY_GATEWAY_MACHINE_UUID"]) == (UID, MACHINE)
    assert guest.modes[GATEWAY_ENVIRONMENT] == 0o600
    assert guest.info[ENROLMENT] == CLEARED
    assert guest.started == [GATEWAY]
    assert starting["state"] == "starting"
    assert guest.told(GATEWAY_REPORT) == {"delivery": "aa" * 8, "state": "enrolled", "message": "", "address": ""}
    assert "tne_" not in json.dumps([guest.files, guest.info])


def test_a_refused_token_is_said_and_a_fresh_one_starts_a_fresh_identity() -> None:
    guest = FakeGuest()
    guest.info[ENROLMENT] = enrolment()
    agent = Agent(guest)
    agent.round()
    guest.health = {"gateway": UID, "enrolled": False, "control_plane": "token-refused"}
    agent.round()
    refused = guest.told(GATEWAY_REPORT)

    guest.info[ENROLMENT] = enrolment("bb" * 8)
    guest.health = {}
    agent.round()

    assert refused["state"] == "refused"
    assert guest.started == [GATEWAY, GATEWAY]
    assert guest.environment(GATEWAY_ENVIRONMENT)["TENANTRY_GATEWAY_FOLDER"] == f"{GATEWAY_STATE}/{'bb' * 8}"
    assert guest.told(GATEWAY_REPORT)["delivery"] == "bb" * 8


def test_after_a_power_cycle_a_token_that_stands_there_again_starts_nothing_anew() -> None:
    guest = FakeGuest()
    guest.info[ENROLMENT] = enrolment()
    Agent(guest).round()
    enrolled(guest)
    guest.units.clear()
    guest.info = {ENROLMENT: enrolment()}

    Agent(guest).round()

    assert "TENANTRY_GATEWAY_TOKEN" not in guest.environment(GATEWAY_ENVIRONMENT)
    assert guest.started == [GATEWAY, GATEWAY]  # once by the token, once by the boot
    assert guest.told(GATEWAY_REPORT)["state"] == "enrolled"
    assert guest.info[ENROLMENT] == CLEARED


def test_what_runs_is_asked_of_the_control_plane_with_the_gateways_credential_and_no_secret_is_in_guestinfo() -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = (200, serving())
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    waiting = guest.told(REPLICA_REPORT)
    enrolled(guest)

    agent.round()
    loading = guest.told(REPLICA_REPORT)
    guest.healthy = True
    agent.round()

    assert (waiting["state"], waiting["message"]) == ("loading", "waiting for the gateway to enrol")
    assert guest.asked == [("https://control.example/agent/v1/serving", "CA", "tna_" + "aa" * 8)]
    assert guest.environment(REPLICA_ENVIRONMENT) == {"A": "1", "VLLM_API_KEY": "hop%secret$"}
    assert guest.modes[REPLICA_ENVIRONMENT] == 0o600
    argv = argv_of(directive(guest.files[REPLICA_UNIT], "ExecStart"), {})
    assert argv == ["/opt/vllm/bin/vllm", "serve", "a/b", "--port=8000"]
    assert "UnsetEnvironment=CUDA_VISIBLE_DEVICES" in guest.files[REPLICA_UNIT]
    assert (loading["state"], guest.told(REPLICA_REPORT)["state"]) == ("loading", "ready")
    assert guest.told(REPLICA_REPORT)["licence"] == "Licensed"
    assert "hop" not in json.dumps(guest.info)
    assert "hop" not in guest.files[REPLICA_UNIT]


def test_a_new_revision_starts_the_model_server_anew_and_the_same_one_never_twice() -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = (200, serving())
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)
    for _ in range(3):
        agent.round()

    guest.info[SERVING] = pointer("w2")
    agent.round()  # the control plane's rows still say what they said
    behind = guest.told(REPLICA_REPORT)
    guest.answer = (200, serving("w2", argv=["vllm", "serve", "c/d"]))
    agent.round()

    assert guest.started == [GATEWAY, REPLICA, REPLICA]
    assert behind["want"] == "w1"
    assert guest.told(REPLICA_REPORT)["want"] == "w2"


@pytest.mark.parametrize(
    ("word", "said"), [("failed", "failed"), ("activating", "loading"), ("deactivating", "loading")]
)
def test_a_model_server_that_ends_is_left_to_systemd_until_something_else_is_wanted(word: str, said: str) -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = (200, serving())
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)
    agent.round()

    guest.units[REPLICA] = word
    for _ in range(3):
        agent.round()
    ended = guest.told(REPLICA_REPORT)
    guest.info[SERVING], guest.answer = pointer("w2"), (200, serving("w2"))
    agent.round()

    assert ended["state"] == said
    assert guest.started == [GATEWAY, REPLICA, REPLICA]
    assert guest.status(REPLICA) == "active"


def test_a_pointer_that_goes_stops_the_model_server_and_takes_its_key_off_the_disk() -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = (200, serving())
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)
    agent.round()

    del guest.info[SERVING]
    agent.round()

    assert guest.status(REPLICA) == "inactive"
    assert REPLICA_ENVIRONMENT not in guest.files


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b""), "the control plane does not accept the gateway's credential any more"),
        ((204, b""), "the control plane has nothing to serve here (204)"),
        ((200, b"{"), "JSONDecodeError"),
        ((200, b"[]"), "the control plane's answer has not the agreed shape"),
        ((200, b"{}"), "the control plane's answer has not the agreed shape"),
        ((200, serving(secrets=7)), "the control plane's answer has not the agreed shape"),
        ((200, serving(secrets={"A": 7})), "the control plane's answer has not the agreed shape"),
        (
            (200, serving(argv=["/bin/sh", "-c", "x"])),
            "the control plane wants a program that this image does not have",
        ),
        ((200, serving(environment={"A\nB": "1"})), "an environment variable cannot be written"),
        ((200, serving(argv=["vllm", "a\0b"])), "an argument holds a NUL"),
    ],
)
def test_an_answer_that_cannot_be_used_is_said_and_starts_nothing(answer: tuple[int, bytes], said: str) -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = answer
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)

    agent.round()

    assert guest.told(REPLICA_REPORT)["message"] == said
    assert REPLICA not in guest.started


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 50_000, '{"delivery": "../../etc"}', enrolment(control_plane_url="file:///etc")]
)
def test_nonsense_in_guestinfo_is_cleared_and_starts_nothing(text: str) -> None:
    guest = FakeGuest()
    guest.info[ENROLMENT] = text

    Agent(guest).round()

    assert (guest.info[ENROLMENT], guest.started, guest.files) == (CLEARED, [], {})


@pytest.mark.parametrize("text", ["[]", '"x"', "[" * 50_000])
def test_nonsense_in_a_pointer_or_an_identity_ends_no_agent(text: str) -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)
    guest.files[f"{GATEWAY_STATE}/{'aa' * 8}/identity.json"] = text
    agent.round()
    guest.info[SERVING] = text
    agent.round()

    assert (guest.told(GATEWAY_REPORT)["state"], guest.asked) == ("enrolled", [])


@pytest.mark.parametrize("calls", range(1, 15))
def test_cut_short_anywhere_the_next_boot_ends_where_it_would_have(calls: int) -> None:
    guest = FakeGuest()
    guest.info |= {ENROLMENT: enrolment(), SERVING: pointer("w1")}
    guest.answer = (200, serving())
    guest.cut_after = calls
    try:
        agent = Agent(guest, fetch_every_s=0)
        agent.round()
        enrolled(guest)
        agent.round()
    except Cut:
        guest.units.clear()
    guest.cut_after = -1

    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    assert GATEWAY in guest.started
    enrolled(guest)
    guest.healthy = True
    agent.round()
    agent.round()

    assert guest.told(GATEWAY_REPORT)["state"] == "enrolled"
    assert (guest.told(REPLICA_REPORT)["want"], guest.told(REPLICA_REPORT)["state"]) == ("w1", "ready")
    assert guest.info[ENROLMENT] == CLEARED
    assert "TENANTRY_GATEWAY_TOKEN" not in guest.environment(GATEWAY_ENVIRONMENT)


@given(WORDS)
def test_systemd_reads_exactly_the_words_that_were_written(words: list[str]) -> None:
    assert argv_of(guest_agent.command_line(words), {"HOME": "wrong"}) == words


@given(VALUES)
def test_systemd_reads_exactly_the_variables_that_were_written(values: dict[str, str]) -> None:
    assert environment_of(guest_agent.environment_file(values)) == values


@pytest.mark.parametrize("value", ["a\nExecStart=/bin/sh", "a\r", "a\0"])
def test_no_value_of_a_unit_begins_another_directive(value: str) -> None:
    with pytest.raises(Unusable):
        guest_agent.unit_text({"Service": [("User", value)]})


def test_the_agent_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(guest_agent.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        )
        if isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert imported - set(sys.stdlib_module_names) == set()


def test_what_is_installed_fits_into_guestinfo_with_room_to_spare() -> None:
    files = json.dumps({path: text for path, (text, _) in units.endpoint_files().items()})

    assert len(cloud_init.packed(files)) < cloud_init.LONGEST_VALUE // 3
    assert [command[0] for command in units.endpoint_commands()] == ["systemctl"] * 3


def test_told_to_run_nothing_it_stops_its_model_server_and_says_so_until_it_is_told_again() -> None:
    guest = FakeGuest()
    guest.info[ENROLMENT] = enrolment()
    agent = Agent(guest, fetch_every_s=0)
    agent.round()
    enrolled(guest)
    guest.answer = 200, serving("w1")
    guest.info[SERVING] = pointer("w1")
    guest.healthy = True
    agent.round()
    running = (guest.told(REPLICA_REPORT)["state"], REPLICA in guest.units)

    guest.info[SERVING] = ""
    agent.round()
    Agent(guest, fetch_every_s=0).round()
    stopped = (guest.told(REPLICA_REPORT), REPLICA in guest.units, REPLICA_ENVIRONMENT in guest.files)
    guest.info[SERVING] = pointer("w1")
    agent.round()

    assert running == ("ready", True)
    assert stopped == ({"want": "", "state": STOPPED}, False, False)
    assert (guest.told(REPLICA_REPORT)["state"], REPLICA in guest.units, GATEWAY in guest.units) == (
        "ready",
        True,
        True,
    )
