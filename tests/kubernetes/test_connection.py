"""A pasted kubeconfig: what is taken, and what is refused before it is stored."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from provisioners.driver import Secret
from provisioners.kubernetes import connection
from provisioners.kubernetes.connection import CONNECTION
from provisioners.kubernetes.settings import KEYS, settings_of

README = Path(__file__).parents[2] / "deploy" / "kubernetes" / "README.md"
CA = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").decode()


def kubeconfig(user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {"name": "c", "cluster": cluster or {"server": "https://x.invalid", "certificate-authority-data": CA}}
            ],
            "users": [{"name": "u", "user": user if user is not None else {"token": "a-token"}}],
        }
    )


def refusal(text: str) -> str:
    one = CONNECTION.credential("kubeconfig")
    assert one is not None
    assert one.refuses is not None
    return one.refuses(text)


def test_a_kubeconfig_with_a_token_or_a_client_certificate_is_taken() -> None:
    assert refusal(kubeconfig()) == ""
    assert refusal(kubeconfig({"client-certificate-data": CA, "client-key-data": CA})) == ""


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"exec": {"command": "aws", "args": ["eks", "get-token"]}}, "would run a program (aws)"),
        ({"auth-provider": {"name": "gcp"}}, "auth provider"),
        ({"tokenFile": "/etc/shadow"}, "tokenFile names a file"),
        ({"client-certificate": "/etc/passwd", "client-key": "/root/key"}, "names a file"),
        ({"username": "root", "password": "p4ss-w0rd"}, "user name and password are refused"),
        ({"token": "t", "as": "system:admin"}, "impersonates"),
        ({"client-certificate-data": CA}, "neither a token nor a client certificate"),
        ({"client-certificate-data": "!!", "client-key-data": CA}, "no base64"),
        ({}, "neither a token"),
    ],
)
def test_what_would_run_read_or_pretend_something_is_refused(user, words) -> None:
    said = refusal(kubeconfig(user))

    assert words in said
    assert "p4ss-w0rd" not in said


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"server": "https://x.invalid", "insecure-skip-tls-verify": True}, "does not check the server's certificate"),
        ({"server": "http://x.invalid"}, "beginning with https://"),
        ({"server": "https://u:p@x.invalid"}, "without user"),
        ({"server": "https://x.invalid", "certificate-authority": "/etc/ssl/ca.pem"}, "names a file"),
        ({"server": "https://x.invalid", "proxy-url": "http://proxy"}, "proxy"),
        ({"server": "https://x.invalid:99999"}, "no address"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_refused(cluster, words) -> None:
    assert words in refusal(kubeconfig(cluster=cluster))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no YAML"),
        ("- 1", "no kubeconfig"),
        ("kind: Pod", "no kubeconfig"),
        ("kind: Config\ncurrent-context: gone\ncontexts: []", "no context named 'gone'"),
        ("kind: Config", "names none"),
        ("a: &x [1]\nb: *x\nkind: Config", "aliases"),
        ("kind: Config\n" + "#" * 70_000, "more than"),
    ],
)
def test_what_is_no_kubeconfig_is_said_to_be_none(text, words) -> None:
    assert words in refusal(text)


def test_the_words_of_a_refusal_are_an_error_of_its_own() -> None:
    with pytest.raises(connection.Unusable, match="no YAML"):
        connection.check_kubeconfig("a: [")


@pytest.mark.parametrize(
    ("config", "secrets", "missing"),
    [
        ({"access": "lab"}, {"kubeconfig"}, None),
        ({"access": "lab", "url": "https://x.invalid"}, {"token"}, None),
        ({"access": "lab"}, {"token"}, "config.url"),
        ({"access": "lab", "url": "https://x.invalid"}, set(), "secret.kubeconfig"),
        ({"access": "cluster"}, {"kubeconfig"}, "config.gateway_image"),
    ],
)
def test_a_kubeconfig_or_else_address_and_token_are_needed(config, secrets, missing) -> None:
    found = CONNECTION.missing(config, secrets)

    assert (found and found[0]) == missing


@pytest.mark.parametrize(
    ("image", "fits"),
    [
        ("registry.internal/a/b@sha256:" + "0" * 64, True),
        ("registry.internal:5000/b:v1@sha256:" + "a" * 64, True),
        ("registry.internal/a/b:latest", False),
        ("b@sha256:" + "0" * 64, False),
        ("registry.internal/a/b@sha256:" + "0" * 63, False),
    ],
)
def test_images_are_pinned_by_digest(image, fits) -> None:
    setting = CONNECTION.setting("gateway_image")

    assert setting is not None
    assert setting.refuses is not None
    assert (setting.refuses(image) == "") is fits


def test_every_setting_is_documented_and_asked_for_or_said_to_be_for_the_command_line() -> None:
    text = README.read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    last = text.partition("For the command line and the API only:")[2].partition("\n\n")[0]
    asked = {setting.key for setting in CONNECTION.settings}

    assert {key for cell in cells for key in re.findall(r"`(\w+)`", cell)} == asked
    assert {key for key in KEYS if f"`{key}`" in last} == KEYS - asked


def test_a_default_that_is_written_in_a_form_is_the_drivers() -> None:
    plain = settings_of({"url": "https://x.invalid"}, {"token": Secret("t")})
    told = {setting.key: setting for setting in CONNECTION.settings}

    assert f"Empty: {plain.proxy.namespace}." in told["proxy"].sentence
    assert f"Empty: {plain.dns.namespace}:k8s-app={plain.dns.labels['k8s-app']}." in told["dns"].sentence
    assert f"Empty: {plain.pod_security_version}." in told["pod_security_version"].sentence
    assert (plain.read_only_root, plain.vm_instance_uuid, plain.cache_gib) == (True, False, 0)
    assert (told["read_only_root"].choices[0][0], told["vm_instance_uuid"].choices[0][0]) == ("true", "false")


@given(key=st.sampled_from(sorted(setting.key for setting in CONNECTION.settings)), text=st.text(max_size=60))
def test_whatever_is_typed_is_taken_or_refused_in_words(key: str, text: str) -> None:
    setting = CONNECTION.setting(key)
    assert setting is not None
    said = setting.refusal(text) if text else ""

    assert said == "" or said.rstrip().endswith((".", ")"))
    if not said:
        found = CONNECTION.refusal({key: text, "route_parent": "gw/shared"} if key == "access" else {key: text})
        assert found is None
