"""Machines of content-library items on the lab's vCenter: one template per item and version, whoever died meanwhile."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.labs.vsphere.control import Control, Rule
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import BoundarySpec, MachineSpec, NotSupported, Secret, TransientDriverError
from provisioners.vsphere import libraries
from provisioners.vsphere.client import managed
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import AccessDenied, LookFirst, Untrusted
from provisioners.vsphere.libraries import Item
from provisioners.vsphere.rest import RestClient
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.tasks import Alive
from tests.vsphere.ground import boundary, clear, settings_for, walk
from tests.vsphere.test_machines_real import Walk, machine, run, vm_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

IMAGE = "debian-12-gpu"


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    return settings_for(vcenter, libraries=("images",), templates={"ubuntu-24.04": "ubuntu-24.04-gpu"})


@pytest.fixture
def drivers(settings: Settings, vcenter_control: Control) -> Iterator[Callable[..., VSphereDriver]]:
    made: list[VSphereDriver] = []

    def make(**more: object) -> VSphereDriver:
        made.append(VSphereDriver(replace(settings, **more)))
        return made[-1]

    yield make
    vcenter_control.clear()
    for driver in made:
        driver.close()


@pytest.fixture
def driver(drivers: Callable[..., VSphereDriver]) -> VSphereDriver:
    return drivers()


@pytest.fixture
def home(driver: VSphereDriver) -> Iterator[BoundarySpec]:
    made = boundary()
    walk(driver, made)
    yield made
    clear(driver, made)


@pytest.fixture
def spec(driver: VSphereDriver, home: BoundarySpec) -> Iterator[MachineSpec]:
    forget(driver)
    made = machine(home, image=IMAGE)
    yield made
    assert run(driver, made, deleting=True).end == plan.Forget()
    forget(driver)


def item_of(driver: VSphereDriver) -> Item:
    found = driver.libraries.find(IMAGE)
    assert found is not None
    return found


def copies(driver: VSphereDriver) -> list:
    """Return the VMs that the item was deployed to."""
    name = libraries.image_name(driver.client.about()["instance_uuid"], item_of(driver))
    rows = driver.client.rows({"VirtualMachine": ("name", "config.template", "config.annotation")})["VirtualMachine"]
    return [one for one in rows if one.values["name"] == name]


def forget(driver: VSphereDriver) -> None:
    """Leave nothing of the item's deployments, here or at the vCenter."""
    settle()
    libraries._RUNNING.clear()
    for one in copies(driver):
        driver.client.start(lambda si, ref=one.ref: managed(ref, si).Destroy_Task())


def settle() -> None:
    """Wait for every deployment of this process."""
    for thread in threading.enumerate():
        if thread.name.startswith("deploy-"):
            thread.join(20)


def up(driver: VSphereDriver, spec: MachineSpec) -> Walk:
    """Walk until the machine runs; between two walks the deployment comes to its end."""
    walked = Walk()
    for _ in range(5):
        walked = run(driver, spec, before=settle, rounds=30)
        if walked.end == plan.Nothing(ready=True, complete=True):
            return walked
    raise AssertionError(walked)


def test_items_are_images_and_what_keeps_the_others_from_it_is_said(drivers):
    seen = drivers(libraries=("images", "gone")).capabilities()

    assert seen.images == {"ubuntu-24.04", IMAGE}
    assert "vCenter shows no content library gone" in seen.missing["libraries"]
    assert "item appliance: its description does not say that cloud-init" in seen.missing["libraries"]
    assert seen.features["libraries"] is False
    assert drivers(libraries=()).capabilities().images == {"ubuntu-24.04"}


def test_lists_of_libraries_are_read_again_in_few_calls(driver, vcenter_control):
    driver.capabilities()
    vcenter_control.forget_calls()

    driver.capabilities()

    assert not [name for name in vcenter_control.calls() if name.startswith("/rest")]


def test_a_machine_of_an_item_is_a_clone_of_one_template_that_is_made_of_it_once(driver, home, spec):
    walked = up(driver, spec)

    told = {error.detail for error in walked.errors}
    assert all("is being brought from content library images" in text for text in told)
    assert told
    [copy] = copies(driver)
    assert copy.values["config.template"]
    assert "cloud-init" in copy.values["config.annotation"]
    vm = vm_of(driver, spec)
    assert (vm.name, vm.is_on, vm.have.firmware) == (spec.ref.name, True, "efi")
    second = machine(home, image=IMAGE)
    assert run(driver, second).errors == []
    assert len(copies(driver)) == 1
    assert run(driver, second, deleting=True).end == plan.Forget()


def test_what_a_worker_that_died_left_is_adopted_when_it_has_settled(driver, spec, monkeypatch):
    with pytest.raises(TransientDriverError):
        driver.start(driver.steps(spec)[0])
    settle()
    libraries._RUNNING.clear()  # the worker that waited for the answer is gone

    with pytest.raises(TransientDriverError, match="is being brought"):
        driver.start(driver.steps(spec)[0])
    monkeypatch.setattr(libraries, "SETTLED", libraries.SETTLED * 0)

    up(driver, spec)

    assert len(copies(driver)) == 1


def test_a_lost_answer_makes_no_second_copy(driver, spec, vcenter_control, monkeypatch):
    monkeypatch.setattr(libraries, "SETTLED", libraries.SETTLED * 0)
    path = f"/rest/com/vmware/vcenter/ovf/library-item/id:{item_of(driver).id}"
    vcenter_control.add(Rule("http", path, drop="after", count=1))

    up(driver, spec)

    assert len(copies(driver)) == 1


def test_a_deployment_that_fails_is_told_with_the_reason_and_tried_again_later(
    driver, spec, vcenter_control, monkeypatch
):
    vcenter_control.add(Rule("call", "ImportVApp", fault="NoPermission", count=1))

    refused = run(driver, spec, before=settle, rounds=6)
    monkeypatch.setattr(libraries, "FAILED_S", 0.0)
    up(driver, spec)

    assert "could not be deployed" in refused.errors[-1].detail
    assert len(copies(driver)) == 1


@pytest.fixture
def left(driver, spec, monkeypatch) -> MachineSpec:
    """What a worker that died has left, long enough ago by its date."""
    with pytest.raises(TransientDriverError):
        driver.start(driver.steps(spec)[0])
    settle()
    libraries._RUNNING.clear()
    monkeypatch.setattr(libraries, "SETTLED", libraries.SETTLED * 0)
    return spec


def see(driver: VSphereDriver, monkeypatch: pytest.MonkeyPatch, path: str, value: object) -> None:
    """Let vCenter tell something else of the VM that the item was deployed to."""
    get, [copy] = driver.client.get, copies(driver)

    def told(ref, *paths):
        return {**get(ref, *paths), path: value} if ref == copy.ref and path in paths else get(ref, *paths)

    monkeypatch.setattr(driver.client, "get", told)


def waits(driver: VSphereDriver, spec: MachineSpec) -> None:
    with pytest.raises(TransientDriverError, match="is being brought"):
        driver.start(driver.steps(spec)[0])
    assert not copies(driver)[0].values["config.template"]


@pytest.mark.parametrize("method", ["MarkAsTemplate", "PowerOnVM_Task"])
def test_what_vcenter_lets_nobody_switch_on_is_still_being_brought(driver, left, monkeypatch, method):
    with monkeypatch.context() as patch:
        see(driver, patch, "disabledMethod", ["Destroy_Task", method])
        waits(driver, left)

    up(driver, left)


def test_while_vcenter_deploys_to_our_pool_nothing_is_adopted(driver, left, monkeypatch):
    pool = driver.ground.estate().clusters[0].pool
    task = Alive("task-1", "ResourcePool.ImportVAppLRO", pool, "Resources", 0, datetime.now(UTC))
    with monkeypatch.context() as patch:
        patch.setattr(libraries, "alive", lambda _session: [task])
        waits(driver, left)

    up(driver, left)


@pytest.mark.parametrize("born", [None, datetime(1970, 1, 1, tzinfo=UTC)])
def test_a_vm_without_a_date_is_as_old_as_we_have_known_it(driver, left, monkeypatch, born):
    with monkeypatch.context() as patch:
        see(driver, patch, "config.createDate", born)
        patch.setattr(libraries, "SETTLED", timedelta(seconds=120))
        waits(driver, left)

    up(driver, left)


def test_what_a_deployment_that_failed_has_left_is_named_and_never_adopted(driver, spec, vcenter_control, monkeypatch):
    monkeypatch.setattr(libraries, "SETTLED", libraries.SETTLED * 0)
    vcenter_control.add(Rule("call", "HttpNfcLeaseComplete", fault="InvalidState", count=1))

    refused = run(driver, spec, before=settle, rounds=6)

    [copy] = copies(driver)
    assert f"left the VM {copy.values['name']}; remove it" in refused.errors[-1].detail
    assert not copy.values["config.template"]
    driver.client.start(lambda si: managed(copy.ref, si).Destroy_Task())
    monkeypatch.setattr(libraries, "FAILED_S", 0.0)
    up(driver, spec)


def test_a_deployment_that_is_refused_fails_no_machine_for_good(driver, spec, vcenter_control, monkeypatch):
    path = f"/rest/com/vmware/vcenter/ovf/library-item/id:{item_of(driver).id}"
    vcenter_control.add(Rule("http", path, status=400, count=1))

    refused = run(driver, spec, before=settle, rounds=6)
    monkeypatch.setattr(libraries, "FAILED_S", 0.0)
    up(driver, spec)

    assert {type(error) for error in refused.errors} == {TransientDriverError}
    assert "refuses it as it is written" in refused.errors[-1].detail


def test_an_answer_that_is_not_understood_is_no_success(driver, spec, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(libraries, "_outcome", lambda _item, _told: 1 / 0)
        with pytest.raises(TransientDriverError):
            driver.start(driver.steps(spec)[0])
        settle()

    [deployment] = libraries._RUNNING.values()
    assert deployment.error is not None
    monkeypatch.setattr(libraries, "SETTLED", libraries.SETTLED * 0)
    up(driver, spec)


def test_an_image_that_no_library_has_is_refused_by_its_field(driver, home):
    with pytest.raises(NotSupported, match="image: no template and no item"):
        driver.start(driver.steps(machine(home, image="nothing"))[0])


def test_a_rest_side_that_fails_takes_no_template_away(drivers, vcenter_control):
    vcenter_control.add(Rule("http", "/rest/com/vmware/cis/session", status=503))

    seen = drivers().capabilities()

    assert seen.images == {"ubuntu-24.04"}
    assert "content libraries give no images" in seen.missing["libraries"]


# --- the REST session -----------------------------------------------------------------------------


@pytest.fixture
def rests(settings: Settings, vcenter_control: Control) -> Iterator[Callable[..., RestClient]]:
    made: list[RestClient] = []

    def make(**more: object) -> RestClient:
        made.append(RestClient(replace(settings, **more)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_session_that_vcenter_has_forgotten_is_made_anew(rests):
    rest = rests()
    before = rest.get("/content/library")
    rest.delete("/cis/session")

    assert rest.get("/content/library") == before


def test_a_closed_session_is_known_no_more(rests):
    rest, other = rests(), rests()
    rest.get("/content/library")
    session = rest._session
    rest.close()
    other._session = session

    other.get("/content/library")

    assert other._session != session


def test_a_wrong_password_a_strange_certificate_and_a_broken_line_are_told_apart(rests, vcenter_control):
    with pytest.raises(AccessDenied, match="user and password"):
        rests(password=Secret("wrong")).get("/content/library")
    with pytest.raises(Untrusted):
        rests(ca_pem="").get("/content/library")
    with pytest.raises(Untrusted):
        rests(ca_pem="", thumbprint="0" * 64).get("/content/library")
    vcenter_control.add(Rule("http", "/rest/com/vmware/content/library", drop="before", count=1))
    with pytest.raises(LookFirst):
        rests().get("/content/library")


def test_the_pinned_certificate_alone_is_enough(rests, vcenter):
    shown = ssl.get_server_certificate((vcenter.host, vcenter.port))
    pinned = hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest()

    assert rests(ca_pem="", thumbprint=pinned).get("/content/library")


def test_an_item_that_goes_while_a_library_is_listed_is_left_out(driver, vcenter_control):
    gone = f"/rest/com/vmware/content/library/item/id:{item_of(driver).id}"
    fresh = libraries.Libraries(driver.ground, driver._rest)
    vcenter_control.add(Rule("http", gone, status=404, count=1))

    assert IMAGE not in {one.slug for one in fresh.listed().items}


def test_other_libraries_are_not_read(drivers, vcenter_control):
    driver = drivers(libraries=("gone",))
    vcenter_control.forget_calls()

    assert driver.libraries.listed().missing == ("gone",)
    assert not [name for name in vcenter_control.calls() if "/content/library/id:" in name]
