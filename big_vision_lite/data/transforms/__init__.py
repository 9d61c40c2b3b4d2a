"""From a stored example to the pixels a network sees."""
