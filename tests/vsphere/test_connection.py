"""What the form for a vCenter asks for: every setting of the driver, judged as the driver reads it."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners import registry
from provisioners.driver import Secret
from provisioners.vsphere import privileges
from provisioners.vsphere.connection import CONNECTION
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.settings import Settings

INNER = {"slug", "host", "port", "password", "page", "call_deadline_s", "clones", "clones_per_host", "endpoint_image"}
"""Settings that nobody is asked for."""


def refusal(key: str, text: str) -> str:
    one = CONNECTION.setting(key)
    assert one is not None
    assert one.refuses is not None
    return one.refuses(text)


def test_everything_that_the_driver_can_be_told_is_asked_for():
    assert {one.key for one in CONNECTION.settings} == {one.name for one in fields(Settings)} - INNER | {"url"}
    assert [one.name for one in CONNECTION.credentials] == ["password", "endpoint-authority", "endpoint-certificates"]


def test_every_example_is_taken():
    for one in CONNECTION.settings:
        if one.example and one.refuses is not None:
            assert one.refuses(one.example) == "", one.key


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("url", "http://vc", "The address of a vCenter starts with https"),
        ("url", "https://u:p@vc", "No credential belongs"),
        ("clusters", "a/b", "holds a slash"),
        ("root_folder", "..%2f..", "percent"),
        ("vlans", "1-5000", "from 1 to 4094"),
        ("templates", "ubuntu", "not written image=template"),
        ("tenant_group", "CORP\\all", "exactly once"),
        ("ca_pem", "-----BEGIN", "Holds no certificate"),
        ("thumbprint", "AB", "64 hexadecimal"),
        ("templates", "a" * 70_000, "more than 65536"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(key, text, words):
    assert words in refusal(key, text)


def test_without_a_template_or_a_password_something_is_missing():
    assert CONNECTION.missing({"templates": "a=b"}, ()) == ("secret.password", "This is needed.")
    assert CONNECTION.missing({}, ("password",)) == (
        "config.templates", "Name at least one template or content library, or no machine can be made."
    )  # fmt: skip
    assert CONNECTION.missing({"templates": "a=b"}, ("password",)) is None


def test_what_was_taken_makes_a_driver():
    config = {one.key: one.example for one in CONNECTION.settings if one.example} | {"access": "lab"}

    driver = registry.make_driver("vsphere", config, {"password": Secret("secret")})

    assert isinstance(driver, VSphereDriver)
    assert driver.settings.templates == {"ubuntu-24.04": "ubuntu-24.04-gpu"}
    assert "secret" not in repr(driver)
    driver.close()


def test_the_role_is_shown_to_be_copied():
    [document] = CONNECTION.documents

    assert (document.file, document.text) == ("vcenter-role.md", privileges.document())


HOSTILE = st.one_of(
    st.text(min_size=1, max_size=80),
    st.text("[]:/@%?#\\{}\u2215\uff0f\u202e\x00\r\n=,-0123456789aé", min_size=1, max_size=40),
    st.sampled_from(["https://[", "https://[::1", "https://a:b", "https://\u2100", "-----BEGIN CERTIFICATE-----\x00"]),
)


@pytest.mark.parametrize("key", [one.key for one in CONNECTION.settings if one.refuses is not None])
@given(text=HOSTILE)
def test_whatever_is_typed_is_taken_or_refused_in_words(key, text):
    said = refusal(key, text)

    assert said == "" or said[-1] in ".)"
