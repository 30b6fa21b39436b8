"""The admin console as Django's admin of this project: our site, and the tables registered by name."""

from __future__ import annotations

from django.contrib.admin.apps import SimpleAdminConfig


class ConsoleAdminConfig(SimpleAdminConfig):
    """Takes the place of `django.contrib.admin`; nothing registers itself (libraries would offer their tables)."""

    default_site = "frontend.console.site.ConsoleSite"

    def ready(self) -> None:
        """Register the tables."""
        super().ready()
        from frontend.console import registry

        registry.register()
