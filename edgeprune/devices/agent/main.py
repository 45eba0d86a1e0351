"""The agent's command line.

    python agent.py serve    reads requests from standard input, a line of JSON each; streams framed replies
    python agent.py work     does one job in a fresh process; only `serve` starts it

The first line is `wire.Hello`. Every line after it is {"jobs": [job, ...]}. Each job is answered by one frame, in order.
When standard input closes, or is silent for `silence_s`, the host has gone. Then the agent ends its worker and itself. All
files are in the folder of the agent's file:

    agent-DIGEST.py    files/DIGEST/    site/RUNTIME/    work/

Standard library and the runtime only; Python 3.8 and up.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from ...runtimes import machine
from ...runtimes.device import Failed
from .. import wire
from ..validate import WireError, read
from . import audit, facts, keys, lease, releases, undo, uploads, worker
from .link import GONE, Link

DOERS: dict[type[wire.Job[Any]], Callable[[Any], Any]] = {
    wire.Reserve: uploads.reserve,
    wire.Store: uploads.store,
    wire.Discard: uploads.discard,
    wire.Examine: facts.examine,
    wire.ChangeKeys: keys.change,
    wire.ReadAudit: audit.read,
    wire.ReadMetrics: releases.metrics_of,
}


def main(arguments: list[str]) -> None:
    """Serve the host, or work for the agent that serves it."""
    if arguments[0] == "serve":
        serve()
    else:
        worker.work(int(arguments[1]))


def serve() -> None:
    """Answer requests on standard input until it closes."""
    for ending in worker.ENDINGS:
        signal.signal(ending, lambda *_: sys.exit(GONE))
    link = Link()
    hello = read(wire.Hello, link.next_request())
    link.nonce, link.silence_s = hello.nonce, hello.silence_s
    try:
        held = lease.take(hello, link) if hello.token else None
        folder = _work_folder(leased=held is not None)
    except Failed as error:
        link.reply(worker.failure(error))
        return
    except OSError as error:
        link.reply(worker.failure(Failed("system", f"{error}. Is the disk there full or read-only?")))
        return
    try:
        undo.restore()  # for an agent that was killed
        link.reply(wire.document(wire.Welcome(os.getpid(), machine.boot_id(), tuple(undo.pending()))))
        while True:
            for content in link.next_request()["jobs"]:
                link.reply({**answered(content, folder, link), "id": content["id"]})
    finally:
        undo.restore()
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            held.close()


def answered(content: Any, folder: str, link: Link) -> dict[str, Any]:
    """The reply to one job."""
    try:
        _, job = wire.read_job(content)
    except WireError as error:
        return worker.failure(Failed("malformed", f"the agent does not understand the job: {error}"))
    if isinstance(job, wire.Work):
        return worker.answer(job.label, lambda: worker.run(job, folder, link))
    return worker.answer(job.label, lambda: wire.document(DOERS[type(job)](job)))


def _work_folder(leased: bool) -> str:
    """A folder for temporary files. The holder of the lease also clears what a killed agent left there."""
    if not leased:
        return tempfile.mkdtemp(prefix="edgeprune-")
    work = os.path.join(machine.home(), "work")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work, mode=0o700)
    return work
