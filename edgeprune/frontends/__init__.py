"""Frontends: turn the user's files and code into records and callables."""
