"""ssh_config(5) and known_hosts: what edgeprune reads is what OpenSSH reads. `ssh -G` is the judge where it is installed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import DeviceError, SecurityError, UsageError
from edgeprune.frontends import toml
from edgeprune.records import Host, Target

pytest.importorskip("edgeprune.devices.transports.ssh")
from edgeprune.devices.transports.ssh import config as reading
from edgeprune.devices.transports.ssh import host_keys, keys
from edgeprune.devices.transports.ssh import settings as settings_module
from edgeprune.devices.transports.ssh.config import Server, parsed, servers
from edgeprune.devices.transports.ssh.remote import typed
from edgeprune.devices.transports.ssh.settings import Asked, settings, split

paramiko = pytest.importorskip("paramiko")
KEYS = ("hostname", "user", "port", "proxyjump", "hostkeyalias", "userknownhostsfile", "identitiesonly", "identityfile")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's SSH configuration. There is no other one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(settings_module, "SYSTEM", tmp_path / "none")
    path = tmp_path / ".ssh" / "config"
    path.parent.mkdir()
    return path


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "board.toml", "board", "ssh", "null", host=Host("board"))


# ------------------------------------------------------------------------------------------------- beside `ssh -G`


def lines(rng: random.Random, included: Path) -> list[str]:
    """The lines of a configuration, after the grammar of ssh_config(5)."""
    names = ["board", "b*", "?oard", "*", "!board", "gate", "real.example", "*.example", "board gate", "* !gate"]
    options = """
        HostName real.example
        HostName %h.example
        hostname=10.0.0.%%h
        User pi
        User "root"
        Port 2222
        Port = 23
        HostKeyAlias kept
        ProxyJump gate
        ProxyJump none
        ProxyJump me@gate:2200,inner
        ProxyCommand none
        ProxyCommand None
        ProxyJump ssh://me@gate:2201
        IdentityFile /keys/one
        IdentityFile "/keys/with space"
        IdentityFile /keys/two # why
        UserKnownHostsFile /a /b
        IdentitiesOnly yes
        IdentitiesOnly true
        IdentitiesOnly False
        ForwardAgent yes
        ServerAliveInterval 5
    """.strip().splitlines()
    criteria = ["all", "host board", "host *.example", "originalhost b*", "user pi", "!user pi", "final", "canonical",
                "final host real.example", "host board,gate user pi", '!host "gate"', "originalhost *,!board",
                "host BOARD", "originalhost Board", "final host REAL.example"]  # fmt: skip
    found = []
    for _ in range(rng.randint(1, 9)):
        kind = rng.random()
        if kind < 0.25:
            found.append(f"Host {rng.choice(names)}")
        elif kind < 0.4:
            found.append(f"Match {rng.choice(criteria)}")
        elif kind < 0.45:
            found.append(f"Include {included}")
        elif kind < 0.5:
            found.append("# a comment")
        else:
            found.append(rng.choice(options))
    return found


def by_ssh(path: Path, host: str) -> dict[str, list[str]]:
    """What ssh reads; nothing where it refuses the file."""
    done = subprocess.run(
        ["ssh", "-G", "-F", str(path), host], capture_output=True, text=True, timeout=600, check=False
    )
    found: dict[str, list[str]] = {}
    if done.returncode:
        print(done.stderr)
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh on this machine; apt-get install openssh-client")
def test_random_configurations_are_read_as_ssh_reads_them(config: Path, tmp_path: Path) -> None:
    rng, compared = random.Random(7), 0
    for _ in range(60):
        (tmp_path / "more").write_text("\n".join(lines(rng, tmp_path / "none")) + "\n")
        config.write_text("\n".join(lines(rng, tmp_path / "more")) + "\n")
        host = rng.choice(["board", "Board", "gate", "real.example"])
        wanted = by_ssh(config, host)
        if not wanted:
            continue
        compared += 1
        found = settings(Asked(host, "root", "root"), tmp_path)
        own: dict[str, Any] = {"hostname": [found.hostname().lower()]}
        own["identitiesonly"] = ["yes" if found.flag("identitiesonly") else "no"]
        for name in ("port", "hostkeyalias"):
            own[name] = [value.text for value in found.every(name)]
        own["user"] = [found.first("user", "root")]
        own["identityfile"] = [value.text for value in found.every("identityfile")]
        own["userknownhostsfile"] = [" ".join(value.words) for value in found.every("userknownhostsfile")]
        own["proxyjump"] = [",".join(reading._jumps(found))] if reading._jumps(found) else []
        text = (config.read_text(), (tmp_path / "more").read_text(), host)
        for name in KEYS:
            if own[name]:
                assert own[name] == [value.replace("ssh://", "") for value in wanted[name]] or (
                    name == "proxyjump" and by_place(own[name]) == by_place(wanted[name])
                ), (name, text)
            else:
                assert (
                    name not in wanted
                    or wanted[name][0] in ("22", "no")
                    or "known_hosts" in wanted[name][0]
                    or (wanted[name][0].startswith("~/.ssh/id_"))
                ), (name, text)
    assert compared > 40


def by_place(jumps: list[str]) -> list[tuple[Any, ...]]:
    hosts = [parsed(Host(jump)) for jump in jumps[0].split(",")]
    return [(host.user, host.name, host.port or 22) for host in hosts]


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("ProxyCommand nc %h %p", "Write ProxyJump"),
        ("KnownHostsCommand /bin/keys", "runs a program"),
        ("RevokedHostKeys /etc/revoked", "@revoked"),
        ("CertificateFile /elsewhere/cert.pub", "KEY-cert.pub"),
        ("BindInterface eth1", "BindAddress"),
        ("CanonicalDomains lab.example\n CanonicalizeHostname yes", "HostName with the full name"),
        ("Port ssh", "not a port"),
        ("HostName %q.example", "%q"),
        ("IdentityFile ${NOT_SET_HERE}/key", "NOT_SET_HERE"),
        ('User "pi', "a quote has no end"),
        ("ProxyJump board", "ProxyJump none"),
        ("IdentitiesOnly maybe", "neither yes nor no"),
    ],
)
def test_an_option_that_cannot_be_followed_is_named_with_its_line(
    line: str, fix: str, config: Path, target: Target
) -> None:
    config.write_text(f"Host board\n {line}\n")
    with pytest.raises(UsageError) as caught:
        servers(target, Host("board"))
    assert fix in str(caught.value) and str(caught.value).startswith(("~/.ssh/config", f"{config}:"))
    if "quote" not in fix:  # a broken line is one for every host
        assert servers(target, Host("other"))[0].name == "other"


@pytest.mark.parametrize("line", [b"\xef\xbb\xbfHost other", b"Host-Name x", b"{{ host }} x", b"=x"])
def test_a_line_without_a_keyword_is_refused_since_the_options_below_would_be_of_other_hosts(
    line: bytes, config: Path, target: Target
) -> None:
    config.write_bytes(line + b"\n HostName 10.0.0.9\n")
    with pytest.raises(UsageError, match=r"config:1: \S+ is no option of ssh\. Fix the line\."):
        servers(target, Host("board"))


def test_only_a_newline_ends_a_line(config: Path, target: Target) -> None:
    config.write_bytes("# once\u2028Port 1\x0cPort 2\x85Port 3\nUser pi\r\n".encode())
    (server,) = servers(target, Host("board"))
    assert (server.port, server.user) == (22, "pi")


def test_tokens_in_a_jump_are_those_of_the_host_behind_it(config: Path, target: Target) -> None:
    config.write_text(
        "Host lab-*\n HostName %h.lab\n Port 2222\n User pi\n ProxyJump %r@gate-%n:%p,fe80::1%eth0\n"
        "Match host *gate* final\n HostKeyAlias gate\n"
    )
    assert [(server.name, server.user, server.port) for server in servers(target, Host("lab-7"))] == [
        ("gate-lab-7", "pi", 2222),
        ("fe80::1%eth0", reading.local_user(), 22),
        ("lab-7.lab", "pi", 2222),
    ]


def test_match_exec_runs_nothing_and_is_refused_only_for_hosts_that_reach_it(
    config: Path, target: Target, tmp_path: Path
) -> None:
    config.write_text(f'Match !originalhost board exec "touch {tmp_path}/ran"\n User you\nHost *\n User pi\n')
    assert servers(target, Host("board"))[0].user == "pi"
    with pytest.raises(UsageError, match="Match exec") as caught:
        servers(target, Host("other"))
    assert '"Match !originalhost other exec' in str(caught.value) and f"{config}:1" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_others_can_write_or_that_includes_itself_is_refused(config: Path, target: Target) -> None:
    config.write_text(f"Include {config}\n")
    with pytest.raises(UsageError, match="include itself"):
        servers(target, Host("board"))
    config.write_text("User pi\n")
    config.chmod(0o666)
    with pytest.raises(SecurityError, match="chmod 600"):
        servers(target, Host("board"))


def test_files_are_included_from_the_folder_of_the_configuration_and_bytes_may_be_of_any_encoding(
    config: Path, target: Target
) -> None:
    (config.parent / "boards.d").mkdir()
    (config.parent / "boards.d" / "pi.conf").write_bytes(b"# caf\xe9\nHost board\n HostName 10.1.2.3\nHost *\n")
    config.write_text("Include boards.d/*.conf missing.conf\nPort 2222\n")
    (server,) = servers(target, Host("board"))
    assert (server.name, server.port) == ("10.1.2.3", 2222)


def test_a_variable_in_include_is_replaced_and_an_unknown_one_is_named(
    config: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB", "lab")
    (config.parent / "lab.conf").write_text("Host board\n HostName 10.9.9.9\n")
    config.write_text("Include ${LAB}.conf\n")
    assert servers(target, Host("board"))[0].name == "10.9.9.9"
    config.write_text("Include ${NO_SUCH_LAB}.conf\n")
    with pytest.raises(UsageError, match=r"config:1: \$\{NO_SUCH_LAB\} is not known here"):
        servers(target, Host("board"))


def test_a_key_is_not_to_be_added_to_the_null_device(config: Path, target: Target) -> None:
    """Many people who flash boards often write this."""
    config.write_text("Host 10.*\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n")
    (server,) = servers(target, Host("10.0.0.7"))
    with pytest.raises(SecurityError, match=r"name a file in \[connect\] known_hosts with this line"):
        host_keys.Verdict(target, server).missing_host_key(None, "", RIGHT)  # type: ignore[arg-type]


def test_the_first_jump_host_follows_its_own_configuration(config: Path, target: Target) -> None:
    config.write_text(
        "Host board\n ProxyJump inner\nHost inner\n ProxyJump outer,middle\nHost middle\n ProxyJump none\n"
        "Host outer\n ProxyCommand none\n"
    )
    assert [server.name for server in servers(target, Host("board"))] == ["outer", "middle", "inner", "board"]


def test_tokens_agent_family_and_alias_are_followed(config: Path, target: Target, tmp_path: Path) -> None:
    (config.parent / "id_pi_22").touch()
    config.write_text(
        "Host board\n User pi\n HostName fe80::1%%eth0\n IdentityFile ~/.ssh/id_%r_%p\n IdentityFile %d/none\n"
        "IdentityAgent ~/agent.sock\n IdentitiesOnly yes\n AddressFamily inet6\n BindAddress ::1\n HostKeyAlias kept\n"
        "UserKnownHostsFile ~/one ~/two\n GlobalKnownHostsFile none\n"
    )
    (server,) = servers(target, Host("board"))
    assert (server.name, server.key_name, server.bind) == ("fe80::1%eth0", "kept", "::1")
    assert server.identities == (config.parent / "id_pi_22",) and server.identities_only
    assert server.agent == str(tmp_path / "agent.sock") and server.family != 0
    assert server.known_hosts == (tmp_path / "one", tmp_path / "two")


class Offering:
    """An SSH server that takes keys, and paramiko's transport to it."""

    def __init__(self) -> None:
        self.offered: list[str] = []

    def auth_none(self, user: str) -> None:
        raise paramiko.BadAuthenticationType("", ["publickey"])

    def auth_publickey(self, user: str, key: Key) -> list[str]:
        self.offered.append(key.line)
        return []

    def is_active(self) -> bool:
        return True


def test_a_public_key_selects_one_of_the_ssh_agent(
    config: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Password managers and smart cards hold the private key: only the public one is in a file."""
    config.write_text(
        "Host board other\n IdentitiesOnly yes\n IdentityFile ~/.ssh/work.pub\n IdentityFile ~/.ssh/held\n"
    )
    for name, key in (("work.pub", RIGHT), ("held.pub", Key("held"))):
        (config.parent / name).write_text(key.line + " me@here\n")
    (server,) = servers(target, Host("board"))
    assert [path.name for path in server.identities] == ["work.pub", "held"]
    for held in (RIGHT, Key("held")):
        monkeypatch.setattr(keys._Agent, "keys", lambda self, held=held: [WRONG, held])
        offering = Offering()
        keys.Keys(target, server).authenticate(offering)  # type: ignore[arg-type]
        assert offering.offered == [held.line]
    monkeypatch.setattr(keys._Agent, "keys", lambda self: [WRONG])
    with pytest.raises(
        DeviceError, match=r"the SSH agent does not hold the private key of .*/work\.pub\. Add it: ssh-add"
    ):
        keys.Keys(target, server).authenticate(Offering())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- names of hosts


@pytest.mark.parametrize(
    ("text", "place", "command"),
    [
        ("board", ("board", None, None), "ssh board"),
        ("pi@board", ("board", "pi", None), "ssh pi@board"),
        ("pi@lab.example@board", ("board", "pi@lab.example", None), "ssh pi@lab.example@board"),
        ("ssh://pi@board:2222", ("board", "pi", 2222), "ssh -p 2222 pi@board"),
        ("[::1]:2222", ("::1", None, 2222), "ssh -p 2222 ::1"),
        ("::1", ("::1", None, None), "ssh ::1"),
        ("fe80::1%eth0", ("fe80::1%eth0", None, None), "ssh fe80::1%eth0"),
        ("ssh://[fe80::2]:23", ("fe80::2", None, 23), "ssh -p 23 fe80::2"),
    ],
)
def test_a_host_is_written_as_ssh_takes_it(
    text: str, place: tuple[Any, ...], command: str, config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "board.toml"
    file.write_text(f'[connect]\ntransport = "ssh"\nhost = "{text}"\n[runtime]\nname = "null"\n')
    host = toml.read_target(file).host
    assert host is not None
    found = parsed(host)
    assert (found.name, found.user, found.port) == place
    assert typed(host) == command
    (server,) = servers(toml.read_target(file), host)
    assert (server.name, server.port) == (place[0], place[2] or 22)


@pytest.mark.parametrize("port", ["0", "65536", "99999999999"])
def test_a_port_in_a_name_that_is_none_is_refused_with_the_file(port: str, config: Path, target: Target) -> None:
    with pytest.raises(UsageError, match=rf"board\.toml: Port {port} of board is not a port"):
        servers(target, Host(f"pi@board:{port}"))


def test_keys_of_the_target_file_win_over_those_in_the_name_of_the_host() -> None:
    found = parsed(Host("ssh://pi@board:2222", user="root", port=23, identity=Path("/key")))
    assert (found.user, found.port) == ("root", 23)
    assert typed(found, "ssh-copy-id") == "ssh-copy-id -p 23 -i /key root@board"


# ---------------------------------------------------------------------------------------------------- known_hosts


class Key:
    """A host key as paramiko gives it."""

    public_blob = None  # no certificate

    def __init__(self, seed: str, kind: str = "ssh-ed25519") -> None:
        self._kind, self._blob = kind, packed(kind.encode()) + packed(hashlib.sha256(seed.encode()).digest())

    def get_name(self) -> str:
        return self._kind

    def asbytes(self) -> bytes:
        return self._blob

    def get_base64(self) -> str:
        return base64.b64encode(self._blob).decode()

    @property
    def line(self) -> str:
        return f"{self._kind} {self.get_base64()}"


def packed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def hashed(name: str) -> str:
    salt = b"s" * 20
    digest = hmac.new(salt, name.encode(), "sha1").digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


RIGHT, WRONG = Key("right"), Key("wrong")


def shown(target: Target, known: Path, key: Key = RIGHT, **changes: Any) -> None:
    """The device at port 2222 shows a key."""
    server = Server(Host("board"), "board", "pi", 2222, (), False, None, (known,))
    host_keys.Verdict(target, replace(server, **changes)).missing_host_key(None, "", key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"[board]:2222 {RIGHT.line} a comment",
        f"@cert-authority *.example {WRONG.line}\n[board]:2222 {RIGHT.line}",
        f"@cert-authority * {WRONG.line}\n[board]:2222 {RIGHT.line}",
        f"@revoked * {WRONG.line}\n[board]:2222,10.0.0.1 {RIGHT.line}",
        f"@unheard-of [board]:2222 {WRONG.line}\n[board]:2222 {RIGHT.line}",
        f"[board]:2222 ssh-ed25519 AAAA!broken\n[board]:2222 ssh-rsa {RIGHT.get_base64()}\n[board]:2222 {RIGHT.line}",
        f"[board]:2222 1024 35 1234567\ntwo words\n\n# a comment\n[board]:2222\t{RIGHT.line}\r",
        f"[board]:2222 {Key('other', 'ssh-rsa').line}\n[board]:2222 {RIGHT.line}",
        f"[b?ard]:* {RIGHT.line}",
        f"{hashed('[board]:2222')} {RIGHT.line}",
        f"|1|broken {WRONG.line}\nBOARD {RIGHT.line}",
    ],
)
def test_a_known_key_is_accepted_whatever_other_lines_say(text: str, target: Target, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_bytes(b"caf\xe9 ssh-rsa AAAA\n\xff\xfe\n" + text.encode())
    shown(target, known)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not known"),
        (f"[board]:22 {RIGHT.line}\nboards {RIGHT.line}\n!board,![board]:2222,* {RIGHT.line}", "is not known"),
        (f"board {WRONG.line}", "is not known"),
        (
            f"@cert-authority * {RIGHT.line}",
            "known_hosts:1 names an authority for it, but the device shows no certificate",
        ),
        (f"[board]:2222 {RIGHT.line}\n@revoked * {RIGHT.line}", r"is revoked in .*known_hosts:2"),
        (f"[board]:2222 {WRONG.line}", r"CHANGED.*known_hosts:1.*ssh-keygen -f \S+ -R '\[board\]:2222'"),
    ],
)
def test_an_unknown_a_revoked_and_a_changed_key_are_refused(
    text: str, reason: str, target: Target, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(text)
    with pytest.raises(SecurityError, match=reason):
        shown(target, known)


def test_an_alias_names_the_key_without_a_port(target: Target, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"kept {RIGHT.line}\n[board]:2222 {WRONG.line}\n")
    shown(target, known, alias="kept")
    with pytest.raises(SecurityError, match="CHANGED"):
        shown(target, known)


def test_the_kinds_of_known_keys_are_asked_for_first() -> None:
    known = [host_keys.Known("", "board", "ssh-rsa", b"", Path("known_hosts"), 1)]
    asked = host_keys.algorithms(known, ["ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"])
    assert asked == ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]


def test_certificates_are_asked_for_where_an_authority_is_known() -> None:
    known = [host_keys.Known("@cert-authority", "board", "ssh-ed25519", b"", Path("known_hosts"), 1)]
    asked = host_keys.algorithms(known, ["ssh-ed25519", "rsa-sha2-512"])
    assert asked == [
        "ssh-ed25519-cert-v01@openssh.com",
        "rsa-sha2-512-cert-v01@openssh.com",
        "ssh-ed25519",
        "rsa-sha2-512",
    ]


def test_words_are_split_as_openssh_splits_them() -> None:
    assert split('  IdentityFile = "/a b"/c\\ d \'e"f\' # g', "x") == ("identityfile", ("/a b/c d", 'e"f'))
    assert split('User="pi"', "x") == ("user", ("pi",)) and split("# User pi", "x") == ("", ())
