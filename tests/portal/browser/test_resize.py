"""The dialog for another size of a machine, by keyboard and mouse, in both themes, on a wide screen and a phone."""

from __future__ import annotations

import pytest

from tenants.models import Machine
from tests.portal.browser.conftest import PHONE, WIDE, serious
from tests.portal.test_resize import PAGE, size, switched_off
from tests.portal.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


def is_within(page: object) -> bool:
    """Whether the open dialog lies wholly in the window."""
    box, window = page.locator("dialog[open]").bounding_box(), page.viewport_size
    return box["x"] >= 0 and box["x"] + box["width"] <= window["width"] and box["height"] <= window["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, PHONE])
def test_a_machine_that_is_off_gets_another_size_in_its_dialog(visit, world, scheme, window):
    switched_off()
    vcpu, memory, disk = size()
    page = visit(PAGE, world.acme.member, size=window, scheme=scheme)

    page.get_by_role("button", name="Resize").click()
    assert is_within(page)
    assert serious(page) == []
    page.get_by_label("vCPUs").fill(str(vcpu + 1))
    page.get_by_label("Memory").fill(str(memory + 1))
    page.locator("dialog[open]").get_by_role("button", name="Resize").click()

    page.get_by_text(f"{memory + 1} GiB memory, {disk} GiB disk").wait_for()
    assert size() == (vcpu + 1, memory + 1, disk)


@pytest.mark.parametrize("window", [WIDE, PHONE])
def test_of_one_that_runs_the_dialog_says_what_to_do_first(visit, world, window):
    page = visit(PAGE, world.acme.member, size=window)

    page.get_by_role("button", name="Resize").click()

    dialog = page.locator("dialog[open]")
    assert "Switch it off first" in dialog.inner_text()
    assert dialog.get_by_role("button", name="Resize").count() == 0
    assert is_within(page)
    assert serious(page) == []
    dialog.locator("footer button").click()
    assert page.locator("dialog[open]").count() == 0
    assert Machine.objects.get(name="box", tenant__name="acme").resizes == 0
