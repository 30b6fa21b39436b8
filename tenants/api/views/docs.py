"""The OpenAPI document, its page, and the help page of every error code. Public, from own files only."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponse
from django.utils.html import escape
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from tenants.error_codes import HELP
from tenants.errors import NotVisible


class SchemaView(SpectacularJSONAPIView):
    """`/api/schema`: the document as JSON."""

    operations: ClassVar[dict[str, str]] = {"GET": "schema.read"}
    schema = None

    def get(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponse:  # noqa: ARG002
        """Return the document."""
        return HttpResponse(document(), content_type="application/vnd.oai.openapi+json")


class DocsView(SpectacularSwaggerView):
    """`/api/docs`: the document for people, without a request to any other host."""

    operations: ClassVar[dict[str, str]] = {"GET": "docs.read"}
    schema = None


@lru_cache(maxsize=1)
def document() -> bytes:
    """Return the OpenAPI document of `/api/v1/` as JSON."""
    import json

    from drf_spectacular.generators import SchemaGenerator

    found = SchemaGenerator(api_version="1").get_schema(request=None, public=True)
    return json.dumps(found, ensure_ascii=False, indent=1).encode()


def error_help(request: HttpRequest, code: str) -> HttpResponse:  # noqa: ARG001
    """Return what one error code means and what to do about it."""
    if code not in HELP:
        raise NotVisible
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(code)}</title>"
        f"<h1>{escape(code)}</h1><p>{escape(HELP[code])}</p><p><a href=/api/docs>All operations</a></p></html>"
    )
    return HttpResponse(page)


error_help.operation_id = "errors.read"  # type: ignore[attr-defined]
