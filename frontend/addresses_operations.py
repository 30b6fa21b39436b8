"""Addresses of models, system, evidence and kept mail; mounted by `frontend.urls`."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import models

OPERATIONS: Final[list[Any]] = [
    path("t/<str:tenant>/models", models.listed, name="models"),
    path("ops/models", models.offered, name="served-models"),
    path("ops/offer-model", models.offer, name="served-model-new"),
    path("ops/models/<str:name>", models.show, name="served-model"),
    path("ops/models/<str:name>/change", models.change, name="served-model-change"),
]
