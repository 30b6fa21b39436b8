"""SSH certificates: what is signed, for whom, for how long, and what ends it. OpenSSH itself reads them."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, SSHCertificate

from provisioners import housekeeping
from tenants import ssh_ca
from tenants.actor import AUTH, Actor, Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import Event, Machine, Membership, SshAuthority, SshCertificate
from tenants.operations import leavers, machine_access, machines, members, people, service_accounts
from tenants.operations import tenants as tenant_operations
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

SPEC = AllocationSpec(
    units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1),), on_shortage=OnShortage.FAIL
)


def public(key) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


KEY = public(ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def acme():
    factories.host(factories.provider(capabilities={"boundary_kinds": ["vm"], "bindings": ["device"]}))
    row = factories.tenant(name="acme")
    factories.generous(row)
    return row


@pytest.fixture
def mia(acme):
    return factories.member(acme)


def box(tenant, person, name="box", *, address="127.0.0.2:2201", keys=()) -> Machine:
    ask = MachineAsk(name, SPEC, "ubuntu-24.04", 20, ssh_keys=tuple(keys))
    row = machines.create(tenant=tenant, ask=ask, actor=factories.actor(person), now=NOW)
    Machine.objects.filter(pk=row.pk).update(address=address)
    return Machine.objects.select_related("tenant").get(pk=row.pk)


def certify(machine, person, key=KEY, now=NOW):
    return machine_access.certify(machine=machine, public_key=key, actor=factories.actor(person), now=now)


def opened(line: str) -> SSHCertificate:
    found = serialization.load_ssh_public_identity(line.encode())
    assert isinstance(found, SSHCertificate)
    return found


def revoked(machine, now=NOW):
    with acting(AUTH):
        return machine_access.revoked(machine.ssh_authority_id, now=now)


# --- what is signed ---------------------------------------------------------------------------------


def test_a_certificate_opens_one_machine_for_a_quarter_of_an_hour_and_gives_a_terminal(acme, mia):
    machine = box(acme, mia)

    row, line = certify(machine, mia)

    found = opened(line)
    found.verify_cert_signature()
    assert found.valid_principals == [f"machine-{machine.pk}".encode()]
    assert (found.valid_after, found.valid_before) == (
        int(NOW.timestamp()) - 60, int((NOW + timedelta(minutes=15)).timestamp()),
    )  # fmt: skip
    assert (found.critical_options, found.extensions) == ({}, {b"permit-pty": b""})
    assert found.serial == row.serial > 0
    assert found.key_id.decode() == f"person:{mia.pk} {machine.short_id}"
    authority = SshAuthority.objects.get()
    assert found.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == authority.public_key


def test_the_trail_has_the_serial_and_the_fingerprint_and_never_the_key(acme, mia):
    row, line = certify(box(acme, mia), mia)

    event = Event.objects.get(kind="machine.ssh-certificate-made")
    assert event.data == {"serial": str(row.serial), "fingerprint": row.fingerprint, "until": "2026-06-01T12:15:00Z"}
    assert (event.actor, event.person_id) == (f"person:{mia.pk}", mia.pk)
    assert KEY.split()[1] not in str(event.data)
    assert line.split()[1] not in str(SshCertificate.objects.values())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not there")
def test_openssh_reads_the_certificate_and_the_list_of_those_that_count_no_more(acme, mia, tmp_path: Path):
    machine = box(acme, mia)
    row, line = certify(machine, mia)
    other, other_line = certify(machine, mia)
    SshCertificate.objects.filter(pk=other.pk).update(revoked_at=NOW)
    for name, text in (
        ("a.pub", line), ("b.pub", other_line), ("ca.pub", machine.ssh_authority.public_key),
        ("spec", "".join(f"serial: {serial}\n" for serial in revoked(machine))),
    ):  # fmt: skip
        (tmp_path / name).write_text(text + "\n")

    def keygen(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ssh-keygen", *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    shown = keygen("-L", "-f", "a.pub").stdout
    made = keygen("-k", "-f", "krl", "-s", "ca.pub", "spec")

    assert f"Serial: {row.serial}" in shown
    assert "Critical Options: (none)" in shown
    assert made.returncode == 0, made.stderr
    assert keygen("-Q", "-f", "krl", "a.pub").returncode == 0
    assert keygen("-Q", "-f", "krl", "b.pub").returncode == 1


def test_one_authority_serves_all_machines_of_a_tenant_and_another_one_the_next_tenant(acme, mia):
    other = factories.tenant(name="globex")
    factories.generous(other)
    one, two = box(acme, mia, "one"), box(acme, mia, "two")
    third = box(other, factories.member(other))

    assert one.ssh_authority_id == two.ssh_authority_id != third.ssh_authority_id
    assert SshAuthority.objects.count() == 2
    assert b"OPENSSH PRIVATE" not in bytes(SshAuthority.objects.first().sealed)


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 3072),
    ],
    ids=["ed25519", "p256", "p521", "rsa-3072"],
)
def test_good_keys_are_signed(acme, mia, key):
    _row, line = certify(box(acme, mia), mia, public(key) + " mia@laptop")

    assert opened(line).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == public(key)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (public(rsa.generate_private_key(65537, 2048)), "key-size"),
        ("ssh-dss AAAAB3NzaC1kc3MAAACBAPY8ZOHY2yFSJA6XYC9HRwNHxaehvx5wOJ0rzZdzoSOXxbET", "not-a-key"),
        ("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t", "not-a-key"),
        (KEY[:-4], "not-a-key"),
        (KEY + "\n" + KEY, "not-a-key"),
        ('command="rm -rf /" ' + KEY, "not-a-key"),
        ("ssh-rsa " + KEY.split()[1], "not-a-key"),
        ("ssh-ed25519 " + "A" * 5000, "not-a-key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb\n", "private-key"),
        ("", "not-a-key"),
        ("ſsh-ed25519 " + KEY.split()[1], "not-a-key"),
    ],
    ids=[
        "too short", "dss", "security key", "cut off", "two keys", "with options", "another kind", "too long",
        "private", "nothing", "look-alike",
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_its_field_and_nothing_is_kept(acme, mia, key, code):
    machine = box(acme, mia)

    with pytest.raises(InvalidSpec) as refusal:
        certify(machine, mia, key)

    assert (refusal.value.field, refusal.value.specific_code) == ("public_key", code)
    assert not SshCertificate.objects.exists()
    assert key[:60] not in refusal.value.detail or not key


def test_a_certificate_in_place_of_a_key_is_refused(acme, mia):
    machine = box(acme, mia)
    _row, line = certify(machine, mia)

    with pytest.raises(InvalidSpec):
        certify(machine, mia, line)


# --- who, and when ----------------------------------------------------------------------------------


def test_a_viewer_an_operator_and_a_stranger_get_none(acme, mia):
    machine = box(acme, mia)

    for who in (
        factories.member(acme, Role.VIEWER),
        factories.person(platform=(PlatformRole.OPERATOR,)),
        factories.person(),
    ):
        with pytest.raises(Forbidden):
            certify(machine, who)
    assert not SshCertificate.objects.exists()


def test_none_for_a_machine_without_an_address_one_on_its_way_out_or_one_that_is_older(acme, mia):
    early, leaving, older = box(acme, mia, "early", address=""), box(acme, mia, "leaving"), box(acme, mia, "older")
    machines.delete(machine=leaving, actor=factories.actor(mia), now=NOW)
    Machine.objects.filter(pk=older.pk).update(ssh_authority=None)

    for machine, code in ((early, "not-ready"), (leaving, "deleting"), (older, "no-authority")):
        with pytest.raises(Conflict) as refusal:
            certify(machine, mia)
        assert refusal.value.specific_code == code


def test_a_suspended_tenant_lets_nobody_in_and_what_is_out_counts_no_more(acme, mia):
    machine = box(acme, mia)
    row, _line = certify(machine, mia)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    assert revoked(machine) == []

    tenant_operations.suspend(tenant=acme, depth=SuspensionDepth.KEYS, reason="a test", actor=operator, now=NOW)

    assert revoked(machine) == [row.serial]
    with pytest.raises(Conflict) as refusal:
        certify(machine, mia)
    assert refusal.value.specific_code == "tenant-suspended"


# --- ends -------------------------------------------------------------------------------------------


def _removed(tenant, person, operator):
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    members.remove(membership=Membership.objects.get(tenant=tenant, person=person), actor=owner, now=NOW)


def _demoted(tenant, person, operator):
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    membership = Membership.objects.get(tenant=tenant, person=person)
    members.change_role(membership=membership, role=Role.VIEWER, actor=owner, now=NOW)


def _suspended(tenant, person, operator):
    people.suspend(person=person, reason="a test", actor=operator, now=NOW)


def _left(tenant, person, operator):
    leavers.leave(person=person, actor=operator, now=NOW)


@pytest.mark.parametrize("end", [_removed, _demoted, _suspended, _left])
def test_who_is_shut_out_loses_what_he_has_at_once_and_nobody_else_does(acme, mia, end):
    machine = box(acme, mia)
    kim = factories.member(acme)
    row, _line = certify(machine, mia)
    certify(machine, kim)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    end(acme, mia, operator)

    assert revoked(machine) == [row.serial]


@pytest.mark.parametrize("end", [_removed, _demoted, _suspended, _left])
def test_who_is_shut_out_while_he_asks_gets_none(acme, mia, end):
    """His request was let in with the roles of a moment ago, and waited for the tenant's lock."""
    machine, asking = box(acme, mia), factories.actor(mia)
    end(acme, mia, factories.actor(factories.person(platform=(PlatformRole.OPERATOR,))))

    with pytest.raises(Forbidden):
        machine_access.certify(machine=machine, public_key=KEY, actor=asking, now=NOW)
    assert not SshCertificate.objects.exists()


def test_a_service_account_that_is_made_a_viewer_loses_what_it_has(acme, mia):
    machine, robot = box(acme, mia), factories.service_account(acme)
    owner = factories.actor(factories.member(acme, Role.OWNER))
    asking = Actor(
        Kind.SERVICE_ACCOUNT, id=robot.pk, person_id=robot.owner_id, tenant_roles={acme.pk: Role.MEMBER}, name="robot"
    )
    row, _line = machine_access.certify(machine=machine, public_key=KEY, actor=asking, now=NOW)

    service_accounts.update(account=robot, role=Role.VIEWER, actor=owner, now=NOW)

    assert revoked(machine) == [row.serial]
    with pytest.raises(Forbidden):
        machine_access.certify(machine=machine, public_key=KEY, actor=asking, now=NOW)


def test_a_service_account_logs_in_until_it_is_disabled(acme, mia):
    machine = box(acme, mia)
    owner = factories.member(acme, Role.OWNER)
    robot = factories.service_account(acme)
    actor = Actor(
        Kind.SERVICE_ACCOUNT, id=robot.pk, person_id=robot.owner_id, tenant_roles={acme.pk: Role.MEMBER}, name="robot"
    )
    row, line = machine_access.certify(machine=machine, public_key=KEY, actor=actor, now=NOW)
    before = revoked(machine)

    service_accounts.disable(account=robot, actor=factories.actor(owner), now=NOW)

    assert opened(line).key_id.decode() == f"service-account:{robot.pk} {machine.short_id}"
    assert (before, revoked(machine)) == ([], [row.serial])


def test_a_role_above_that_ends_takes_back_what_opens_machines_below(acme):
    child = factories.tenant(name="lab", parent=acme)
    factories.generous(child)
    above = factories.member(acme)
    machine = box(child, above)
    row, _line = certify(machine, above)

    _removed(acme, above, None)

    assert revoked(machine) == [row.serial]


def test_what_is_over_by_itself_is_not_listed(acme, mia):
    machine = box(acme, mia)
    certify(machine, mia)
    _removed(acme, mia, None)

    assert revoked(machine, now=NOW + timedelta(minutes=16)) == []


def test_certificates_are_forgotten_some_minutes_after_their_end_and_the_trail_is_not(acme, mia):
    certify(box(acme, mia), mia)

    kept = housekeeping.purge_ssh_certificates(NOW + timedelta(minutes=19))
    gone = housekeeping.purge_ssh_certificates(NOW + timedelta(minutes=21))

    assert (kept, gone, SshCertificate.objects.count()) == (0, 1, 0)
    assert Event.objects.filter(kind="machine.ssh-certificate-made").count() == 1


def test_a_new_authority_is_for_new_machines_and_ends_what_the_old_one_signed(acme, mia):
    old = box(acme, mia, "old")
    row, _line = certify(old, mia)
    owner = factories.actor(factories.member(acme, Role.OWNER))

    made = machine_access.rotate(tenant=acme, actor=owner, now=NOW)

    new = box(acme, mia, "new")
    assert new.ssh_authority_id == made.pk != old.ssh_authority_id
    assert revoked(old) == [row.serial]
    _again, line = certify(old, mia)
    signer = opened(line).signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert signer == Machine.objects.get(pk=old.pk).ssh_authority.public_key


# --- policy -----------------------------------------------------------------------------------------


def test_keys_that_stay_are_refused_with_the_next_step_unless_a_policy_allows_them(acme, mia):
    with pytest.raises(InvalidSpec) as refusal:
        box(acme, mia, "before", keys=[KEY])
    assert (refusal.value.field, refusal.value.specific_code) == ("ssh_keys", "policy-forbids")
    assert "tenantry ssh" in refusal.value.detail
    assert "operator" in refusal.value.detail
    assert box(acme, mia, "without").ssh_keys == []

    factories.allow_keys(acme)

    assert box(acme, mia, "after", keys=[KEY]).ssh_keys == [KEY]


def test_a_policy_below_may_take_keys_away_again_and_says_whose_it_is(acme, mia):
    owner = factories.actor(factories.member(acme, Role.OWNER))
    factories.allow_keys(acme)
    tenant_operations.set_policy(tenant=acme, policy={"logins": ["certificate"]}, actor=owner, now=NOW)

    with pytest.raises(InvalidSpec, match="The policy of acme allows only these logins: certificate") as refusal:
        box(acme, mia, "after", keys=[KEY])

    assert (refusal.value.field, refusal.value.specific_code) == ("ssh_keys", "policy-forbids")


def test_only_an_operator_allows_keys_and_owners_keep_or_hand_down_what_he_allowed(acme):
    owner = factories.actor(factories.member(acme, Role.OWNER))
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    child = factories.tenant(name="child", parent=acme)
    both = {"logins": ["certificate", "key"]}
    for tenant in (acme, child):
        with pytest.raises(InvalidSpec, match="Ask an operator") as refusal:
            tenant_operations.set_policy(tenant=tenant, policy=both, actor=owner, now=NOW)
        assert (refusal.value.field, refusal.value.specific_code) == ("policy.logins", "policy-widens")

    tenant_operations.set_policy(tenant=acme, policy=both, actor=operator, now=NOW)

    for tenant in (acme, child):
        policy = {**both, "longest_s": 3600}
        made = tenant_operations.set_policy(tenant=tenant, policy=policy, actor=owner, now=NOW)
        assert made.policy == policy


def test_a_policy_of_keys_only_signs_nothing(acme, mia):
    machine = box(acme, mia)
    factories.allow_keys(acme, "key")

    with pytest.raises(Conflict) as refusal:
        certify(machine, mia)

    assert refusal.value.specific_code == "policy-forbids"


# --- the way there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.2:2201", "127.0.0.2", 2201), ("10.96.0.7", "10.96.0.7", 22), ("", "", 22),
        ("vm.lab.internal", "vm.lab.internal", 22), ("[2001:db8::7]:2222", "2001:db8::7", 2222),
        ("2001:db8::7", "2001:db8::7", 22), ("ssh://x", "", 22), ("-oProxyCommand=x", "", 22),
        ("10.0.0.1; rm -rf /", "", 22), ("root@10.0.0.1", "", 22), ("$(id)", "", 22),
        ("10.0.0.1:22:22", "", 22), ("10.0.0.1:ssh", "", 22), ("fe80::1%eth0", "", 22), ("[::1]x", "", 22),
    ],
)  # fmt: skip
def test_an_address_gives_host_and_port(address, host, port):
    way = machine_access.way_to(Machine(address=address))

    assert (way.host, way.port, way.login) == (host, port, ssh_ca.LOGIN)
