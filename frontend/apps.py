"""The portal as a Django app."""

from django.apps import AppConfig


class FrontendConfig(AppConfig):
    """Server-rendered pages for people; reads by scoped querysets, writes by operations only."""

    name = "frontend"
    label = "frontend"
    verbose_name = "Portal"
