"""Scaling laws: families, fits, predictions."""
