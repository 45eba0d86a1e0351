"""From an exported graph to channel groups."""
