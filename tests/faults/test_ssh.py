"""A real sshd behind a proxy that fails: which faults recover, what is refused, and the texts of errors."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import venv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sshd import Sshd, keygen

from edgeprune.devices import bundle, wire
from edgeprune.errors import BusyError, DeviceError, SecurityError, UsageError
from edgeprune.limits import LIMITS

pytest.importorskip("edgeprune.devices.transports.ssh")
from edgeprune.devices.transports import base
from edgeprune.devices.transports.ssh import channel, connection, login, transport

PING = wire.job_document(0, wire.Identify(20.0, "null"))


def job(number: int, remote: str, deadline_s: float = 60.0) -> dict[str, Any]:
    """A short measurement."""
    caps = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 50}
    return wire.job_document(number, wire.Time(deadline_s, "null", 1, (remote,), (), **caps))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of seconds instead of minutes."""
    limits = replace(LIMITS, silence_s=2.0, heal_s=4.0, connect_s=2.0, identify_s=4.0)
    for module in (base, channel, connection, login, transport):
        monkeypatch.setattr(module, "LIMITS", limits)
    monkeypatch.setattr(channel, "BEAT_S", 0.5)


@pytest.fixture
def device(sshd: Sshd, hasty: None) -> Iterator[Any]:
    with closing(sshd.transport()) as transport:
        yield transport


def null_model(tmp_path: Path, **content: Any) -> Path:
    folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"ns": 1000, **content}))
    return folder / "model.json"


def blob(tmp_path: Path, size: int = 3_000_000) -> Path:
    path = tmp_path / "blob.bin"
    path.write_bytes(os.urandom(size))
    return path


def kept(sshd: Sshd) -> list[Path]:
    return sorted(
        path.relative_to(sshd.home / ".edgeprune/files") for path in (sshd.home / ".edgeprune/files").rglob("*")
    )


SLOW_PIP = """import sys, time
time.sleep(3)
folder = sys.argv[sys.argv.index("--target") + 1]
open(folder + "/installed.py", "w").close()
"""


@pytest.mark.slow
def test_a_pip_that_is_silent_for_long_breaks_no_link(
    sshd: Sshd, hasty: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a small board, pip takes minutes. Meanwhile the agent gives signs of life."""
    venv.create(tmp_path / "venv")
    (pip,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (pip / "pip").mkdir()
    (pip / "pip" / "__main__.py").write_text(SLOW_PIP)
    job = wire.Install(20.0, "null", (), ("installed",))
    with closing(sshd.transport(python=str(tmp_path / "venv/bin/python"))) as transport:
        assert base.ask(transport, "sshd", job) == wire.Done()
    assert (sshd.home / ".edgeprune/site/null/installed.py").is_file() and "connecting again" not in caplog.text


# ----------------------------------------------------------------------------------------------- host keys and login


def test_an_unknown_host_key_is_refused_with_the_line_that_makes_it_known(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    with (
        closing(sshd.transport(known_hosts=known)) as transport,
        pytest.raises(SecurityError, match="not known") as caught,
    ):
        list(transport.call([PING], 60))
    assert caught.value.exit_code == 6 and str(caught.value).isprintable()
    _, _, line = str(caught.value).partition(f"{known}: ")
    known.write_text(line + "\n")
    with closing(sshd.transport(known_hosts=known)) as transport:
        assert next(transport.call([PING], 60))["runtime"] == "null"


def test_a_changed_host_key_is_refused_with_both_fingerprints(sshd: Sshd, tmp_path: Path) -> None:
    other = keygen(tmp_path / "other")
    kind, key, *_ = Path(f"{other}.pub").read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.proxy.port} {kind} {key}\n")
    with (
        closing(sshd.transport(known_hosts=known)) as transport,
        pytest.raises(SecurityError, match="CHANGED") as caught,
    ):
        list(transport.call([PING], 60))
    assert str(caught.value).count("SHA256:") == 2


def test_a_pinned_fingerprint_accepts_only_its_key(sshd: Sshd, tmp_path: Path) -> None:
    argv = ["ssh-keygen", "-lf", str(sshd.folder / "host.pub")]
    right = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600).stdout.split()[1]
    with closing(sshd.transport(known_hosts=tmp_path / "none", fingerprint=right)) as transport:
        assert list(transport.call([PING], 60))
    wrong = "SHA256:" + "A" * 43
    with (
        closing(sshd.transport(fingerprint=wrong)) as transport,
        pytest.raises(SecurityError, match="CHANGED") as caught,
    ):
        list(transport.call([PING], 60))
    assert wrong in str(caught.value) and right in str(caught.value)


def test_a_refused_user_key_is_an_error_without_a_retry(sshd: Sshd, tmp_path: Path) -> None:
    stranger, before = keygen(tmp_path / "stranger"), time.monotonic()
    with (
        closing(sshd.transport(identity=stranger)) as transport,
        pytest.raises(DeviceError, match="refuses this user or key"),
    ):
        list(transport.call([PING], 60))
    assert time.monotonic() - before < 10
    assert (sshd.folder / "log").read_text().count("Connection from") <= 1


def test_a_private_key_that_others_can_read_or_that_is_missing_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    loose = keygen(tmp_path / "loose")
    loose.chmod(0o644)
    with closing(sshd.transport(identity=loose)) as transport, pytest.raises(SecurityError, match="chmod 600"):
        list(transport.call([PING], 60))
    with closing(sshd.transport(identity=tmp_path / "no")) as transport, pytest.raises(UsageError, match="ssh-keygen"):
        list(transport.call([PING], 60))


def test_the_ssh_config_is_used(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HostName, Port, User, IdentityFile and ProxyJump are used. The jump host's key is checked too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True, timeout=600).stdout.strip()
    common = f"  HostName 127.0.0.1\n  User {user}\n  IdentityFile {sshd.folder}/client\n"
    config = tmp_path / ".ssh" / "config"
    config.write_text(
        f"Host gate\n{common}  Port {sshd.proxy.port}\nHost board\n{common}  Port {sshd.port}\n  ProxyJump gate\n"
    )
    kind, key, *_ = (sshd.folder / "host.pub").read_text().split()
    known = tmp_path / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    changes = {"name": "board", "port": None, "identity": None, "known_hosts": None}
    with closing(sshd.transport(**changes)) as transport, pytest.raises(SecurityError, match=str(sshd.proxy.port)):
        list(transport.call([PING], 60))
    known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n[127.0.0.1]:{sshd.proxy.port} {kind} {key}\n")
    with closing(sshd.transport(**changes)) as transport:
        assert next(transport.call([PING], 60))["runtime"] == "null"
    config.write_text(f"Host board\n{common}  ProxyCommand touch {tmp_path}/ran\n")
    with closing(sshd.transport(**changes)) as transport, pytest.raises(UsageError, match="ProxyJump"):
        list(transport.call([PING], 60))
    assert not (tmp_path / "ran").exists()


def test_a_device_that_never_answered_is_an_error_without_a_retry(sshd: Sshd) -> None:
    started = time.monotonic()
    sshd.proxy.close()
    with closing(sshd.transport()) as transport, pytest.raises(DeviceError, match="is the device on"):
        list(transport.call([PING], 60))
    with (
        closing(sshd.transport(name="no-such-host.invalid")) as transport,
        pytest.raises(DeviceError, match="no such host"),
    ):
        list(transport.call([PING], 60))
    assert time.monotonic() - started < 20


# --------------------------------------------------------------------------------------------------------- files


def test_files_are_sent_once_and_can_be_downloaded(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    path = blob(tmp_path)
    remote = device.put([path])
    assert Path(remote).read_bytes() == path.read_bytes()
    device.close()
    sent = sshd.proxy.sent
    with closing(sshd.transport()) as again:
        assert again.put([path]) == remote
        again.get(remote, tmp_path / "back")
    assert sshd.proxy.sent - sent < 200_000
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert stat.S_IMODE((sshd.home / ".edgeprune").stat().st_mode) == 0o700


def test_an_upload_continues_where_the_link_dropped(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    # Far more than may be in transit when the link drops, which is a window of 2 MiB.
    path = blob(tmp_path, 12_000_000)
    device.put([null_model(tmp_path)])
    sshd.proxy.cut_after = sshd.proxy.sent + 9_000_000
    remote = device.put([path])
    assert Path(remote).read_bytes() == path.read_bytes()
    assert sshd.proxy.sent < 12_000_000 + 9_000_000 - 4_000_000
    assert not [name for name in kept(sshd) if ".part" in str(name) or name.suffix == ".z"]


def test_a_damaged_partial_upload_is_detected_and_sent_again(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    """Continuing a damaged part makes a file of the right size. Only its hash on the device is wrong."""
    path = blob(tmp_path)
    digest = hashlib.sha256(repr([(path.name, hashlib.sha256(path.read_bytes()).hexdigest())]).encode()).hexdigest()[
        :32
    ]
    part = sshd.home / ".edgeprune" / "files" / f"{digest}.part"
    part.mkdir(parents=True)
    (part / f"{path.name}.z").write_bytes(b"\0" * 1_000_000)
    assert Path(device.put([path])).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_no_partial_file_gets_a_final_name_when_the_link_does_not_come_back(
    device: Any, sshd: Sshd, tmp_path: Path
) -> None:
    device.put([null_model(tmp_path)])
    before = kept(sshd)
    sshd.proxy.cut_after = sshd.proxy.sent + 500_000
    sshd.proxy.refusing = True
    started = time.monotonic()
    with pytest.raises(DeviceError, match="not back within 4 s") as caught:
        device.put([blob(tmp_path)])
    assert caught.value.exit_code == 5 and time.monotonic() - started < 4 + 2 + 2
    assert [name for name in kept(sshd) if ".part" not in str(name)] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_an_error(device: Any, sshd: Sshd) -> None:
    sshd.home.chmod(0o500)
    with pytest.raises(DeviceError, match="cannot be written"):
        list(device.call([PING], 60))
    sshd.home.chmod(0o700)


# ---------------------------------------------------------------------------------------------------- measuring


def test_a_link_that_pauses_recovers_by_itself(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    jobs = [job(i, device.put([null_model(tmp_path, hangs=0.05)])) for i in range(3)]
    replies = device.call(jobs, 60)
    next(replies)
    sshd.proxy.hold()
    threading.Timer(1.0, sshd.proxy.flow).start()
    assert [reply["id"] for reply in replies] == [1, 2]


@pytest.mark.parametrize("fault", ["cut", pytest.param("dead", marks=pytest.mark.slow)])
def test_after_a_broken_link_only_the_unanswered_jobs_are_sent_again(
    fault: str, device: Any, sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [job(i, device.put([null_model(tmp_path, hangs=0.05)])) for i in range(4)]
    replies = device.call(jobs, 60)
    assert next(replies)["id"] == 0
    if fault == "cut":
        sshd.proxy.cut()
    else:
        sshd.proxy.hold()
        threading.Timer(2.5, lambda: (sshd.proxy.cut(), sshd.proxy.flow())).start()
    assert [reply["id"] for reply in replies] == [1, 2, 3]
    assert "connecting again" in caplog.text


@pytest.mark.slow
def test_a_link_that_does_not_come_back_is_an_error_in_time(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    replies = device.call([job(i, device.put([null_model(tmp_path, hangs=0.05)])) for i in range(40)], 60)
    assert next(replies)["models"][0]["times_ns"]
    sshd.proxy.refusing = True
    sshd.proxy.cut()
    started = time.monotonic()
    with pytest.raises(DeviceError, match="run the same command again") as caught:
        list(replies)
    assert caught.value.exit_code == 5 and time.monotonic() - started < 4 + 2


def test_a_killed_agent_is_reported_and_started_again(
    device: Any, sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replies = device.call([job(i, device.put([null_model(tmp_path, hangs=0.1)])) for i in range(3)], 60)
    next(replies)
    for process in sshd.agents():
        os.kill(process, signal.SIGKILL)
    assert [reply["id"] for reply in replies] == [1, 2]
    assert "killed" in caplog.text


@pytest.mark.slow
def test_an_agent_whose_host_has_gone_ends_itself_and_its_worker(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    """As after Ctrl-C: within a few seconds, no process is on the device."""
    replies = device.call([job(0, device.put([null_model(tmp_path, hangs=60)])), PING], 60)
    threading.Timer(1.0, sshd.proxy.cut).start()
    started = time.monotonic()
    sshd.proxy.refusing = True
    with pytest.raises(DeviceError):
        list(replies)
    until = max(started + 1.0, time.monotonic() - 4) + 4
    while sshd.agents():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_closing_ends_the_agent_within_two_seconds(device: Any, sshd: Sshd, tmp_path: Path) -> None:
    replies = device.call([job(0, device.put([null_model(tmp_path)])), job(1, "x")], 60)
    next(replies)
    assert sshd.agents()
    started = time.monotonic()
    replies.close()
    while sshd.agents():
        assert time.monotonic() - started < 2
        time.sleep(0.02)


# -------------------------------------------------------------------------------------------------------- lease


def test_only_one_host_holds_a_board_at_a_time(sshd: Sshd, hasty: None) -> None:
    with closing(sshd.transport()) as first, closing(sshd.transport()) as second:
        list(first.call([PING], 60))
        with pytest.raises(BusyError, match=r"in use by .*@.* since 20\d\d-") as caught:
            list(second.call([PING], 60))
        assert caught.value.exit_code == 7
        first.close()
        assert list(second.call([PING], 60))


def test_a_waiting_host_gets_the_board_when_it_is_free(
    sshd: Sshd, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BUSY_POLL_S", 0.1)
    with closing(sshd.transport()) as first, closing(sshd.transport(wait_s=20)) as second:
        list(first.call([PING], 60))
        threading.Timer(0.5, first.close).start()
        assert list(second.call([PING], 60))


HOLDER = """
import sys
from pathlib import Path
from edgeprune.devices import wire
from edgeprune.devices.transports.ssh import Ssh
from edgeprune.records import Host, Target
folder, port = Path(sys.argv[1]), int(sys.argv[2])
host = Host("127.0.0.1", port=port, identity=folder / "client", known_hosts=folder / "known_hosts", python=sys.executable)
transport = Ssh(Target(folder / "t.toml", "t", "ssh", "null", host=host))
list(transport.call([wire.job_document(0, wire.Identify(20.0, "null"))], 60))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_host_loses_the_board(sshd: Sshd, hasty: None) -> None:
    argv = [sys.executable, "-c", HOLDER, str(sshd.folder), str(sshd.proxy.port)]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    with holder, closing(sshd.transport(wait_s=5)) as transport:
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        assert list(transport.call([PING], 60))


# ------------------------------------------------------------------------------------------------- hostile replies


def impostor(sshd: Sshd, body: str) -> str:
    """A "python" on the device that runs `body`. `frame(document)` writes a correct frame."""
    path = sshd.folder / "python"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, time, zlib\n"
        "hello = json.loads(sys.stdin.readline())\n"
        "def frame(text):\n"
        "    data = text.encode()\n"
        "    sys.stdout.write('\\nedgeprune %s %d %08x\\n' % (hello['nonce'], len(data), zlib.crc32(data)) + text)\n"
        "    sys.stdout.flush()\n" + body
    )
    path.chmod(0o755)
    return str(path)


GREETED = """frame('{"pid": 1, "boot_id": "x"}')\nsys.stdin.readline()\n"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('\\x1b[31mhello\\x07'); sys.exit('\\x1b]0;title\\x07gone')", "gone"),
        pytest.param("sys.stdin.read()", "sent nothing", marks=pytest.mark.slow),
        pytest.param(GREETED + "sys.stdin.read()", "sent nothing", marks=pytest.mark.slow),
        (GREETED + """frame('{"id": 0, "load": NaN}')""", "NaN"),
        (GREETED + """frame('{"id": 0, "a": [1e999]}')""", "1e999"),
        (GREETED + "frame('[' * 100000)", "JSON"),
        (GREETED + """sys.stdout.write('\\nedgeprune %s 9999999999 00000000\\n' % hello['nonce'])""", "over the cap"),
        (GREETED + "frame('{}'[:1])", "JSON"),
    ],
    ids=["ansi", "mute", "mute-later", "nan", "inf", "deep", "announced", "broken"],
)
def test_an_error_about_a_hostile_device_is_one_printable_line(body: str, reason: str, sshd: Sshd, hasty: None) -> None:
    with closing(sshd.transport(python=impostor(sshd, body))) as transport:  # noqa: SIM117
        with pytest.raises(DeviceError, match=reason) as caught:
            list(transport.call([PING], 3))
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_an_endless_reply_is_cut_off(sshd: Sshd, hasty: None) -> None:
    """The device would send 10 GB. The host keeps far less than 64 MB of it."""
    body = GREETED + "block = '\\x1b[2J' * 250000\nfor _ in range(10000): sys.stdout.write(block)\n"
    with closing(sshd.transport(python=impostor(sshd, body))) as transport:
        tracemalloc.start()
        try:
            with pytest.raises(DeviceError, match="no reply"):
                list(transport.call([PING], 300))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 64 << 20


def test_a_damaged_agent_file_on_the_device_is_sent_again(sshd: Sshd, hasty: None) -> None:
    with closing(sshd.transport()) as transport:
        list(transport.call([PING], 60))
    (there,) = (sshd.home / ".edgeprune").glob("agent-*.py")
    damaged = bytearray(there.read_bytes())
    damaged[-1] ^= 1
    there.write_bytes(damaged)
    with closing(sshd.transport()) as transport:
        assert list(transport.call([PING], 60))
    assert there.read_bytes() == bundle.agent()
