"""Who may call what, and which backend takes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from provisioners.gateway import keys
from provisioners.gateway.backends import REST_S, Backends
from provisioners.gateway.protocol import Backend, ConfigDocument, EndpointConfig, EndpointKey, KeyScope
from provisioners.gateway.routing import Routing

AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NOW = AT.timestamp()


def endpoint(name: str, *backends: Backend, **fields: object) -> EndpointConfig:
    given = {"uid": uuid4(), "name": name, "tenant": UUID(int=4), "models": (name,), "backends": backends, **fields}
    return EndpointConfig(**given)  # type: ignore[arg-type]


def routing(*endpoints: EndpointConfig) -> Routing:
    return Routing(
        ConfigDocument(version=1, boundary_uid=UUID(int=1), gateway_uid=UUID(int=2), issued_at=AT, endpoints=endpoints)
    )


def entry(new: keys.NewKey, **fields: object) -> EndpointKey:
    return EndpointKey(id=new.id, digest=new.digest, **fields)  # type: ignore[arg-type]


def backend(weight: int = 100) -> Backend:
    unit = uuid4()
    return Backend(unit_uid=unit, url=f"http://{unit.hex}/v1", revision=1, weight=weight)


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_opens_its_endpoint_until_the_moment_it_ends() -> None:
    key = keys.make()
    table = routing(endpoint("alpha", keys=(entry(key, expires_at=AT + timedelta(seconds=1)),)))

    shown = [f"Bearer {key.plain}"]

    assert [grant.endpoint.name for grant in table.judge(shown, now=NOW)] == ["alpha"]
    assert table.judge(shown, now=NOW + 1) == ()


def test_the_earlier_of_expiry_and_revocation_counts() -> None:
    key = keys.make()
    ends = {"expires_at": AT + timedelta(days=1), "revoked_at": AT}
    table = routing(endpoint("alpha", keys=(entry(key, **ends),)))

    assert len(table.judge([f"Bearer {key.plain}"], now=NOW - 0.001)) == 1
    assert table.judge([f"Bearer {key.plain}"], now=NOW) == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: [],
        lambda _: [""],
        lambda _: ["Bearer"],
        lambda _: ["Bearer "],
        lambda plain: [plain],
        lambda plain: [f"Basic {plain}"],
        lambda plain: [f"Bearer {plain}x"],
        lambda plain: [f"Bearer {plain}", f"Bearer {plain}"],
        lambda _: [f"Bearer {keys.make().plain}"],
        lambda _: ["Bearer \udcff"],
    ],
)
def test_anything_but_one_good_bearer_key_opens_nothing(make: object) -> None:
    key = keys.make()
    table = routing(endpoint("alpha", keys=(entry(key),)))

    assert table.judge(make(key.plain), now=NOW) == ()  # type: ignore[operator]


def test_a_right_id_with_another_secret_opens_nothing() -> None:
    key, other = keys.make(), keys.make()
    table = routing(endpoint("alpha", keys=(EndpointKey(id=key.id, digest=other.digest),)))

    assert table.judge([f"Bearer {key.plain}"], now=NOW) == ()


def test_one_key_may_open_several_endpoints() -> None:
    key = keys.make()
    table = routing(endpoint("alpha", keys=(entry(key),)), endpoint("beta", keys=(entry(key),)))

    assert [grant.endpoint.name for grant in table.judge([f"bearer {key.plain}"], now=NOW)] == ["alpha", "beta"]


def test_inference_allows_everything_and_a_single_scope_itself() -> None:
    key = keys.make()
    (narrow,) = routing(endpoint("a", keys=(entry(key, scopes=(KeyScope.CHAT,)),))).judge(
        [f"Bearer {key.plain}"], now=NOW
    )
    (wide,) = routing(endpoint("a", keys=(entry(key),))).judge([f"Bearer {key.plain}"], now=NOW)

    assert {scope for scope in KeyScope if narrow.allows(scope)} == {KeyScope.CHAT}
    assert all(wide.allows(scope) for scope in KeyScope)


# --- endpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "model", "chosen"),
    [
        ("127.0.0.1:80", "alpha", "alpha"),
        ("a.example", "alpha", "alpha"),
        ("A.Example:8443", "alpha", "alpha"),
        ("a.example", "beta", None),
        ("b.example", "alpha", None),
        ("", "beta", "beta"),
        ("[::1]:80", "beta", "beta"),
        ("[::1]", "beta", "beta"),
        ("c.example", "Alpha", None),
        ("c.example", "", None),
    ],
)
def test_host_and_model_choose_together(host: str, model: str, chosen: str | None) -> None:
    table = routing(endpoint("alpha", hosts=("a.example",)), endpoint("beta", hosts=("b.example",)))

    found = table.select(host=host, model=model)

    assert (found.name if found else None) == chosen


# --- backends ---------------------------------------------------------------------------------------


def test_weight_zero_is_never_chosen_and_shares_follow_weights() -> None:
    some, most, none = backend(10), backend(90), backend(0)
    target = endpoint("alpha", some, most, none)
    backends = Backends()

    chosen = [backends.choose(target) for _ in range(10_000)]

    assert chosen.count(none) == 0
    assert chosen.count(some) == 1000


def test_an_unreachable_backend_rests_and_comes_back() -> None:
    now = [0.0]
    bad, good = backend(1_000_000), backend(1)
    target, backends = endpoint("alpha", bad, good), Backends(clock=lambda: now[0])

    backends.failed(bad, "ClientConnectorError")
    resting = {backends.choose(target) for _ in range(100)}
    now[0] += REST_S
    rested = {backends.choose(target) for _ in range(100)}

    assert (resting, rested) == ({good}, {bad})
    assert backends.report(target).backends[0].failures == 1


def test_a_resting_backend_is_taken_when_there_is_no_other_and_a_tried_one_never() -> None:
    only, other = backend(), backend()
    backends = Backends()
    backends.failed(only, "x")

    assert backends.choose(endpoint("alpha", only)) == only
    assert backends.choose(endpoint("alpha", only, other), tried={other.unit_uid}) == only
    assert backends.choose(endpoint("alpha", only), tried={only.unit_uid}) is None
    assert backends.choose(endpoint("alpha")) is None


def test_what_is_known_of_a_backend_goes_with_it_once_nothing_runs_there() -> None:
    old, new = backend(), backend()
    backends = Backends()
    backends.failed(old, "x")
    backends.health(old).in_flight = 1

    backends.keep_only([endpoint("alpha", new)])
    busy = backends.report(endpoint("alpha", old)).backends[0].failures
    backends.health(old).in_flight = 0
    backends.keep_only([endpoint("alpha", new)])

    assert (busy, backends.report(endpoint("alpha", old)).backends[0].failures) == (1, 0)
