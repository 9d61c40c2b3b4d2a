"""One loop, one step, one checkpoint format, for every task."""
