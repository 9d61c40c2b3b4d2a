"""The commands of ``bvl``, a module for each group of them; each takes its arguments and returns an exit code."""
