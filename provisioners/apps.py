"""The workers as a Django app (no tables of their own)."""

from django.apps import AppConfig


class ProvisionersConfig(AppConfig):
    """Passes, drivers, gateway protocol."""

    name = "provisioners"
    label = "provisioners"

    def ready(self) -> None:
        """Say which kinds of providers there are to whoever offers to connect one."""
        from provisioners import registry
        from tenants import provider_kinds

        for kind in registry.CONNECTIONS:
            provider_kinds.offer(kind)
