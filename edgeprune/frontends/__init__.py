"""From the user's files and code to records and callables."""
