"""The parts of `data.duplicates`: hashes, the search among them, the comparison of pixels, and what is written."""
