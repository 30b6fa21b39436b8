"""Pure rules: where a webhook may lead, how a message is signed, what the registry of kinds says."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from tenants.notifications import addresses, registry, signing
from tenants.notifications.addresses import BadUrl

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = addresses.networks("127.0.0.0/8")


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://hooks.example.org", "hooks.example.org", 443, "/"),
        ("HTTPS://Hooks.Example.ORG:8443/In?Token=aB", "hooks.example.org", 8443, "/In?Token=aB"),
        ("https://1.1.1.1/x", "1.1.1.1", 443, "/x"),
        ("https://[2606:4700::1111]/x", "2606:4700::1111", 443, "/x"),
    ],
)
def test_a_url_of_the_public_internet_is_taken_apart_once(url, host, port, target):
    found = addresses.parse(url)

    assert (found.scheme, found.host, found.port, found.target) == ("https", host, port, target)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/", "ftp://hooks.example.org/", "https://", "hooks.example.org",
        "https://user:secret@hooks.example.org/", "https://hooks.example.org#@evil.example.org/",
        "https://hooks.example.org\\@10.0.0.1/", "https://hooks.example.org/a b", "https://hooks.example.org/\n",
        "https://hooks.example.org:22/", "https://hooks.example.org:99999/", "https://hooks.example.org:443:1/",
        "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.0.0.1/", "https://0177.0.0.1/",
        "https://localhost/", "https://a.localhost/", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/", "https://[64:ff9b::a00:1]/", "https://[2002:a00:1::]/", "https://[::7f00:1]/",
        "https://10.0.0.1/", "https://172.16.3.4/", "https://192.168.1.1/", "https://100.64.0.1/",
        "https://169.254.169.254/latest/", "https://[fe80::1]/", "https://[fd00:ec2::254]/", "https://168.63.129.16/",
        "https://0.0.0.0/", "https://224.0.0.1/", "https://xn--/", "https://h\u00f6oks.example.org/",
        "https://hooks.example.org/" + "a" * 500,
    ],
)  # fmt: skip
def test_every_other_url_is_refused(url):
    with pytest.raises(BadUrl):
        addresses.parse(url)


def test_http_leads_to_this_machine_only_where_the_operator_allows_it():
    assert addresses.parse("http://127.0.0.1:9000/x", LOOPBACK).authority == "127.0.0.1:9000"
    for url in ("http://127.0.0.1:9000/x", "http://10.0.0.1:9000/x"):
        with pytest.raises(BadUrl):
            addresses.parse(url)
    with pytest.raises(BadUrl):
        addresses.parse("http://10.0.0.1:9000/x", addresses.networks("10.0.0.0/8"))
    assert addresses.parse("https://10.0.0.1:9000/x", addresses.networks("10.0.0.0/8")).host == "10.0.0.1"


@pytest.mark.parametrize("address", ["169.254.169.254", "168.63.129.16", "fe80::1", "::", "0.0.0.0", "ff02::1"])
def test_metadata_and_link_local_addresses_are_refused_whatever_is_allowed(address):
    everything = addresses.networks("0.0.0.0/0,::/0")

    assert addresses.refusal(ipaddress.ip_address(address), everything) != ""


def test_a_message_is_signed_as_the_specification_shows():
    stamp = datetime.fromtimestamp(1614265330, UTC)

    found = signing.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        at=stamp,
    )

    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_are_new_each_time_and_ids_follow_the_delivery():
    one, other = signing.new_secret(), signing.new_secret()

    assert one != other
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", one)
    assert signing.message_id(UUID(int=5)) == "msg_" + "0" * 31 + "5"


class Everything(dict):
    """Data that knows every word and notes which were asked for."""

    def __missing__(self, key):
        self[key] = f"<{key}>"
        return self[key]


@pytest.mark.parametrize("kind", registry.KINDS.values(), ids=lambda kind: kind.id)
def test_every_kind_has_words_and_its_templates_hold(kind):
    data = Everything()

    text = str(kind.sentence) % data
    path = kind.link % data

    assert re.fullmatch(r"[a-z-]+\.[a-z-]+", kind.id)
    assert str(kind.title)
    assert str(kind.help).endswith(".")
    assert "%" not in text
    assert path.startswith("/") or path == "<request_page>"
    assert kind.text({})
    assert "%" not in kind.text({})


def test_every_event_that_a_kind_is_made_from_is_written_somewhere():
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("tenants", "provisioners")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "registry.py"
    )
    made = {  # written with an f-string
        *(f"{word}.{verb}" for word in ("endpoint", "machine", "namespace")
          for verb in ("first-ready", "failed", "unhealthy")),
        "machine.lost",
        *(f"request.{state}" for state in ("approved", "reduced", "denied", "expired")),
        *(f"allocation.{kind}" for kind in ("expiry-warning", "expiry-grace", "review-overdue")),
    }  # fmt: skip

    missing = {event for event in registry.BY_EVENT if f'"{event}"' not in source} - made

    assert missing == set()


def test_the_page_of_the_documentation_names_every_kind():
    page = (ROOT / "docs/notifications.md").read_text(encoding="utf-8")

    assert [kind for kind in registry.KINDS if f"`{kind}`" not in page] == []
