"""Commands as forks of a process that has imported torch, because that import takes longer than most commands.

A fork has its own arguments, environment, folder and output, as any process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


class Forks:
    """The process that has imported torch. It starts with the first command."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, arguments: list[str], environment: Mapping[str, str], cwd: Path | None, timeout: float
    ) -> tuple[int, str, str]:
        """Run `edgeprune`, and return its exit code, its output and its error output. Raises `TimeoutExpired`."""
        if self._server is None:
            line = [sys.executable, __file__]
            self._server = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("out", "err")]
            request = [arguments, dict(environment), str(cwd or Path.cwd()), *map(str, files)]
            print(json.dumps(request), file=self._server.stdin, flush=True)
            if not select.select([self._server.stdout], [], [], timeout)[0]:
                os.killpg(self._server.pid, signal.SIGKILL)
                self.close()
                raise subprocess.TimeoutExpired(["edgeprune", *arguments], timeout)
            code = int(self._server.stdout.readline())
            out, err = (file.read_text() for file in files)
        return code, out, err

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.communicate()
            self._server = None


def _serve() -> None:
    """Fork for each request of standard input. Ends with its input."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(*json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Run the command line in this process, as `python -m edgeprune.cli` does. Raises `SystemExit`."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["edgeprune", *arguments]
    from edgeprune.cli import main

    main()


def _warm_up() -> None:
    """Import what commands import, make the agent, and export a network: torch imports much of itself only then.

    Nothing here may start a thread, as onnxruntime does: a fork would wait for it without end.
    """
    gc.disable()
    import effort  # noqa: F401 - it must come first
    import torch

    from edgeprune.devices import bundle

    edgeprune = (
        "api.verbs",
        "cli",
        "reports.ci",
        "reports.console",
        "network.survey",
        "stages.registry",
        "stages.training",
    )
    for name in (*(f"edgeprune.{name}" for name in edgeprune), "onnx", "safetensors.torch", "torch.onnx"):
        importlib.import_module(name)
    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))
    bundle.agent()
    gc.collect()
    gc.freeze()  # or a fork that ends looks at every object of torch, and copies its memory
    gc.enable()


if __name__ == "__main__":
    _warm_up()
    _serve()
