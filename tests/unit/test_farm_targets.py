"""Targets that name a place of a farm or several equal hosts, and the names under which places are held."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.devices import transports
from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.frontends.toml import read_target
from edgeprune.records import Target


def written(folder: Path, connect: str, more: str = "") -> Target:
    path = folder / "pi5.toml"
    path.write_text(f'[connect]\ntransport = "ssh"\n{connect}\n[runtime]\nname = "tflite"\n{more}')
    return read_target(path)


def test_a_place_has_tags_and_a_number_of_boards(tmp_path: Path) -> None:
    target = written(tmp_path, 'place = "board=pi5,ram=8g"\nboards = 3\ncoordinator = "127.0.0.1:20409"')
    assert target.host is not None
    assert target.host.place == (("board", "pi5"), ("ram", "8g")) and target.host.name == "board=pi5,ram=8g"
    assert target.host.coordinator == "127.0.0.1:20409" and target.others == (target.host, target.host)


def test_hosts_are_a_first_board_and_others(tmp_path: Path) -> None:
    target = written(tmp_path, 'hosts = ["pi-1", "pi-2", "pi-3"]\nuser = "pi"')
    assert target.host is not None
    assert (target.host.name, target.host.user) == ("pi-1", "pi")
    assert [(host.name, host.user) for host in target.others] == [("pi-2", "pi"), ("pi-3", "pi")]
    served = written(tmp_path, 'hosts = ["pi-1", "pi-2"]', '[deploy]\nhosts = ["pi-2", "shop"]\n')
    assert [(name, one.host and one.host.name) for name, one in served.all_hosts] == [
        ("pi-1", "pi-1"),
        ("pi-2", "pi-2"),
        ("shop", "shop"),
    ]  # setup and doctor use them


@pytest.mark.parametrize(
    ("connect", "message"),
    [
        (
            'place = "board"',
            "[connect] place must be tags of a labgrid place, such as \"board=pi5,ram=8g\", not 'board'",
        ),
        ('place = "board=pi5;reboot"', "[connect] place must be tags"),
        ('place = "board=pi5"\nhost = "pi"', "[connect] has both host and place; keep one of them"),
        ('place = "board=pi5"\nport = 22', "[connect] port: the farm says the port of a place; remove it"),
        ('host = "pi"\nboards = 2', '[connect] boards needs a place; add it: place = "board=pi5"'),
        ('host = "pi"\ncoordinator = "a:1"', "[connect] coordinator needs a place"),
        ('place = "board=pi5"\ncoordinator = "unix:/x"', "[connect] coordinator must be the address of a labgrid"),
        ('place = "board=pi5"\nboards = 0', "[connect] boards must be a whole number from 1 to 64, not 0"),
        ('hosts = ["pi-1", "pi-1"]', "[connect] hosts names a host twice; name each once"),
        (f'hosts = ["a", "b"]\nfingerprint = "SHA256:{"A" * 43}"', "[connect] fingerprint pins one host"),
        ("hosts = []", "[connect] host is missing"),
    ],
)
def test_keys_that_do_not_fit_are_refused_with_the_file_and_the_key(tmp_path: Path, connect: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        written(tmp_path, connect)
    assert str(caught.value).startswith(f"{tmp_path / 'pi5.toml'}: {message}")


def test_releases_need_hosts_where_the_device_is_any_free_board(tmp_path: Path) -> None:
    target = written(tmp_path, 'place = "board=pi5"')
    with pytest.raises(
        UsageError, match=r"\[connect\] place is any free board, so releases need hosts; add \[deploy\]"
    ):
        _ = target.each_host
    assert [name for name, _ in target.all_hosts] == ["board=pi5"]
    served = written(tmp_path, 'place = "board=pi5"', '[deploy]\nhosts = ["shop-1"]\n')
    ((name, one),) = served.each_host
    assert name == "shop-1" and one.host is not None and one.host.place == ()


def test_without_labgrid_a_place_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("paramiko")
    monkeypatch.setitem(sys.modules, "labgrid", None)
    with pytest.raises(RuntimeMissing, match=r"labgrid is not installed. Run: pip install 'edgeprune\[farm\]'"):
        transports.connect(written(tmp_path, 'place = "board=pi5"'))


# ----------------------------------------------------------------------------------------------- labgrid is installed


@pytest.fixture
def farm() -> object:
    return pytest.importorskip("edgeprune.devices.transports.farm")


def test_a_dry_run_says_what_is_reserved(tmp_path: Path, farm: object) -> None:
    first, second, *_ = transports.commands(written(tmp_path, 'place = "board=pi5"\ncoordinator = "127.0.0.1:1"'))
    assert first == "labgrid at 127.0.0.1:1: reserve and acquire a place with board=pi5; released at the end"
    assert second.startswith("ssh ") and "BOARD" in second


def test_the_coordinator_is_that_of_the_target_then_of_the_environment(
    tmp_path: Path, farm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.devices.transports.farm import address_of

    host = written(tmp_path, 'place = "board=pi5"').host
    assert host is not None
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    assert address_of(host) == "127.0.0.1:20408"
    monkeypatch.setenv("LG_COORDINATOR", "farm:1234")
    assert address_of(host) == "farm:1234"
    assert address_of(replace(host, coordinator="127.0.0.1:9")) == "127.0.0.1:9"
    monkeypatch.setenv("LG_COORDINATOR", "ws://farm/ws")
    with pytest.raises(UsageError, match=r"LG_COORDINATOR = 'ws://farm/ws' is not an address; write HOST:PORT"):
        address_of(host)


def test_only_an_ended_process_of_the_same_user_and_machine_has_left_a_place(
    farm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.devices.transports.farm import holders

    monkeypatch.setenv("LG_HOSTNAME", "desk")
    monkeypatch.setenv("LG_USERNAME", "ana")
    own = holders.own()
    assert (
        own.startswith(f"desk/ana.edgeprune-{os.getpid()}-") and own.count("/") == 1
    )  # labgrid-client splits it there
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start, namespace = holders._start(child.pid), holders._namespace()
    name = f"desk/ana.edgeprune-{child.pid}-{start}-{namespace}"
    assert not holders.has_ended(own) and not holders.has_ended(name)
    child.communicate(b"\n")
    assert holders.has_ended(name)
    assert holders.has_ended(f"desk/ana.edgeprune-{os.getpid()}-1-{namespace}")  # a number that was used again
    for other in ("desk/ana", "desk/bob", name.replace("ana", "bob"), name.replace("desk", "lab"), f"{name}1"):
        assert not holders.has_ended(other), other
