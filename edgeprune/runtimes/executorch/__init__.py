"""ExecuTorch: torch's own runtime for the edge, on the CPU with XNNPACK."""
