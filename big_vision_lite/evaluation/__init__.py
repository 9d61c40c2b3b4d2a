"""Metrics that accumulate over batches."""
