"""Estates from JSON, CSV and a trace's node list; what is wrong is refused with the place named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from provisioners.driver import Binding
from provisioners.sandbox import files
from provisioners.sandbox.files import BadEstate, build, estate_from_file, estate_from_spot_gpu
from tenants import gpu_catalogue

ROOT = Path(__file__).resolve().parents[2]
SPOT = ROOT.parent / "shared" / "traces" / "spot-gpu-2026" / "node_info_df.csv"

GOOD: dict[str, Any] = {
    "schema": "sandbox-estate/1",
    "settings": {"policy": "spread"},
    "hosts": [
        {
            "host": "a",
            "binding": "device",
            "boundary_kinds": ["namespace"],
            "vcpu": 8,
            "memory_gib": 64,
            "gpus": [
                {"product": "H100-80GB", "count": 2},
                {"product": "A100-80GB", "layout_change": "on-idle", "layout": [[0, 1, "1g.10gb"]]},
            ],
        }
    ],
    "foreign_uses": [{"name": "f", "host": "a", "windows": [[1, 4, "3g.40gb"]], "vcpu": 2, "memory_gib": 4}],
}


def test_a_document_becomes_hosts_gpus_and_foreign_use() -> None:
    state = build(GOOD)

    assert list(state.gpus) == ["a-gpu-0", "a-gpu-1", "a-gpu-2"]
    assert [gpu.product for gpu in state.gpus.values()] == ["H100-80GB", "H100-80GB", "A100-80GB"]
    assert (state.gpus["a-gpu-2"].mode, state.gpus["a-gpu-2"].layout) == ("mig", [[0, 1, "1g.10gb"]])
    assert state.occupied["a-gpu-1"] == {"foreign:f": [(4, 4, "3g.40gb")]}
    assert (state.loads["a"].vcpu, state.loads["a"].memory_gib) == (2, 4)
    assert state.settings.policy == "spread"


def broken(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    *way, last = path.split("/")
    at: Any = document
    for name in way:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema", "other/1", "schema"),
        ("settings", {"nope": 1}, "nope"),
        ("hosts/0/binding", "luck", "luck"),
        ("hosts/0/boundary_kinds", ["pod"], "pod"),
        ("hosts/0/gpus/0/product", "H900", "H900"),
        ("hosts/0/gpus/0/layout_change", "never", "layout_change"),
        ("hosts/0/gpus/1/layout", [[1, 2, "2g.20gb"]], "2g.20gb"),
        ("hosts/0/gpus/1/layout", [[0, 1, "1g.10gb"], [0, 1, "1g.10gb"]], "overlaps"),
        ("hosts/0/gpus/1/layout", [[0, 1, "1g.10gb+me"], [1, 1, "1g.10gb+me"]], "media"),
        ("foreign_uses/0/host", "b", "'f'"),
        ("foreign_uses/0/windows", [[9, 0, ""]], "no GPU 9"),
        ("foreign_uses/0/windows", [[0, 0, "3g.40gb"], [0, 0, "1g.10gb"]], "not free"),
        ("foreign_uses/0/windows", [[0, 1, "3g.40gb"]], "not free"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, named: str) -> None:
    with pytest.raises(BadEstate, match=named):
        build(broken(path, value))


def test_two_hosts_of_one_id_and_a_host_without_binding_are_refused() -> None:
    with pytest.raises(BadEstate, match="twice"):
        build({**GOOD, "hosts": GOOD["hosts"] * 2})
    with pytest.raises(BadEstate, match="boundary_kinds"):
        build({**GOOD, "hosts": [{"host": "x"}]})


def test_csv_has_one_row_per_host(tmp_path: Path) -> None:
    path = tmp_path / "estate.csv"
    path.write_text(
        "host,name,binding,boundary_kinds,vcpu,memory_gib,product,gpus,layout_change\n"
        "n1,node one,gpu,namespace|vm,16,128,L40S-48GB,2,\n"
    )

    state = build(estate_from_file(path))

    host = state.hosts["n1"]
    assert (host.name, host.binding, host.boundary_kinds) == ("node one", "gpu", ["namespace", "vm"])
    assert [gpu.device for gpu in state.gpus.values()] == ["n1-gpu-0", "n1-gpu-1"]
    path.write_text("host,binding,boundary_kinds,vcpu,memory_gib,product,gpus\nn1,gpu,vm,many,1,L40S-48GB,1\n")
    with pytest.raises(BadEstate, match="'n1'"):
        estate_from_file(path)


def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "estate.json"
    for text, named in (("{", "no JSON"), ("[]", "no JSON object")):
        path.write_text(text)
        with pytest.raises(BadEstate, match=named):
            estate_from_file(path)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "sandbox").glob("*.json")), ids=lambda path: path.name)
def test_every_example_estate_can_be_built(path: Path) -> None:
    state = build(estate_from_file(path))

    assert state.hosts
    assert {host.binding for host in state.hosts.values()} <= set(Binding)


def test_the_trace_models_map_to_products_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text("gpu_model,gpu_capacity_num,cpu_num,node_name\nA800-SXM4-80GB,8,128,3\nH800,2,96,4\n")

    document = estate_from_spot_gpu(path, binding=Binding.HOST, boundary_kinds=("vm",))

    first, second = document["hosts"]
    assert (first["host"], first["binding"], first["vcpu"], first["memory_gib"]) == ("node-3", "host", 128, 1024)
    assert first["gpus"] == [{"product": "A100-80GB", "count": 8, "layout_change": "dynamic"}]
    assert second["gpus"][0]["product"] == "H100-80GB"
    for product in files.SPOT_GPU_PRODUCTS.values():
        assert gpu_catalogue.product(product).id == product
    path.write_text("gpu_model,gpu_capacity_num,cpu_num,node_name\nTPU,8,128,3\n")
    with pytest.raises(BadEstate, match="TPU"):
        estate_from_spot_gpu(path)


@pytest.mark.shared
def test_the_whole_trace_is_an_estate_of_10412_gpus() -> None:
    state = build(estate_from_spot_gpu(SPOT))

    products = [gpu.product for gpu in state.gpus.values()]
    assert (len(state.hosts), len(products)) == (4278, 10412)
    assert {product: products.count(product) for product in set(products)} == {
        "A100-80GB": 3456 + 176,
        "H100-80GB": 1752,
        "A10-24GB": 2494,
        "L40S-48GB": 1558 + 976,
    }
