"""Addresses of the estate: map, hosts, what is done with them, GPUs. Mounted by `frontend.urls`."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import devices, estate, host_steps, hosts, layouts

HOST = "ops/hosts/<str:key>"
GPU = "ops/gpus/<str:key>"

ESTATE: Final[list[Any]] = [
    path("ops/estate", estate.show, name="estate"),
    path("ops/hosts", hosts.listed, name="hosts"),
    path(HOST, hosts.show, name="host"),
    path(f"{HOST}/accept", host_steps.accept, name="host-accept"),
    path(f"{HOST}/open", host_steps.open_host, name="host-open"),
    path(f"{HOST}/cordon", host_steps.cordon, name="host-cordon"),
    path(f"{HOST}/uncordon", host_steps.uncordon, name="host-uncordon"),
    path(f"{HOST}/drain", host_steps.drain, name="host-drain"),
    path(f"{HOST}/drain/start", host_steps.start_drain, name="host-drain-start"),
    path(f"{HOST}/layout", layouts.choose, name="host-layout"),
    path(f"{HOST}/layout/start", layouts.begin, name="host-layout-start"),
    path(f"{HOST}/maintenance", host_steps.maintenance, name="host-maintenance"),
    path(f"{HOST}/return", host_steps.bring_back, name="host-return"),
    path(f"{HOST}/remove", host_steps.remove, name="host-remove"),
    path(GPU, devices.show, name="gpu"),
    path(f"{GPU}/repair", devices.repair, name="gpu-repair"),
]
