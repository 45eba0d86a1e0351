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

from . import metrics
from .device import Array, Failed, Options, find

USAGE = """usage: python3 runner.py --check              compare the model's output with the kept one
       python3 runner.py x.npy [y.npy ...]    run these inputs, one file each; writes output_0.npy, ...
       python3 runner.py --metrics [PORT]     answer Prometheus with the figures of this service: http://127.0.0.1:9477/metrics
       python3 runner.py --install FILE.tar   put another bundle into service; also --rollback, --withdraw, --releases, --audit
       --site FOLDER                          find the runtime in this folder"""
CHECKED_RUNS = 5


def load(folder: str) -> Callable[[Sequence[Array]], list[Array]]:
    """Load the model of the release in `folder`, to serve. Its calls are counted: see `metrics`.

    Returns:
        A function that takes a list of input arrays and returns the list of output arrays.
    """
    return metrics.recorded(_loaded(folder), folder)


def _loaded(folder: str) -> Callable[[Sequence[Array]], list[Array]]:
    manifest = _manifest(folder)
    options = Options(manifest["threads"], manifest["dla"])
    version = manifest["device"]["runtime_version"]
    return find(manifest["runtime"]).load_release(folder, manifest["model"], options, version).call


def check(folder: str) -> dict[str, Any]:
    """Run the kept input and compare the first output with the one that was kept at verification."""
    import numpy

    limit = _manifest(folder)["relative_error"]
    model, inputs = _loaded(folder), _kept_inputs(folder)
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
    if arguments and arguments[0] == "--metrics" and len(arguments) < 3:
        return _serve(folder, arguments[1] if len(arguments) > 1 else str(metrics.PORT))
    if not arguments or (arguments[0].startswith("-") and arguments != ["--check"]):
        print(USAGE)
        return 2
    try:
        return _check(folder) if arguments == ["--check"] else _run(folder, arguments)
    except Failed as error:
        print(f"the release does not run: {error}", file=sys.stderr)
        return 1


def _serve(folder: str, address: str) -> int:
    service = os.path.dirname(os.path.dirname(os.path.realpath(folder)))
    try:
        metrics.serve(service, address)
    except (OSError, ValueError, OverflowError) as error:
        print(f"{address}: {error}; give a free PORT, or ADDRESS:PORT", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _check(folder: str) -> int:
    found = check(folder)
    print(json.dumps(found))
    return 0 if found["ok"] else 1


def _run(folder: str, files: list[str]) -> int:
    import numpy

    outputs = _loaded(folder)([numpy.load(path, allow_pickle=False) for path in files])
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
