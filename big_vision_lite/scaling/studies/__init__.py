"""Studies: grids of runs, executed or rendered as jobs."""
