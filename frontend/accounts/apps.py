"""Log-in, invitations, second factors and recovery as a Django app around django-allauth."""

from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Hooks our audit trail into the log-in library."""

    name = "frontend.accounts"
    label = "frontend_accounts"

    def ready(self) -> None:
        """Listen to what the library tells by signals alone: wrong codes, and codes that were used up."""
        from frontend.accounts import trail

        trail.listen()
