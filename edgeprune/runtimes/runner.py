"""The runner of a release: it loads the model by its runtime's `device` module, as the measurement did.

It travels to devices: standard library and numpy, Python 3.8 and up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .device import Array, Failed, Options, find

USAGE = """usage: python3 runner.py --check              compare the model's output with the kept one
       python3 runner.py x.npy [y.npy ...]    run these inputs, one file each; writes output_0.npy, ...
       --site FOLDER                          find the runtime in this folder"""
CHECKED_RUNS = 5


def load(folder: str) -> Callable[[Sequence[Array]], list[Array]]:
    """Load the model of the release in `folder`.

    Returns:
        A function that takes a list of input arrays and returns the list of output arrays.
    """
    manifest = _manifest(folder)
    options = Options(manifest["threads"], manifest["dla"])
    version = manifest["device"]["runtime_version"]
    return find(manifest["runtime"]).load_release(folder, manifest["model"], options, version).call


def check(folder: str) -> dict[str, Any]:
    """Run the kept input and compare the first output with the one that was kept at verification."""
    import numpy

    limit = _manifest(folder)["relative_error"]
    model, inputs = load(folder), _kept_inputs(folder)
    wanted = numpy.load(os.path.join(folder, "expected.npy"), allow_pickle=False).astype("float64")
    times = []
    for _ in range(CHECKED_RUNS):
        start = time.perf_counter()
        got = numpy.asarray(model(inputs)[0]).astype("float64")
        times.append(time.perf_counter() - start)
    if got.shape != wanted.shape:
        raise Failed("run", f"the output has the shape {got.shape}, not {wanted.shape}")
    error = float(numpy.abs(got - wanted).max() / max(float(numpy.abs(wanted).max()), 1e-30))
    median_ms = 1e3 * sorted(times)[CHECKED_RUNS // 2]
    return {"ok": error <= limit, "relative_error": error, "limit": limit, "median_ms": median_ms}


def main(folder: str, arguments: list[str]) -> int:
    """The command line of runner.py; returns the exit status."""
    if "--site" in arguments[:-1]:
        at = arguments.index("--site")
        sys.path.insert(0, arguments[at + 1])
        del arguments[at : at + 2]
    if not arguments or (arguments[0].startswith("-") and arguments != ["--check"]):
        print(USAGE)
        return 2
    try:
        return _check(folder) if arguments == ["--check"] else _run(folder, arguments)
    except Failed as error:
        print(f"the release does not run: {error}", file=sys.stderr)
        return 1


def _check(folder: str) -> int:
    found = check(folder)
    print(json.dumps(found))
    return 0 if found["ok"] else 1


def _run(folder: str, files: list[str]) -> int:
    import numpy

    outputs = load(folder)([numpy.load(path, allow_pickle=False) for path in files])
    for i, output in enumerate(outputs):
        numpy.save(f"output_{i}.npy", output)
    return 0


def _manifest(folder: str) -> dict[str, Any]:
    with open(os.path.join(folder, "manifest.json")) as file:
        found: dict[str, Any] = json.load(file)
    return found


def _kept_inputs(folder: str) -> list[Array]:
    import numpy

    found: list[Array] = []
    while os.path.exists(place := os.path.join(folder, f"input_{len(found)}.npy")):
        found.append(numpy.load(place, allow_pickle=False))
    return found
