"""From bytes to batches: the source interface and the input pipeline."""
