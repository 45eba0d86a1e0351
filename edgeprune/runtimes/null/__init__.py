"""No runtime: for tests of everything around it."""
