"""Addresses of models, system, evidence and kept mail; mounted by `frontend.urls`."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import estimates, evidence, model_catalogue, model_files, models, outbox, own_models, system

OPERATIONS: Final[list[Any]] = [
    path("t/<str:tenant>/models", models.listed, name="models"),
    path("ops/models", model_catalogue.offered, name="served-models"),
    path("ops/offer-model", model_catalogue.offer, name="served-model-new"),
    path("ops/models/<str:name>", model_catalogue.show, name="served-model"),
    path("ops/models/<str:name>/change", model_catalogue.change, name="served-model-change"),
    path("ops/system", system.show, name="system"),
    path("ops/system/check", system.check, name="system-check"),
    path("ops/evidence", evidence.packs, name="evidence"),
    path("ops/evidence/make", evidence.make, name="evidence-make"),
    path("ops/evidence/as-of", evidence.as_of, name="evidence-as-of"),
    path("ops/evidence/chain", evidence.chain, name="evidence-chain"),
    path("outbox", outbox.listed, name="outbox"),
    path("ops/models/<str:name>/stage", model_files.stage, name="model-stage"),
    path("ops/models/<str:name>/unstage", model_files.unstage, name="model-unstage"),
    path("t/<str:tenant>/models/ask", own_models.ask, name="model-ask"),
    path("ops/estimates", estimates.listed, name="estimates"),
    path("ops/estimates/<str:correction>/reset", estimates.reset, name="estimate-reset"),
]
