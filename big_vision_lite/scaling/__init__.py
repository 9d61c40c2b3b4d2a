"""From many runs to a law, a figure and a report."""
