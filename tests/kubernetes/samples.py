"""Specs and settings that the tests of the Kubernetes driver share; plain and hostile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from provisioners.driver import (
    Binding,
    BoundaryKind,
    BoundarySpec,
    EndpointSpec,
    GatewaySpec,
    Kind,
    Ref,
    Secret,
    ServingSpec,
    UnitSpec,
)
from provisioners.kubernetes.gpu import Request
from provisioners.kubernetes.settings import Peer, RouteParent, Settings

TENANT = UUID("11111111-1111-4111-8111-111111111111")
BOUNDARY = Ref(Kind.BOUNDARY, UUID("22222222-2222-4222-8222-222222222222"), TENANT)
ENDPOINT = Ref(Kind.ENDPOINT, UUID("33333333-3333-4333-8333-333333333333"), TENANT)
UNIT = UUID("44444444-4444-4444-8444-444444444444")
GATEWAY = UUID("55555555-5555-4555-8555-555555555555")
REVISION = UUID("66666666-6666-4666-8666-666666666666")
TOKEN = "one-time-token-9f8e7d"
HF_TOKEN = "hf_secret_text_1a2b3c"
VLLM_KEY = "hop-key-77aa"
DIGEST = "sha256:" + "0" * 64

HOSTILE = (
    "$(VLLM_API_KEY)",
    "$$(HOME)",
    "$",
    "--trust-remote-code",
    "a; rm -rf / #",
    "`id`",
    "{{ .Values.x }}",
    "'\"\\",
    "line\nbreak",
    "\u202eright to left",
    "日本語 ✓ 🜲",
    "</script><script>",
    "a" * 4000,
    "null",
    "true",
    "1e3",
    "*",
    "&anchor",
    "%00",
)
"""Values that a tenant could try; none of them may become anything but itself."""


def settings(**changes: Any) -> Settings:
    base = Settings(
        slug="lab",
        url="https://127.0.0.1:6443",
        gateway_image=f"registry.internal/tenantry/gateway@{DIGEST}",
        vllm_image=f"registry.internal/vllm/vllm-openai@{DIGEST}",
        control_plane_cidrs=("192.0.2.10/32",),
        model_mirror_cidrs=("192.0.2.20/32",),
        proxy=Peer("gateway-system", {"app.kubernetes.io/component": "proxy"}),
        monitoring_namespace="monitoring",
    )
    return replace(base, **changes)


ROUTED = {
    "access": "route",
    "zone": "models.example.com",
    "route_parent": RouteParent("gateway-system", "tenants", "https"),
}


def unit(index: int = 0, **changes: Any) -> UnitSpec:
    base = UnitSpec(
        uid=UUID(int=UNIT.int + index),
        index=index,
        host="node-a",
        product="H100-80GB",
        profile="1g.10gb",
        gpu_count=0,
        binding=Binding.HOST,
        devices=("node-a-gpu-0",),
        starts=(index,),
        vcpu=4,
        memory_gib=16,
    )
    return replace(base, **changes)


def serving(**changes: Any) -> ServingSpec:
    base = ServingSpec(
        revision_uid=REVISION,
        revision=3,
        model="chat",
        source="org/model",
        commit="0" * 40,
        runtime="vllm",
        argv=("vllm", "serve", "org/model", "--served-model-name=chat", "--host=0.0.0.0", "--port=8000"),
        environment={"VLLM_LOGGING_LEVEL": "INFO"},
        secrets={"HF_TOKEN": Secret(HF_TOKEN), "VLLM_API_KEY": Secret(VLLM_KEY)},
    )
    return replace(base, **changes)


def endpoint(*units: UnitSpec, **changes: Any) -> EndpointSpec:
    base = EndpointSpec(
        ref=ENDPOINT,
        boundary=BOUNDARY,
        boundary_kind=BoundaryKind.NAMESPACE,
        generation=1,
        serving=serving(),
        units=units or (unit(),),
        gateways=(),
    )
    return replace(base, **changes)


def hostile_serving() -> ServingSpec:
    """A revision whose every value is hostile, past what the runtime would ever let through."""
    return serving(
        model=HOSTILE[0],
        source=HOSTILE[4],
        argv=("vllm", "serve", *HOSTILE),
        environment={f"TENANT_{number}": text for number, text in enumerate(HOSTILE)},
        secrets={f"SECRET_{number}": Secret(text) for number, text in enumerate(HOSTILE)},
    )


def gateway(token: str = TOKEN, url: str = "https://tenantry.example") -> GatewaySpec:
    return GatewaySpec(GATEWAY, url, Secret(token) if token else None)


def boundary(**changes: Any) -> BoundarySpec:
    base = BoundarySpec(
        ref=BOUNDARY,
        kind=BoundaryKind.NAMESPACE,
        tier="shared",
        generation=1,
        gateway=gateway(),
        vcpu=16,
        memory_gib=64,
        storage_gib=100,
        gpu_resources={"H100-80GB.1g.10gb": 2},
        access=(("p-1", "member"),),
    )
    return replace(base, **changes)


PLUGIN = Request(
    node_selector={"kubernetes.io/hostname": "node-a"},
    resources={"nvidia.com/mig-1g.10gb": "1"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
)
"""What a unit asks of a node with the device plugin."""
