"""What the REST side's answers become, whatever they are: those that the lab's vCenter never gives. No network."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from provisioners.driver import DriverRejected, NoCapacity, Secret, TransientDriverError
from provisioners.vsphere.rest import HEADER, RestClient
from provisioners.vsphere.settings import settings_of

SETTINGS = settings_of({"url": "https://vcenter.example.com", "user": "u"}, {"password": Secret("p")})


def client(handle: Callable[[httpx.Request], httpx.Response]) -> RestClient:
    """Return a client whose calls are answered by a function; logins are let in."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/cis/session") and request.method == "POST":
            return httpx.Response(200, json={"value": "known"})
        return handle(request)

    made = RestClient(SETTINGS)
    made._http = httpx.Client(base_url=SETTINGS.url, transport=httpx.MockTransport(answer))
    return made


def refusing(status: int, **more: object) -> RestClient:
    return client(lambda _request: httpx.Response(status, **more))


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("not_allowed_in_current_state", 400, TransientDriverError),
        ("resource_busy", 400, TransientDriverError),
        ("resource_inaccessible", 400, TransientDriverError),
        ("unable_to_allocate_resource", 400, NoCapacity),
        ("concurrent_change", 409, TransientDriverError),
        ("canceled", 400, TransientDriverError),
        ("invalid_argument", 400, DriverRejected),
    ],
)
def test_what_passes_by_itself_is_no_refusal(kind, status, error):
    rest = refusing(status, json={"type": f"com.vmware.vapi.std.errors.{kind}", "value": {"messages": []}})

    with pytest.raises(error) as raised:
        rest.get("/content/library")

    assert type(raised.value) is error


@pytest.mark.parametrize("status", [499, 520, 599])
def test_a_status_that_no_standard_knows_is_trouble_on_the_way(status):
    with pytest.raises(TransientDriverError):
        refusing(status, text="closed").get("/content/library")


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_in_no_known_encoding_is_trouble_on_the_way(status):
    rest = refusing(status, content=b'{"value": "\xff\xfe"}', headers={"content-type": "application/json"})

    with pytest.raises(TransientDriverError):
        rest.get("/content/library")


def test_with_a_forgotten_session_its_cookie_is_forgotten():
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        if len(seen) > 1:
            return httpx.Response(200, json={"value": []})
        return httpx.Response(401, headers={"set-cookie": f"{HEADER}=stale; Path=/"})

    assert client(answer).get("/content/library") == []
    assert seen == [None, None]
