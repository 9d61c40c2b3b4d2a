"""Measurements of speed, each beside what others use for the same work."""
