"""What a provider's row says of a cluster: read once, refused by name, credentials shown nowhere."""

from __future__ import annotations

import base64

import pytest
import yaml

from provisioners.driver import Secret
from provisioners.kubernetes.settings import BadSettings, Peer, RouteParent, settings_of

TOKEN = {"token": Secret("t0ken-text\n")}


def kubeconfig(cluster: dict[str, object] | None = None, user: dict[str, object] | None = None) -> dict[str, Secret]:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster or {"server": "https://10.0.0.1:6443"}}],
        "users": [{"name": "u", "user": user or {"token": "t0ken-text"}}],
    }
    return {"kubeconfig": Secret(yaml.safe_dump(document))}


def test_config_is_read_with_its_types_and_defaults() -> None:
    config = {
        "url": "https://k8s.example:6443/",
        "dns": "kube-system:k8s-app=kube-dns,tier=x",
        "proxy": {"namespace": "ingress", "labels": {"app": "envoy"}},
        "registries": "registry.example/a, registry.example/b",
        "control_plane_cidrs": ["10.1.0.0/16"],
        "read_only_root": "false",
        "page": "50",
        "reads_per_s": 5,
        "access": "route",
        "route_parent": "gw/shared/https",
    }

    found = settings_of(config, TOKEN)

    assert (found.slug, found.url, found.page, found.reads_per_s) == (
        "k8s.example", "https://k8s.example:6443", 50, 5.0,
    )  # fmt: skip
    assert found.dns == Peer("kube-system", {"k8s-app": "kube-dns", "tier": "x"})
    assert found.proxy == Peer("ingress", {"app": "envoy"})
    assert found.registries == ("registry.example/a", "registry.example/b")
    assert found.route_parent == RouteParent("gw", "shared", "https")
    assert found.read_only_root is False
    assert found.token == Secret("t0ken-text")
    assert "t0ken" not in repr(found)


def test_a_kubeconfig_gives_address_certificate_and_credential() -> None:
    ca = base64.b64encode(b"PEM").decode()
    cluster: dict[str, object] = {"server": "https://10.0.0.1:6443", "certificate-authority-data": ca}

    found = settings_of({}, kubeconfig(cluster))

    assert (found.url, found.ca_pem, found.token) == ("https://10.0.0.1:6443", "PEM", Secret("t0ken-text"))


@pytest.mark.parametrize(
    ("config", "secrets", "says"),
    [
        ({"url": "http://k8s"}, TOKEN, "https://"),
        ({"url": "https://u:p@k8s"}, TOKEN, "no credential"),
        ({"url": "https://k8s", "access": "magic"}, TOKEN, "access"),
        ({"url": "https://k8s", "access": "route"}, TOKEN, "route_parent"),
        ({"url": "https://k8s", "control_plane_cidrs": "10.0.0.0/99"}, TOKEN, "no network"),
        ({"url": "https://k8s", "page": "0"}, TOKEN, "above 0"),
        ({"url": "https://k8s", "read_only_root": "maybe"}, TOKEN, "true or false"),
        ({}, kubeconfig(user={"exec": {"command": "rm"}}), "never run"),
        ({}, kubeconfig({"server": "https://k8s", "insecure-skip-tls-verify": True}), "insecure-skip-tls-verify"),
        ({}, kubeconfig(user={"tokenFile": "/etc/shadow"}), "names files"),
        ({}, {"kubeconfig": Secret("current-context: nothing")}, "names no entry"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(config: dict[str, str], secrets: dict[str, Secret], says: str) -> None:
    with pytest.raises(BadSettings, match=says):
        settings_of(config, secrets)


def test_a_missing_address_or_credential_is_named() -> None:
    with pytest.raises(KeyError, match="url"):
        settings_of({}, TOKEN)
    with pytest.raises(KeyError, match="token"):
        settings_of({"url": "https://k8s"}, {})
