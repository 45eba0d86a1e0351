"""Boards of a labgrid farm: real coordinator, exporters and sshds on loopback, and what may fail between them."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import farm as loopback
import pytest
from farm import LoopbackFarm
from small import FILE, MODULE, command

from edgeprune.devices import transports, wire
from edgeprune.devices.transports.base import Transport, ask
from edgeprune.errors import BusyError, DeviceError, SecurityError, UsageError
from edgeprune.stages import experiments

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from dataclasses import replace
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from edgeprune.records import Host, Target
from edgeprune.devices import transports
host = Host("name=rack1", identity=Path({identity!r}), known_hosts=Path({known!r}), python=sys.executable,
    place=(("name", "rack1"),), coordinator={address!r})
link = transports.connect(Target(Path("farm.toml"), "farm", "ssh", "null", host=host))
link.put([Path(__file__)])
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackFarm]:
    reason = loopback.absent()
    if reason:
        pytest.skip(reason)
    with loopback.loopback(tmp_path_factory.mktemp("farm")) as farm:
        yield farm


@pytest.fixture
def farm(made: LoopbackFarm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackFarm]:
    """The farm, with all boards free before and after the test."""
    monkeypatch.setattr("edgeprune.devices.transports.farm.borrowed.POLL_S", 0.1)
    yield made
    assert made.holders == {} and made.farm.tickets() == []


def identify(link: Transport) -> str:
    return ask(link, "farm", wire.Identify(20.0, "null")).runtime


def refused(link: Transport, error: type[Exception], match: str) -> None:
    """The first use of a device is refused."""
    with closing(link), pytest.raises(error, match=match):
        identify(link)


def first_offered(farm: LoopbackFarm) -> tuple[str, str]:
    """The place that the coordinator offers first, and the other one. Its scheduler decides."""
    ticket = farm.farm.reserve(loopback.TAGS)
    farm.farm.cancel(ticket.token)
    return (ticket.place, "rack2") if ticket.place == "rack1" else (ticket.place, "rack1")


def test_any_free_board_is_acquired_leased_and_released(farm: LoopbackFarm) -> None:
    with closing(transports.connect(farm.target())) as first, closing(transports.connect(farm.target())) as second:
        assert identify(first) == identify(second) == "null"
        assert sorted(farm.holders) == ["rack1", "rack2"]
        for board in farm.boards:  # our lease protects the board from those who do not ask the farm
            refused(board.transport(identity=farm.folder / "client"), BusyError, "in use by")
        assert farm.farm.tickets() == []  # nobody waits behind a reservation that is no longer needed


def test_a_place_that_does_not_exist_is_refused_with_the_known_tags(farm: LoopbackFarm) -> None:
    with (
        closing(transports.connect(farm.target(board="pi6"))) as link,
        pytest.raises(UsageError, match=r"farm.toml: \[connect\] place = board=pi6: no place .* board=pi5, ram=8g"),
    ):
        identify(link)


def test_an_empty_farm_is_one_line(farm: LoopbackFarm) -> None:
    farm.delete_places()
    try:
        refused(transports.connect(farm.target()), DeviceError, "has no place with tags")
    finally:
        farm.add_places()


def test_a_coordinator_that_does_not_answer_is_one_line_with_the_tunnel(farm: LoopbackFarm) -> None:
    farm.proxy.refusing = True
    try:
        refused(transports.connect(farm.target()), DeviceError, r"does not answer .* Open the tunnel to it: ssh -N -L")
    finally:
        farm.proxy.refusing = False


def test_a_coordinator_that_goes_away_does_not_stop_a_measurement(farm: LoopbackFarm) -> None:
    said: list[str] = []
    link = transports.connect(farm.target(name="rack1"), notice=said.append)
    assert identify(link) == "null"
    farm.proxy.refusing = True
    farm.proxy.cut()
    try:
        assert identify(link) == "null"
        link.close()
    finally:
        farm.proxy.refusing = False
    assert "rack1 may stay taken" in said[-1] and list(farm.holders) == ["rack1"]
    with closing(transports.connect(farm.target(name="rack1"), notice=said.append)) as link:
        assert identify(link) == "null"  # the next use finds and frees it
    assert any("rack1 is released" in text for text in said)


def test_a_board_that_is_offline_or_vanishes_is_reported_and_another_is_tried(farm: LoopbackFarm) -> None:
    said: list[str] = []
    first, second = first_offered(farm)
    farm.board(first).proxy.refusing = True  # it vanishes after it was reserved
    try:
        with closing(transports.connect(farm.target(), notice=said.append)) as link:
            identify(link)
            assert list(farm.holders) == [second] and said[0].startswith(f"farm: {first} is not used: ")
        farm.unexport(second)
        refused(
            transports.connect(farm.target(), notice=said.append),
            DeviceError,
            f"no board can be used: .*{second}: it is offline",
        )
    finally:
        farm.board(first).proxy.refusing = False
        farm.export(second)
    assert any(f"{second} is not used: it is offline" in text for text in said)


def test_a_board_that_somebody_holds_without_the_farm_is_skipped(farm: LoopbackFarm) -> None:
    said: list[str] = []
    first, second = first_offered(farm)
    with closing(farm.board(first).transport(identity=farm.folder / "client")) as other:
        ask(other, "other", wire.Identify(20.0, "null"))
        with closing(transports.connect(farm.target(), notice=said.append)) as link:
            identify(link)
            assert list(farm.holders) == [second] and f"{first} is not used" in said[0] and "in use by" in said[0]
        refused(transports.connect(farm.target(name=first)), BusyError, f"{first}: .*in use by")


def test_of_two_runs_that_want_the_last_board_one_waits_in_the_queue(farm: LoopbackFarm) -> None:
    said: list[str] = []
    first = transports.connect(farm.target(name="rack1"))
    identify(first)
    refused(
        transports.connect(farm.target(name="rack1")),
        BusyError,
        r"every board with name=rack1 is taken \(rack1 by .*\); number 1 .*--wait",
    )
    threading.Timer(1.0, first.close).start()
    with closing(transports.connect(farm.target(name="rack1"), wait_s=30, notice=said.append)) as second:
        assert identify(second) == "null"
    assert "number 1 in the queue; waiting" in said[0]


def test_what_a_killed_holder_left_is_freed_by_the_next_command(farm: LoopbackFarm, tmp_path: Path) -> None:
    script = tmp_path / "hold.py"
    script.write_text(
        HOLD.format(
            tests=str(Path(__file__).parents[1]),
            root=str(Path(transports.__file__).parents[3]),
            identity=str(farm.folder / "client"),
            known=str(farm.folder / "known_hosts"),
            address=farm.address,
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with closing(transports.connect(farm.target(name="rack1"))) as link, pytest.raises(BusyError):
        identify(link)  # a holder that lives keeps its board
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    said: list[str] = []
    with closing(transports.connect(farm.target(name="rack1"), wait_s=30, notice=said.append)) as link:
        assert identify(link) == "null"
    assert said[0] == "rack1 is released: a command that has ended held it"


def test_a_board_with_an_unknown_host_key_is_refused_and_released(farm: LoopbackFarm, tmp_path: Path) -> None:
    refused(transports.connect(loopback.with_key(farm.target(), tmp_path)), SecurityError, "host key")


def test_a_reservation_that_a_restart_forgot_is_made_again(farm: LoopbackFarm) -> None:
    first = transports.connect(farm.target(name="rack1"))
    identify(first)
    got: list[Any] = []

    def wait() -> None:
        with closing(transports.connect(farm.target(name="rack1"), wait_s=30, notice=lambda text: None)) as second:
            got.append(identify(second))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until = time.monotonic() + 60
    while not (tickets := farm.farm.tickets()):
        assert time.monotonic() < until
        time.sleep(0.02)
    farm.farm.cancel(tickets[0].token)
    time.sleep(0.5)
    first.close()
    waiting.join(60)
    assert got == ["null"]


def test_targets_farm_lists_places_tags_and_holders(farm: LoopbackFarm, tmp_path: Path) -> None:
    farm.write(tmp_path / "targets" / "pi5.toml", "onnxruntime")
    with closing(transports.connect(farm.target(name="rack1"))) as link:
        identify(link)
        listed = command("targets", "--farm", "--json", cwd=tmp_path)
        table = command("targets", "--farm", cwd=tmp_path)
        one, two = json.loads(listed.out)
        assert one["holder"] == farm.holders["rack1"] and two["holder"] == ""
    assert (one["place"], one["tags"], one["coordinator"]) == ("rack1", loopback.TAGS, farm.address)
    assert one["board"] == f"{getpass.getuser()}@127.0.0.1:{farm.board('rack1').proxy.port}"
    assert "board=pi5,ram=8g" in table.out and "free" in table.out and one["holder"] in table.out


def test_a_profile_is_shared_by_two_boards_of_the_farm(farm: LoopbackFarm, tmp_path: Path) -> None:
    project = tmp_path / "blobs"
    farm.write(project / "targets" / "pi5.toml", "null", "boards = 2")
    (project / "blobs.py").write_text(MODULE.replace("48", "16").replace("64", "24"))
    (project / "edgeprune.toml").write_text(FILE.replace('weights = "blobs.safetensors"\n', ""))
    done = command("profile", "--project", project, "--target", "pi5")
    assert done.code == 0 and "0 experiments reused" in done.out and "on 2 boards" in done.out, done.out + done.err
    variants = [len(list((board.home / ".edgeprune" / "files").glob("*/model.json"))) for board in farm.boards]
    assert min(variants) > experiments.TOGETHER, done.err  # a board that was left out has only the anchor
