"""The only list of provider kinds: slug → how to make its driver from a provider's config and secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from provisioners.driver import Driver, NotSupported, Secret
from provisioners.kubernetes import connection as kubernetes_connection
from provisioners.sandbox import connection as sandbox_connection
from provisioners.sandbox import driver as sandbox
from provisioners.vsphere import connection as vsphere_connection
from tenants.provider_kinds import ProviderKind

DriverFactory = Callable[[Mapping[str, Any], Mapping[str, Secret], int], Driver]
"""(config, secrets, processes that share the provider's limits) → driver."""


def _kubernetes(config: Mapping[str, Any], secrets: Mapping[str, Secret], processes: int) -> Driver:
    from provisioners.kubernetes import driver

    return driver.make(config, secrets, processes=processes)


def _sandbox(config: Mapping[str, Any], secrets: Mapping[str, Secret], _processes: int) -> Driver:
    return sandbox.make(config, secrets)


def _vsphere(config: Mapping[str, Any], secrets: Mapping[str, Secret], _processes: int) -> Driver:
    from provisioners.vsphere import driver

    return driver.make(config, secrets)


DRIVERS: Final[Mapping[str, DriverFactory]] = {
    "kubernetes": _kubernetes,
    "sandbox": _sandbox,
    "vsphere": _vsphere,
}
CONNECTIONS: Final[tuple[ProviderKind, ...]] = (
    kubernetes_connection.CONNECTION,
    vsphere_connection.CONNECTION,
    sandbox_connection.CONNECTION,
)
"""What people are asked for when they connect one."""


def kinds() -> tuple[str, ...]:
    """Return every provider kind that can be registered."""
    return tuple(DRIVERS)


def make_driver(kind: str, config: Mapping[str, Any], secrets: Mapping[str, Secret], *, processes: int = 1) -> Driver:
    """Return a driver for one provider; `processes` like this one share what it may be asked in a second.

    Raises `NotSupported` for an unknown kind, `LookupError` for missing config.
    """
    factory = DRIVERS.get(kind)
    if factory is None:
        msg = f"no driver for providers of kind {kind!r}; there are: {', '.join(DRIVERS)}"
        raise NotSupported(msg)
    return factory(config, secrets, processes)
