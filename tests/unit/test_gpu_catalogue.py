"""The catalogue is true to its source, and every product of it is usable without further code."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tenants import gpu_catalogue as catalogue
from tenants.gpu_catalogue import GpuDimension, SoldByWindow

EVERY_PRODUCT = pytest.mark.parametrize("product", catalogue.products(), ids=lambda p: p.id)


def test_a_whole_h100_is_eight_slices_of_eighty_gib():
    product = catalogue.product("H100-80GB")

    assert (product.slices, product.total_memory_gib, product.geometry) == (8, Decimal(80), "7-slice")
    assert product.whole.starts == (0,)
    assert product.whole.size == 8
    assert [p.name for p in product.profiles] == [
        "1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("product_id", "slices", "sold"),
    [
        ("A30-24GB", 4, SoldByWindow.ALWAYS),
        ("A100-80GB", 8, SoldByWindow.ALWAYS),
        ("H200-141GB", 8, SoldByWindow.AFTER_MATCHING_REPORT),
        ("B300", 8, SoldByWindow.AFTER_MATCHING_REPORT),
        ("RTX-PRO-6000-BLACKWELL-96GB", 12, SoldByWindow.ALWAYS),
        ("RTX-PRO-5000-BLACKWELL-48GB", 2, SoldByWindow.NEVER),
        ("L40S-48GB", 1, SoldByWindow.NEVER),
        ("MI300X-192GB", 1, SoldByWindow.NEVER),
    ],
)
def test_what_is_sold_by_window_follows_what_is_known_of_the_placements(product_id, slices, sold):
    product = catalogue.product(product_id)

    assert (product.slices, product.sold_by_window) == (slices, sold)


@EVERY_PRODUCT
def test_every_legal_window_lies_inside_its_gpu_and_windows_of_one_profile_do_not_overlap(product):
    for part in (product.whole, *product.placeable):
        taken: set[int] = set()
        for start in part.starts:
            window = set(range(start, start + part.size))
            assert window <= set(range(product.slices)), part.name
            assert taken.isdisjoint(window), part.name
            taken |= window
        if not part.media:
            assert part.max_instances == len(part.starts), part.name


@EVERY_PRODUCT
def test_media_profiles_are_those_with_a_plus_me_suffix_and_only_they_are_single(product):
    for part in product.profiles:
        assert part.media == part.name.endswith(("+me", "+me.all")), part.name
        assert not part.media or part.max_instances == 1, part.name


@EVERY_PRODUCT
def test_unverified_products_have_no_placeable_profile(product):
    assert bool(product.placeable) == (product.sold_by_window is not SoldByWindow.NEVER)


@EVERY_PRODUCT
def test_slices_of_holds_the_whole_gpu_and_each_profile(product):
    sizes = catalogue.slices_of()

    assert sizes[product.id, catalogue.WHOLE] == product.slices
    assert all(sizes[product.id, part.name] == part.size for part in product.profiles)


@EVERY_PRODUCT
def test_dimension_names_survive_a_round_trip(product):
    names = [catalogue.slices_dimension(product.id)]
    names += [catalogue.profile_dimension(product.id, part.name) for part in product.profiles]

    parsed = [catalogue.parse_dimension(name) for name in names]

    assert [str(p) for p in parsed] == names
    assert parsed[0] == GpuDimension(product.id, None)
    assert [p.profile for p in parsed[1:] if isinstance(p, GpuDimension)] == [p.name for p in product.profiles]


@EVERY_PRODUCT
def test_each_name_and_pci_id_finds_its_product(product):
    for name in product.names:
        assert catalogue.find_by_provider_name(name) is product
        assert catalogue.find_by_provider_name(name.replace(" ", "-")) is product
    for device in product.pci_device_ids:
        assert catalogue.find_by_pci_id(device.lower()) is product


@pytest.mark.parametrize(
    ("label", "product_id"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100-80GB"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "H100-80GB"),
        ("NVIDIA-A100-SXM4-40GB-MIG-INVALID", "A100-40GB"),
        ("NVIDIA-A30-SHARED", "A30-24GB"),
        ("Tesla-T4", "T4-16GB"),
        ("H100-80GB", "H100-80GB"),
    ],
)
def test_labels_of_gpu_feature_discovery_are_understood(label, product_id):
    found = catalogue.find_by_provider_name(label)

    assert found is catalogue.product(product_id)


def test_a_name_that_could_be_two_products_finds_none():
    assert catalogue.find_by_provider_name("NVIDIA-A100") is None
    assert catalogue.find_by_pci_id("0xFFFF10DE") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpus", "'gpus' is no dimension; use gpu.<product>.slices"),
        ("", "'' is no dimension"),
        ("gpu.H100-80GB", "'gpu.H100-80GB' is incomplete"),
        ("gpu..slices", "'gpu..slices' is incomplete"),
        ("gpu.H100-80GB.", "'gpu.H100-80GB.' is incomplete"),
        ("gpu.H1000.slices", "'gpu.H1000.slices': no GPU product is called 'H1000'"),
        ("gpu.H100-80GB.1g.11gb", "'gpu.H100-80GB.1g.11gb': H100-80GB has no MIG profile '1g.11gb'; it has: 1g.10gb,"),
        ("gpu.L40S-48GB.1g", "none, it is sold whole"),
        ("VCPU", "'VCPU' is no dimension"),
    ],
)
def test_a_bad_dimension_says_which_part_is_wrong(text, said):
    with pytest.raises(catalogue.BadDimension) as raised:
        catalogue.parse_dimension(text)

    assert said in str(raised.value)


def test_only_counts_per_profile_and_tokens_are_optional():
    assert catalogue.is_optional("gpu.H100-80GB.1g.10gb+me")
    assert not catalogue.is_optional("gpu.H100-80GB.slices")
    optional = {name for name in catalogue.PLAIN_DIMENSIONS if catalogue.is_optional(name)}
    assert optional == {"tokens_month", "token_spend_month"}


def test_unknown_products_and_profiles_are_lookup_errors_that_list_what_is_known():
    with pytest.raises(catalogue.UnknownProduct, match="known: A30-24GB, A100-40GB"):
        catalogue.product("h100-80gb")
    with pytest.raises(catalogue.UnknownProfile, match=r"it has: 1g\.6gb, 1g\.6gb\+me"):
        catalogue.profile("A30-24GB", "3g.20gb")
    with pytest.raises(catalogue.UnknownProfile, match="counted in slices only"):
        catalogue.profile_dimension("A30-24GB", catalogue.WHOLE)


def test_mig_backed_vgpu_types_name_profiles_of_their_product():
    backed = [t for t in catalogue.vgpu_types().values() if t.profile is not None and t.product is not None]

    for vgpu in backed:
        assert vgpu.product is not None
        assert vgpu.profile is not None
        part = catalogue.profile(vgpu.product, vgpu.profile)
        assert vgpu.max_per_gpu == part.max_instances, vgpu.name
        assert vgpu.sellable
    assert len(backed) == 110


def test_time_sliced_vgpu_types_are_sellable_in_full_size_only():
    assert catalogue.vgpu_types()["nvidia_h100xm-80c"].sellable
    assert not catalogue.vgpu_types()["nvidia_h100xm-40c"].sellable
    assert catalogue.vgpu_types()["grid_a100d-3-40c"].profile == "3g.40gb"
