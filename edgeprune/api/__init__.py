"""The Python API: the verbs as functions, a project with the verbs as methods, and the answers that hold a network."""
