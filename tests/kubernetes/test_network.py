"""What network policies mean: the rules of the API, and the hole that one wrong indentation makes."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners.kubernetes.network import Network, Peer, Port, network, selects

MINE, OTHER, PROXY = ({"metadata": {"name": n, "labels": {"team": n}}} for n in ("mine", "other", "proxy"))
GATEWAY = Peer("gateway", "mine", {"app": "gateway"}, "10.0.0.1")
REPLICA = Peer("replica", "mine", {"app": "replica"}, "10.0.0.2")
STRANGER = Peer("stranger", "other", {"app": "gateway"}, "10.0.0.3")
FRONT = Peer("front", "proxy", {"app": "proxy"}, "10.0.0.4")
OUTSIDE = Peer("outside", address="203.0.113.7")
WEB = Port(8000)


def policy(namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": namespace}, "spec": spec}


def given(*specs: dict[str, Any]) -> Network:
    return network((MINE, OTHER, PROXY), [policy("mine", spec) for spec in specs])


DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_without_a_policy_everything_is_open_and_default_deny_closes_both_ways() -> None:
    assert given().lets(STRANGER, REPLICA, WEB)

    closed = given(DENY)
    assert closed.why_not(STRANGER, REPLICA, WEB) == "ingress"
    assert closed.why_not(REPLICA, STRANGER, WEB) == "egress"
    assert closed.why_not(GATEWAY, REPLICA, WEB) == "egress"
    assert closed.why_not(REPLICA, OUTSIDE, WEB) == "egress"


def test_a_pod_selector_alone_means_pods_of_the_same_namespace() -> None:
    inside = {"podSelector": {"matchLabels": {"app": "replica"}}, "policyTypes": ["Ingress"]}
    net = given(inside | {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]}]})

    assert net.lets(GATEWAY, REPLICA, WEB)
    assert not net.lets(STRANGER, REPLICA, WEB)
    assert net.by(GATEWAY, REPLICA, WEB) == ("p",)


def test_two_selectors_in_one_element_are_both_needed_and_in_two_elements_either_is_enough() -> None:
    both = {"namespaceSelector": {"matchLabels": {"team": "proxy"}}, "podSelector": {"matchLabels": {"app": "proxy"}}}
    either = [{"namespaceSelector": both["namespaceSelector"]}, {"podSelector": {}}]
    base = {"podSelector": {}, "policyTypes": ["Ingress"]}
    other_front = Peer("x", "proxy", {"app": "x"})

    strict, loose = (
        given(base | {"ingress": [{"from": [both]}]}),
        given(base | {"ingress": [{"from": either}]}),
    )

    assert (strict.lets(FRONT, REPLICA, WEB), strict.lets(other_front, REPLICA, WEB)) == (True, False)
    assert (loose.lets(FRONT, REPLICA, WEB), loose.lets(other_front, REPLICA, WEB)) == (True, True)
    assert not strict.lets(GATEWAY, REPLICA, WEB)
    assert loose.lets(GATEWAY, REPLICA, WEB)


def test_an_empty_peer_list_lets_everybody_in_and_no_rule_nobody() -> None:
    base = {"podSelector": {}, "policyTypes": ["Ingress"]}

    assert given(base | {"ingress": [{}]}).lets(OUTSIDE, REPLICA, WEB)
    assert not given(base | {"ingress": []}).lets(OUTSIDE, REPLICA, WEB)
    assert given(base | {"ingress": [{"from": [{"namespaceSelector": {}}]}]}).lets(STRANGER, REPLICA, WEB)


def test_blocks_of_addresses_have_exceptions() -> None:
    block = {"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}
    net = given({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": block}]}]})

    assert not net.lets(REPLICA, OUTSIDE, WEB)
    assert net.lets(REPLICA, Peer("x", address="203.0.113.8"), WEB)
    assert not net.lets(REPLICA, STRANGER, WEB)


@pytest.mark.parametrize(
    ("port", "number", "protocol", "lets"),
    [
        ({"port": 8000}, 8000, "TCP", True),
        ({"port": 8000}, 8001, "TCP", False),
        ({"port": 8000, "endPort": 8010}, 8010, "TCP", True),
        ({"port": 8000, "endPort": 8010}, 8011, "TCP", False),
        ({"port": 53, "protocol": "UDP"}, 53, "TCP", False),
        ({"protocol": "TCP"}, 1, "TCP", True),
        ({"port": "web"}, 9, "TCP", True),
    ],
)
def test_ports_are_those_of_the_target(port, number, protocol, lets) -> None:
    net = given({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [port]}]})

    assert net.lets(FRONT, REPLICA, Port(number, protocol)) is lets


def test_directions_follow_from_the_rules_where_none_are_named() -> None:
    net = given({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]})

    assert net.why_not(STRANGER, REPLICA, WEB) == "ingress"
    assert net.why_not(REPLICA, STRANGER, WEB) == "egress"
    assert given({"podSelector": {}}).why_not(REPLICA, STRANGER, WEB) == ""


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ({"key": "a", "operator": "In", "values": ["1"]}, True),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, False),
        ({"key": "b", "operator": "NotIn", "values": ["1"]}, True),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "a", "operator": "DoesNotExist"}, False),
    ],
)
def test_selectors_read_expressions(expression, holds) -> None:
    assert selects({"matchExpressions": [expression]}, {"a": "1"}) is holds
