"""Figures of releases in service, in Prometheus' text format.

Every process that loads a release keeps its figures in a separate file, which it maps into memory. So a call costs no system
call more, and another process can read them: `runner.py --metrics`, or the agent.

    services/NAME/metrics/RELEASE-PID-BOOT.bin    magic, calls, errors, sum of ns, then the times of the last calls in ns

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import machine

MAGIC = b"edgepr01"
HEADER = struct.Struct("<8sQQQ")
KEPT = 4096  # times of the last calls
SIZE = HEADER.size + 8 * KEPT
PORT = 9477
HOST = "127.0.0.1"
QUANTILES = (0.5, 0.9, 0.99)
FILES = 50  # processes that are reported, at most
NAME = re.compile(r"([0-9a-f]{12})-(\d{1,10})-([0-9a-f-]{1,8})\.bin")
REQUEST_S = 10.0


@dataclass(frozen=True)
class Figures:
    """The figures of one process; `times_ns` are those of its last calls."""

    release: str
    process: str
    calls: int
    errors: int
    sum_ns: int
    times_ns: Sequence[int]


class Recorder:
    """Keeps the figures of this process. A child of this process keeps its own."""

    def __init__(self, service: str, release: str) -> None:
        self._folder, self._release, self._lock = os.path.join(service, "metrics"), release, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid, self._calls, self._errors, self._sum_ns = os.getpid(), 0, 0, 0
        os.makedirs(self._folder, mode=0o755, exist_ok=True)
        name = f"{self._release}-{self._pid}-{machine.boot_id()[:8]}.bin"
        descriptor = os.open(os.path.join(self._folder, name), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.ftruncate(descriptor, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self._write()

    def note(self, ns: int, failed: bool) -> None:
        """Count a call."""
        with self._lock:
            if self._pid != os.getpid():
                self._begin()
            if failed:
                self._errors += 1
            else:
                struct.pack_into("<Q", self._map, HEADER.size + 8 * (self._calls % KEPT), ns)
                self._calls += 1
                self._sum_ns += ns
            self._write()

    def _write(self) -> None:
        HEADER.pack_into(self._map, 0, MAGIC, self._calls, self._errors, self._sum_ns)


def recorded(call: Callable[[Any], Any], folder: str) -> Callable[[Any], Any]:
    """The same call, whose times and errors are kept if `folder` is that of a release. A call never fails because of that."""
    folder = os.path.realpath(folder)
    releases, release = os.path.split(folder)
    if os.path.basename(releases) != "releases":
        return call
    try:
        recorder = Recorder(os.path.dirname(releases), release[:12])
    except OSError:  # another user serves, or the disk is full or read-only
        return call

    def timed(inputs: Any) -> Any:
        start, failed = time.perf_counter_ns(), True
        try:
            outputs = call(inputs)
            failed = False
            return outputs
        finally:
            with contextlib.suppress(OSError):
                recorder.note(time.perf_counter_ns() - start, failed)

    return timed


def figures(service: str) -> Iterator[Figures]:
    """The figures of every living process. Files of processes that are gone are removed."""
    folder = os.path.join(service, "metrics")
    for name in machine.listed(folder)[:FILES]:
        found = NAME.fullmatch(name)
        if found is None:
            continue
        if found[3] != machine.boot_id()[:8] or not os.path.exists(f"/proc/{found[2]}"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))
            continue
        with contextlib.suppress(OSError, struct.error):
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read(SIZE)
            magic, calls, errors, sum_ns = HEADER.unpack_from(content)
            if magic == MAGIC:
                times = struct.unpack_from(f"<{min(calls, KEPT)}Q", content, HEADER.size)
                yield Figures(found[1], found[2], calls, errors, sum_ns, times)


def text(service: str) -> str:
    """All figures of a service in Prometheus' text format, version 0.0.4."""
    known, name = list(figures(service)), os.path.basename(service)
    rows: list[str] = []

    def put(metric: str, kind: str, help_: str, values: Sequence[tuple[str, str, float]]) -> None:
        rows.append(f"# HELP edgeprune_{metric} {help_}\n# TYPE edgeprune_{metric} {kind}\n")
        rows.extend(f"edgeprune_{metric}{suffix}{{{labels}}} {value:.9g}\n" for suffix, labels, value in values)

    labels = {one: f'service="{name}",release="{one.release}",process="{one.process}"' for one in known}
    put("calls_total", "counter", "Calls that returned.", [("", labels[one], one.calls) for one in known])
    put("errors_total", "counter", "Calls that raised.", [("", labels[one], one.errors) for one in known])
    put(
        "window_calls",
        "gauge",
        "Calls that the quantiles are of.",
        [("", labels[one], len(one.times_ns)) for one in known],
    )
    quantiles: list[tuple[str, str, float]] = []
    for one in known:
        ordered = sorted(one.times_ns)
        for q in QUANTILES if ordered else ():
            value = ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e9
            quantiles.append(("", f'{labels[one]},quantile="{q:g}"', value))
        quantiles += [("_sum", labels[one], one.sum_ns / 1e9), ("_count", labels[one], one.calls)]
    put("call_seconds", "summary", "Time of a call: of the last ones, and of all.", quantiles)
    celsius = machine.temperature_mc()
    if celsius is not None:
        put("temperature_celsius", "gauge", "The hottest part.", [("", f'service="{name}"', celsius / 1000)])
    put(
        "release_info",
        "gauge",
        "The release in service.",
        [("", labels_of, 1) for labels_of in _deployed(service, name)],
    )
    return "".join(rows)


def _deployed(service: str, name: str) -> list[str]:
    """The labels of the release in service; none if there is none."""
    try:
        with open(os.path.join(service, "current", "manifest.json")) as file:
            known = json.load(file)
        release = os.path.basename(os.readlink(os.path.join(service, "current")))[:12]
        facts = {key: re.sub(r'[\\"\n]', "_", str(known[key]))[:100] for key in ("runtime", "precision", "artifact")}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f'service="{name}",release="{release}",' + ",".join(f'{key}="{value}"' for key, value in facts.items())]


def serve(service: str, address: str) -> None:
    """Answer GET /metrics until the process is ended.

    Args:
        service: the folder of the service.
        address: PORT, which only this machine reaches, or ADDRESS:PORT.
    """
    import http.server  # a program that loads a release needs no server

    host, _, port = address.rpartition(":")

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = REQUEST_S

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            content = text(service).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *ignored: object) -> None:
            """Requests are not logged."""

    with http.server.ThreadingHTTPServer((host or HOST, int(port)), Handler) as server:
        print(f"http://{server.server_address[0]!s}:{server.server_address[1]}/metrics", flush=True)
        server.serve_forever()
