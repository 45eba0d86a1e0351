"""Stages in order: keys, memo, lease and resume."""
