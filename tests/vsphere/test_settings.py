"""What a provider's row says of a vCenter, and what is refused before anything is asked."""

from __future__ import annotations

import pickle

import pytest

from provisioners.driver import DriverRejected, NoCapacity, Secret, TransientDriverError
from provisioners.vsphere.failures import (
    TRANSPORT,
    TRUST,
    AccessDenied,
    Advice,
    LookFirst,
    SessionLost,
    Untrusted,
    advice_of,
    error_of,
    fault_of,
)
from provisioners.vsphere.settings import BadSettings, settings_of

SECRETS = {"password": Secret("correct horse\n")}


def test_a_row_becomes_settings_and_shows_no_secret():
    settings = settings_of({"url": "https://vc.example.org:8443/sdk", "user": "svc", "clones": "3"}, SECRETS)

    assert (settings.host, settings.port, settings.user, settings.clones) == ("vc.example.org", 8443, "svc", 3)
    assert settings.password.reveal() == "correct horse"
    assert "horse" not in repr(settings)


@pytest.mark.parametrize("host", ["vc", "vc-1.example.org", "10.1.2.3", "[fd00::1]:8443", "VC.Example.org:443"])
def test_names_and_addresses_are_taken(host):
    assert settings_of({"url": f"https://{host}", "user": "u"}, SECRETS).host


def test_a_thumbprint_is_taken_in_any_spelling():
    settings = settings_of({"url": "https://vc", "user": "u", "thumbprint": ":".join(["AB"] * 32)}, SECRETS)

    assert settings.thumbprint == "ab" * 32


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"url": "http://vc"}, "starts with https"),
        ({"url": "https://u:p@vc"}, "no credential"),
        ({"url": "https://vc/ui"}, "no path"),
        ({"url": "https://vc:99999"}, "port"),
        ({"url": "https://["}, "no address"),
        ({"url": "https://a..b"}, "no host"),
        ({"url": "https://" + "x" * 64}, "no host"),
        ({"url": "https://vc?x=1"}, "no path"),
        ({"ca_pem": "nothing"}, "holds no certificate"),
        ({"ca_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "no certificate that can be"),
        ({"control_plane_ca_pem": "none"}, "holds no certificate"),
        ({"control_plane_ca_pem": "-----BEGIN CERTIFICATE-----\n-----BEGIN RSA PRIVATE KEY-----\n"}, "private key"),
        ({"thumbprint": "AB:CD"}, "64 hexadecimal"),
        ({"page": "0"}, "above 0"),
        ({"call_deadline_s": "soon"}, "no number"),
        ({"clones": "1e9"}, "no number"),
        ({"clones": "99999999999"}, "too large"),
        ({"call_deadline_s": "nan"}, "too large|above 0"),
        ({"datacenter": "a/b"}, "slash"),
        ({"root_folder": "tenantry%2fother"}, "percent"),
        ({"root_folder": "tenantry\uff0fother"}, "slash"),
        ({"root_pool": "x" * 81}, "80 characters"),
        ({"dvs": "DVS\u200b0"}, "cannot be seen"),
        ({"clusters": "A,B,A"}, "twice"),
        ({"clusters": {"A": 1}}, "list of names"),
        ({"vlans": "1200-"}, "no range"),
        ({"vlans": "0-10"}, "1 to 4094"),
        ({"vlans": "1299-1200"}, "upwards"),
        ({"vlans": "1200-1299,1250"}, "1250 is named twice"),
        ({"templates": "ubuntu"}, "image=template"),
        ({"templates": "Ubuntu=x"}, "a-z"),
        ({"templates": "u=a,u=b"}, "named twice"),
        ({"templates": {"u": "../x"}}, "slash"),
        ({"endpoint_image": "a b"}, "a-z"),
        ({"access": "internet"}, "guest, lab"),
        ({"whole_gpus": "maybe"}, "vgpu, passthrough"),
        ({"zone": "no zone"}, "DNS zone"),
        ({"tenant_group": "CORP\\everybody"}, "exactly once"),
        ({"tenant_group": "tenant-{tenant}"}, "DOMAIN"),
        ({"storage_policy": "<x>"}, "id of a storage policy"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field(config, why):
    with pytest.raises(BadSettings, match=why) as raised:
        settings_of({"url": "https://vc", "user": "u"} | config, SECRETS)

    assert next(iter(config)) in str(raised.value)


def test_what_is_ours_to_use_is_read_as_text_or_as_json():
    text = {
        "url": "https://vc", "user": "u", "datacenter": "DC0", "clusters": "A, B", "vlans": "1400, 1200-1299",
        "templates": "ubuntu-24.04=ubuntu-24.04-gpu\nendpoint=vllm", "tenant_group": "CORP\\gpu-{tenant}",
    }  # fmt: skip
    json = text | {
        "clusters": ["A", "B"],
        "vlans": ["1200-1299", 1400],
        "templates": {"ubuntu-24.04": "ubuntu-24.04-gpu", "endpoint": "vllm"},
    }

    settings = settings_of(text, SECRETS)

    assert settings_of(json, SECRETS) == settings
    assert settings.vlans == ((1200, 1299), (1400, 1400))
    assert settings.templates["endpoint"] == "vllm"
    assert settings.group_of("abc") == "CORP\\gpu-abc"
    assert (settings.root_folder, settings.access, settings.whole_gpus) == ("tenantry", "guest", "vgpu")


@pytest.mark.parametrize("missing", ["url", "user"])
def test_what_is_missing_is_named(missing):
    config = {"url": "https://vc", "user": "u"}
    del config[missing]

    with pytest.raises(KeyError, match=missing):
        settings_of(config, SECRETS)


@pytest.mark.parametrize(
    ("fault", "kind", "advice"),
    [
        ("TaskInProgress", TransientDriverError, Advice.LATER),
        ("InsufficientGraphicsResourcesFault", NoCapacity, Advice.ELSEWHERE),
        ("NotAuthenticated", SessionLost, Advice.RELOGIN),
        ("DuplicateName", LookFirst, Advice.LOOK),
        (TRANSPORT, LookFirst, Advice.LOOK),
        ("InvalidArgument", DriverRejected, Advice.NO),
        ("SomethingNew", DriverRejected, Advice.NO),
        ("InvalidLogin", AccessDenied, Advice.NO),
        ("NoPermission", AccessDenied, Advice.NO),
        (TRUST, Untrusted, Advice.NO),
    ],
)
def test_a_fault_decides_what_next_and_survives_pickling(fault, kind, advice):
    error = error_of(fault, "vCenter's own words")

    again = pickle.loads(pickle.dumps(error))

    assert (type(again), fault_of(again), advice_of(fault)) == (kind, fault, advice)
    assert "vCenter's own words" in again.raw
    assert "own words" not in again.detail
