"""Addresses of gateways' calls home, below `/agent/v1/`."""

from typing import Any

from django.urls import path

from provisioners.agent_api.certificates import CertificateView
from provisioners.agent_api.ssh import RevokedView
from provisioners.agent_api.views import (
    ConfigView,
    EnrolView,
    LeasesView,
    ReportView,
    ServingView,
    UsageView,
    WakeView,
)

urlpatterns: list[Any] = [
    path("enrol", EnrolView.as_view()),
    path("config", ConfigView.as_view()),
    path("serving", ServingView.as_view()),
    path("leases", LeasesView.as_view()),
    path("usage", UsageView.as_view()),
    path("report", ReportView.as_view()),
    path("wake", WakeView.as_view()),
    path("certificate", CertificateView.as_view()),
    path("ssh/<uuid:authority>/revoked", RevokedView.as_view()),
]
