"""Addresses below `/accounts/`: the library's pages that this product has, and our own.

The library reverses some names that this product does not offer; those answer with how one gets an account.
"""

from __future__ import annotations

from allauth.account import views as library
from allauth.account.decorators import reauthentication_required
from allauth.socialaccount import views as identities
from django.urls import include, path, re_path

from frontend.accounts import views

urlpatterns = [
    path("login/", library.login, name="account_login"),
    path("logout/", library.logout, name="account_logout"),
    path("reauthenticate/", library.reauthenticate, name="account_reauthenticate"),
    path("inactive/", library.account_inactive, name="account_inactive"),
    path("password/change/", library.password_change, name="account_change_password"),
    path("password/set/", library.password_set, name="account_set_password"),
    path("password/reset/", library.password_reset, name="account_reset_password"),
    path("password/reset/done/", library.password_reset_done, name="account_reset_password_done"),
    re_path(
        r"^password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        library.password_reset_from_key,
        name="account_reset_password_from_key",
    ),
    path(
        "password/reset/key/done/",
        library.password_reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
    path("2fa/", views.FactorsView.as_view(), name="mfa_index"),
    path("2fa/", include("allauth.mfa.urls")),
    path("3rdparty/", reauthentication_required(identities.connections), name="socialaccount_connections"),
    path("3rdparty/", include("allauth.socialaccount.urls")),
    path("", include("allauth.socialaccount.providers.openid_connect.urls")),
    path("sessions/", views.SessionsView.as_view(), name="usersessions_list"),
    path("link/<str:secret>/", views.enter, name="account_link"),
    path("link/", views.use, name="account_link_open"),
    path("identity/", views.identity, name="account_link_identity"),
    path("recover/<uuid:person>/", views.recover, name="account_recover"),
    path("signup/", views.not_offered, name="account_signup"),
    path("email/", views.not_offered, name="account_email"),
    path("confirm-email/", views.not_offered, name="account_email_verification_sent"),
]
