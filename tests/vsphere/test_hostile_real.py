"""Hostile texts from REST to the vCenter: refused with their field, or shown there as exactly what was meant.

Each text is put into every field of a tenant and of a machine; what is refused is left out, the rest is made, and what
the vCenter shows of a machine is compared with the structure meant. Names come from ids, so
none of these texts is in one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import yaml

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import Kind, Ref, machine_uuid
from provisioners.vsphere import cloud_init
from provisioners.vsphere.names import instance_uuid, marker
from tenants import ssh_ca
from tenants.models import Machine, Tenant, Unit
from tenants.states import PlatformRole, Role
from tests import factories
from tests.api.client import Answer, Api, token_of
from tests.vsphere.core_ground import CoreOnVCenter, connected
from tests.vsphere.test_adversarial_real import PRODUCT, estate

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHVvZGtqZmhnaGdqZGtzamRoZ2Zoa2RqAAAAAAAAAAAA"
UNIT = {"gpu": {"product": PRODUCT, "profile": "1g.10gb"}, "vcpu": 2, "memory_gib": 8}
ANNOTATION = "cloud-init with the VMware datasource"
LETTERS = "аdmin", "ＡＣＭＥ", "acme\u200b", "ac\u0301me", "ſsh", "xn--80ak6aa92e", "раураl"
"""Look-alikes: Cyrillic, full width, invisible, composed, folded, as a domain name's code."""
PATHS = (
    "a/b",
    "a%2fb",
    "..",
    "../../etc/passwd",
    "[datastore1] tn-vm-1/x.vmx",
    "a\\b",
    "%2e%2e%2f",
    "/vm/others",
    "a%00b",
)
CONTROL = (
    "a\x00b",
    "bell\x07",
    "\x1b[2J",
    "line\nbreak",
    "cr\rlf\n",
    "tab\tstop",
    "\x7f",
    "\x85next",
    "a\u2028b",
    "\u202eabc",
)
PLACEHOLDERS = (
    "${HOME}",
    "${jndi:ldap://x.invalid/a}",
    "$(id)",
    "`id`",
    "%n",
    "%i%h%u",
    "{{ ds.meta_data }}",
    "%%SystemRoot%%",
)
BREAKERS = (
    "#cloud-config", "- !!python/object/apply:os.system [id]", "key: [", "---\nruncmd: [id]", "&a [*a]", "'\"",
    '{"a":1}', "null", "yes", "0x1F", "]]><x/>", "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
    "</value><key>x", "&amp;&#0;",
)  # fmt: skip
LONG = "x" * 400, "名" * 200, "a" * 5000
BROKEN = "\ud800", "\ufeffacme", "\uffff", "👩‍👩‍👧", "=cmd|' /C calc'!A0"
HOSTILE = (*LETTERS, *PATHS, *CONTROL, *PLACEHOLDERS, *BREAKERS, *LONG, *BROKEN)

MACHINE: dict[str, Callable[[str], dict[str, Any]]] = {
    "name": lambda text: {"name": text},
    "description": lambda text: {"description": text},
    "labels.team": lambda text: {"labels": {"team": text}},
    "image": lambda text: {"image": text},
    "unit.gpu.profile": lambda text: {"unit": {**UNIT, "gpu": {"product": PRODUCT, "profile": text}}},
}
"""Field → the part of a body that has a text there."""
KEYS: dict[str, Callable[[str], str]] = {
    "a key": lambda text: text,
    "a comment": lambda text: f"{KEY} {text}",
    "a second line": lambda text: f"{KEY}\n{text}",
    "options": lambda text: f"{text} {KEY}",
}
"""What of it is in `ssh_keys`."""
TENANT: dict[str, Callable[[str], dict[str, Any]]] = {
    "name": lambda text: {"name": text},
    "display_name": lambda text: {"display_name": text},
    "description": lambda text: {"description": text},
}


def test_there_are_fifty_of_them() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 50


@dataclass
class Desk:
    """Somebody at the REST interface, with what he was refused and what he got."""

    machines: Api
    tenants: Api
    home: Tenant
    refused: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    made: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    """Machine → the body that it was asked for with."""

    def try_tenant(self, number: int, text: str) -> None:
        """Ask for a tenant with a text in every field, and again without those that were refused."""
        left = list(TENANT)
        while left:
            body = {"name": f"t{number}", "display_name": "T"}
            for name in left:
                body |= TENANT[name](text)
            answer = self.tenants.post("tenants", body)
            if answer.status == 201:
                row = Tenant.objects.get(name=body["name"])
                if {one: getattr(row, one) for one in body} != body:
                    self.wrong.append(f"of a tenant with {text!r} in {left} another one is stored")
                return
            left = self.less(left, {name: name for name in left}, answer, text)

    def try_machine(self, number: int, text: str) -> None:
        """Ask for a machine with a text in every field, and again without those that were refused."""
        left = [*MACHINE, *KEYS]
        while left:
            body = {"name": f"m{number}", "unit": UNIT, "image": "ubuntu-24.04", "disk_gib": 20}
            keys = [name for name in left if name in KEYS]
            for name in left:
                body |= MACHINE[name](text) if name in MACHINE else {}
            body["ssh_keys"] = [KEYS[name](text) for name in keys]
            answer = self.machines.post(f"tenants/{self.home.name}/machines", body)
            if answer.status == 201:
                self.made[UUID(answer.body["id"])] = body
                return
            fields = {name: f"ssh_keys[{keys.index(name)}]" if name in keys else name for name in left}
            left = self.less(left, fields, answer, text)

    def less(self, left: list[str], fields: dict[str, str], answer: Answer, text: str) -> list[str]:
        """Return what is left without the fields that a refusal names; none where it names none or is no plain one."""
        named = [each["field"].replace("units[0]", "unit") for each in answer.body["errors"] if each["reason"]]
        hit = [name for name in left if fields[name] in named]
        if answer.status != 400 or len(hit) != len(named):
            self.wrong.append(f"{left} with {text[:60]!r}: {answer}")
            return []
        self.refused += [(name, text) for name in hit]
        return [name for name in left if name not in hit]


@pytest.fixture
def core(vcenters: Callable[..., VCenter]) -> Iterator[CoreOnVCenter]:
    made = connected(vcenters("hostile", world=estate(3, count=4)))
    yield made
    made.close()


def desk_of(home: str) -> Desk:
    """Make a tenant by REST with a hostile name for people, and a member of it at the desk."""
    operator = Api(token_of(factories.person(platform=(PlatformRole.OPERATOR,))))
    answer = operator.post("tenants", {"name": home, "display_name": f"${{HOME}}/%2f</name>'\"{home}"})
    assert answer.status == 201, answer
    tenant = Tenant.objects.get(name=home)
    factories.generous(tenant, PRODUCT)
    factories.allow_keys(tenant)
    return Desk(Api(token_of(factories.member(tenant, Role.OWNER))), operator, tenant)


@pytest.mark.timeout(240)
def test_hostile_texts_are_refused_with_their_field_or_shown_by_the_vcenter_as_meant(core: CoreOnVCenter) -> None:
    before = core.control.inventory()
    desk = desk_of("vm-e1")
    for number, text in enumerate(HOSTILE):
        desk.try_tenant(number, text)
        desk.try_machine(number, text)
    assert desk.wrong == []
    assert {name for name, _ in desk.refused} == {*MACHINE, *KEYS, "display_name"}
    for never in ("image", "unit.gpu.profile", "a key", "a second line", "options"):
        assert [text for text in HOSTILE if (never, text) not in desk.refused] == [], never
    assert len(desk.made) > 30

    core.clock.now = datetime.now(UTC) + timedelta(seconds=1)  # what is asked for by REST is due by the real clock
    core.drive(lambda: not Machine.objects.exclude(phase="Ready").exists())

    seen = Seen(core)
    for pk, body in desk.made.items():
        seen.assert_machine(Machine.objects.get(pk=pk), body)
    now = core.control.inventory()
    for kind in ("vms", "folders", "pools", "portgroups"):
        strange = [one for one in now[kind] if one not in before[kind] and not OURS.fullmatch(one)]
        assert strange in ([], ["tenantry"]), (kind, strange)
    for store, inside in now["datastores"].items():
        assert [one for one in inside if one not in before["datastores"][store] and not OURS.fullmatch(one)] == []


OURS = re.compile(r"tn-(vm|bd)-[0-9a-f]{32}")
SSHD = re.compile(
    r"(PasswordAuthentication|KbdInteractiveAuthentication|PermitRootLogin) no"
    r"|TrustedUserCAKeys /etc/ssh/tenantry/ca\.pub|RevokedKeys /etc/ssh/tenantry/revoked"
    r"|AuthorizedPrincipalsFile /etc/ssh/tenantry/principals/%u"
    r"|AuthorizedPrincipalsCommand /usr/local/lib/tenantry/ssh-principals https?://[a-z0-9.:-]+/agent/v1/ssh/[0-9a-f-]{36}"
    r"/revoked /etc/ssh/tenantry/principals/%u %s|AuthorizedPrincipalsCommandUser nobody"
)


class Seen:
    """What a vCenter shows of VMs, read by somebody else than the product."""

    PATHS = (
        "name", "parent", "customValue", "config.instanceUuid", "config.uuid", "config.annotation",
        "config.extraConfig", "config.files.vmPathName", "resourcePool", "network",
    )  # fmt: skip

    def __init__(self, core: CoreOnVCenter) -> None:
        core.hand.client.close()  # the lab's library leaves pools that are made later out of a view
        rows = core.hand.client.rows(
            {"VirtualMachine": self.PATHS, "Folder": ("name",), "ResourcePool": ("name",),
             "DistributedVirtualPortgroup": ("name",)}
        )  # fmt: skip
        self.names = {one.ref.id: one.values["name"] for kind in rows.values() for one in kind}
        self.vms = {one.values["config.instanceUuid"]: one.values for one in rows["VirtualMachine"]}

    def assert_machine(self, row: Machine, body: dict[str, Any]) -> None:
        """See that a VM is what was asked for, in every text that the vCenter shows of it."""
        ref = Ref(Kind.MACHINE, row.pk, row.tenant_id)
        unit = Unit.objects.get(allocation=row.allocation_id)
        assert row.boundary_id is not None
        home = f"tn-bd-{row.boundary_id.hex}"
        vm = self.vms[instance_uuid(ref, None)]

        assert vm["name"] == f"tn-vm-{row.pk.hex}"
        assert [self.names[vm[one]._moId] for one in ("parent", "resourcePool")] == [home, home]
        assert [self.names[one._moId] for one in vm["network"]] == [home]
        assert re.fullmatch(rf"\[LocalDS_0\] tn-vm-{row.pk.hex}/tn-vm-{row.pk.hex}\.vmx", vm["config.files.vmPathName"])
        assert vm["config.uuid"] == str(machine_uuid(unit.pk))
        assert vm["config.annotation"] == ANNOTATION
        assert [one.value for one in vm["customValue"]] == [marker(ref)]
        self.assert_told(row, unit, body, {one.key: one.value for one in vm["config.extraConfig"]})

    def assert_told(self, row: Machine, unit: Unit, body: dict[str, Any], extra: dict[str, str]) -> None:
        """See that the guest is told what was meant and nothing else, and that the rest of it is ours."""
        meta = yaml.safe_load(cloud_init.unpacked(extra["guestinfo.metadata"]))
        assert meta["local-hostname"] == f"tn-vm-{row.pk.hex}"
        assert meta["instance-id"] == str(machine_uuid(unit.pk))
        text = cloud_init.unpacked(extra["guestinfo.userdata"])
        user = yaml.safe_load(text)
        assert user == json.loads(text.removeprefix("#cloud-config\n"))
        files = {one.pop("path"): one for one in user.pop("write_files")}
        account = {
            "name": "tenant", "shell": "/bin/bash", "lock_passwd": True, "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": body.get("ssh_keys", []),
        }  # fmt: skip
        assert user == {
            "ssh_pwauth": False, "disable_root": True, "ssh_deletekeys": True, "package_update": False,
            "users": [account], "runcmd": [],
        }  # fmt: skip
        assert row.ssh_authority is not None
        assert files[cloud_init.SSH_CA_FILE]["content"] == f"{row.ssh_authority.public_key}\n"
        principals = files[f"{cloud_init.SSH_PRINCIPALS_FOLDER}/tenant"]["content"]
        assert principals == f"{ssh_ca.principal_of(row.pk)}\n"
        lines = files[cloud_init.SSHD_FILE]["content"].splitlines()
        assert [line for line in lines if not SSHD.fullmatch(line)] == []
        told = json.dumps({key: value for key, value in extra.items() if not key.startswith("guestinfo.")})
        for hostile in (body.get("description", ""), body.get("labels", {}).get("team", "")):
            assert len(hostile) < 4 or json.dumps(hostile)[1:-1] not in told
