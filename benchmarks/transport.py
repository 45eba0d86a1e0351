"""Measures the overhead of SSH: the same jobs by the local transport and over a real sshd on loopback, interleaved.

    python benchmarks/transport.py [--jobs 20] [--rounds 5]

A job is a fresh process that runs the null model. Its time on the device does not depend on the transport. The rest is this
machine's time. With `put`, each job first uploads a separate file of 100 kB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sshd import start

from edgeprune.devices.transports.local import Local

CAPS = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 5, "deadline_s": 60.0}
NULL = {"mode": "time", "runtime": "null", "threads": 1, "inputs": []}


def timed(transport: Any, model: Path, jobs: int, upload: bool, folder: Path) -> float:
    """Seconds for each experiment."""
    started = time.monotonic()
    places = []
    for i in range(jobs):
        path = model
        if upload:
            path = folder / f"{time.monotonic_ns()}" / "model.json"
            path.parent.mkdir()
            path.write_text(json.dumps({"ns": 1000, "weights": os.urandom(50_000).hex()}))
        places.append({"id": i, "models": [transport.put([path])], **NULL, **CAPS})
    assert len(list(transport.call(places, 600))) == jobs
    return (time.monotonic() - started) / jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process, server = start(folder)
        model = folder / "model.json"
        model.write_text('{"ns": 1000}')
        with closing(server.transport()) as ssh, closing(Local()) as local:
            for transport in (ssh, local):
                timed(transport, model, 1, False, folder)  # connect, send the agent
            for upload in (False, True):
                times = []
                for _ in range(options.rounds):
                    times.append([timed(t, model, options.jobs, upload, folder) for t in (local, ssh)])
                here, there = 1000 * np.array(times).T
                added = there - here
                name = "with put" if upload else "same file"
                print(
                    f"{name:<10} local {np.median(here):.1f} ms, ssh {np.median(there):.1f} ms an experiment;"
                    f" ssh adds {np.median(added):.1f} ({added.min():.1f} to {added.max():.1f}) ms"
                )
        server.proxy.close()
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    main()
