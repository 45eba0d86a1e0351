"""Why an accepted login is of no use: its sessions, its shell, or its Python. After a failure, both are asked."""

from __future__ import annotations

import secrets
import shlex

import paramiko

from edgeprune.devices.bundle import LEAST_PYTHON, agent_needs
from edgeprune.devices.transports.ssh.files import run
from edgeprune.devices.transports.ssh.remote import typed
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError
from edgeprune.records import Host, Target

MISSING, NOT_RUNNABLE = 127, 126  # exit statuses of a shell (POSIX)
NOISE_BYTES = 16 << 20  # that a shell may print


def no_session(target: Target) -> DeviceError:
    """For a server that opens no further session."""
    return DeviceError(
        f"{target.name}: the device's SSH server opens no further session, and edgeprune needs two. Set MaxSessions 10 in its"
        " /etc/ssh/sshd_config, and restart sshd."
    )


def require_shell(target: Target, host: Host, client: paramiko.SSHClient, clean: bool) -> None:
    """Raises `DeviceError` if the login shell runs no command or, where it must be clean, prints anything else."""
    word = secrets.token_hex(8)
    ended = run(client, f"echo {word}", most=NOISE_BYTES)
    before, found, after = ended.output.decode("utf-8", "backslashreplace").partition(word)
    test, noise = f"{typed(host)} true", (before + after).strip()
    who = f"the shell of {printable(host.user or 'the user')} there"
    if not found:
        how = f"exit status {ended.status}" if ended.status >= 0 else "a signal ended it"
        raise DeviceError(
            f"{target.name}: {who} ends without running a command ({how}): {ended.reason.rstrip('.')}. Log in once by hand:"
            f" {typed(host)}. An expired password, a forced command (authorized_keys, ForceCommand), or a shell such as"
            " nologin ends every command."
        )
    if noise and clean:
        raise DeviceError(
            f"{target.name}: {who} prints on a non-interactive login: {printable(noise.splitlines()[0], 80)}. SFTP cannot work"
            f" like that. Make ~/.bashrc there print only in interactive shells, until this prints nothing: {test}"
        )


def require_python(target: Target, host: Host, client: paramiko.SSHClient, fault: LinkError) -> None:
    """Raises `DeviceError` if `[connect] python` is missing, too old, or lacks modules. An agent ended by `fault`."""
    word, fix = secrets.token_hex(8), f"name another in {target.path}: [connect] python"
    script = f"import sys;sys.stdout.write('{word} %d.%d ' % sys.version_info[:2]);sys.stdout.flush();"
    ended = run(client, shlex.join([host.python, "-c", f"{script}import {','.join(agent_needs())}"]))
    _, started, rest = ended.output.decode("ascii", "replace").partition(word)
    python = printable(host.python)
    if not started and ended.status in (MISSING, NOT_RUNNABLE):
        why = "there is no" if ended.status == MISSING else "the device cannot run"
        raise DeviceError(
            f"{target.name}: {why} {python} on the device ({ended.reason}). Install Python 3 there, or {fix}"
        )
    if not started:
        raise DeviceError(f"{target.name}: {python} on the device does not start: {fault}. Repair it, or {fix}")
    version = rest.split()[0]
    if tuple(int(part) for part in version.split(".")) < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        raise DeviceError(
            f"{target.name}: {python} on the device is Python {version}, and {least} is needed. Install it, or {fix}"
        )
    if ended.status != 0:
        raise DeviceError(
            f"{target.name}: {python} on the device lacks a part of its standard library ({ended.reason}). Install the whole"
            f" of it: python3-modules (Yocto), python3 (Debian, instead of python3-minimal). Or {fix}"
        )
