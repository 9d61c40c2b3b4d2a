"""From a laptop to a pod: what a run would cost elsewhere, and the scripts that start it there."""
