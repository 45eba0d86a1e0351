"""From measured samples to latencies and a latency model."""
