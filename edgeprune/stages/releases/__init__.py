"""Releases: signed bundles, the keys that sign them, and the hosts that they go to."""
