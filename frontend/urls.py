"""Every address of the portal. Each view is a `@page`; `verify` below stops the process for one that is not."""

from __future__ import annotations

from typing import Any

from django.urls import path

from frontend.kernel.page import verify
from frontend.views import entrance, home

app_name = "frontend"

urlpatterns: list[Any] = [
    path("", home.landing, name="landing"),
    path("login", entrance.log_in, name="log-in"),
    path("logout", entrance.log_out, name="log-out"),
    path("t/<str:tenant>", home.show, name="home-of"),
]

verify(urlpatterns)
