"""`python -m edgeprune`, and `torchrun -m edgeprune`."""

from edgeprune.cli import main

main()
