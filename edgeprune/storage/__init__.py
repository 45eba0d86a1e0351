"""Files of edgeprune: the run folder, baselines, JSON."""
