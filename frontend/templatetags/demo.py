"""`{% load demo %}`: whether this installation is a demo, for pages that nobody is logged in on."""

from __future__ import annotations

from django import template

from tenants import demo

register = template.Library()


@register.simple_tag
def there_is_a_demo() -> bool:
    """Return whether personas can be taken up without a password. Opens its own transactions."""
    return bool(demo.personas())
