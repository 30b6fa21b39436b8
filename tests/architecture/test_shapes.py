"""Shapes of the API's document: one name means one shape."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict

from tenants.api import serializers


def test_no_two_shapes_of_the_document_have_one_name():
    """The document names a shape by its class alone, and of two with one name it would keep the last."""
    found: dict[str, set[str]] = defaultdict(set)
    for module in pkgutil.walk_packages(serializers.__path__, f"{serializers.__name__}."):
        for name, shape in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if shape.__module__.startswith(serializers.__name__) and not name.startswith("_"):
                found[name].add(shape.__module__)

    assert {name: sorted(where) for name, where in found.items() if len(where) > 1} == {}
