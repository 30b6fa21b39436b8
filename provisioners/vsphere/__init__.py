"""The driver of vSphere: the only package that may import pyVmomi."""
