"""Faults of the virtual board: the tests control its link and its power."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import wire
from edgeprune.devices.bench import Bench
from edgeprune.devices.virtual import board
from edgeprune.errors import DeviceError, UsageError
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.records import Target

pytest.importorskip("paramiko")
from edgeprune.devices.transports import base, ssh
from edgeprune.devices.transports.ssh import channel, connection, login, transport

pytestmark = pytest.mark.usefixtures("virtual_board")
PING = wire.job_document(0, wire.Identify(20.0, "null"))


def target() -> Target:
    known = toml.read_target(Path(__file__).parents[2] / "targets" / "virtual-pi.toml")
    return replace(known, runtime="null")


def ssh_argv() -> list[str]:
    """The arguments of this machine's ssh client, without the command."""
    host = target().host
    assert host is not None
    argv = ["ssh", "-i", str(host.identity), "-o", f"UserKnownHostsFile={host.known_hosts}", "-o", "IdentitiesOnly=yes"]
    argv += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-p", str(host.port), f"{host.user}@{host.name}"]
    return argv


def shell(command: str) -> str:
    """Run a command on the board."""
    return subprocess.run([*ssh_argv(), command], capture_output=True, text=True, timeout=600, check=False).stdout


@pytest.fixture
def device() -> Iterator[Any]:
    with closing(ssh.Ssh(target())) as transport:
        yield transport


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, silence_s=6.0, heal_s=8.0, connect_s=8.0)
    for module in (base, channel, connection, login, transport):
        monkeypatch.setattr(module, "LIMITS", limits)
    monkeypatch.setattr(channel, "BEAT_S", 1.0)


@pytest.fixture
def link() -> Iterator[Any]:
    """Switches the board's network on and off. At the end it is on."""

    def switch(state: str) -> None:
        board.monitor(f"set_link n0 {state}")

    yield switch
    switch("on")
    board.monitor("cont")


def model(tmp_path: Path, **content: Any) -> Path:
    folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"ns": 1000, **content}))
    return folder / "model.json"


def job(number: int, remote: str) -> dict[str, Any]:
    """A short measurement."""
    caps = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 5}
    return wire.job_document(number, wire.Time(60.0, "null", 1, (remote,), (), **caps))


def later(seconds: float, work: Any, *arguments: Any) -> None:
    threading.Timer(seconds, work, arguments).start()


def test_the_board_is_identified_as_emulated(tmp_path: Path) -> None:
    with closing(ssh.Ssh(target())) as transport:
        device = Bench(target(), transport, tmp_path).device
    assert (device.machine, device.cores, device.emulated) == ("aarch64", 1, True)
    with closing(ssh.Ssh(target())) as transport, pytest.raises(UsageError, match="emulated"):
        Bench(replace(target(), emulated=False), transport, tmp_path)


@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_link_that_is_off_during_a_measurement_recovers(seconds: int, device: Any, link: Any, tmp_path: Path) -> None:
    remote = device.put([model(tmp_path, hangs=0.1)])
    replies = device.call([job(i, remote) for i in range(3)], 300)
    next(replies)
    link("off")
    later(seconds, link, "on")
    assert [reply["id"] for reply in replies] == [1, 2]


@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_link_that_is_off_during_an_upload_recovers(seconds: int, device: Any, link: Any, tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(bytes(range(256)) * 40_000 + os.urandom(4_000_000))
    device.put([model(tmp_path)])
    later(0.5, link, "off")
    later(0.5 + seconds, link, "on")
    remote = device.put([path])
    assert shell(f"stat -c %s {remote}").strip() == str(path.stat().st_size)
    assert not shell("find .edgeprune/files -name '*.part' -o -name '*.z'").strip()


@pytest.mark.nightly
def test_a_link_that_does_not_come_back_is_an_error_in_time(
    device: Any, link: Any, hasty: None, tmp_path: Path
) -> None:
    remote = device.put([model(tmp_path, hangs=0.1)])
    replies = device.call([job(i, remote) for i in range(20)], 300)
    next(replies)
    link("off")
    started = time.monotonic()
    with pytest.raises(DeviceError, match="run the same command again") as caught:
        list(replies)
    # The silence, then the time to recover, with one attempt in progress at its end.
    assert caught.value.exit_code == 5 and time.monotonic() - started < 6 + 8 + 8 + 2


@pytest.mark.nightly
def test_a_paused_board_continues(device: Any, link: Any, tmp_path: Path) -> None:
    remote = device.put([model(tmp_path, hangs=0.1)])
    replies = device.call([job(i, remote) for i in range(3)], 300)
    next(replies)
    board.monitor("stop")
    later(4, board.monitor, "cont")
    assert [reply["id"] for reply in replies] == [1, 2]


@pytest.mark.nightly
def test_a_reset_discards_its_sample_and_only_one_is_accepted(
    device: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(target(), device, tmp_path)
    first = bench.device.boot_id
    path = model(tmp_path, hangs=1.0)
    later(3, board.monitor, "system_reset")
    measured = bench.measure([[path], [path], [path], [path]], [])
    assert bench.device.boot_id != first
    assert len(measured) == 4
    assert all(m.run.before["boot_id"] == m.run.after["boot_id"] for (m,) in measured)
    assert "was reset" in caplog.text
    later(3, board.monitor, "system_reset")
    with pytest.raises(DeviceError, match="reset 2 times") as caught:
        bench.measure([[path], [path], [path], [path]], [])
    assert caught.value.exit_code == 5


@pytest.mark.nightly
def test_a_killed_agent_is_reported(device: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remote = device.put([model(tmp_path, hangs=0.3)])
    replies = device.call([job(i, remote) for i in range(3)], 300)
    next(replies)
    shell("pkill -9 -f 'python3.*agent-'")
    assert [reply["id"] for reply in replies] == [1, 2]
    assert "killed" in caplog.text


@pytest.mark.nightly
def test_closing_leaves_no_process(device: Any, tmp_path: Path) -> None:
    replies = device.call([job(0, device.put([model(tmp_path, hangs=60)]))], 300)
    later(4, device.close)
    with suppress(DeviceError):
        list(replies)
    device.close()
    time.sleep(2)
    assert "agent-" not in shell("ps -eo args | grep -v grep | grep agent- || true")


def test_a_full_disk_is_an_error_and_no_partial_file_stays(device: Any, tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(os.urandom(1_000_000))
    device.put([model(tmp_path)])
    try:
        shell("fallocate -l $(( $(df --output=avail -B1 . | tail -1) - 20000000 )) filler")
        with pytest.raises(DeviceError, match=r"are free\. Free some space"):
            device.put([path])
    finally:
        shell("rm -f filler")
    assert not shell("find .edgeprune/files -name '*.part' -o -name '*.z'").strip()
    assert device.put([path])


def test_a_disk_that_fills_up_during_an_upload_is_an_error_and_no_partial_file_stays(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(os.urandom(3_000_000))
    device.put([model(tmp_path)])
    upload = connection.Connection.upload

    def filled(self: Any, data: bytes, remote: str, partial: int) -> None:
        shell("fallocate -l $(( $(df --output=avail -B1 . | tail -1) - 1000000 )) filler")
        upload(self, data, remote, partial)

    monkeypatch.setattr(connection.Connection, "upload", filled)
    try:
        with pytest.raises(DeviceError, match=r"full|space"):
            device.put([path])
        assert not shell("find .edgeprune/files -name '*.part' -o -name '*.z'").strip()
    finally:
        shell("rm -f filler")


@pytest.mark.nightly
def test_a_read_only_home_is_an_error(tmp_path: Path) -> None:
    shell("mv .edgeprune /tmp/kept; chmod 500 .")
    try:
        with closing(ssh.Ssh(target())) as transport, pytest.raises(DeviceError, match="cannot be written"):
            list(transport.call([PING], 60))
    finally:
        shell("chmod 755 .; mv /tmp/kept .edgeprune")


def test_output_of_the_login_shell_is_not_a_reply(tmp_path: Path) -> None:
    shell("printf 'echo welcome; printf \"\\\\033[31medgeprune 0 0 0\\\\n\"\\n' > .bashrc")
    try:
        with closing(ssh.Ssh(target())) as transport:
            assert next(transport.call([PING], 60))["runtime"] == "null"
    finally:
        shell("rm -f .bashrc")
