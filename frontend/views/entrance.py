"""Short addresses of the log-in and log-out, whose pages are under `/accounts/`: one way in, second factor included."""

from __future__ import annotations

from urllib.parse import urlencode

from django.conf import settings
from django.contrib import auth
from django.http import HttpResponse, HttpResponseRedirect

from frontend.kernel.page import PageRequest, page


@page("login.create", own_blocks=True)
def log_in(request: PageRequest) -> HttpResponse:
    """Send the visitor to the log-in; it checks where he may go on to."""
    back = request.GET.get("next", "")
    return HttpResponseRedirect(settings.LOGIN_URL + (f"?{urlencode({'next': back})}" if back else ""))


@page("login.delete", methods=("POST",))
def log_out(request: PageRequest) -> HttpResponse:
    """End the session."""
    auth.logout(request)
    return HttpResponseRedirect("/")
