"""A small project that runs the whole pipeline in seconds, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import Forks

from edgeprune.errors import InconclusiveError

MODULE = '''
"""Blobs in one of four corners; a network of two convolutions."""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 48, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(48)
        self.b = nn.Conv2d(48, 64, 3, 1, 1)
        self.fc = nn.Linear(64 * 4, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.bn(self.a(x)))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

def build():
    return Net()

def inputs():
    return (torch.zeros(1, 1, 24, 24),)

def _data(seed, count):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=random)
    images = 0.1 * torch.randn(count, 1, 24, 24, generator=random)
    for image, label in zip(images, labels.tolist()):
        row, column = divmod(label, 2)
        image[0, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12] += 1.0
    return [(images[i : i + 32], labels[i : i + 32]) for i in range(0, count, 32)]

def train():
    return _data(0, 256)

def valid():
    return _data(1, 96)

def test():
    return _data(2, 96)
'''

NARROW = MODULE.replace("48", "16").replace("64", "24")  # the same with fewer channels, for tests that measure nothing
# Only the keys that a project file must have.
SMALLEST = """
[model]
factory = "m:build"
inputs = "m:inputs"
[data]
train = "m:train"
valid = "m:valid"
[budget]
latency = "50%"
"""
FILE = """
[model]
factory = "blobs:build"
weights = "blobs.safetensors"
inputs = "blobs:inputs"

[data]
train = "blobs:train"
valid = "blobs:valid"
test = "blobs:test"

[budget]
latency = "60%"
max_metric_drop = 0.02

[finetune]
epochs = 2
learning_rate = 0.02
"""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        return json.loads(self.out)


Command = Callable[..., Finished]
InProcess = Callable[..., tuple[int, str, str]]  # a command in the test's own process: exit code, output, error output
FORKS = Forks()


def command(*arguments: str | Path, cwd: Path | None = None, timeout: float = 600) -> Finished:
    """Run `edgeprune` in a separate process, as a user does."""
    return Finished(*FORKS.run([*map(str, arguments)], {**os.environ, "COLUMNS": "200"}, cwd, timeout))


# A shell that runs the tests in the background makes them, and all that they start, ignore SIGINT.
HEEDING_SIGINT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgeprune.cli import main
main()
"""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-u", "-c", HEEDING_SIGINT, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def kill_after(process: subprocess.Popen[str], words: str) -> None:
    """SIGKILL as soon as a line with these words is printed. The workers end with the process's standard input."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait(60) == -signal.SIGKILL


def settled(run: Finished) -> str:
    """The verdict of a command with `--json`: "pass", or "inconclusive" if latency checks are, as on a busy machine.

    Anything else fails the test, and names the checks: an error, a failed check, another inconclusive check.

    Raises:
        InconclusiveError: a latency budget is missed by so little that other work on this machine may be the reason.
    """
    assert run.out, f"no answer, exit code {run.code}: {run.err}"
    assert "checks" in run.json, f"no verdict, exit code {run.code}: {run.json.get('error', run.err)}"
    bad = [check for check in run.json["checks"] if not _settled(check)]
    named = "\n".join(f"{check['outcome']} {check['name']}: {check['note']}" for check in bad)
    if bad and all(map(_missed_by_little, bad)):
        raise InconclusiveError(named)
    assert not bad, named
    inconclusive = any(check["outcome"] == "inconclusive" for check in run.json["checks"])
    status = "inconclusive" if inconclusive else "pass"
    assert (run.json.get("status", status), run.code) == (status, 4 if inconclusive else 0), run.err
    return status


def _missed_by_little(check: dict[str, Any]) -> bool:
    """Plans use nearly all of a budget. Work beside a run may slow the pruned network more than the original one."""
    return check["outcome"] == "fail" and check["name"].startswith("latency_") and check["value"] < 1.1 * check["limit"]


def _settled(check: dict[str, Any]) -> bool:
    measured = check["name"].startswith("latency_") or check["name"] == "slowdown"
    return check["outcome"] == "pass" or (check["outcome"] == "inconclusive" and measured)
