"""The SSH transport without its extra, and the settings of `~/.ssh/config` for a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.devices.transports import commands, connect
from edgeprune.errors import DeviceError, LinkError, RuntimeMissing, SecurityError, UsageError
from edgeprune.records import Host, Target

HIDE = "import sys; sys.modules['paramiko'] = None\n"
IMPORT = """
try:
    import edgeprune.devices.transports.ssh
except ModuleNotFoundError as error:
    print(error.name)
import pytest
try:
    pytest.importorskip("edgeprune.devices.transports.ssh")
except pytest.skip.Exception:
    print("skipped")
"""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "board.toml", "board", "ssh", "null", host=Host("board"))


def test_without_paramiko_the_import_fails_as_any_missing_module_and_tests_skip() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDE + IMPORT], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout.split() == ["paramiko", "skipped"], done.stderr


@pytest.mark.parametrize("use", [connect, commands])
def test_without_paramiko_an_ssh_target_names_the_extra(
    use: object, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(RuntimeMissing) as caught:
        use(target)  # type: ignore[operator]
    assert str(caught.value) == "paramiko is not installed. Run: pip install 'edgeprune[remote]'"


# ------------------------------------------------------------------------------------------------------ ~/.ssh/config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's SSH configuration."""
    pytest.importorskip("edgeprune.devices.transports.ssh")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh" / "config"
    path.parent.mkdir()
    return path


def test_the_jump_hosts_come_first_and_the_target_file_wins(target: Target, config: Path, tmp_path: Path) -> None:
    from edgeprune.devices.transports.ssh.config import servers

    key = tmp_path / "key"
    key.touch()
    config.write_text(
        f"Host board\n HostName 10.0.0.2\n User pi\n Port 2222\n ProxyJump me@gate:2200,inner\n IdentityFile {key}\n"
        "Host inner\n HostName 10.0.0.1\n User you\n"
    )
    gate, inner, board = servers(target, Host("board", user="root"))
    assert (gate.name, gate.user, gate.port) == ("gate", "me", 2200)
    assert (inner.name, inner.user, inner.port) == ("10.0.0.1", "you", 22)
    assert (board.name, board.user, board.port) == ("10.0.0.2", "root", 2222)
    assert board.identities == (key,) and gate.identities == ()
    assert gate.known_hosts[0] == tmp_path / ".ssh" / "known_hosts"


def test_a_configuration_that_is_not_supported_is_refused(target: Target, config: Path) -> None:
    from edgeprune.devices.transports.ssh.config import servers

    for text, fix in (("ProxyCommand nc %h %p", "Write ProxyJump"), ("ProxyJump a,b,c,d,e", "over 4 jump hosts")):
        config.write_text(f"Host board\n {text}\n")
        with pytest.raises(UsageError, match=fix):
            servers(target, Host("board"))


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a b", "a;b", "$(id)", ""])
def test_a_host_name_that_looks_like_an_option_or_a_command_is_refused(name: str, target: Target, config: Path) -> None:
    from edgeprune.devices.transports.ssh.config import servers

    with pytest.raises(SecurityError, match=r"\[connect\] host = .* is not a host name"):
        servers(replace(target, host=Host(name)), Host(name))


# ------------------------------------------------------------------------------------------------- a board that restarts


class Link:
    """A connection. Each is made by the next of `made`, which may raise."""

    made: list[Exception | None]

    def __init__(self, *_: object) -> None:
        error = self.made.pop(0)
        if error is not None:
            raise error

    def greet(self, token: str) -> None:
        """It holds the lease."""

    def ask(self, jobs: list[object], deadline_s: float) -> Iterator[object]:
        if len(self.made) > 0:
            raise LinkError("the link broke")
        yield from jobs

    def leave(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("error", ["no such host: board.local port 22", "the device refuses this user or key"])
def test_a_board_that_was_reached_may_lack_its_name_or_refuse_logins_while_it_starts(
    error: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("edgeprune.devices.transports.ssh")
    from edgeprune.devices.transports.ssh import transport

    monkeypatch.setattr(transport, "Connection", Link)
    monkeypatch.setattr(transport, "BACK_OFF_S", (0.0,))
    Link.made = [None, DeviceError(error), DeviceError(error), None]
    assert list(transport.Ssh(target).call([{"id": 0}], 10.0)) == [{"id": 0}] and not Link.made
    Link.made = [DeviceError(error), None]
    with pytest.raises(DeviceError, match=error):  # a board that never answered is not waited for
        list(transport.Ssh(target).call([{"id": 0}], 10.0))
    assert Link.made == [None]
    Link.made = [None, SecurityError("the host key has CHANGED"), None]
    with pytest.raises(SecurityError):
        list(transport.Ssh(target).call([{"id": 0}], 10.0))
