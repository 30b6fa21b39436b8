"""Mounts API, agent API, admin and health."""

from django.urls import path

urlpatterns: list[object] = []
