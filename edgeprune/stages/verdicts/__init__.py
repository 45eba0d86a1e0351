"""Verdicts: what an artifact computes and how long it takes, measured, and the rules that judge it."""
