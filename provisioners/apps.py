"""The workers as a Django app (no tables of their own)."""

from django.apps import AppConfig


class ProvisionersConfig(AppConfig):
    """Passes, drivers, gateway protocol."""

    name = "provisioners"
    label = "provisioners"
