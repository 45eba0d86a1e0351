"""Several runs: fronts, sweeps and comparisons."""
