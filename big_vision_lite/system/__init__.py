"""What everything else stands on: cores, cache, and local and remote paths."""
