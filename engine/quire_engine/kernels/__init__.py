"""Kernels of our own, each with torch in its place where it does not apply."""
