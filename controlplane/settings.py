"""The one settings module, fed by `env.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from controlplane.env import environment
from frontend.console import look
from frontend.kernel.security import PORTAL

env = environment()


def database(dsn: str, *, pool: bool) -> dict[str, Any]:
    """Return Django's database settings for a libpq DSN; `pool` for the web process only."""
    try:
        parts = dict(conninfo_to_dict(dsn))
    except psycopg.ProgrammingError as error:
        msg = f"DATABASE_URL is no PostgreSQL address: {type(error).__name__}"
        raise ValueError(msg) from None
    options: dict[str, Any] = {
        key: value for key, value in parts.items() if key not in {"dbname", "user", "password", "host", "port"}
    }
    if pool:
        options["pool"] = {"min_size": 1, "max_size": 12, "timeout": 5}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": str(parts.get("dbname") or "tenantry"),
        "USER": str(parts.get("user") or ""),
        "PASSWORD": str(parts.get("password") or ""),
        "HOST": str(parts.get("host") or ""),
        "PORT": str(parts.get("port") or ""),
        "OPTIONS": {"connect_timeout": "5", "application_name": f"tenantry-{env.process}", **options},
        "CONN_MAX_AGE": 0 if pool else None,
        "CONN_HEALTH_CHECKS": not pool,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "ATOMIC_REQUESTS": False,
    }


DATABASES = {"default": database(env.database_dsn(), pool=env.process == "web")}
SECRET_KEY = env.secret_key.get_secret_value() or "insecure-key-for-commands-that-sign-nothing-00000"
DEBUG = env.debug
ALLOWED_HOSTS = [host.strip() for host in env.allowed_hosts.split(",") if host.strip()]
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
LOCALE_PATHS = [Path(__file__).resolve().parents[1] / "frontend" / "locale"]  # `make messages` writes it
ROOT_URLCONF = "controlplane.urls"
ASGI_APPLICATION = "controlplane.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "tenants.Person"
SILENCED_SYSTEM_CHECKS = ["auth.W004"]  # e-mails are unique whatever their case: constraint person_email_unique
AUTHENTICATION_BACKENDS = ["tenants.login.PersonBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

INSTALLED_APPS = [
    # the admin console: its package before the framework's admin, whose templates it replaces
    "unfold.apps.BasicAppConfig",
    "frontend.console.apps.ConsoleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    # portal
    "django_htmx",
    "csp",
    "frontend.apps.FrontendConfig",
    # accounts: after the portal, whose templates go before the library's
    "frontend.accounts.apps.AccountsConfig",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.mfa",
    "allauth.usersessions",
    "tenants.apps.TenantsConfig",
    "provisioners.apps.ProvisionersConfig",
    "controlplane.demo",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "tenants.api.middleware.ProblemMiddleware",
    "csp.middleware.CSPMiddleware",
    "frontend.kernel.security.PartPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "frontend.accounts.middleware.FactorMiddleware",
    "frontend.accounts.middleware.AccountsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "tenants.login.AdminTransactionMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.i18n",
                "frontend.kernel.portal.context",
            ]
        },
    }
]
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
APPEND_SLASH = False
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = env.public_url.startswith("https://")
CSRF_COOKIE_SECURE = SESSION_COOKIE_SECURE
CSRF_TRUSTED_ORIGINS = [env.public_url]
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_048_576
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1_000

# --- portal ---
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"
PORTAL_LOG_OUT_URL = "/accounts/logout/"
CSRF_FAILURE_VIEW = "frontend.views.errors.forged"
CONTENT_SECURITY_POLICY = {"DIRECTIVES": dict(PORTAL)}
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"  # a message costs no row and no lock
UNFOLD = look.UNFOLD  # the admin console
# --- end of portal ---

# --- accounts (django-allauth; frontend/accounts) ---
LOGIN_URL = "/accounts/login/"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "tenants_cache",
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    }
}
"""Shared by all web processes: limits count together. Its table is made by a migration."""
ACCOUNT_ADAPTER = "frontend.accounts.adapters.PersonAdapter"
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = 300
ACCOUNT_PASSWORD_RESET_TOKEN_GENERATOR = "django.contrib.auth.tokens.PasswordResetTokenGenerator"  # noqa: S105 - a class
ACCOUNT_FORMS = {
    "login": "frontend.accounts.forms.LogInForm",
    "reset_password": "frontend.accounts.forms.ForgottenForm",
    "user_token": "frontend.accounts.forms.ResetLinkForm",
}
ACCOUNT_RATE_LIMITS = {"account_link": "60/m/ip"}
PASSWORD_RESET_TIMEOUT = 3600
SOCIALACCOUNT_ADAPTER = "frontend.accounts.adapters.IdentityAdapter"
SOCIALACCOUNT_LOGIN_ON_GET = False
SOCIALACCOUNT_EMAIL_AUTHENTICATION = False
SOCIALACCOUNT_STORE_TOKENS = False
SOCIALACCOUNT_REQUESTS_TIMEOUT = 5
SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = "oidc"
SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": env.identity_providers()}}
MFA_ADAPTER = "frontend.accounts.adapters.FactorAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
TENANTRY_SECOND_FACTOR = env.second_factor
mail = env.mail()
EMAIL_BACKEND = mail.backend
EMAIL_HOST, EMAIL_PORT = mail.host, mail.port
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = mail.user, mail.password
EMAIL_USE_TLS = mail.starttls
EMAIL_USE_SSL = mail.tls
EMAIL_TIMEOUT = 20
EMAIL_FILE_PATH = env.state_dir / "mail"
DEFAULT_FROM_EMAIL = env.mail_from
TENANTRY_MAIL_REACHES_PEOPLE = mail.reaches_people
# --- end of accounts ---

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tenants.api.authentication.PrincipalAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["tenants.api.scoping.DeclaredPolicy"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["tenants.api.parsing.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "tenants.api.schema.DeclaredSchema",
    "EXCEPTION_HANDLER": "tenants.api.problem_handler.handle",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_METADATA_CLASS": None,
    "URL_FORMAT_OVERRIDE": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Tenantry API",
    "DESCRIPTION": "One ledger, one approval path and one golden path over GPU VMs and Kubernetes namespaces.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": False,
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
    "SORT_OPERATIONS": True,
    "POSTPROCESSING_HOOKS": [],  # enums stay where pydantic wrote them
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "DISABLE_ERRORS_AND_WARNINGS": False,
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": False, "validatorUrl": None},
}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "controlplane.telemetry.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "httpx": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        # one line per message received and done says nothing: messages are hints
        "celery.app.trace": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
    },
}

# Read by the domain and the workers through django.conf.settings; each is explained in env.py.
TENANTRY_APP_ROLE = "cp_worker" if DATABASES["default"]["USER"] == "cp_worker" else "cp_app"
"""Role of a person's transaction: a worker's log-in has no other than its own."""
TENANTRY_CELERY_APP = "controlplane.celery.app"
TENANTRY_CRASH_AT = env.crash_at
TENANTRY_PUBLIC_URL = env.public_url
TENANTRY_ENVIRONMENT = env.environment_name
TENANTRY_MASTER_KEYS = env.master_keys.get_secret_value()
TENANTRY_WEBHOOK_NETWORKS = env.webhook_networks
TENANTRY_SWEEP_S = env.sweep_s
TENANTRY_SSH_CERTIFICATE_S = env.ssh_certificate_s
TENANTRY_LEASE_TTL_S = env.lease_ttl_s
TENANTRY_INVENTORY_S = env.inventory_s
TENANTRY_WORKER_SLOTS = env.worker_slots
TENANTRY_WORKERS = env.workers
TENANTRY_DEMO = env.demo
TENANTRY_SANDBOX_URL = env.sandbox_url
TENANTRY_SANDBOX_TOKEN = env.sandbox_token.get_secret_value()
