"""Model servers and gateways as objects: what a container really gets, what it may do, how it is replaced."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.labs.kubernetes import environment
from provisioners.driver import Binding, BoundaryKind, DriverRejected, EndpointSpec, NotSupported, Power, Secret
from provisioners.kubernetes import gateways, objects, pods, workloads
from provisioners.kubernetes.gpu import Request
from provisioners.serving.runtime import MIRROR_PATH
from provisioners.steps import order_of
from tests.kubernetes.samples import (
    BOUNDARY,
    ENDPOINT,
    HF_TOKEN,
    HOSTILE,
    PLUGIN,
    ROUTED,
    TOKEN,
    VLLM_KEY,
    boundary,
    endpoint,
    gateway,
    hostile_serving,
    serving,
    settings,
    unit,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
DOLLARS = st.lists(st.sampled_from(["$", "$$", "$(", ")", "(", "HOME", "$(HOME)", "$(A", "x", "{", "}", " "])).map(
    "".join
)


def expanded(text: str, values: Mapping[str, str]) -> str:
    """What the kubelet makes of a value (kubernetes v1.36.3, third_party/forked/golang/expansion/expand.go)."""
    out, checkpoint, cursor = "", 0, 0
    while cursor < len(text):
        if text[cursor] == "$" and cursor + 1 < len(text):
            out += text[checkpoint:cursor]
            read, is_variable, advance = _variable(text[cursor + 1 :])
            out += values.get(read, f"$({read})") if is_variable else read
            cursor += advance
            checkpoint = cursor + 1
        cursor += 1
    return out + text[checkpoint:]


def _variable(text: str) -> tuple[str, bool, int]:
    if text[0] == "$":
        return "$", False, 1
    if text[0] == "(":
        for at in range(1, len(text)):
            if text[at] == ")":
                return text[1:at], True, at + 1
        return "$(", False, 1
    return "$" + text[0], False, 1


def replica(**changes: Any) -> dict[str, Any]:
    """The Deployment of the first replica."""
    spec = endpoint(**changes)
    found = workloads.replica_objects(spec, spec.units[0], settings(), PLUGIN)
    return found[-1]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def every_object(**changes: Any) -> Iterator[dict[str, Any]]:
    spec = endpoint(unit(0), unit(1), **changes)
    chosen = settings(**ROUTED, cache_gib=50, storage_class="fast", gateway_storage_class="fast")
    served = {"HTTPRoute", "PodMonitor"}
    yield from workloads.secret_objects(spec)
    for one in spec.units:
        yield from workloads.replica_objects(spec, one, chosen, PLUGIN)
    yield from workloads.service_objects(spec, chosen, served)
    yield from gateways.gateway_objects(BOUNDARY, gateway(), chosen, served)


# --- values ---------------------------------------------------------------------------------------


@given(TEXT | DOLLARS, st.dictionaries(st.sampled_from(["HOME", "A", ""]), st.just("LEAKED"), max_size=3))
def test_the_kubelet_gives_back_exactly_what_was_written_whatever_it_is(text: str, values: dict[str, str]) -> None:
    assert expanded(pods.escaped(text), values) == text


@given(
    st.lists(TEXT | DOLLARS, min_size=1, max_size=6),
    st.dictionaries(st.from_regex(r"T_[A-Z]{1,8}", fullmatch=True), TEXT | DOLLARS, max_size=4),
)
def test_argv_and_environment_reach_the_program_as_the_revision_has_them(
    words: list[str], variables: dict[str, str]
) -> None:
    argv = ("vllm", *(word for word in words if not word.startswith("--api-key")))

    made = container(replica(serving=serving(argv=argv, environment=variables)))

    given_environment = {one["name"]: one["value"] for one in made["env"] if "value" in one}
    leaked = dict.fromkeys([*given_environment, "VLLM_API_KEY", "HF_TOKEN"], "LEAKED")
    seen = [expanded(word, leaked) for word in made["command"]]
    assert seen[: len(argv)] == list(argv)
    assert set(seen[len(argv) :]) <= {"--shutdown-timeout=120"}
    assert {name: expanded(given_environment[name], leaked) for name in variables} == variables
    assert "args" not in made


@given(TEXT | DOLLARS)
def test_the_labs_player_expands_as_the_kubelet_does(text: str) -> None:
    values = {"HOME": "/tmp", "A": "$(HOME)"}

    assert environment.expand(text, values) == expanded(text, values)


def test_the_labs_player_gives_a_model_server_its_secrets_and_its_words() -> None:
    spec = endpoint(serving=hostile_serving())
    (secret,) = workloads.secret_objects(spec)
    deployment = workloads.replica_objects(spec, spec.units[0], settings(), PLUGIN)[-1]
    template = deployment["spec"]["template"]
    pod = {"metadata": {**template["metadata"], "namespace": BOUNDARY.name, "name": "p"}, "spec": template["spec"]}
    sources = environment.Sources(secrets={secret["metadata"]["name"]: secret})

    seen = environment.environment_of(pod, container(deployment), sources)
    command, arguments = environment.argv_of(container(deployment), seen)

    assert command == [*spec.serving.argv, "--shutdown-timeout=120"]
    assert arguments == []
    assert {name: seen[name] for name in spec.serving.environment} == spec.serving.environment
    assert {name: seen[name] for name in spec.serving.secrets} == {
        name: secret.reveal() for name, secret in spec.serving.secrets.items()
    }


def test_a_lone_surrogate_and_nul_are_refused() -> None:
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(DriverRejected):
            workloads.endpoint_steps(endpoint(serving=serving(argv=("vllm", "serve", bad))))
        with pytest.raises(DriverRejected):
            workloads.endpoint_steps(endpoint(serving=serving(environment={"A": bad})))


@pytest.mark.parametrize(
    "name",
    ["NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "PYTHONPATH", "A B", "", "1A", "A=B", "$(A)"],
)
def test_names_that_reach_past_the_container_or_are_none_are_refused(name: str) -> None:
    with pytest.raises(DriverRejected):
        workloads.endpoint_steps(endpoint(serving=serving(environment={name: "all"})))
    with pytest.raises(DriverRejected):
        workloads.endpoint_steps(endpoint(serving=serving(secrets={name: Secret("all")})))


def test_a_tenant_cannot_move_the_folders_that_vllm_writes_to() -> None:
    made = container(replica(serving=serving(environment={"HOME": "/", "HF_HOME": "/dev"})))

    found = {one["name"]: one.get("value") for one in made["env"]}
    assert (found["HOME"], found["HF_HOME"]) == ("/tmp/home", "/models")
    assert len(found) == len(made["env"])


@pytest.mark.parametrize("argv", [("vllm", "serve", "m", "--api-key", "x"), ("vllm", "serve", "m", "--api-key=x")])
def test_a_key_never_stands_on_a_command_line(argv: tuple[str, ...]) -> None:
    with pytest.raises(DriverRejected, match="VLLM_API_KEY"):
        workloads.endpoint_steps(endpoint(serving=serving(argv=argv)))


def test_a_key_is_no_plain_variable() -> None:
    with pytest.raises(DriverRejected):
        workloads.endpoint_steps(endpoint(serving=serving(environment={"VLLM_API_KEY": "x"}, secrets={})))


def test_secrets_stand_in_secrets_only_and_are_referred_to_by_name() -> None:
    for made in every_object():
        text = json.dumps(made)
        if made["kind"] != "Secret":
            for secret in (HF_TOKEN, VLLM_KEY, TOKEN):
                assert secret not in text
                assert base64.b64encode(secret.encode()).decode() not in text

    key = next(one for one in container(replica())["env"] if one["name"] == "VLLM_API_KEY")
    assert key == {
        "name": "VLLM_API_KEY",
        "valueFrom": {
            "secretKeyRef": {"name": workloads.secret_name(ENDPOINT, serving()), "key": "VLLM_API_KEY"},
        },
    }
    (secret,) = workloads.secret_objects(endpoint())
    assert base64.b64decode(secret["data"]["HF_TOKEN"]).decode() == HF_TOKEN


def test_no_value_of_a_tenant_becomes_a_name_a_label_or_a_field() -> None:
    plain = {(made["kind"], made["metadata"]["name"]) for made in every_object()}

    for made in every_object(serving=hostile_serving()):
        assert (made["kind"], made["metadata"]["name"]) in plain
        for labels in _values_of(made, "labels"):
            assert not set(labels.values()) & set(HOSTILE)


def _values_of(value: Any, key: str) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, below in value.items():
            if name == key:
                yield below
            yield from _values_of(below, key)
    elif isinstance(value, list):
        for below in value:
            yield from _values_of(below, key)


# --- what a pod may do ----------------------------------------------------------------------------


def test_every_pod_is_as_pod_security_restricted_asks() -> None:
    templates = [made["spec"]["template"]["spec"] for made in every_object() if made["kind"] == "Deployment"]

    assert len(templates) == 3
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
        for one in pod["containers"]:
            context = one["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context
            assert all("hostPort" not in port for port in one["ports"])
        kinds = {name for volume in pod["volumes"] for name in volume} - {"name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }


def test_a_read_only_root_is_the_providers_choice_and_everything_vllm_writes_is_on_a_volume() -> None:
    spec = endpoint()
    for wanted in (True, False):
        made = workloads.replica_objects(spec, spec.units[0], settings(read_only_root=wanted), PLUGIN)[-1]
        assert container(made)["securityContext"]["readOnlyRootFilesystem"] is wanted

    mounted = [mount["mountPath"] for mount in container(replica())["volumeMounts"]]
    paths = [value for value in workloads.SERVING_ENVIRONMENT.values() if value.startswith("/")]
    assert "/dev/shm" in mounted
    assert all(any(path == root or path.startswith(f"{root}/") for root in mounted) for path in paths)


def test_a_mirror_on_nfs_is_a_volume_of_a_driver_which_nobody_writes_and_s3_needs_none() -> None:
    on_nfs = replica(serving=serving(mirror="nfs://files.example/exports/models"))
    on_s3 = replica(serving=serving(mirror="s3://weights/mirror"))

    volume = on_nfs["spec"]["template"]["spec"]["volumes"][0]
    mount = container(on_nfs)["volumeMounts"][0]
    assert volume == {
        "name": "mirror",
        "csi": {
            "driver": "nfs.csi.k8s.io", "readOnly": True,
            "volumeAttributes": {"server": "files.example", "share": "/exports/models"},
        },
    }  # fmt: skip
    assert mount == {"name": "mirror", "mountPath": MIRROR_PATH, "readOnly": True}
    assert on_s3["spec"]["template"]["spec"]["volumes"] == replica()["spec"]["template"]["spec"]["volumes"]


def test_a_pods_images_are_those_of_the_settings() -> None:
    found = {
        made["spec"]["template"]["spec"]["containers"][0]["image"]
        for made in every_object()
        if made["kind"] == "Deployment"
    }

    assert found == {settings().vllm_image, settings().gateway_image}


def test_limits_are_requests_and_the_share_of_the_node_is_in_both() -> None:
    asked = container(replica())["resources"]

    assert asked["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/mig-1g.10gb": "1"}
    assert asked["requests"] == asked["limits"]
    assert replica()["spec"]["template"]["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "node-a"}


def test_a_claim_is_made_first_and_referred_to_by_pod_and_container() -> None:
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": BOUNDARY.name},
        "spec": {},
    }
    share = Request({}, {}, (claim,), ({"name": "gpu", "resourceClaimName": "c"},), ({"name": "gpu"},))
    spec = endpoint(unit(binding=Binding.DEVICE))

    found = workloads.replica_objects(spec, spec.units[0], settings(), share)

    assert [one["kind"] for one in found] == ["ResourceClaim", "Service", "Deployment"]
    pod = found[-1]["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimName": "c"}]
    assert container(found[-1])["resources"]["claims"] == [{"name": "gpu"}]


# --- life -----------------------------------------------------------------------------------------


def test_probes_ask_health_and_the_end_leaves_time_for_running_requests() -> None:
    made = container(replica())
    grace_s = replica()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert made[name]["httpGet"] == {"path": "/health", "port": "http"}
    assert "--shutdown-timeout=120" in made["command"]
    assert made["lifecycle"]["preStop"]["sleep"]["seconds"] + 120 < grace_s


@pytest.mark.parametrize(
    ("source", "one", "seconds"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", unit(), 1800),
        ("deepseek-ai/DeepSeek-V3", unit(profile="", gpu_count=8), 13_420),
        ("org/unknown", unit(), 1800),
        ("org/unknown", unit(profile="", gpu_count=1), 2200),
        ("org/unknown", unit(profile="", gpu_count=2), 3800),
    ],
)
def test_the_startup_budget_grows_with_the_weights_or_the_gpu_they_must_fit(
    source: str, one: Any, seconds: int
) -> None:
    spec = endpoint(one, serving=serving(source=source))

    made = workloads.replica_objects(spec, one, settings(), PLUGIN)[-1]

    assert workloads.startup_s(spec.serving, one) == seconds
    probe = container(made)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == seconds
    assert made["spec"]["progressDeadlineSeconds"] > seconds


def test_powered_off_is_no_pod_and_another_want() -> None:
    on, off = endpoint(), endpoint(power=Power.OFF)

    assert replica()["spec"]["replicas"] == 1
    assert replica(power=Power.OFF)["spec"]["replicas"] == 0
    assert workloads.endpoint_steps(on)[1].want != workloads.endpoint_steps(off)[1].want


def canary() -> EndpointSpec:
    """Revision 3 on a unit, and revision 4 beside it on one of its own."""
    newer = serving(
        revision=4, revision_uid=uuid4(), argv=("vllm", "serve", "org/newer"), environment={"NEW": "1"},
        secrets={"VLLM_API_KEY": Secret("key-of-four")},
    )  # fmt: skip
    surge = unit(1, role="surge")
    return endpoint(unit(), surge, beside=newer, on_beside=frozenset({surge.uid}))


def test_each_unit_runs_its_own_revision_with_the_secret_of_that_revision() -> None:
    spec = canary()
    old, new = (workloads.replica_objects(spec, one, settings(), PLUGIN)[-1] for one in spec.units)
    secrets = {one["metadata"]["name"]: one for one in workloads.secret_objects(spec)}

    for made, revision in ((old, spec.serving), (new, spec.beside)):
        assert revision is not None
        assert made["metadata"]["annotations"][workloads.REVISION_ANNOTATION] == str(revision.revision)
        assert made["spec"]["template"]["metadata"]["annotations"][workloads.REVISION_ANNOTATION] == str(
            revision.revision
        )
        assert container(made)["command"][: len(revision.argv)] == list(revision.argv)
        assert made["spec"]["strategy"] == {"type": "Recreate"}
        (name,) = {one["valueFrom"]["secretKeyRef"]["name"] for one in container(made)["env"] if "valueFrom" in one}
        held = {key: base64.b64decode(value).decode() for key, value in secrets[name]["data"].items()}
        assert held == {key: secret.reveal() for key, secret in revision.secrets.items()}
    assert len(secrets) == 2


def test_what_is_tried_out_beside_changes_nothing_of_what_serves() -> None:
    spec = canary()
    alone = replace(spec, units=spec.units[:1], beside=None, on_beside=frozenset())
    before = {step.name: step.want for step in workloads.endpoint_steps(alone)}
    after = {step.name: step.want for step in workloads.endpoint_steps(spec)}

    assert list(after) == ["serving.secret", "serving.replica[0]", "serving.replica[1]", "serving.service"]
    assert {name for name in before if before[name] != after[name]} == {"serving.secret"}
    assert workloads.replica_objects(alone, alone.units[0], settings(), PLUGIN) == workloads.replica_objects(
        spec, spec.units[0], settings(), PLUGIN
    )


def test_a_unit_that_takes_the_revision_over_has_what_the_canary_had() -> None:
    spec = canary()
    assert spec.beside is not None
    surge = spec.units[1]
    promoted = replace(spec, serving=spec.beside, beside=spec.serving, on_beside=frozenset({spec.units[0].uid}))

    assert workloads.replica_objects(promoted, surge, settings(), PLUGIN) == workloads.replica_objects(
        spec, surge, settings(), PLUGIN
    )
    wants = [{step.name: step.want for step in workloads.endpoint_steps(one)} for one in (spec, promoted)]
    assert wants[0] == wants[1]  # nothing is made anew, nor is anything else done
    assert {one["metadata"]["name"] for one in workloads.secret_objects(spec)} == {
        one["metadata"]["name"] for one in workloads.secret_objects(promoted)
    }


def test_a_revision_that_cannot_be_served_is_refused_by_its_own_replica_only() -> None:
    spec = canary()
    assert spec.beside is not None
    bad = replace(spec, beside=replace(spec.beside, argv=("vllm", "serve", "m", "--api-key=x")))

    steps = workloads.endpoint_steps(bad)

    assert len(steps) == 4
    assert workloads.replica_objects(bad, bad.units[0], settings(), PLUGIN)
    with pytest.raises(DriverRejected, match="VLLM_API_KEY"):
        workloads.replica_objects(bad, bad.units[1], settings(), PLUGIN)


def test_a_budget_against_disruption_only_where_another_replica_is_left() -> None:
    alone = workloads.service_objects(endpoint(unit()), settings(), set())
    two = workloads.service_objects(endpoint(unit(0), unit(1)), settings(), set())

    assert [one["kind"] for one in alone] == ["Service"]
    assert [one["kind"] for one in two] == ["Service", "PodDisruptionBudget"]
    assert [one["kind"] for one in workloads.service_objects(canary(), settings(), set())] == ["Service"]
    assert two[1]["spec"]["minAvailable"] == 1


# --- steps ----------------------------------------------------------------------------------------


def test_steps_are_in_order_and_hold_what_the_cluster_can_be_held_to() -> None:
    spec = endpoint(unit(0), unit(1))
    steps = workloads.endpoint_steps(spec)
    moved = replace(spec, units=(replace(unit(0), devices=("node-a-gpu-1",), starts=(5,)), unit(1)))
    chosen = replace(spec, units=(unit(0, binding=Binding.GPU), unit(1)))
    given_elsewhere = replace(chosen, units=(unit(0, binding=Binding.GPU, starts=(5,)), unit(1)))

    assert [step.name for step in steps] == sorted((step.name for step in steps), key=order_of)
    assert [step.key for step in steps] == [step.key for step in workloads.endpoint_steps(moved)]
    assert [step.key for step in workloads.endpoint_steps(chosen)] == [
        step.key for step in workloads.endpoint_steps(given_elsewhere)
    ]
    assert all(TOKEN not in repr(step) and HF_TOKEN not in repr(step) for step in steps)


def test_a_new_revision_changes_secret_and_replicas_and_not_the_service() -> None:
    spec = endpoint()
    newer = replace(spec, serving=replace(spec.serving, revision=4, revision_uid=uuid4()))

    before = {step.name: step.want for step in workloads.endpoint_steps(spec)}
    after = {step.name: step.want for step in workloads.endpoint_steps(newer)}

    assert {name for name in before if before[name] != after[name]} == {"serving.secret", "serving.replica[0]"}


def test_only_vllm_and_only_namespaces() -> None:
    with pytest.raises(NotSupported):
        workloads.endpoint_steps(endpoint(boundary_kind=BoundaryKind.VM))
    with pytest.raises(NotSupported):
        workloads.endpoint_steps(endpoint(serving=serving(runtime="other")))


def test_selectors_choose_exactly_the_pods_of_one_replica_of_one_endpoint() -> None:
    spec = endpoint(unit(0), unit(1))
    made = [workloads.replica_objects(spec, one, settings(), PLUGIN) for one in spec.units]

    for number, found in enumerate(made):
        service, deployment = found
        template = deployment["spec"]["template"]["metadata"]["labels"]
        chosen = deployment["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= template.items()
        assert service["spec"]["selector"] == chosen
        other = made[1 - number][1]["spec"]["template"]["metadata"]["labels"]
        assert not chosen.items() <= other.items()
        assert template[objects.UNIT_LABEL] == str(spec.units[number].uid)
        assert objects.step_of(deployment["spec"]["template"]) == f"serving.replica[{number}]"


def test_a_unit_that_takes_anothers_place_keeps_the_deployments_selector() -> None:
    first, second = replica(), replica(units=(unit(uid=uuid4(), host="node-b"),))

    assert first["metadata"]["name"] == second["metadata"]["name"]
    assert first["spec"]["selector"] == second["spec"]["selector"]


# --- how it is reached ----------------------------------------------------------------------------


def test_a_route_leads_to_the_gateway_by_the_name_of_the_address() -> None:
    named = endpoint(host="chat.aurora.models.example.com")

    found = workloads.service_objects(named, settings(**ROUTED), {"HTTPRoute"})
    without = workloads.service_objects(endpoint(), settings(**ROUTED), {"HTTPRoute"})

    route = found[-1]
    assert route["spec"]["hostnames"] == ["chat.aurora.models.example.com"]
    assert without[-1]["spec"]["hostnames"] == [f"{ENDPOINT.name}.models.example.com"]
    assert route["spec"]["parentRefs"][0]["sectionName"] == "https"
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == found[0]["metadata"]["name"]
    assert found[0]["spec"]["selector"] == {objects.COMPONENT_LABEL: "gateway"}


def test_dns_is_told_of_a_name_and_where_it_leads_and_the_name_is_part_of_what_is_wanted() -> None:
    named = endpoint(host="chat.aurora.models.example.com")
    balanced = settings(access="load-balancer", zone="models.example.com")

    told = workloads.service_objects(named, balanced, set(), balanced="203.0.113.7")[0]
    untold = workloads.service_objects(named, balanced, set())[0]
    wants = [workloads.endpoint_steps(spec)[-1].want for spec in (named, endpoint())]

    said = {"hostname": "chat.aurora.models.example.com", "target": "203.0.113.7", "ttl": "60"}
    assert told["metadata"]["annotations"] == {
        f"{prefix}/{name}": text
        for prefix in ("external-dns.alpha.kubernetes.io", "external-dns.kubernetes.io")
        for name, text in said.items()
    }
    assert "annotations" not in untold["metadata"]
    assert wants[0] != wants[1]


def test_a_name_that_leads_elsewhere_is_neither_told_nor_routed_and_is_another_want() -> None:
    here = endpoint(host="chat.aurora.models.example.com")
    elsewhere = replace(here, named=False)
    balanced = settings(access="load-balancer", zone="models.example.com")
    routed = settings(**ROUTED, dns_records="external-dns")

    untold = workloads.service_objects(elsewhere, balanced, set(), balanced="203.0.113.7")[0]
    hosts = [
        workloads.service_objects(spec, routed, {"HTTPRoute"})[-1]["spec"]["hostnames"] for spec in (here, elsewhere)
    ]
    wants = [{step.name: step.want for step in workloads.endpoint_steps(spec)} for spec in (here, elsewhere)]

    assert "annotations" not in untold["metadata"]
    assert hosts == [["chat.aurora.models.example.com"], [f"{ENDPOINT.name}.models.example.com"]]
    assert {name for name in wants[0] if wants[0][name] != wants[1][name]} == {"serving.service"}


def test_without_the_gateway_api_a_route_is_refused_with_its_remedy_and_cut_off_there_is_none() -> None:
    with pytest.raises(NotSupported, match="Gateway API"):
        workloads.service_objects(endpoint(), settings(**ROUTED), set())

    cut_off = workloads.service_objects(endpoint(cut_off=True), settings(**ROUTED), {"HTTPRoute"})
    assert "HTTPRoute" not in {one["kind"] for one in cut_off}


def test_metrics_are_watched_where_the_cluster_can_and_the_platform_wants_it() -> None:
    def kinds(monitoring: str, served: set[str]) -> set[str]:
        spec = endpoint()
        return {
            one["kind"] for one in workloads.service_objects(spec, settings(monitoring_namespace=monitoring), served)
        }

    assert "PodMonitor" in kinds("monitoring", {"PodMonitor"})
    assert "PodMonitor" not in kinds("monitoring", set())
    assert "PodMonitor" not in kinds("", {"PodMonitor"})


# --- gateway --------------------------------------------------------------------------------------


def test_another_token_is_another_secret_another_folder_and_another_pod() -> None:
    first = gateways.gateway_objects(BOUNDARY, gateway(), settings())
    again = gateways.gateway_objects(BOUNDARY, gateway(), settings())
    other = gateways.gateway_objects(BOUNDARY, gateway("another-token"), settings())

    assert first == again
    assert first[0]["metadata"]["name"] != other[0]["metadata"]["name"]
    assert first[-1]["spec"]["template"] != other[-1]["spec"]["template"]
    folders = [
        next(word for word in container(one[-1])["command"] if word.startswith("--state=")) for one in (first, other)
    ]
    assert folders[0] != folders[1]
    steps = [gateways.gateway_step(boundary(), one) for one in (gateway(), gateway("another-token"))]
    assert steps[0].want == steps[1].want


def test_the_token_in_the_cluster_is_found_again_by_the_deployments_delivery() -> None:
    secret, *_, deployment = gateways.gateway_objects(BOUNDARY, gateway(), settings())

    delivery = gateways.delivery_in(deployment)

    assert gateways.gateway_secret_name(delivery) == secret["metadata"]["name"]
    assert gateways.token_in(secret) == Secret(TOKEN)
    assert TOKEN[:8] not in delivery
    assert gateways.delivery_in(None) == ""
    assert gateways.token_in(None) is None


def test_a_gateway_without_any_token_is_not_started() -> None:
    with pytest.raises(DriverRejected, match="fresh token"):
        gateways.gateway_objects(BOUNDARY, gateway(""), settings())


def test_the_gateways_state_outlives_its_pod_where_the_platform_has_storage_for_it() -> None:
    kept = gateways.gateway_objects(BOUNDARY, gateway(), settings(gateway_storage_class="fast"))
    volume = kept[-1]["spec"]["template"]["spec"]["volumes"][0]

    assert "PersistentVolumeClaim" in {one["kind"] for one in kept}
    assert volume == {"name": "state", "persistentVolumeClaim": {"claimName": "tn-gateway"}}
    assert kept[-1]["spec"]["strategy"] == {"type": "Recreate"}


def test_the_gateway_is_ready_once_it_has_enrolled_and_gives_up_what_only_a_token_mends() -> None:
    made = container(gateways.gateway_objects(BOUNDARY, gateway(), settings())[-1])

    assert made["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert "--end-when-hopeless" in made["command"]
    assert made["command"][:3] == ["python", "-m", "provisioners.gateway"]
    port = next(re.fullmatch(r"--port=(\d+)", word) for word in made["command"] if word.startswith("--port="))
    assert port is not None
    assert int(port[1]) == made["ports"][0]["containerPort"]


def test_a_load_balancer_is_the_gateways_own_service() -> None:
    kinds = {}
    for access in ("load-balancer", "cluster"):
        found = gateways.gateway_objects(BOUNDARY, gateway(), settings(access=access))
        kinds[access] = next(one for one in found if one["kind"] == "Service")["spec"]["type"]

    assert kinds == {"load-balancer": "LoadBalancer", "cluster": "ClusterIP"}
