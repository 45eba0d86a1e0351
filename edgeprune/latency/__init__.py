"""Latency statistics and the latency model: from measured samples to predictions."""
