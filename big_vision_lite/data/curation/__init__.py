"""Data as an experimental variable: which examples are used, and with which labels."""
