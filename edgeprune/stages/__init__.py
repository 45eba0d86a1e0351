"""The stages of the pipeline, and the verbs that use their records, such as `check` and `deploy`.

What they compute is in the folders: `planning`, `verdicts`, `releases`, and `series` for several runs.
"""
