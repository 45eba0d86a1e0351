"""Paths and commands on the device. All files are in one private folder in the user's home; see `devices/agent/main.py`."""

from __future__ import annotations

import functools
import hashlib
import shlex

from edgeprune.devices import bundle
from edgeprune.devices.transports.ssh.config import parsed
from edgeprune.records import Host, Target

FOLDER = ".edgeprune"  # in the home of the user on the device
FOLDERS = (FOLDER, f"{FOLDER}/files", f"{FOLDER}/site")
# Runs the agent's file only if its digest is right.
START = (
    "import hashlib,sys;p,d=sys.argv[1:];s=open(p,'rb').read();"
    "hashlib.sha256(s).hexdigest()==d or sys.exit('the agent file is damaged');"
    "sys.argv=[p,'serve'];exec(compile(s,p,'exec'),{'__name__':'__main__','__file__':p})"
)


@functools.cache
def _digest() -> str:
    return hashlib.sha256(bundle.agent()).hexdigest()


def agent_path() -> str:
    """The path of the agent's file, from the home on."""
    return f"{FOLDER}/agent-{_digest()[:16]}.py"


def agent_command(host: Host, path: str) -> str:
    """The shell command that starts the agent's file at `path`."""
    return shlex.join([host.python, "-I", "-c", START, path, _digest()])


def files_folder(digest: str) -> str:
    """The folder of uploaded files, from the home on; `digest` is that of their names and contents."""
    return f"{FOLDER}/files/{digest}"


def typed(host: Host, tool: str = "ssh") -> str:
    """The command that a user types to reach a host by a tool of OpenSSH, with user, port and key as the target has them."""
    host = parsed(host)
    words = [
        tool,
        *(["-p", str(host.port)] if host.port else []),
        *(["-i", str(host.identity)] if host.identity else []),
    ]
    return shlex.join([*words, f"{host.user}@{host.name}" if host.user else host.name])


def commands(target: Target) -> list[str]:
    """The shell commands of every connection to the device: for `--dry-run`."""
    assert target.host is not None
    return [
        typed(target.host),
        f"  mkdir -m 700 {' '.join(FOLDERS)}",
        f"  sftp put {agent_path()}    # {len(bundle.agent()):,} bytes, once",
        f"  {agent_command(target.host, f'~/{agent_path()}')}    # takes the lease, then reads jobs from its standard input",
    ]
