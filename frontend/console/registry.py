"""The tables of the console: all of ours but machinery, and none of a library's."""

from __future__ import annotations

from typing import Final

from django.apps import apps
from django.contrib import admin

from frontend.console.tables import Table
from tenants.models import FanoutCursor, IdempotencyRecord, NotificationMark, Outbox

LEFT_OUT: Final = frozenset({Outbox, IdempotencyRecord, FanoutCursor, NotificationMark})
"""Machinery that the web role may not read, or each caller his own only."""


def register() -> None:
    """Register every table of the domain that people may look at."""
    for model in apps.get_app_config("tenants").get_models():
        if model not in LEFT_OUT:
            admin.site.register(model, Table)
