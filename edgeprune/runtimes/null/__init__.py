"""The null runtime, for tests of everything else."""
