"""Live and ready. Ready names the dependency that fails; neither says anything that helps an attacker."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.http import HttpRequest, JsonResponse

from tenants.actor import ANONYMOUS
from tenants.api.middleware import problem_response
from tenants.errors import ControlPlaneError, DependencyDown
from tenants.transactions import acting


def live(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Say that the process answers."""
    return JsonResponse({"status": "live"})


def ready(request: HttpRequest) -> Any:  # noqa: ARG001
    """Say whether requests can be served: 200, or 503 naming what is away."""
    try:
        with acting(ANONYMOUS), connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM django_migrations WHERE app = 'tenants'")
            row = cursor.fetchone()
    except ControlPlaneError:
        return problem_response(DependencyDown("postgresql does not answer.", dependency="postgresql"))
    if not row or not row[0]:
        return problem_response(DependencyDown("The database has no tables yet.", dependency="migrations"))
    return JsonResponse({"status": "ready", "postgresql": "ok"})


live.operation_id = "health.read"  # type: ignore[attr-defined]
ready.operation_id = "health.read"  # type: ignore[attr-defined]
