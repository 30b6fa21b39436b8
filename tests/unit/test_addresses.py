"""The address of an endpoint as a contract: its name, what it leads to, the record that makes it so."""

from __future__ import annotations

import pytest

from tenants.addresses import DnsRecord, host_of, published, record_of


def test_a_name_is_endpoint_tenant_zone() -> None:
    assert host_of("chat", "acme", ".Models.Example.net.") == "chat.acme.models.example.net"
    assert host_of("chat", "acme", "") == ""
    assert host_of("a" * 40, "b" * 40, "c" * 200) == ""


@pytest.mark.parametrize(
    ("leads_to", "reachable_from", "host", "address"),
    [
        ("http://10.0.0.7/v1", "tenant", "chat.acme.example.net", "http://chat.acme.example.net/v1"),
        ("https://10.0.0.8/v1", "internet", "chat.acme.example.net", "https://chat.acme.example.net/v1"),
        ("http://127.0.0.1:18500/v1", "lab", "chat.acme.example.net", "http://127.0.0.1:18500/v1"),
        ("http://gw.tn.svc/v1", "cluster", "chat.acme.example.net", "http://gw.tn.svc/v1"),
        ("http://10.0.0.7/v1", "tenant", "", "http://10.0.0.7/v1"),
        ("", "", "chat.acme.example.net", ""),
    ],
)
def test_people_get_the_name_wherever_it_leads(leads_to: str, reachable_from: str, host: str, address: str) -> None:
    assert published(leads_to, reachable_from, host) == address


@pytest.mark.parametrize(
    ("leads_to", "record"),
    [
        ("http://10.0.0.7/v1", DnsRecord("chat.acme.example.net", "A", "10.0.0.7")),
        ("http://[2001:db8::7]/v1", DnsRecord("chat.acme.example.net", "AAAA", "2001:db8::7")),
        ("http://lb.example.org/v1", DnsRecord("chat.acme.example.net", "CNAME", "lb.example.org")),
        ("https://chat.acme.example.net/v1", None),
        ("", None),
    ],
)
def test_the_record_says_where_the_name_is_to_lead(leads_to: str, record: DnsRecord | None) -> None:
    assert record_of("https://chat.acme.example.net/v1", leads_to) == record


def test_a_record_is_written_as_in_a_zone_file() -> None:
    assert DnsRecord("a.b", "CNAME", "lb.c").line == "a.b. CNAME lb.c."
    assert DnsRecord("a.b", "A", "10.0.0.7").line == "a.b. A 10.0.0.7"
