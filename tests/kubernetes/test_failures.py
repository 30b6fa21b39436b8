"""Answers of the API server and lost calls: one class each, words without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from provisioners.driver import Conflicting, DriverRejected, TransientDriverError
from provisioners.kubernetes.failures import (
    AccessDenied,
    QuotaExceeded,
    error_of,
    is_other_uid,
    is_this_missing,
)


def status(reason: str, message: str = "", **details: Any) -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "message": message, "details": details}).encode()


TERMINATING = status(
    "Forbidden",
    'deployments.apps "x" is forbidden: unable to create new content in namespace t because it is being terminated',
    causes=[{"reason": "NamespaceTerminating"}],
)


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (400, status("BadRequest", 'strict decoding error: unknown field "spec.x"'), DriverRejected),
        (401, status("Unauthorized"), AccessDenied),
        (403, status("Forbidden", 'User "u" cannot create resource "pods" in API group ""'), AccessDenied),
        (403, status("Forbidden", 'pods "p" is forbidden: exceeded quota: tenantry, requested: …'), QuotaExceeded),
        (403, status("Forbidden", 'pods "p" is forbidden: violates PodSecurity "restricted:v1.36"'), DriverRejected),
        (403, TERMINATING, TransientDriverError),
        (404, status("NotFound", 'namespaces "t" not found', name="t"), TransientDriverError),
        (404, b"404 page not found", TransientDriverError),
        (409, status("AlreadyExists", 'pods "p" already exists'), Conflicting),
        (409, status("Conflict", "the object has been modified"), TransientDriverError),
        (410, status("Expired", "The provided continue parameter is too old"), TransientDriverError),
        (422, status("Invalid", "spec.selector: field is immutable"), DriverRejected),
        (429, status("TooManyRequests"), TransientDriverError),
        (500, b"", TransientDriverError),
        (503, b"no JSON", TransientDriverError),
        (504, status("Timeout"), TransientDriverError),
    ],
)
def test_each_answer_is_one_class(code: int, body: bytes, expected: type) -> None:
    assert type(error_of(code, body, {}, kind="Pod")) is expected


def test_what_the_server_asks_to_wait_is_kept_from_header_or_body() -> None:
    by_header = error_of(429, status("TooManyRequests"), {"Retry-After": "7"}, kind="Pod")
    by_body = error_of(503, status("ServiceUnavailable", retryAfterSeconds=3), {}, kind="Pod")

    assert isinstance(by_header, TransientDriverError)
    assert isinstance(by_body, TransientDriverError)
    assert (by_header.retry_after_s, by_body.retry_after_s) == (7.0, 3.0)


def test_an_error_about_a_secret_quotes_nothing_of_it() -> None:
    body = status("Invalid", 'data[x]: Invalid value: "hunter2"', causes=[{"field": "data[x]", "message": "hunter2"}])

    error = error_of(422, body, {}, kind="Secret")

    assert error.detail == "the cluster refuses this Secret: data[x]"
    assert "hunter2" not in error.raw


def test_only_a_404_that_names_the_object_means_that_it_is_not_there() -> None:
    assert is_this_missing(status("NotFound", "", name="x", kind="pods"), "x")
    assert not is_this_missing(status("NotFound", "", name="y", kind="pods"), "x")
    assert not is_this_missing(status("NotFound", "the server could not find the requested resource"), "x")
    assert not is_this_missing(b"404 page not found", "x")


def test_a_refused_precondition_is_told_from_other_conflicts() -> None:
    other = "Precondition failed: UID in precondition: a, UID in object meta: b"

    assert is_other_uid(status("Conflict", other))
    assert not is_other_uid(status("Conflict", "the object has been modified"))
