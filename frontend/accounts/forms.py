"""Forms of the log-in pages that differ from the library's, and those of our links."""

from __future__ import annotations

from typing import Any

from allauth.account.fields import EmailField
from allauth.account.forms import LoginForm, ResetPasswordForm, UserTokenForm
from django import forms
from django.contrib.auth import password_validation
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.utils.translation import gettext_lazy as _

from tenants.models import Person


class LogInForm(LoginForm):  # type: ignore[misc]  # the library has no types
    """The library's form in our words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Name the fields."""
        super().__init__(*args, **kwargs)
        self.fields["login"].label = _("E-mail")
        self.fields["remember"].label = _("Stay logged in on this computer")


class ForgottenForm(ResetPasswordForm):  # type: ignore[misc]  # the library has no types
    """Finds the person of an e-mail whatever its case; the answer is the same for nobody."""

    email = EmailField(required=True, label=_("E-mail"))

    def clean_email(self) -> str:
        """Remember whom to write to."""
        email: str = self.cleaned_data["email"].strip()
        self.users = list(Person.objects.filter(email__iexact=email, is_active=True, left_at__isnull=True))
        return email


class ResetLinkForm(UserTokenForm):  # type: ignore[misc]  # the library has no types
    """A reset link opens nothing for who is suspended or has left; it ends with the password it was made for."""

    token_generator = PasswordResetTokenGenerator()

    def _get_user(self, uidb36: str) -> Person | None:
        person = super()._get_user(uidb36)
        return person if isinstance(person, Person) and person.is_active and person.left_at is None else None


class NewPasswordForm(forms.Form):
    """A new password, checked as operations check it."""

    password = forms.CharField(
        label=_("Password"),
        strip=False,
        max_length=1000,
        help_text=_("At least 10 characters, and none of the usual ones. Three or four words are fine."),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )

    def __init__(self, *args: Any, person: Person | None = None, **kwargs: Any) -> None:
        """`person`: whose it will be."""
        self.person = person
        super().__init__(*args, **kwargs)

    def clean_password(self) -> str:
        """Refuse a weak one at its field."""
        password: str = self.cleaned_data["password"]
        password_validation.validate_password(password, self.person)
        return password


class NewAccountForm(NewPasswordForm):
    """The account of an invitation: its e-mail stands in the link."""

    display_name = forms.CharField(
        label=_("Your name"),
        max_length=120,
        help_text=_("As colleagues know you, such as Mia Member."),
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    field_order = ("email", "display_name", "password")


class FirstOperatorForm(NewAccountForm):
    """The first operator says his own e-mail."""

    email = forms.EmailField(
        label=_("E-mail"),
        max_length=254,
        help_text=_("You log in with it."),
        widget=forms.EmailInput(attrs={"autocomplete": "username"}),
    )


class NameForm(forms.Form):
    """The name of somebody who comes through an identity provider and needs no password."""

    display_name = NewAccountForm.base_fields["display_name"]


class RecoveryForm(forms.Form):
    """Why an operator recovers an account, and how far."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=500,
        min_length=3,
        help_text=_("Kept in the audit trail, such as: lost phone, identity checked by call back."),
    )
    forget_factors = forms.BooleanField(
        label=_("Take away second factors and passkeys"),
        required=False,
        help_text=_("Only when they are lost: until new ones are set up, the password alone opens the account."),
    )
