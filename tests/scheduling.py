"""Which tests a process takes at once: those of a file, or of several files that are better run by one process."""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    # Their tests need this machine's lease, see the fixture `alone`: two processes would wait for each other.
    "lease": "test_deploy test_names test_states test_fleet_hosts test_host_certificates test_ssh test_ssh_logins",
    "keras": "test_keras_layers test_keras_network test_keras_project test_keras_files",  # its import takes seconds
}
PIECES = {name: piece for piece, names in TOGETHER.items() for name in names.split()}


class ByFile(LoadFileScheduling):
    """A piece of work is a file, or the files of a group of `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return PIECES.get(Path(file).stem, file)
