"""The stages of the pipeline, the functions that they use, and `check` and `deploy`, which use their records."""
