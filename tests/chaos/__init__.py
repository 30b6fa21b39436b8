"""Chaos: the whole stack as real processes, with parts of it taken away while it works."""
