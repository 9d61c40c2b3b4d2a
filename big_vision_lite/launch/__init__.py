"""Other hardware: what a run would cost there, and the scripts that start it."""
