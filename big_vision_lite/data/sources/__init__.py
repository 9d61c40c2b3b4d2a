"""One module per storage format."""
