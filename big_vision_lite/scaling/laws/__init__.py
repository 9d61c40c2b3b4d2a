"""Scaling laws: families, fits, extrapolation."""
