"""Certificates on a cluster: how gateways listen behind a load balancer, what cert-manager is asked, what refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from provisioners.driver import GatewaySpec, NotSupported, Presence, Secret
from provisioners.kubernetes import capabilities, gateways, reading_endpoint, workloads
from provisioners.kubernetes.capabilities import Facts
from provisioners.kubernetes.connection import CONNECTION, judge
from provisioners.kubernetes.objects import Object, dig
from provisioners.kubernetes.settings import BadSettings, Settings, settings_of
from tests.kubernetes import samples
from tests.kubernetes.samples import BOUNDARY
from tests.kubernetes.test_reading_endpoint import applied

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAME = "*.acme.models.example.com"
BALANCED = {"access": "load-balancer", "zone": "models.example.com"}
MANAGED = {**BALANCED, "certificates": "cert-manager", "certificate_issuer": "ClusterIssuer/internal"}


def settings(**changes: Any) -> Settings:
    return samples.settings(**changes)


def gateway(source: str) -> GatewaySpec:
    issuer = "ClusterIssuer/internal" if source == "cert-manager" else ""
    return replace(samples.gateway(), names=(NAME,), certificates=source, issuer=issuer)


def objects(source: str, chosen: Settings, served: tuple[str, ...] = ("Certificate",)) -> dict[str, Object]:
    return {one["kind"]: one for one in gateways.gateway_objects(BOUNDARY, gateway(source), chosen, served)}


def container(found: dict[str, Object]) -> Object:
    made: Object = dig(found["Deployment"], "spec", "template", "spec", "containers", 0)
    return made


def argv(found: dict[str, Object]) -> str:
    return " ".join(container(found)["command"])


def test_without_certificates_nothing_is_as_it_was_not() -> None:
    for chosen in (settings(**BALANCED), settings(access="cluster")):
        found = objects("", chosen)

        assert "--tls" not in argv(found)
        assert found["Service"]["spec"]["ports"][0]["port"] == 80
        assert "Certificate" not in found
        assert container(found)["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


@pytest.mark.parametrize("source", ["own-ca", "files"])
def test_a_gateway_that_gets_its_certificate_from_home_listens_with_tls_and_has_no_secret_of_it(source: str) -> None:
    found = objects("home", settings(**BALANCED, certificates=source))

    assert argv(found).endswith("--end-when-hopeless --tls")
    assert found["Service"]["spec"]["ports"] == [
        {"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}
    ]
    assert container(found)["ports"][0]["name"] == "https"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(found)[probe]["httpGet"]["scheme"] == "HTTPS"
    assert "Certificate" not in found
    assert [one["name"] for one in dig(found["Deployment"], "spec", "template", "spec", "volumes")] == ["state", "tmp"]


def test_cert_manager_is_asked_for_the_tenants_names_and_the_gateway_shows_what_it_makes() -> None:
    found = objects("cert-manager", settings(**MANAGED))

    assert found["Certificate"]["spec"] == {
        "secretName": "tn-gateway-tls",
        "dnsNames": [NAME],
        "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "internal"},
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["digital signature", "server auth"],
    }
    assert argv(found).endswith("--tls --certificate=/tls/tls.crt --key=/tls/tls.key")
    volume = dig(found["Deployment"], "spec", "template", "spec", "volumes", 2)
    assert volume == {
        "name": "tls", "secret": {"secretName": "tn-gateway-tls", "optional": True, "defaultMode": 0o440}
    }  # fmt: skip
    assert list(found)[-1] == "Deployment"


def test_an_issuer_of_another_group_is_named_as_it_is() -> None:
    spec = replace(gateway("cert-manager"), issuer="awspca.cert-manager.io/AWSPCAClusterIssuer/models")
    found = gateways.gateway_objects(BOUNDARY, spec, settings(**MANAGED), {"Certificate"})

    asked = next(one for one in found if one["kind"] == "Certificate")
    assert asked["spec"]["issuerRef"] == {
        "group": "awspca.cert-manager.io", "kind": "AWSPCAClusterIssuer", "name": "models"
    }  # fmt: skip


def test_without_cert_manager_the_step_says_what_mends_it() -> None:
    with pytest.raises(NotSupported, match="install cert-manager"):
        objects("cert-manager", settings(**MANAGED), served=())
    found = capabilities.assess(Facts("v1.36.3", lambda _api, _kind: False), settings(**MANAGED))
    assert found.missing["certificates"] == "Certificates are to come from cert-manager, and it is not installed."
    assert "certificates" not in capabilities.assess(
        Facts("v1.36.3", lambda _api, _kind: False), settings(**BALANCED)
    ).missing  # fmt: skip


def test_another_source_name_or_issuer_is_another_intent_and_none_is_the_one_of_before() -> None:
    spec = samples.boundary()

    def intent(one: GatewaySpec) -> str:
        return gateways.gateway_step(spec, one).want

    plain = samples.gateway()
    assert intent(replace(plain, names=(NAME,))) == intent(plain)
    others = [
        gateway("home"),
        gateway("cert-manager"),
        replace(gateway("cert-manager"), issuer="ClusterIssuer/other"),
        replace(gateway("home"), names=("*.beta.models.example.com",)),
    ]
    assert len({intent(one) for one in [plain, *others]}) == 5


def test_the_address_is_https_and_an_endpoints_service_leads_to_it() -> None:
    service: Object = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}

    assert reading_endpoint.balanced(service, tls=True) == ("https://192.0.2.7/v1", "tenant")
    assert reading_endpoint.balanced(service) == ("http://192.0.2.7/v1", "tenant")
    chosen = settings(**BALANCED, certificates="own-ca")
    published = workloads.service_objects(samples.endpoint(), chosen, ())[0]
    assert dig(published, "spec", "ports", 0, "port") == 443


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([], "it has not looked at it yet"),
        ([{"type": "Ready", "status": "False", "message": "Referenced issuer not found"}], "Referenced issuer"),
        ([{"type": "Ready", "status": "True", "message": "ok"}], ""),
    ],
)
def test_what_cert_manager_says_is_what_the_gateway_waits_for(conditions: list[Object], said: str) -> None:
    made = gateways.gateway_objects(BOUNDARY, gateway("cert-manager"), settings(**MANAGED), {"Certificate"})
    found = applied(made, "namespace.gateway", BOUNDARY)
    for one in found:
        if one["kind"] == "Certificate":
            one["status"] = {"conditions": conditions}

    assert said in reading_endpoint._why_no_certificate(found)
    assert bool(said) == bool(reading_endpoint._why_no_certificate(found))
    part = reading_endpoint.gateway_part(BOUNDARY, found, [], now=NOW)
    assert part is not None
    assert part.presence is Presence.PRESENT


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"certificates": "own-ca"}, "certificates", "behind a load balancer only"),
        ({"certificates": "own-ca", "access": "load-balancer"}, "zone", "need a zone"),
        ({**MANAGED, "certificate_issuer": ""}, "certificate_issuer", "needs to know who signs"),
        ({**MANAGED, "certificate_issuer": "Issuer/mine"}, "certificate_issuer", "one namespace's"),
        ({**MANAGED, "certificate_issuer": "internal"}, "certificate_issuer", "ClusterIssuer/name"),
        ({**BALANCED, "certificates": "letsencrypt"}, "certificates", "none, own-ca, files, cert-manager"),
        (
            {"certificates": "files", "access": "route", "route_parent": "a/b", "zone": "x.example"},
            "certificates", "TLS ends at the shared Gateway",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused_at_the_one_that_is_wrong(
    config: dict[str, Any], key: str, words: str
) -> None:
    found = judge(config)

    assert found is not None
    assert (found[0], words in found[1]) == (key, True)
    with pytest.raises(BadSettings):
        settings_of({"url": "https://x.invalid", **config}, {"token": Secret("t")})


def test_secrets_are_asked_for_where_they_are_needed() -> None:
    lacks = CONNECTION.lacks
    images = {"gateway_image": "x", "vllm_image": "x", **BALANCED}

    assert lacks is not None
    assert lacks({**images, "certificates": "own-ca"}, {"kubeconfig"}) == (
        "secret.endpoint-authority", "Give the authority that signs: its certificate and its key."
    )  # fmt: skip
    assert lacks({**images, "certificates": "own-ca"}, {"kubeconfig", "endpoint-authority"}) is None
    assert lacks({**images, **MANAGED}, {"kubeconfig"}) is None
