"""A played container's environment and argv are what a kubelet would make of the pod."""

from __future__ import annotations

import base64

import pytest

from controlplane.labs.kubernetes.environment import (
    ConfigError,
    Sources,
    argv_of,
    environment_of,
    expand,
    referred,
)


def pod(container, **spec):
    meta = {"name": "gw-0", "namespace": "tn-a", "uid": "u-1", "labels": {"a/b": "x"}, "annotations": {"n": "y"}}
    return {"metadata": meta, "spec": {"containers": [container], "enableServiceLinks": False, **spec}}


def secret(**values):
    return {"data": {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}}


def resolved(container, sources=None, **spec):
    return environment_of(pod(container, **spec), container, sources or Sources())


# The cases of third_party/forked/golang/expansion/expand_test.go that differ in kind.
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)-$(VAR_B)", "A-B"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("foo$$$(VAR_A)bar", "foo$Abar"),
        ("$(NOT_THERE)", "$(NOT_THERE)"),
        ("$VAR_A", "$VAR_A"),
        ("${VAR_A}", "${VAR_A}"),
        ("$(VAR_A", "$(VAR_A"),
        ("$(VAR_A$(VAR_B)", "$(VAR_A$(VAR_B)"),
        ("$()", "$()"),
        ("$", "$"),
        ("$$", "$"),
        ("a$$b$", "a$b$"),
        ("$?_boo_$!", "$?_boo_$!"),
        ("$((VAR_A))", "$((VAR_A))"),
    ],
)
def test_references_are_expanded_and_doubled_dollars_are_one(written, meant):
    assert expand(written, {"VAR_A": "A", "VAR_B": "B"}) == meant


def test_a_variable_sees_only_those_before_it_and_env_wins_over_env_from():
    container = {
        "name": "c",
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}],
        "env": [
            {"name": "EARLY", "value": "$(LATE)/$(P_X)"},
            {"name": "LATE", "value": "late"},
            {"name": "TOKEN", "value": "by env, $$(LATE)"},
        ],
    }

    found = resolved(container, Sources({"s": secret(TOKEN="by secret", OTHER="o")}, {"cm": {"data": {"X": "x"}}}))

    assert found == {
        "P_X": "x", "OTHER": "o", "EARLY": "$(LATE)/x", "LATE": "late", "TOKEN": "by env, $(LATE)",
    }  # fmt: skip


def test_values_from_a_source_are_not_expanded_but_the_argv_that_names_them_is():
    container = {
        "name": "c",
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "command": ["run", "$(KEY)"],
        "args": ["--price=$$5", "$(NONE)"],
    }

    environment = resolved(container, Sources({"s": secret(k="$(HOME)$$")}))

    assert environment == {"KEY": "$(HOME)$$"}
    assert argv_of(container, environment) == (["run", "$(HOME)$$"], ["--price=$5", "$(NONE)"])


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ({"valueFrom": {"secretKeyRef": {"name": "gone", "key": "k"}}}, 'secret "gone" not found'),
        ({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k2"}}}, "couldn't find key k2 in Secret tn-a/s"),
        ({"valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}, 'configmap "gone" not found'),
        ({"valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}, "couldn't find key k in ConfigMap tn-a/cm"),
        ({"valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}, "unsupported fieldPath: spec.hostname"),
    ],
)
def test_what_is_missing_is_said_in_the_kubelets_words(variable, words):
    sources = Sources({"s": secret(k="v")}, {"cm": {"data": {}}})

    with pytest.raises(ConfigError) as raised:
        resolved({"name": "c", "env": [{"name": "V", **variable}]}, sources)

    assert str(raised.value) == words


def test_an_optional_source_that_is_missing_leaves_the_variable_out():
    container = {
        "name": "c",
        "envFrom": [{"secretRef": {"name": "gone", "optional": True}}],
        "env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k", "optional": True}}}],
    }

    assert resolved(container) == {}


def test_fields_and_resources_of_the_pod_itself():
    paths = {
        "A": "metadata.name", "B": "metadata.namespace", "C": "metadata.uid", "D": "metadata.labels['a/b']",
        "E": "metadata.annotations['n']", "F": "spec.nodeName", "G": "status.podIP", "H": "status.hostIP",
    }  # fmt: skip
    amounts = {"I": ("limits.cpu", "1m"), "J": ("limits.memory", "1Mi"), "K": ("requests.cpu", None)}
    container = {
        "name": "c",
        "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": "1200m"}},
        "env": [
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()),
            *(
                {
                    "name": name,
                    "valueFrom": {"resourceFieldRef": {"resource": resource, **({"divisor": d} if d else {})}},
                }
                for name, (resource, d) in amounts.items()
            ),
        ],
    }

    found = resolved(container, Sources(host_ip="10.0.0.9", pod_ip="10.200.1.2"), nodeName="n1")

    assert found == {
        "A": "gw-0", "B": "tn-a", "C": "u-1", "D": "x", "E": "y", "F": "n1", "G": "10.200.1.2", "H": "10.0.0.9",
        "I": "1500", "J": "1024", "K": "2",
    }  # fmt: skip


def test_service_links_give_the_variables_that_break_vllm_and_can_be_switched_off():
    service = {
        "metadata": {"name": "vllm"},
        "spec": {"clusterIP": "10.96.7.7", "ports": [{"name": "http", "port": 80}]},
    }
    sources = Sources(services=[service])

    linked = resolved({"name": "c"}, sources, enableServiceLinks=True)

    assert linked["VLLM_PORT"] == "tcp://10.96.7.7:80"
    assert linked["VLLM_SERVICE_HOST"] == "10.96.7.7"
    assert linked["VLLM_SERVICE_PORT_HTTP"] == "80"
    assert linked["VLLM_PORT_80_TCP_PROTO"] == "tcp"
    assert resolved({"name": "c"}, sources) == {}


def test_everything_that_a_pod_refers_to_is_named():
    given = pod(
        {
            "name": "c",
            "envFrom": [{"secretRef": {"name": "s1"}}],
            "env": [{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "c1", "key": "k"}}}],
        },
        volumes=[
            {"name": "a", "secret": {"secretName": "s2"}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "c2"}}, {"secret": {"name": "s3"}}]}},
        ],
    )

    assert referred(given) == ({"s1", "s2", "s3"}, {"c1", "c2"})
