"""The port group of a boundary: a VLAN that no other boundary has, and nothing that lets one card hear another's.

Promiscuous mode, changed MAC addresses and forged senders are refused, and no port may say otherwise. A boundary is
cut off by blocking every port of its group at once: VMs keep their memory and their cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import (
    BoundarySpec,
    Conflicting,
    Done,
    Handle,
    Part,
    Presence,
    Ref,
    Remark,
    RemarkKind,
    TransientDriverError,
    intent_hash,
)
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground, Switch
from provisioners.vsphere.names import WANTS_FIELD, marker, parse_wants, wants
from provisioners.vsphere.tasks import finish

STEP: Final = "network.create"
_NEXT: Final = "network.next"
"""Beside the step's record: what a change of ours that was begun makes true when its task ends."""
_NO_WANT: Final = "0" * 16
"""The want of a change that no step made."""
FIRST_PORTS: Final = 16
"""A group of type `earlyBinding` grows by itself (`autoExpand`)."""
_PATHS: Final = ("name", "customValue", "config.description", "config.defaultPortConfig", "config.policy", "vm")
_vSwitch: Final = vim.dvs.VmwareDistributedVirtualSwitch  # noqa: N816 - it is a type


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a port group does with its ports; the defaults are what a boundary gets."""

    vlan: int
    blocked: bool = False
    promiscuous: bool = False
    mac_changes: bool = False
    forged: bool = False
    overridable: bool = False
    """Whether a single port may have another VLAN or other switches."""

    @property
    def seen(self) -> str:
        """The hash by which it is known again."""
        return intent_hash(asdict(self))


class Networks:
    """Port groups of boundaries in one vCenter."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground

    def read(self, ref: Ref, *, foreign: bool = False) -> tuple[MoRef, Mapping[str, Any]] | None:
        """Return a boundary's own port group; None by an exact read, also for somebody else's.

        Raises `Conflicting` for that with `foreign`. A group of ours says whose it is from its first moment, in its
        description: vCenter may be asked to mark it only after it was made.
        """
        found = self._ground.portgroup_of(ref)
        values = None if found is None else self._ground.client.get(found, *_PATHS)
        if found is None or values is None:
            return None
        mark = self._ground.attribute(values)
        is_ours = mark == marker(ref) or (not mark and values.get("config.description") == marker(ref))
        if not is_ours and foreign:
            raise Conflicting(f"port group {ref.name} is there and is not ours")
        return (found, values) if is_ours else None

    def part(self, ref: Ref, values: Mapping[str, Any]) -> Part:
        """Return what is there of the step."""
        records = parse_wants(self._ground.attribute(values, WANTS_FIELD))
        want, seen = records.get(STEP, ("", ""))
        wiring = wiring_of(values)
        true_still = self._ground.attribute(values) == marker(ref) and wiring is not None and seen == wiring.seen
        # a task of ours may have ended, and the step not yet started again that writes down what it made
        is_ours = wiring is not None and wiring.seen == records.get(_NEXT, ("", ""))[1]
        remarks = () if true_still or is_ours else _remarks(seen, wiring)
        return Part(STEP, Presence.PRESENT, have=want if true_still else "", remarks=remarks)

    def make(self, spec: BoundarySpec, want: str) -> Handle | Done:
        """Make the port group, or set it right again. Raises `Conflicting` for one that is somebody else's."""
        wiring, ref = wiring_for(spec), spec.ref
        found = self.read(ref, foreign=True)
        if found is None:
            ended = self._create(ref, wiring)
            if isinstance(ended, Handle):
                return ended
            found = self.read(ref, foreign=True)
        if found is None:
            raise TransientDriverError(f"port group {ref.name} has gone again")
        portgroup, values = found
        if self._ground.attribute(values) != marker(ref):
            self._ground.set_attribute(portgroup, marker(ref))
        if wiring_of(values) != wiring:
            self._announce(portgroup, values, want, wiring)
            ended = self._set(portgroup, ref, wiring)
            if isinstance(ended, Handle):
                return ended
            values = self._ground.client.get(portgroup, *_PATHS) or {}
        record = wants({STEP: (want, wiring.seen)})
        if self._ground.attribute(values, WANTS_FIELD) != record:
            self._ground.set_attribute(portgroup, record, WANTS_FIELD)
        return Done()

    def _create(self, ref: Ref, wiring: Wiring) -> Handle | Done:
        client, switch = self._ground.client, self._ground.switch()
        self._check_free(wiring.vlan, ref, switch)
        spec = config_spec(ref, wiring)
        try:
            return finish(client, client.start(lambda si: managed(switch.ref, si).AddDVPortgroup_Task([spec])))
        except LookFirst:
            if self._ground.portgroup_of(ref) is None:
                raise
            return Done()

    def _check_free(self, vlan: int, ref: Ref, switch: Switch) -> None:
        """Refuse a VLAN that another port group of the switch has: our database knows of ours only.

        Raises `Conflicting`.
        """
        wanted = ("name", "config.distributedVirtualSwitch", "config.defaultPortConfig")
        for one in self._ground.client.rows({"DistributedVirtualPortgroup": wanted})["DistributedVirtualPortgroup"]:
            wiring, on = wiring_of(one.values), one.values.get("config.distributedVirtualSwitch")
            elsewhere = on is None or reference(on) != switch.ref
            if wiring is None or wiring.vlan != vlan or elsewhere or one.values["name"] == ref.name:
                continue  # one of our own name was made a moment ago by another worker
            msg = f"VLAN {vlan} is that of port group {one.values['name']}; the provider should not give it (vlans)"
            raise Conflicting(msg)

    def _announce(self, portgroup: MoRef, values: Mapping[str, Any], want: str, wiring: Wiring) -> None:
        """Write down what a change is about to make, or a look after it would take it for somebody else's."""
        records = parse_wants(self._ground.attribute(values, WANTS_FIELD))
        if records.get(_NEXT) != (want, wiring.seen):
            text = wants({**records, _NEXT: (want, wiring.seen)})
            self._ground.set_attribute(portgroup, text, WANTS_FIELD)

    def _set(self, portgroup: MoRef, ref: Ref, wiring: Wiring) -> Handle | Done:
        client = self._ground.client
        told = client.get(portgroup, "config.configVersion") or {}
        spec = config_spec(ref, wiring)
        spec.configVersion = told.get("config.configVersion")
        return finish(client, client.start(lambda si: managed(portgroup, si).ReconfigureDVPortgroup_Task(spec)))

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Block every port of a boundary's group, or open them, at once. Raises `TransientDriverError` without one."""
        found = self.read(ref, foreign=True)
        wiring = None if found is None else wiring_of(found[1])
        if found is None or wiring is None:
            raise TransientDriverError(f"port group {ref.name} is not there")
        if wiring.blocked != cut_off:
            changed = Wiring(wiring.vlan, cut_off)
            self._announce(*found, _NO_WANT, changed)
            if isinstance(self._set(found[0], ref, changed), Handle):
                raise TransientDriverError(f"vCenter is still at work on port group {ref.name}")
        return Done()

    def remove(self, ref: Ref) -> Handle | Done:
        """Remove the port group, only while no VM has a card on it."""
        found = self.read(ref)
        if found is None:
            return Done()
        portgroup, values = found
        if inside := self.contents(portgroup, values):
            raise TransientDriverError(f"port group {ref.name} is in use: {inside}")
        client = self._ground.client
        return finish(client, client.start(lambda si: managed(portgroup, si).Destroy_Task()))

    def contents(self, portgroup: MoRef, values: Mapping[str, Any]) -> str:
        """Return the names of VMs with a card on a port group, for people; `""` for none."""
        here = {reference(one) for one in values.get("vm") or ()}
        rows = self._ground.client.rows({"VirtualMachine": ("name", "network")})["VirtualMachine"]
        named = {
            str(one.values.get("name", ""))
            for one in rows
            if one.ref in here or portgroup in {reference(net) for net in one.values.get("network") or ()}
        }
        return ", ".join(sorted(named))


def _remarks(seen: str, wiring: Wiring | None) -> tuple[Remark, ...]:
    """Return what others changed since `seen` was recorded; nothing without a record, or where only a mark is gone."""
    if not seen or (wiring is not None and seen == wiring.seen):
        return ()
    if wiring is None:
        found = ["it is no plain VLAN any more"]
    else:
        switches = {
            "promiscuous mode": wiring.promiscuous,
            "changed MAC addresses": wiring.mac_changes,
            "forged senders": wiring.forged,
            "other settings for single ports": wiring.overridable,
        }
        found = [f"it allows {name}" for name, is_on in switches.items() if is_on]
        plain = Wiring(wiring.vlan)
        if seen == replace(plain, blocked=not wiring.blocked).seen:
            found.append(f"its ports are {'blocked' if wiring.blocked else 'open'}")
        elif seen != replace(plain, blocked=wiring.blocked).seen:
            found.append(f"its VLAN is {wiring.vlan}")
    return (Remark(RemarkKind.RULES, f"its port group was changed by others: {'; '.join(found)}", "port group"),)


def wiring_for(spec: BoundarySpec) -> Wiring:
    """Return what a boundary's port group should do.

    Raises `TransientDriverError` without a VLAN of its own: an operator can give the provider some at any time.
    """
    if spec.vlan is None:
        raise TransientDriverError("the provider has no VLANs to give boundaries (setting vlans, such as 1200-1299)")
    return Wiring(spec.vlan, blocked=spec.cut_off)


def config_spec(ref: Ref, wiring: Wiring) -> Any:
    """Return the whole of a boundary's port group as vCenter is told it, for making and for changing it."""

    def flag(value: bool) -> Any:  # noqa: FBT001 - vCenter's own word for a flag
        return vim.BoolPolicy(value=value, inherited=False)

    setting = _vSwitch.VmwarePortConfigPolicy(
        vlan=_vSwitch.VlanIdSpec(vlanId=wiring.vlan, inherited=False),
        blocked=flag(wiring.blocked),
        securityPolicy=_vSwitch.SecurityPolicy(
            inherited=False,
            allowPromiscuous=flag(wiring.promiscuous),
            macChanges=flag(wiring.mac_changes),
            forgedTransmits=flag(wiring.forged),
        ),
    )
    policy = _vSwitch.VMwarePortgroupPolicy(
        blockOverrideAllowed=wiring.overridable,
        shapingOverrideAllowed=False,
        vendorConfigOverrideAllowed=False,
        livePortMovingAllowed=False,
        portConfigResetAtDisconnect=True,
        vlanOverrideAllowed=wiring.overridable,
        uplinkTeamingOverrideAllowed=False,
        securityPolicyOverrideAllowed=wiring.overridable,
        macManagementOverrideAllowed=wiring.overridable,
    )
    return vim.dvs.DistributedVirtualPortgroup.ConfigSpec(
        name=ref.name,
        description=marker(ref),
        type="earlyBinding",
        numPorts=FIRST_PORTS,
        autoExpand=True,
        defaultPortConfig=setting,
        policy=policy,
    )


def wiring_of(values: Mapping[str, Any]) -> Wiring | None:
    """Return what a port group does, None where it is no plain VLAN (a trunk, a private VLAN) or does not say."""
    setting, policy = values.get("config.defaultPortConfig"), values.get("config.policy")
    vlan = getattr(getattr(setting, "vlan", None), "vlanId", None)
    if setting is None or not isinstance(vlan, int):
        return None
    security = [getattr(setting, name, None) for name in ("securityPolicy", "macManagementPolicy")]

    def allowed(name: str) -> bool:
        """Whether a switch is on; one that is not set off is on, or inherited, and both are not ours."""
        flags = [getattr(one, name) for one in security if one is not None]
        return not flags or any(_is_on(flag) for flag in flags if flag is not None) or flags[0] is None

    overrides = ("blockOverrideAllowed", "vlanOverrideAllowed", "securityPolicyOverrideAllowed")
    return Wiring(
        vlan=vlan,
        blocked=_is_on(getattr(setting, "blocked", None)),
        promiscuous=allowed("allowPromiscuous"),
        mac_changes=allowed("macChanges"),
        forged=allowed("forgedTransmits"),
        overridable=any(bool(getattr(policy, name, False)) for name in overrides),
    )


def _is_on(flag: Any) -> bool:
    return flag is not None and bool(getattr(flag, "value", flag))
