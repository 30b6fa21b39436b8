"""Mounts portal, API, agent API, admin and health."""

from typing import Any

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from controlplane import health
from frontend import urls as portal_urls
from frontend.accounts import urls as accounts_urls
from frontend.accounts import views as accounts_views
from provisioners.agent_api import urls as agent_urls
from tenants.api import scoping, urls
from tenants.api.views import docs

handler403 = "frontend.views.errors.forbidden"
handler404 = "frontend.views.errors.not_found"
handler500 = "controlplane.pages.server_error"

urlpatterns: list[Any] = [
    path("healthz", health.live),
    path("readyz", health.ready),
    path("api/v1/", include(urls)),
    path("api/schema", docs.SchemaView.as_view(), name="schema"),
    path("api/docs", docs.DocsView.as_view(url_name="schema")),
    path("api/errors/<str:code>", docs.error_help),
    path("agent/v1/", include(agent_urls)),
    path("admin", RedirectView.as_view(url="/admin/")),  # as people type it
    path("admin/login/", accounts_views.to_log_in),  # the console's own would ask for no second factor
    path("admin/", admin.site.urls),
    path("accounts/", include(accounts_urls)),
    path("", include(portal_urls)),
]

# A route that names no operation with a policy must not serve: this stops the process at start.
scoping.verify(urls.urlpatterns, "api/v1/")
scoping.verify(agent_urls.urlpatterns, "agent/v1/")
