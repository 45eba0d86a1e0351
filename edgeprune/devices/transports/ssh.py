"""A device over SSH. The only file that knows paramiko.

Everything on the device lies in one private folder of the user's home; see the agent for what is in it. paramiko may wait for
ever when a peer vanishes, so nothing here waits without a timeout, and what has none of its own runs under `_within`, which
closes the connection when time is up.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import logging
import os
import secrets
import shlex
import socket
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from edgeprune.devices.agent import AGENT
from edgeprune.devices.transports.base import Conversation, Transport, printable
from edgeprune.errors import BusyError, DeviceError, LinkError, RuntimeMissing, SecurityError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target
from edgeprune.storage.store import file_sha256

try:
    import paramiko
except ImportError as error:
    raise RuntimeMissing("paramiko is not installed; pip install 'edgeprune[remote]'") from error

FOLDER = ".edgeprune"  # in the home of the user on the device
BEAT_S = 5.0
BUSY_POLL_S = 2.0
CHUNK = 1 << 15  # bytes of one SFTP write
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# Runs the agent only if it is the one that was sent.
START = (
    "import hashlib,sys;p,d=sys.argv[1:];s=open(p,'rb').read();"
    "hashlib.sha256(s).hexdigest()==d or sys.exit('the agent file is damaged');"
    "sys.argv=[p,'serve'];exec(compile(s,p,'exec'),{'__name__':'__main__','__file__':p})"
)
# What a link raises. EOFError: the peer closed; AttributeError is paramiko's own on a connection closed under it.
FAULTS = (paramiko.SSHException, OSError, EOFError)
LOG = "edgeprune.paramiko"  # it quotes the peer: nobody reads it unless they ask
logging.getLogger(LOG).propagate = False
logging.getLogger(LOG).addHandler(logging.NullHandler())  # else Python's last resort prints it
log = logging.getLogger("edgeprune")
Answer = TypeVar("Answer")


class Ssh(Transport):
    """The device of a target, connected at the first use and again, a few times, when the link breaks."""

    def __init__(self, target: Target, wait_s: float = 0.0) -> None:
        """`wait_s`: how long to wait for the lease where somebody else holds the board."""
        assert target.host is not None
        self._target, self._host, self._wait_s = target, target.host, wait_s
        self._token = secrets.token_hex(16)
        self._link: _Link | None = None
        self._reached = False  # a device that never answered is told at once; one that did may come back
        self._there: dict[str, str] = {}  # digest of files -> the path there of the first

    def put(self, files: Sequence[Path]) -> str:
        """Upload files under the digest of their content, unless they are there; what a dropped link left is continued."""
        hashes = {file.name: file_sha256(file) for file in files}
        folder = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:32]
        if folder not in self._there:
            self._healing(lambda: self._upload(folder, files, hashes))
            self._there[folder] = f"{self._connected().home}/{FOLDER}/files/{folder}/{files[0].name}"
        return self._there[folder]

    def get(self, remote: str, path: Path) -> None:
        """Download one file of bounded size."""
        self._healing(lambda: self._connected().download(remote, path))

    def call(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """See `Transport.call`. Jobs that a broken link left unanswered are sent again once it is back."""
        left, faults, done = list(jobs), 0, False
        until = time.monotonic() + deadline_s
        try:
            while left:
                try:
                    for reply in self._connected().ask(left, until - time.monotonic()):
                        left.pop(0)
                        yield reply
                except LinkError as error:
                    faults = self._reconnect(error, faults)
                    until += LIMITS.heal_s
            done = True
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """End the agent, which gives the lease back, and the connection."""
        if self._link is not None:
            self._link.leave()
        self._hang_up()

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connected(self) -> _Link:
        if self._link is None:
            self._link = self._leased()
        return self._link

    def _leased(self) -> _Link:
        until, told = time.monotonic() + self._wait_s, False
        while True:
            try:
                link = _Link(self._target, self._host)
                self._reached = True
                link.greet(self._token)
                return link
            except BusyError as error:
                if time.monotonic() >= until:
                    raise BusyError(f"{self._target.name}: {error}; wait, or give --wait") from error
                if not told:
                    log.warning("%s: %s; waiting", self._target.name, error)
                told = True
                time.sleep(BUSY_POLL_S)

    def _healing(self, work: Callable[[], Answer]) -> Answer:
        faults = 0
        while True:
            try:
                return work()
            except LinkError as error:
                faults = self._reconnect(error, faults)

    def _reconnect(self, fault: LinkError, faults: int) -> int:
        """Bring the link back, or raise what broke it: how many faults that makes."""
        self._hang_up()
        if not self._reached:
            raise DeviceError(
                f"{self._target.name}: {fault}; is the device on, and its address right? try: ssh {_address(self._target)}"
            ) from fault
        faults += 1
        if faults > LIMITS.reconnects:
            raise DeviceError(f"{self._target.name}: the link broke {faults} times: {fault}") from fault
        log.warning("%s: %s; connecting again", self._target.name, fault)
        until = time.monotonic() + LIMITS.heal_s
        for attempt in range(1000):
            try:
                self._connected()
                return faults
            except LinkError as error:
                pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
                if time.monotonic() + pause > until:
                    raise DeviceError(
                        f"{self._target.name}: {fault}; not back within {LIMITS.heal_s:g} s: {error}; what was measured is"
                        " kept: run the same command again when the device is back"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _upload(self, folder: str, files: Sequence[Path], hashes: Mapping[str, str]) -> None:
        """Compressed, under a temporary name, to be unpacked, checked and named by the agent."""
        packed = {file.name: zlib.compress(file.read_bytes(), 1) for file in files}
        sizes = {file.name: file.stat().st_size for file in files}
        for again in (True, False):
            link = self._connected()
            size = sum(sizes.values()) + sum(map(len, packed.values()))
            room = link.order({"mode": "room", "folder": folder, "bytes": size})
            if room["there"]:
                return
            try:
                for name, data in packed.items():
                    link.upload(data, f"{FOLDER}/files/{folder}.part/{name}.z", room["half"].get(f"{name}.z", 0))
            except DeviceError as error:
                if not isinstance(error, LinkError):
                    link.order({"mode": "drop", "folder": folder})  # a full disk: nothing half stays behind
                raise
            known = {name: [sizes[name], hashes[name]] for name in packed}
            reply = link.order({"mode": "accept", "folder": folder, "files": known}, refused=("damaged",))
            if "error" not in reply:
                return
            if not again:
                raise DeviceError(
                    f"{files[0].name} arrives damaged at {self._target.name}; check its disk and the link"
                )


class _Link:
    """One connection: the agent's conversation, and the files. Every fault of it is a `LinkError`."""

    def __init__(self, target: Target, host: Host) -> None:
        self._target = target
        self._clients: list[paramiko.SSHClient] = []
        self._stream: _Channel | None = None
        try:
            with self._faults("cannot connect"):
                client = _client(target, host, self._clients)
                self._sftp = self._within(client.open_sftp)
                self._sftp.get_channel().settimeout(LIMITS.silence_s)
                self.home = self._sftp.normalize(".")
                self._stream = self._agent(client, host)
        except BaseException:
            self.close()
            raise

    def greet(self, token: str) -> None:
        """Take the lease. Raises `BusyError` where another token has it."""
        assert self._stream is not None
        hello = {"who": f"{_me() or 'somebody'}@{socket.gethostname()}", "token": token}
        try:
            self._conversation = Conversation(
                self._stream, {**hello, "silence_s": LIMITS.host_silence_s}, LIMITS.silence_s
            )
        except BaseException as error:
            if isinstance(error, LinkError):  # if the agent's file there is damaged, the next try sends it again
                with suppress(*FAULTS, AttributeError):
                    self._sftp.remove(_agent_path())
            self.close()
            raise

    def ask(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """The agent's replies."""
        return self._conversation.ask(jobs, deadline_s)

    def order(self, job: Mapping[str, Any], refused: Sequence[str] = ()) -> Mapping[str, Any]:
        """The agent's reply to a job about files; an error of a kind in `refused` is an answer too."""
        (reply,) = self._conversation.ask([{"id": 0, **job}], LIMITS.job_s)
        if "error" in reply and reply["error"] not in refused:
            fix = "; free some space there" if reply["error"] == "disk-full" else ""
            raise DeviceError(f"{self._target.name}: {printable(str(reply.get('message')))}{fix}")
        return reply

    def upload(self, data: bytes, remote: str, half: int) -> None:
        """Write a file there, of which an earlier try left `half` bytes; all of it is checked by the agent afterwards."""
        start = half if 0 < half <= len(data) else 0
        mode = "r+b" if start else "wb"
        with self._faults(f"uploading {os.path.basename(remote)}"), self._sftp.open(remote, mode) as target:
            target.seek(start)
            target.set_pipelined(True)
            for at in range(start, len(data), CHUNK):
                target.write(data[at : at + CHUNK])

    def download(self, remote: str, path: Path) -> None:
        """Read a file of at most `LIMITS.output_bytes` there."""
        with self._faults(f"downloading {os.path.basename(remote)}"):
            with self._sftp.open(remote, "rb") as source:
                source.prefetch(min(source.stat().st_size or 0, LIMITS.output_bytes))
                data = source.read(LIMITS.output_bytes + 1)
            if len(data) > LIMITS.output_bytes:
                raise DeviceError(f"{self._target.name} sends a file of over {LIMITS.output_bytes >> 20} MB")
            path.write_bytes(data)

    def leave(self) -> None:
        """Let the agent end by itself, so that the lease is free when this returns; not for long."""
        if self._stream is not None:
            self._stream.leave()

    def close(self) -> None:
        """End all of it; never waits for the peer."""
        if self._stream is not None:
            self._stream.close()
        for client in reversed(self._clients):
            transport = client.get_transport()
            if transport is not None:
                with suppress(OSError, EOFError):
                    transport.sock.close()
            client.close()

    def _agent(self, client: paramiko.SSHClient, host: Host) -> _Channel:
        """Start the agent there, sending it first where it is missing."""
        remote = _agent_path()
        try:
            present = self._sftp.stat(remote).st_size == AGENT.stat().st_size
        except FileNotFoundError:
            present = False
        if not present:
            self._send_agent(AGENT.read_bytes(), remote)
        channel = self._within(lambda: client.get_transport().open_session(timeout=LIMITS.connect_s))
        command = shlex.join(_command(host, f"{self.home}/{remote}"))
        self._within(lambda: channel.exec_command(command))
        return _Channel(channel)

    def _send_agent(self, source: bytes, remote: str) -> None:
        try:
            for folder in (FOLDER, f"{FOLDER}/files", f"{FOLDER}/site"):
                with suppress(OSError):
                    self._sftp.mkdir(folder, 0o700)
            part = f"{remote}.{secrets.token_hex(4)}.part"
            with self._sftp.open(part, "wb") as target:
                target.write(source)
            with suppress(OSError):
                self._sftp.remove(remote)
            self._sftp.rename(part, remote)
        except (PermissionError, paramiko.SFTPError, FileNotFoundError) as error:
            raise DeviceError(_not_writable(self._target, self.home, error)) from error
        except OSError as error:
            if isinstance(error, TimeoutError) or error.errno is not None:
                raise
            raise DeviceError(_not_writable(self._target, self.home, error)) from error  # SFTP's plain "Failure"

    def _within(self, work: Callable[[], Answer], seconds: float = LIMITS.connect_s) -> Answer:
        """Run what has no timeout of its own; closes the connection when time is up."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.close()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            return work()
        except FAULTS as error:
            if expired.is_set():
                raise LinkError(f"the device did not answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        """What paramiko raises, as ours."""
        try:
            yield
        except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
            raise DeviceError(
                f"{self._target.path}: the device refuses this user or key; try: ssh {_address(self._target)}; then name the"
                " key in [connect] identity, or add it to the agent: ssh-add"
            ) from error
        except paramiko.BadHostKeyException as error:
            raise SecurityError(
                f"{self._target.path}: the host key has CHANGED: known is {fingerprint(error.expected_key)}, the device shows"
                f" {fingerprint(error.key)}; if the device was set up anew, remove the old line: ssh-keygen -R"
                f" {shlex.quote(error.hostname)}; otherwise somebody is in between"
            ) from error
        except FAULTS as error:
            if isinstance(error, OSError) and error.errno is None and str(error) == "Failure":  # SFTP's word for it
                raise DeviceError(
                    f"{self._target.name}: {doing}: the device cannot write; is its disk full?"
                ) from error
            if isinstance(error, FileNotFoundError | PermissionError):
                raise DeviceError(f"{self._target.name}: {doing}: {printable(str(error))}") from error
            raise LinkError(f"{doing}: {printable(str(error) or type(error).__name__)}") from error


def _agent_path() -> str:
    return f"{FOLDER}/agent-{file_sha256(AGENT)[:16]}.py"


class _Channel:
    """The agent's channel as a stream; says every few seconds that the host lives."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._errors = bytearray()
        self._over = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            with self._sending:
                self._channel.settimeout(LIMITS.silence_s)
                self._channel.sendall(data)
        except FAULTS as error:
            raise LinkError(
                f"the link broke: {printable(str(error) or type(error).__name__)}; {self.said()}"
            ) from error

    def receive(self, timeout_s: float) -> bytes | None:
        """What came; standard error is read too, and its end kept."""
        until = time.monotonic() + timeout_s
        while True:
            self._drain()
            if self._channel.recv_ready() or self._channel.eof_received or self._channel.closed:
                return bytes(self._channel.recv(1 << 16)) if self._channel.recv_ready() else b""
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._channel.settimeout(min(left, 0.25))  # returns at once when something comes
            try:
                return bytes(self._channel.recv(1 << 16))
            except TimeoutError:
                continue
            except FAULTS:
                return b""

    def said(self) -> str:
        """The end of its standard error."""
        self._channel.status_event.wait(1)  # it comes right after the end
        self._drain()
        text = printable(bytes(self._errors).decode("utf-8", "backslashreplace").strip())
        if self._channel.exit_status_ready() and self._channel.recv_exit_status() == -1:
            return f"it was killed; {text}"
        return text or "it said nothing"

    def leave(self) -> None:
        """Close its standard input, at which the agent ends its worker and itself, and wait a little for that."""
        self._over.set()
        with suppress(*FAULTS):
            self._channel.shutdown_write()
            self._channel.status_event.wait(LIMITS.end_s)

    def close(self) -> None:
        """Close the channel."""
        self._over.set()
        with suppress(*FAULTS):
            self._channel.close()

    def _drain(self) -> None:
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(1 << 16)
            del self._errors[: -LIMITS.stderr_bytes]

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                with self._sending:
                    self._channel.sendall(b"\n")
            except FAULTS:
                return


def commands(target: Target) -> list[str]:
    """What is done at every connection, in words of the shell: for `--dry-run`."""
    assert target.host is not None
    port = f"-p {target.host.port} " if target.host.port else ""
    command = shlex.join(_command(target.host, f"~/{_agent_path()}"))
    return [
        f"ssh {port}{_address(target)}",
        f"  mkdir -m 700 {FOLDER} {FOLDER}/files {FOLDER}/site",
        f"  sftp put {_agent_path()}    # {AGENT.stat().st_size:,} bytes, once",
        f"  {command}    # asks for the lease, and takes all that follows on its standard input",
    ]


def _command(host: Host, agent: str) -> list[str]:
    return [host.python, "-I", "-c", START, agent, file_sha256(AGENT)]


# ------------------------------------------------------------------------------------------------------ getting in


class _Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """A key that is not known is refused, with the line that makes it known; a pinned fingerprint must be this key's."""

    def __init__(self, target: Target, pinned: str | None, known_hosts: str) -> None:
        self._target, self._pinned, self._known_hosts = target, pinned, known_hosts

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Let in what is pinned; refuse the rest."""
        shown = fingerprint(key)
        if self._pinned is None:
            raise SecurityError(
                f"{self._target.path}: the host key of {hostname} is not known: {shown}; compare it with what the device's own"
                " console says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add this line to"
                f" {self._known_hosts}: {hostname} {key.get_name()} {key.get_base64()}"
            )
        if self._pinned != shown:
            raise SecurityError(
                f"{self._target.path}: the host key has CHANGED: [connect] fingerprint is {self._pinned}, the device shows"
                f" {shown}; if the device was set up anew, pin the new one; otherwise somebody is in between"
            )


def fingerprint(key: paramiko.PKey) -> str:
    """As OpenSSH prints it: SHA256 and the digest in base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _client(target: Target, host: Host, opened: list[paramiko.SSHClient]) -> paramiko.SSHClient:
    """A client logged in at the device, through its jump hosts; every client is put into `opened`."""
    config = _config()
    found = config.lookup(host.name) if config else {}
    if "proxycommand" in found:
        raise UsageError(f"~/.ssh/config: ProxyCommand of {host.name} is not supported; write ProxyJump instead")
    jumps = [jump for jump in found.get("proxyjump", "").split(",") if jump and jump != "none"]
    if len(jumps) > LIMITS.jumps:
        raise UsageError(f"~/.ssh/config: {host.name} has over {LIMITS.jumps} jump hosts")
    way: paramiko.SSHClient | None = None
    for jump in jumps:
        user, _, place = jump.rpartition("@")
        name, _, port = place.partition(":")
        known = config.lookup(name) if config else {}
        hop = Host(name, user or None, int(port) if port.isdigit() else None)
        way = _login(target, hop, known, way, opened)
    return _login(target, host, found, way, opened)


def _login(
    target: Target,
    host: Host,
    found: Mapping[str, Any],
    way: paramiko.SSHClient | None,
    opened: list[paramiko.SSHClient],
) -> paramiko.SSHClient:
    name = checked(str(found.get("hostname", host.name)), "host", target)
    user = checked(str(host.user or found.get("user") or _me()), "user", target)
    port = host.port or int(found.get("port", 22))
    client = paramiko.SSHClient()
    client.set_log_channel(LOG)
    opened.append(client)
    files = [host.known_hosts] if host.known_hosts else _known_hosts(found)
    client.set_missing_host_key_policy(_Refuse(target, host.fingerprint, str(files[0])))
    if host.fingerprint is None:
        for file in files:
            if file.is_file():
                client.load_system_host_keys(str(file))
    identities = [str(host.identity)] if host.identity else found.get("identityfile", [])
    missing = [path for path in identities if not os.path.isfile(os.path.expanduser(path))]
    if host.identity and missing:
        raise UsageError(f"{target.path}: [connect] identity: no file {missing[0]}; make a key: ssh-keygen -t ed25519")
    if host.identity and os.stat(host.identity).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecurityError(f"{target.path}: {host.identity} can be read by others; chmod 600 {host.identity}")
    client.connect(
        name,
        port,
        user,
        sock=_socket(name, port, way),
        key_filename=[os.path.expanduser(path) for path in identities if path not in missing],
        look_for_keys=not identities,
        timeout=LIMITS.connect_s,
        banner_timeout=LIMITS.connect_s,
        auth_timeout=LIMITS.connect_s,
        channel_timeout=LIMITS.connect_s,
    )
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(int(BEAT_S))
    return client


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


def _socket(name: str, port: int, way: paramiko.SSHClient | None) -> Any:
    if way is not None:
        transport = way.get_transport()
        assert transport is not None
        return transport.open_channel("direct-tcpip", (name, port), ("127.0.0.1", 0), timeout=LIMITS.connect_s)
    try:
        connection = socket.create_connection((name, port), timeout=LIMITS.connect_s)
    except socket.gaierror as error:
        raise DeviceError(f"no such host: {name}; mend [connect] host, or write the device's address") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paramiko does not: 48 ms become 2.5
    return connection


def _config() -> paramiko.SSHConfig | None:
    path = Path("~/.ssh/config").expanduser()
    if not path.is_file():
        return None
    try:
        return paramiko.SSHConfig.from_path(str(path))
    except (paramiko.ConfigParseError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {printable(str(error))}") from error


def _known_hosts(found: Mapping[str, Any]) -> list[Path]:
    own = str(found.get("userknownhostsfile", "~/.ssh/known_hosts")).split()
    return [Path(path).expanduser() for path in own] + [Path("/etc/ssh/ssh_known_hosts")]


def checked(value: str, what: str, target: Target) -> str:
    """A host or user name that no tool could take for an option or a command. Raises `SecurityError`."""
    if value.startswith("-") or not value or not all(c.isalnum() or c in "._-:%@" for c in value):
        raise SecurityError(f"{target.path}: [connect] {what} = {printable(repr(value))} is no {what} name; mend it")
    return value


def _address(target: Target) -> str:
    assert target.host is not None
    user = f"{target.host.user}@" if target.host.user else ""
    return f"{user}{target.host.name}"


def _not_writable(target: Target, home: str, error: Exception) -> str:
    return (
        f"{target.name}: {printable(home)} on the device cannot be written ({printable(str(error))}): is it full or"
        " read-only? edgeprune needs a folder of its own there"
    )
