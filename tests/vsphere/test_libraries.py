"""Which items of content libraries are images, and what the answer to a deployment means. Pure."""

from __future__ import annotations

from types import SimpleNamespace

from provisioners.driver import Secret, TransientDriverError
from provisioners.vsphere import acceptance, libraries
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.libraries import Item, Libraries, Listed
from provisioners.vsphere.settings import settings_of


def item(number: int, name: str = "debian", description: str = "cloud-init") -> Item:
    return Item(f"id-{number}", name, "images", "1", description)


def reading(listed: Listed) -> Libraries:
    config = {"url": "https://vcenter.example.com", "user": "u", "libraries": ["images"]}
    made = Libraries(Ground(settings_of(config, {"password": Secret("p")}), client=None), rest=None)
    made.listed = lambda: listed
    return made


def test_of_items_of_one_name_the_first_that_can_be_used_is_the_image_and_the_others_are_gaps():
    bare, first, second = item(1, description="an appliance"), item(2), item(3, "Debian")
    listed = Listed((bare, first, second, item(4, "!")))

    assert reading(listed).find("debian") == first
    assert libraries.slugs(listed) == {"debian"}
    assert [gap.partition(":")[0] for gap in libraries.gaps(listed)] == ["item debian", "item Debian", "item '!'"]
    assert "does not say that cloud-init" in libraries.gaps(listed)[0]
    assert "another image is called debian" in libraries.gaps(listed)[1]


def test_an_item_that_cannot_be_used_is_no_image_to_be_found():
    assert reading(Listed((item(1, description="an appliance"),))).find("debian") is None


def test_hosts_are_accepted_by_the_first_item_that_can_be_used():
    listed = reading(Listed((item(1, "appliance", "nothing"), item(2, "ubuntu"), item(3, "debian"))))

    assert acceptance._image(SimpleNamespace(settings=listed._ground.settings), listed) == "ubuntu"


def test_only_a_copy_that_another_worker_made_is_no_failed_deployment():
    def answer(kind: str) -> object:
        error = {"@class": f"com.vmware.vapi.std.errors.{kind}", "messages": [{"default_message": "words"}]}
        return {"succeeded": False, "error": {"errors": [{"category": "SERVER", "error": error}]}}

    assert isinstance(libraries._outcome(item(1), answer("already_exists")), LookFirst)
    refused = libraries._outcome(item(1), answer("error"))
    assert type(refused) is TransientDriverError
    assert "could not be deployed: words" in refused.detail
