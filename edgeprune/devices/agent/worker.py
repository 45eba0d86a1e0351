"""A fresh process for each job that loads a runtime: a crash or a hang of a runtime ends the process, not the agent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

from ...runtimes import cores, machine
from ...runtimes.device import Failed
from .. import wire
from . import facts, install, measure, releases
from .link import Link

STDERR_CHARS = 2000
REPLY_BYTES = 64 << 20
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # sshd sends the latter where its connection broke
PR_SET_PDEATHSIG = 1

DOERS: dict[type[wire.Work[Any]], Callable[[Any], Any]] = {
    wire.Install: install.install,
    wire.Identify: facts.identify,
    wire.GetState: facts.state,
    wire.Time: measure.time_models,
    wire.GetOutputs: measure.outputs,
    wire.GetThroughput: measure.throughput,
    wire.GetEnergy: measure.energy,
    wire.Publish: releases.publish,
    wire.Activate: releases.activate,
    wire.ListReleases: releases.listed,
    wire.Withdraw: releases.withdraw,
}


# ------------------------------------------------------------------------------------------------- in the agent


def run(job: wire.Work[Any], folder: str, link: Link) -> dict[str, Any]:
    """Have a worker do a job: its reply as a JSON object. Raises `Failed` where the worker is late or dies."""
    until = time.monotonic() + job.deadline_s
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(dir=folder) as errors:
        worker = _started(writer, errors, folder)
        os.close(writer)
        try:
            _send(worker, job)
            reply = _reply(reader, until, link)
        except SystemExit:
            if job.finishes:  # the host has gone, and a job that is half done would be worse
                _let_finish(worker, until)
            raise
        finally:
            os.close(reader)
            _end(worker)
        if reply is None:
            raise Failed("deadline", f"the job took over {job.deadline_s:g} s")
        if reply:
            found: dict[str, Any] = json.loads(reply)
            return found
        raise _ended(worker.returncode, _tail(errors))


def _started(writer: int, errors: IO[bytes], folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *(["-I"] if sys.flags.isolated else []), os.path.abspath(sys.argv[0]), "work", str(writer)],
        stdin=subprocess.PIPE,
        stdout=errors,
        stderr=errors,
        pass_fds=[writer],
        start_new_session=True,
        cwd=folder,
    )


def _send(worker: subprocess.Popen[bytes], job: wire.Work[Any]) -> None:
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended before it read the job: its exit status is the reason
        worker.stdin.write(json.dumps(wire.job_document(0, job)).encode())
        worker.stdin.close()


def _reply(reader: int, until: float, link: Link) -> bytes | None:
    """All that the worker writes until it closes the pipe. None where it is late or writes too much."""
    parts: list[bytes] = []
    size = 0
    while time.monotonic() < until:
        if link.wait([reader], until):
            part = os.read(reader, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > REPLY_BYTES:
                break
    return None


def _let_finish(worker: subprocess.Popen[bytes], until: float) -> None:
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(max(0, until - time.monotonic()))


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and every process that it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(0.5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - STDERR_CHARS))
    return errors.read().decode("utf-8", "backslashreplace").strip()


def _ended(code: int, stderr: str) -> Failed:
    """Why a worker ended without a reply."""
    if code == -signal.SIGKILL:
        return Failed("killed", f"the process was killed (out of memory?); {stderr}")
    if code < 0:
        return Failed("killed", f"the process died of signal {-code}; {stderr}")
    return Failed("run", f"the process ended with {code} and no reply; {_raised(stderr)}")


def _raised(stderr: str) -> str:
    """The exception that a traceback ends with. Output without a traceback comes back as it is."""
    lines = stderr.splitlines()
    calls = [number for number, line in enumerate(lines, 1) if line.startswith("  ")]
    return "\n".join(lines[calls[-1] :]) if calls and calls[-1] < len(lines) else stderr


# ------------------------------------------------------------------------------------------------ in the worker


def work(writer: int) -> None:
    """Do the job on standard input and write its reply to the descriptor `writer`."""
    _, job = wire.read_job(json.load(sys.stdin))
    assert isinstance(job, wire.Work)
    if not job.finishes:
        _die_with_the_agent()
    site = os.path.join(machine.home(), "site", job.runtime)
    if os.path.isdir(site):
        sys.path.insert(0, site)
    reply = answer(job.label, lambda: wire.document(_done(job)))
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(reply, allow_nan=False).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # runtimes must not stop their threads now: some hang or crash there


def _done(job: wire.Work[Any]) -> Any:
    """The reply to a job, done on the cores that it names."""
    pinned = getattr(job, "cores", None)
    if pinned and not isinstance(job, wire.Identify):
        cores.pin(pinned)
    reply = DOERS[type(job)](job)
    if pinned:
        cores.require_pinned(pinned)
    return reply


def answer(label: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `do` returns, the reply of a job as a JSON object, or the failure that it raises."""
    try:
        return do()
    except Failed as error:
        return failure(error)
    except MemoryError:
        return failure(Failed("memory", "out of memory"))
    except OSError as error:
        return failure(Failed("system", f"{label}: {error}"))


def failure(error: Failed) -> dict[str, Any]:
    """A failure as a JSON object."""
    return wire.document(wire.Failure(error.kind, str(error)[:STDERR_CHARS]))


def _die_with_the_agent() -> None:
    """Have the kernel kill this process with its parent: an agent that is killed cannot end its worker."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
