"""The domain as a Django app."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    """Tables and rules of the control plane."""

    name = "tenants"
    label = "tenants"

    def ready(self) -> None:
        """Keep Django from writing `last_login`: it would do so outside the transaction helper. Events say it."""
        from django.contrib.auth.models import update_last_login
        from django.contrib.auth.signals import user_logged_in

        user_logged_in.disconnect(update_last_login, dispatch_uid="update_last_login")
