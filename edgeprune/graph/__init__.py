"""Channel groups of an exported network: labels, operator rules, tracing and recipes."""
