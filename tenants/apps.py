"""The domain as a Django app."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    """Tables and rules of the control plane."""

    name = "tenants"
    label = "tenants"
