"""Bytes to batches: sources, transforms and the input pipeline."""
