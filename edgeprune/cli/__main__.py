"""`python -m edgeprune.cli` is the command line."""

from edgeprune.cli import main

main()
