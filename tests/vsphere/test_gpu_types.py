"""vGPU types: every row of the catalogue's table, both ways, and what is read by the rule alone."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from provisioners.vsphere import gpu_types
from tenants import gpu_catalogue
from tenants.gpu_catalogue import WHOLE

TABLE = json.loads((files("tenants") / "data" / "vgpu-profiles.json").read_text())["products"]
BACKED = [
    pytest.param(one["name"], board["mig_product"], one["mig_profile"], id=one["name"])
    for board in TABLE
    for one in board["mig_backed"]
    if one["name"] and board["mig_product"]
]
SLICED = [
    pytest.param(one["name"], board["mig_product"], one["max_per_gpu"], id=one["name"])
    for board in TABLE
    for one in board["time_sliced"]
    if one["name"] and board["mig_product"]
]
BOARDS = [pytest.param(board, id=board["board"]) for board in TABLE if board["board"] and board["mig_product"]]


def offered_by(board):
    return [one["name"] for one in (*board["mig_backed"], *board["time_sliced"])]


@pytest.mark.parametrize(("name", "product", "profile"), BACKED)
def test_every_mig_backed_type_of_the_table_is_its_profile(name, product, profile):
    for told in ("", product):
        found = gpu_types.read(name, product=told)

        assert found is not None
        assert (found.product, found.profile, found.is_mig) == (product, profile, True)
        assert found.size == gpu_catalogue.profile(product, profile).size


@pytest.mark.parametrize(("name", "product", "most"), SLICED)
def test_every_time_sliced_type_of_the_table_takes_the_gpu(name, product, most):
    found = gpu_types.read(name, product=product)

    assert found is not None
    assert (found.profile, found.is_mig, found.fills) == (WHOLE, False, most == 1)
    assert found.size == gpu_catalogue.product(product).slices


@pytest.mark.parametrize("board", BOARDS)
def test_every_profile_that_a_board_offers_is_found_in_its_spelling(board):
    offered = [name.upper() for name in offered_by(board)]

    for one in board["mig_backed"]:
        found = gpu_types.offered_for(board["mig_product"], one["mig_profile"], offered)
        assert found == one["name"].upper()
    whole = next(one["name"] for one in board["time_sliced"] if one["max_per_gpu"] == 1)
    assert gpu_types.offered_for(board["mig_product"], WHOLE, offered) == whole.upper()


@pytest.mark.parametrize("board", BOARDS)
def test_a_whole_gpu_that_stays_in_mig_mode_is_all_its_slices(board):
    largest = max(board["mig_backed"], key=lambda one: one["gpu_slices"])["name"]

    assert gpu_types.offered_for(board["mig_product"], WHOLE, offered_by(board), mig_only=True) == largest


def test_what_the_host_does_not_offer_is_none():
    assert gpu_types.offered_for("H100-80GB", "3g.40gb", ["nvidia_h100xm-1-10c"]) is None
    assert gpu_types.offered_for("H100-80GB", WHOLE, ["nvidia_h100xm-1-10c", "nvidia_h100xm-40c"]) is None
    assert gpu_types.offered_for("A100-80GB", "3g.40gb", ["nvidia_h100xm-3-40c"]) is None


@pytest.mark.parametrize(
    ("name", "profile", "fills"),
    [
        ("nvidia_b200x-1-23c", "1g.23gb", False),
        ("NVIDIA_B200X-1-23CME", "1g.23gb+me", False),
        ("nvidia_b200x-7-180c", "7g.180gb", True),
        ("nvidia_b200x-180c", WHOLE, True),
        ("nvidia_b200x-45c", WHOLE, False),
    ],
)
def test_a_board_that_nobody_listed_is_read_by_the_rule_and_its_gpu(name, profile, fills):
    found = gpu_types.read(name, product="B200-180GB")

    assert found is not None
    assert (found.product, found.profile, found.fills) == ("B200-180GB", profile, fills)
    assert gpu_types.read("nvidia_b200x-1-23c") is None


@pytest.mark.parametrize(
    "name", ["", "nvidia_h100xm", "nvidia_h100xm-9-99c", "h100-80c", "nvidia_h100xm-3-40c-x", "a" * 999]
)
def test_a_string_that_nothing_explains_is_none(name):
    assert gpu_types.read(name, product="H100-80GB") is None


def test_a_board_of_another_model_is_not_taken_for_the_product_whose_profiles_it_has():
    assert gpu_types.products_of(["nvidia_h100xm-1-10c", "NVIDIA_H100XM-80C"]) == {"H100-80GB"}
    assert gpu_types.products_of(["nvidia_h800xm-1-10c", "nvidia_h20x-1-18c", "nonsense"]) == set()


@pytest.mark.parametrize(
    ("product", "count", "gib"),
    [("A30-24GB", 1, 64), ("A100-40GB", 1, 128), ("H100-80GB", 1, 256), ("H100-80GB", 2, 512), ("H200-141GB", 1, 512),
     ("H100-80GB", 8, 2048)],
)  # fmt: skip
def test_memory_mapping_is_as_the_source_names_it_or_by_its_rule(product, count, gib):
    assert gpu_types.mmio_gib(product, count) == gib
