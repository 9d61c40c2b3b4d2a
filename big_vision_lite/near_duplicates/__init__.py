"""Finding near-duplicates between datasets."""

THRESHOLD = 12
"""Bits of 64 in which the hashes of two near-duplicates may differ."""
MIN_CORRELATION = 0.8
"""Minimum correlation of the pixels of two near-duplicates."""
