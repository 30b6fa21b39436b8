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
        ({"ca_pem": "nothing"}, "holds no certificate"),
        ({"thumbprint": "AB:CD"}, "64 hexadecimal"),
        ({"page": "0"}, "above 0"),
        ({"call_deadline_s": "soon"}, "no number"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field(config, why):
    with pytest.raises(BadSettings, match=why) as raised:
        settings_of({"url": "https://vc", "user": "u"} | config, SECRETS)

    assert next(iter(config)) in str(raised.value)


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
