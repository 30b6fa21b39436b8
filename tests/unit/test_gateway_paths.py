"""The path allow-list: six addresses and their exact spelling."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisioners.gateway.paths import Match, Route, match

ALLOWED = {
    ("POST", "/v1/chat/completions"): Route.CHAT,
    ("POST", "/v1/completions"): Route.COMPLETIONS,
    ("POST", "/v1/embeddings"): Route.EMBEDDINGS,
    ("GET", "/v1/models"): Route.MODELS,
    ("GET", "/healthz"): Route.HEALTH,
    ("GET", "/readyz"): Route.READY,
    ("GET", "/metrics"): Route.METRICS,
}
PIECES = ["/", "v1", "chat", "completions", "models", "embeddings", ".", "..", "%2f", "%2e", "\\", "//", ";", "?", "#"]
PIECES += ["%00", "V1", "invocations", "pause", " ", "\t", "http://x", "\u2044", "\uff0f", "alpha", "%", "metrics"]


@pytest.mark.parametrize(("request_", "route"), ALLOWED.items())
def test_what_is_listed_is_allowed_with_its_method_only(request_: tuple[str, str], route: Route) -> None:
    method, target = request_

    assert match(method, target) == Match(route)
    for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", ""} - {method}:
        assert match(other, target) is None
    assert match(method.lower(), target) is None


@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join), st.sampled_from(["GET", "POST"])
)
@example("/v1/models/..", "GET")
@example("/v1/models/a\n", "GET")
@example("/v1/models\n", "GET")
@example("/v1/models/%61", "GET")
def test_a_target_is_allowed_only_in_its_exact_spelling(target: str, method: str) -> None:
    found = match(method, target)

    named = re.match(r"^/v1/models/([a-zA-Z0-9][a-zA-Z0-9._-]*)$", target) if method == "GET" else None
    if (method, target) in ALLOWED:
        assert found == Match(ALLOWED[method, target])
    elif named and "\n" not in target and len(named[1]) <= 128:
        assert found == Match(Route.MODEL, named[1])
    else:
        assert found is None


@given(st.sampled_from(sorted(ALLOWED)), st.data())
def test_percent_encoding_any_letter_of_an_allowed_path_refuses_it(
    allowed: tuple[str, str], data: st.DataObject
) -> None:
    method, target = allowed
    position = data.draw(st.integers(0, len(target) - 1))
    encoded = target[:position] + f"%{ord(target[position]):02x}" + target[position + 1 :]

    assert match(method, encoded) is None
    assert match(method, quote(target, safe="")) is None


@given(st.sampled_from(sorted(ALLOWED)), st.text(min_size=1, max_size=5))
def test_anything_before_or_after_an_allowed_path_refuses_it(allowed: tuple[str, str], extra: str) -> None:
    method, target = allowed

    assert match(method, extra + target) is None
    after = match(method, target + extra)
    assert after is None or (after.route is Route.MODEL and target == "/v1/models" and extra[0] == "/")
