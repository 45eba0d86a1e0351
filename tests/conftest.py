"""Tiers by folder, and a small project that runs the whole pipeline in seconds on a real runtime."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for the tests that import it themselves
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are small, and several processes share the cores

import effort  # noqa: F401 - it must come first
import pytest
from inconclusive import Inconclusive
from small import FILE, FORKS, MODULE, NARROW, Finished, InProcess, command
from sshd import SSHD, Sshd, keygen, start
from standin import put_stand_in

TIERS = ("tiny", "unit", "contract", "recorded", "hostile", "faults", "e2e", "board", "models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's tier is the folder it stands in. What runs nightly is slow, too.

    Slow tests of the tiers unit and contract run nightly: they repeat a quick one on another runtime or network.
    """
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")
        elif item.get_closest_marker("slow") and tier in ("unit", "contract"):
            item.add_marker("nightly")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes take whole files; see `scheduling`."""
    from scheduling import ByFile

    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Count inconclusive contract tests, and keep imports quick."""
    gc.disable()  # until all tests are collected
    config.pluginmanager.register(Inconclusive())


def pytest_collection_finish() -> None:
    """Leave what is imported by now to no collection of garbage. Torch has a million objects, and an export makes more."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish() -> None:
    """End the process that commands are forks of."""
    FORKS.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project with trained weights, never run."""
    return put_trained(tmp_path_factory.mktemp("trained"), MODULE)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with fewer channels."""
    return put_trained(tmp_path_factory.mktemp("narrow"), NARROW)


def put_trained(home: Path, module: str) -> Path:
    """Write the small project with this module into a folder, and train it."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

    folder = home / "blobs"
    folder.mkdir()
    (folder / "blobs.py").write_text(module)
    (folder / "edgeprune.toml").write_text(FILE)
    names = runpy.run_path(str(folder / "blobs.py"))
    torch.manual_seed(0)
    model = names["build"]()
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        for images, labels in names["train"]():
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
    save_file(model.state_dict(), folder / "blobs.safetensors")
    return folder


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the small project, which a test may change. It is narrow in tiers that measure nothing."""
    narrow = any(request.node.get_closest_marker(tier) for tier in ("unit", "hostile"))
    made = request.getfixturevalue("narrow" if narrow else "trained")
    return Path(shutil.copytree(made, tmp_path / "blobs")) / "edgeprune.toml"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share, and no other run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def finished_run(shared: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The small project after one run, and what the command printed. Tests must not change it.

    One process of this test run makes it. Every process has a copy, since a run locks its folder.
    """
    original, answer = shared / "finished" / "blobs", shared / "finished.json"
    with locked(shared / "finished.lock"):
        if not answer.exists():
            shutil.copytree(trained, original)
            answer.write_text(json.dumps(asdict(command("run", "--project", original / "edgeprune.toml", "--json"))))
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("finished") / "blobs", symlinks=True))
    printed = json.loads(answer.read_text().replace(str(original), str(folder)))
    return folder / "edgeprune.toml", Finished(**printed)


@pytest.fixture
def own_run(finished_run: tuple[Path, Finished], tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(finished_run[0].parent, tmp_path / "blobs", symlinks=True)) / "edgeprune.toml"


@pytest.fixture
def home_with_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a key to sign with."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    keygen(folder / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is in this context."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """One process at a time uses this machine as a board, which has one lease."""
    with locked(Path(tempfile.gettempdir()) / f"edgeprune-tests-{os.getuid()}.lock"):
        yield


@pytest.fixture
def sshd(tmp_path_factory: pytest.TempPathFactory, alone: None) -> Iterator[Sshd]:
    """A real sshd on loopback, with the test's folder as home."""
    pytest.importorskip("paramiko")
    if SSHD is None:
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    process, server = start(tmp_path_factory.mktemp("sshd"))
    try:
        yield server
    finally:
        server.proxy.close()
        process.terminate()
        process.wait(10)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in for a version of trtexec first in PATH, and engines into the test's folder."""
    return lambda version: put_stand_in(version, tmp_path, monkeypatch)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a command changes for its whole process: log handlers, the printing of warnings, TORCH_LOGS."""
    handlers, level, shown = logging.root.handlers[:], logging.root.level, warnings.showwarning
    monkeypatch.setenv("TORCH_LOGS", os.environ.get("TORCH_LOGS", "-all"))
    logging.root.handlers = []  # pytest's, which must not be closed
    yield
    logging.root.handlers, warnings.showwarning = handlers, shown
    logging.root.setLevel(level)
    logging.getLogger("edgeprune").setLevel(logging.NOTSET)


@pytest.fixture
def edgeprune(
    screen: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> InProcess:
    """The command line in this process and in an empty folder: its exit code, its output and its error output."""
    from edgeprune.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeprune", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture(scope="session")
def virtual_board() -> Iterator[None]:
    """The virtual board; if it did not run, it is started, and stopped after the tests."""
    pytest.importorskip("paramiko")
    from edgeprune.devices.virtual import board
    from edgeprune.errors import UsageError

    running = board.status().startswith("up")
    try:
        board.up()
    except UsageError as error:
        pytest.skip(str(error))
    yield
    if not running:
        board.down()
