"""What programs of an installation are told: secrets made once, external servers, least privilege, ports."""

import base64
import socket
import stat

import pytest

from controlplane.embedded import ports, roster
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.installation import Installation
from controlplane.embedded.places import Places, state_dir


@pytest.fixture
def given(tmp_path):
    return {"TENANTRY_STATE_DIR": str(tmp_path / "state"), "PATH": "/usr/bin", "HOME": "/home/somebody"}


def test_secrets_are_made_once_are_private_and_differ_between_installations(given, tmp_path):
    first = Installation.load(given)
    again = Installation.load(given)
    other = Installation.load(given | {"TENANTRY_STATE_DIR": str(tmp_path / "other")})

    assert again.secrets == first.secrets
    assert all(first.secrets[name] != other.secrets[name] for name in first.secrets)
    assert stat.S_IMODE(first.places.secrets_file.stat().st_mode) == 0o600
    key_id, _, key = first.secrets["TENANTRY_MASTER_KEYS"].partition(":")
    assert (key_id, len(base64.b64decode(key))) == ("k1", 32)


def test_a_secret_that_an_older_file_lacks_is_added_and_the_others_stay(given):
    first = Installation.load(given)
    file = first.places.secrets_file
    kept = [line for line in file.read_text().splitlines() if "SANDBOX_TOKEN" not in line]
    file.write_text("\n".join(kept) + "\n")

    second = Installation.load(given)

    assert second.secrets["TENANTRY_MASTER_KEYS"] == first.secrets["TENANTRY_MASTER_KEYS"]
    assert second.secrets["TENANTRY_SANDBOX_TOKEN"] not in {"", first.secrets["TENANTRY_SANDBOX_TOKEN"]}


def test_no_secret_shows_in_a_repr_or_in_a_command_line(given):
    installation = Installation.load(given | {"DATABASE_URL": "postgresql://cp_app:hidden@db/tenantry"})
    made = [make(installation) for make in (roster.sandbox, roster.web, roster.worker, roster.beat, roster.dispatcher)]

    shown = repr(installation) + repr(made)

    assert {program.name for program in made} == set(roster.NAMES)
    assert not [value for value in (*installation.secrets.values(), "hidden") if value in shown]


def test_everything_embedded_is_given_the_sockets_folder_and_the_filesystem_broker(given):
    environ = Installation.load(given).environ("owner")

    assert environ["DATABASE_URL"].startswith("postgresql://cp_app@/tenantry?host=")
    assert environ["DATABASE_WORKER_URL"].startswith("postgresql://cp_worker@/tenantry?host=")
    assert environ["DATABASE_OWNER_URL"].startswith("postgresql://cp_owner@/tenantry?host=")
    assert environ["CELERY_BROKER_URL"] == "filesystem://"
    assert environ["TENANTRY_BROKER_DIR"].startswith(given["TENANTRY_STATE_DIR"])


def test_given_addresses_switch_to_external_servers(given):
    external = given | {"DATABASE_URL": "postgresql://cp_app@db/t", "CELERY_BROKER_URL": "redis://queue/0"}

    installation = Installation.load(external)
    environ = installation.environ("owner")

    assert (installation.embeds_database, installation.embeds_broker) == (False, False)
    assert (environ["DATABASE_URL"], environ["CELERY_BROKER_URL"]) == ("postgresql://cp_app@db/t", "redis://queue/0")
    assert "DATABASE_OWNER_URL" not in environ
    assert "TENANTRY_BROKER_DIR" not in environ


def test_an_owner_address_alone_is_refused_because_half_of_it_would_stay_embedded(given):
    with pytest.raises(EmbeddedError, match="DATABASE_OWNER_URL is set without DATABASE_URL"):
        Installation.load(given | {"DATABASE_OWNER_URL": "postgresql://cp_owner@db/t"})


@pytest.mark.parametrize(
    ("process", "addresses"),
    [
        ("web", {"DATABASE_URL"}),
        ("worker", {"DATABASE_URL", "DATABASE_WORKER_URL"}),
        ("owner", {"DATABASE_URL", "DATABASE_WORKER_URL", "DATABASE_OWNER_URL"}),
    ],
)
def test_each_process_gets_no_stronger_database_address_than_its_own(given, process, addresses):
    environ = Installation.load(given).environ(process)

    assert {name for name in environ if name.startswith("DATABASE_")} == addresses
    assert environ["TENANTRY_PROCESS"] == process


def test_the_sandbox_gets_its_token_and_neither_key_nor_database(given):
    installation = Installation.load(given | {"TENANTRY_MASTER_KEYS": "k9:given", "AWS_SECRET_ACCESS_KEY": "foreign"})

    environ = installation.sandbox_environ()

    assert environ.keys() == {"HOME", "PATH", "PYTHONUNBUFFERED", "TENANTRY_SANDBOX_TOKEN", "TMPDIR"}


def test_secrets_given_by_the_caller_win(given):
    installation = Installation.load(given | {"TENANTRY_SECRET_KEY": "chosen", "TENANTRY_SANDBOX_TOKEN": "mine"})

    assert installation.environ("web")["TENANTRY_SECRET_KEY"] == "chosen"
    assert installation.sandbox_environ()["TENANTRY_SANDBOX_TOKEN"] == "mine"


def test_a_busy_port_is_replaced_said_and_remembered(given):
    installation = Installation.load(given)
    with socket.create_server((ports.LOOPBACK, 0)) as busy:
        taken = busy.getsockname()[1]
        installation.ports["web"] = taken
        said = installation.settle_port("web")

    assert said == f"port {taken} is busy: web takes {installation.ports['web']}"
    assert installation.ports["web"] != taken
    assert Installation.load(given).ports["web"] == installation.ports["web"]
    assert installation.public_url == f"http://127.0.0.1:{installation.ports['web']}"


def test_a_free_port_is_kept_and_nothing_is_said(given):
    installation = Installation.load(given)
    with socket.create_server((ports.LOOPBACK, 0)) as probe:
        free = probe.getsockname()[1]
    installation.ports["web"] = free

    assert installation.settle_port("web") == ""
    assert installation.ports["web"] == free


def test_two_programs_never_settle_on_one_port(given):
    installation = Installation.load(given)
    installation.ports["sandbox"] = installation.ports["web"] = ports.choose(20_000)

    installation.settle_port("sandbox")
    installation.settle_port("web")

    assert installation.ports["sandbox"] != installation.ports["web"]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"web": "8420"}', '{"web": 0}'])
def test_a_damaged_ports_file_is_as_none(tmp_path, text):
    file = tmp_path / "ports.json"
    file.write_text(text)

    assert ports.remembered(file) == {}


def test_the_state_folder_follows_the_variable_then_root_then_the_home(monkeypatch, tmp_path):
    monkeypatch.setattr("controlplane.embedded.places.is_root", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = state_dir({})
    by_xdg = state_dir({"XDG_STATE_HOME": "/x"})
    monkeypatch.setattr("controlplane.embedded.places.is_root", lambda: True)

    assert plain == tmp_path / ".local" / "state" / "tenantry"
    assert str(by_xdg) == "/x/tenantry"
    assert str(state_dir({})) == "/var/lib/tenantry"
    assert str(state_dir({"TENANTRY_STATE_DIR": "/else"})) == "/else"


def test_everything_below_the_state_folder_is_private(tmp_path):
    places = Places(tmp_path / "state")

    places.make()

    inside = (places.logs, places.run, places.sandbox, places.scratch)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in inside} == {0o700}
    assert stat.S_IMODE(places.state.stat().st_mode) & 0o066 == 0  # passed through at most, never listed
