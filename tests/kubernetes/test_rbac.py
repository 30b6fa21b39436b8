"""The control plane's rights and the roles of people: the file, and what each role is not given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from provisioners.kubernetes import rbac
from provisioners.kubernetes.rbac import Right

FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "rbac.yaml"
WRITING = ("create", "update", "patch", "delete", "deletecollection")
EVERY = (*WRITING, "get", "list", "watch", "bind", "escalate", "impersonate", "approve", "use", "*")


def rules(word: str) -> list[dict]:
    return [rule.as_rule() for rule in rbac.PEOPLE[word]]


def test_the_file_is_what_the_code_says() -> None:
    assert FILE.read_text(encoding="utf-8") == rbac.document()
    assert list(yaml.safe_load_all(rbac.document())) == list(rbac.objects())


def test_the_control_plane_has_no_wildcard_and_no_way_to_raise_its_rights() -> None:
    for rule in (*rbac.CONTROL_PLANE, *rbac.IN_ACCESS_NAMESPACE):
        assert "*" not in {rule.group, *rule.resources, *rule.verbs}
        assert not {"escalate", "impersonate", "approve"} & set(rule.verbs)
    own = [rule.as_rule() for rule in rbac.CONTROL_PLANE]
    everywhere = [
        Right("", "serviceaccounts/token", "create"),
        Right("", "pods/exec", "create"),
        Right("", "nodes/proxy", "get"),
        Right("rbac.authorization.k8s.io", "clusterrolebindings", "create"),
        Right("rbac.authorization.k8s.io", "clusterroles", "bind", name="cluster-admin"),
        Right("rbac.authorization.k8s.io", "clusterroles", "bind"),
        Right("admissionregistration.k8s.io", "validatingadmissionpolicies", "delete", name="somebody-elses"),
        Right("admissionregistration.k8s.io", "validatingwebhookconfigurations", "create"),
    ]
    assert [right.words for right in everywhere if rbac.allows(own, right)] == []
    assert rbac.allows(own, Right("rbac.authorization.k8s.io", "clusterroles", "bind", name="tenantry-viewer"))


@pytest.mark.parametrize("word", sorted(rbac.ROLES))
@pytest.mark.parametrize(
    ("group", "resource"),
    [
        ("", "resourcequotas"), ("", "limitranges"), ("", "namespaces"), ("", "nodes"), ("", "serviceaccounts/token"),
        ("", "pods/ephemeralcontainers"), ("", "serviceaccounts"),
        ("rbac.authorization.k8s.io", "rolebindings"), ("rbac.authorization.k8s.io", "roles"),
        ("networking.k8s.io", "networkpolicies"), ("resource.k8s.io", "resourceclaims"),
        ("resource.k8s.io", "resourceclaimtemplates"), ("resource.k8s.io", "deviceclasses"),
    ],
)  # fmt: skip
def test_no_role_of_people_changes_what_isolates(word, group, resource) -> None:
    given = [verb for verb in WRITING if rbac.allows(rules(word), Right(group, resource, verb))]

    assert given == []


def test_nobody_reads_secrets_and_a_viewer_reads_only() -> None:
    for word in rbac.ROLES:
        assert [v for v in ("get", "list", "watch") if rbac.allows(rules(word), Right("", "secrets", v))] == []
    assert {verb for rule in rbac.PEOPLE["viewer"] for verb in rule.verbs} == {"get", "list", "watch"}
    assert not rbac.allows(rules("viewer"), Right("", "pods/log", "get"))
    assert rbac.allows(rules("member"), Right("", "pods/log", "get"))


def test_a_rule_gives_exactly_what_it_names() -> None:
    given = [{"apiGroups": [""], "resources": ["pods", "*/scale"], "verbs": ["get"], "resourceNames": ["a"]}]

    assert rbac.allows(given, Right("", "pods", "get", name="a"))
    assert rbac.allows(given, Right("", "things/scale", "get", name="a"))
    assert not rbac.allows(given, Right("", "pods", "get"))
    assert not rbac.allows(given, Right("", "pods", "get", name="b"))
    assert not rbac.allows(given, Right("", "pods/log", "get", name="a"))
    assert not rbac.allows(given, Right("apps", "pods", "get", name="a"))
    star = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    assert all(rbac.allows(star, Right("x", "y/z", verb)) for verb in EVERY)


def test_a_right_is_named_in_words_and_asked_for_exactly() -> None:
    right = Right("apps", "deployments/scale", "patch", "tn-bd-1", "x")

    assert right.words == "patch deployments.apps/scale x in tn-bd-1"
    assert right.review()["spec"]["resourceAttributes"] == {
        "group": "apps", "resource": "deployments", "subresource": "scale", "verb": "patch", "namespace": "tn-bd-1",
        "name": "x",
    }  # fmt: skip


def test_every_kind_of_the_file_is_bound_to_our_account_only() -> None:
    subjects = [s for obj in rbac.objects() for s in obj.get("subjects", [])]

    assert {(s["kind"], s["namespace"], s["name"]) for s in subjects} == {
        ("ServiceAccount", "tenantry-system", "tenantry")
    }
