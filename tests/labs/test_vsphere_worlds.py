"""Worlds of the vSphere lab: GPUs as the catalogue has them, and what is said where the program is missing."""

from __future__ import annotations

import json

import pytest

from controlplane.labs import building
from controlplane.labs.errors import LabError, NotBuilt
from controlplane.labs.vsphere import build, worlds
from controlplane.labs.vsphere.vcenter import VCenter
from tenants import gpu_catalogue


def test_gpus_have_the_types_and_starts_of_the_catalogue():
    [gpu] = worlds.gpus("H100-80GB", 1, board="H100XM")

    types = {one.name: one for one in gpu.types}
    assert (gpu.name, gpu.slices, gpu.device_id) == ("NVIDIA H100 80GB HBM3", 8, 0x2330)
    assert types["nvidia_h100xm-3-40c"].starts == (0, 4)
    assert types["nvidia_h100xm-80c"].sharing == worlds.TIME_SLICED
    known = gpu_catalogue.vgpu_types()
    for one in gpu.types:
        assert known[one.name].product == "H100-80GB"
        if one.sharing == worlds.MIG:
            profile = gpu_catalogue.profile("H100-80GB", known[one.name].profile)
            assert (one.size, one.starts, one.media) == (profile.size, profile.starts, profile.media)


def test_a_passthrough_gpu_offers_no_vgpu_and_each_gpu_has_an_address():
    gpus = worlds.gpus("A100-80GB", 4, passthrough=True)

    assert all(gpu.types == () and gpu.passthrough for gpu in gpus)
    assert len({gpu.pci_id for gpu in gpus}) == 4


@pytest.mark.parametrize(("product", "board"), [("L40S-48GB", ""), ("H100-80GB", "A100D"), ("none", "")])
def test_what_the_catalogue_does_not_have_is_refused(product, board):
    with pytest.raises(LabError, match=f"no vGPU board {board} of {product}"):
        worlds.gpus(product, 1, board=board)


def test_a_world_is_written_with_the_names_that_the_program_reads():
    written = json.loads(worlds.usual().as_json())

    source = (building.SOURCES / "vsphere" / "world.go").read_text()
    assert all(f'json:"{name}"' in source for name in written)
    assert [one["hosts"] for one in written["gpu_hosts"]] == [["DC0_C0_H0", "DC0_C0_H1"], ["DC0_C0_H2"], ["DC0_C0_H3"]]


def test_without_go_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("TENANTRY_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(building, "_USUAL_PLACES", ())

    with pytest.raises(NotBuilt, match="the vSphere lab is built from Go modules and there is no Go here"):
        build.ensure()


def test_a_name_that_is_no_label_is_refused():
    with pytest.raises(LabError, match="DNS label"):
        VCenter("../etc")
