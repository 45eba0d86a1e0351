"""`runner.py --install` does what a deployment does: the same checks, the same switch, the same way back."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from releases import bundle, resigned
from sshd import keygen

from edgeprune.devices import bundle as bundling
from edgeprune.stages.releases import bundles
from edgeprune.stages.releases.bundles import Bundle


@dataclass
class Board:
    """A device without a network: `home` is its user's, and `runner` the runner.py that came with the first bundle."""

    home: Path
    runner: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(self.runner), *map(str, arguments)]
        environment = {**os.environ, "HOME": str(self.home)}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)

    def install(self, path: Path) -> subprocess.CompletedProcess[str]:
        return self.run("--install", path)

    @property
    def service(self) -> Path:
        return self.home / ".edgeprune" / "services" / "vision"

    @property
    def current(self) -> str | None:
        link = self.service / "current"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keygen(tmp_path / "key")


@pytest.fixture
def board(tmp_path: Path, key: Path) -> Board:
    """It accepts the key."""
    return accepting(key, tmp_path)


def accepting(key: Path, folder: Path) -> Board:
    home = folder / "home"
    (home / ".edgeprune").mkdir(parents=True)
    public = key.with_suffix(".pub").read_text()
    (home / ".edgeprune" / "allowed_signers").write_text(f'edgeprune namespaces="edgeprune" {public}')
    runner = folder / "runner.py"
    runner.write_bytes(bundling.runner())
    return Board(home, runner)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Board, Path, str]:
    """A board that serves a release, its key, and the release. Tests take a copy of its home."""
    folder = tmp_path_factory.mktemp("serving")
    key = keygen(folder / "key")
    board, first = accepting(key, folder), bundle(folder / "1", key, 1000, sequence=1)
    assert board.install(tar(first, folder / "first.tar")).returncode == 0
    return board, key, first.digest


def tar(made: Bundle, place: Path) -> Path:
    bundles.write(made, place)
    return place


@pytest.mark.slow
def test_bundles_follow_each_other_and_the_way_back_is_one_command(board: Board, key: Path, tmp_path: Path) -> None:
    first, second = (bundle(tmp_path / str(i), key, 1000 * i, sequence=i) for i in (1, 2))
    done = board.install(tar(first, tmp_path / "1.tar"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"median_ms": 0} == {
        "service": "vision", "release": first.digest, "before": None, "changed": True, "enrolled": False, "median_ms": 0,
    }  # fmt: skip
    folder = tmp_path / "folder"
    bundles.write(second, folder)
    assert json.loads(board.install(folder).stdout)["before"] == first.digest
    assert json.loads(board.install(folder).stdout)["changed"] is False
    assert json.loads(board.run("--rollback", "vision").stdout)["release"] == first.digest == board.current
    assert json.loads(board.run("--rollback", "vision").stdout)["changed"] is False
    states = {one["release"]: one["state"] for one in json.loads(board.run("--releases").stdout)}
    assert states == {first.digest: "current", second.digest: "previous"}
    old = board.install(tar(first, tmp_path / "old.tar"))
    assert old.returncode == 0, "it is the one in service"
    assert board.run("--withdraw", "vision", second.digest[:12]).returncode == 0
    refused = board.install(folder)
    assert refused.returncode == 6 and "was withdrawn here" in refused.stderr
    deeds = [entry["did"] for entry in json.loads(board.run("--audit").stdout)]
    assert deeds == ["publish", "activate", "publish", "activate", "activate", "withdraw"]


def old(made: Bundle, key: Path, place: Path) -> None:
    tar(resigned(made, key, sequence=1), place)


def truncated(made: Bundle, key: Path, place: Path) -> None:
    tar(made, place)
    content = place.read_bytes()
    place.write_bytes(content[: len(content) // 2])  # its end is padding


def altered(made: Bundle, key: Path, place: Path) -> None:
    tar(made, place)
    place.write_bytes(place.read_bytes().replace(b'{"ns": 2000}', b'{"ns": 3000}'))


def of_another_device(made: Bundle, key: Path, place: Path) -> None:
    device = {**json.loads(made.files[0].read_text())["device"], "cpu": "another"}
    tar(resigned(made, key, device=device), place)


def of_another_runtime(made: Bundle, key: Path, place: Path) -> None:
    device = {**json.loads(made.files[0].read_text())["device"], "runtime_version": "9"}
    tar(resigned(made, key, device=device), place)


def by_another_key(made: Bundle, key: Path, place: Path) -> None:
    tar(resigned(made, keygen(place.with_name("other"))), place)


def that_does_not_run(made: Bundle, key: Path, place: Path) -> None:
    tar(bundle(place.with_name("wrong"), key, 3000, expected=2.0, sequence=3), place)


def with_a_link(made: Bundle, key: Path, place: Path) -> None:
    entry = tarfile.TarInfo("expected.npy")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    added(place, made, entry)


def leading_out(made: Bundle, key: Path, place: Path) -> None:
    added(place, made, tarfile.TarInfo("../../evil"))


def with_a_file_twice(made: Bundle, key: Path, place: Path) -> None:
    added(place, made, tarfile.TarInfo("manifest.json"))


def larger_than_signed(made: Bundle, key: Path, place: Path) -> None:
    model = made.files[0].parent / "model.json"
    model.write_text(model.read_text() + " " * 100_000)
    tar(made, place)


def no_archive(made: Bundle, key: Path, place: Path) -> None:
    place.write_bytes(os.urandom(4096))


def added(place: Path, made: Bundle, entry: tarfile.TarInfo) -> None:
    with tarfile.open(place, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in made.files:
            archive.add(file, file.name)
        archive.addfile(entry, io.BytesIO())


REFUSED: dict[Callable[[Bundle, Path, Path], None], str] = {
    old: "older than one that is here",
    truncated: "truncated",
    altered: "model.json was altered",
    of_another_device: "its cpu is 'another'",
    of_another_runtime: "its runtime_version is '9'",
    by_another_key: "not by a key of",
    that_does_not_run: "does not run",
    with_a_link: "not a plain file",
    leading_out: "file of the name",
    with_a_file_twice: "twice",
    larger_than_signed: "larger than it was signed",
    no_archive: "damaged|not a .tar file",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_bad_bundle_changes_nothing(
    spoil: Callable[[Bundle, Path, Path], None], serving: tuple[Board, Path, str], tmp_path: Path
) -> None:
    served, key, first = serving
    board = Board(Path(shutil.copytree(served.home, tmp_path / "home", symlinks=True)), served.runner)
    place = tmp_path / "bad.tar"
    spoil(bundle(tmp_path / "2", key, 2000, sequence=2), key, place)
    done = board.install(place)
    assert done.returncode == (1 if spoil is that_does_not_run else 6), done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1 and not done.stdout
    assert re.search(REFUSED[spoil], done.stderr), done.stderr
    assert board.current == first and os.listdir(board.service / "releases") == [first]
    assert not (tmp_path / "evil").exists()


def test_a_device_that_trusts_no_key_needs_one_by_name(board: Board, key: Path, tmp_path: Path) -> None:
    (board.home / ".edgeprune" / "allowed_signers").unlink()
    place = tar(bundle(tmp_path / "1", key, sequence=1), tmp_path / "1.tar")
    done = board.install(place)
    assert done.returncode == 6 and "--signer KEY.pub" in done.stderr and board.current is None
    other = keygen(tmp_path / "other").with_suffix(".pub")
    assert board.run("--install", place, "--signer", other).returncode == 6
    done = board.run("--install", place, "--signer", tmp_path / "none.pub")
    assert done.returncode == 2 and "none.pub: no such file" in done.stderr
    done = board.run("--install", place, "--signer", key.with_suffix(".pub"))
    assert done.returncode == 0 and json.loads(done.stdout)["enrolled"] is True


def test_a_reload_that_fails_restores_the_release_before(board: Board, key: Path, tmp_path: Path) -> None:
    """The command comes from the signed manifest, since no target file is on the device."""
    first, second = (bundle(tmp_path / str(i), key, 1000 * i, sequence=i) for i in (1, 2))
    noted: Any = ["sh", "-c", "grep -q 1000 current/model.json"]
    for made in (first, second):
        place = tar(resigned(made, key, reload=noted), tmp_path / f"{made.manifest.sequence}.tar")
        done = board.install(place)
    assert done.returncode == 1 and "[deploy] reload ended with 1" in done.stderr and "back to" in done.stderr
    assert json.loads((board.service / "current" / "model.json").read_text()) == {"ns": 1000}


def on_page(language: str, words: str) -> str:
    """The block of the page about fleets that holds these words."""
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    (found,) = [block for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if words in block]
    return found


@pytest.mark.slow
def test_the_update_module_of_the_page_installs_and_goes_back_as_mender_asks_it(
    board: Board, key: Path, tmp_path: Path
) -> None:
    """Mender asks for a rollback after a failed installation, too. Then the release in service must stay."""
    bundled = {i: tar(bundle(tmp_path / str(i), key, 1000 * i, sequence=i), tmp_path / f"{i}.tar") for i in (1, 2, 3)}
    assert board.install(bundled[1]).returncode == 0 and board.install(bundled[2]).returncode == 0
    before = board.current
    module, tools = tmp_path / "edgeprune", tmp_path / "tools"
    module.write_text(on_page("sh", "ArtifactInstall").replace("/home/vision", str(board.home)))
    tools.mkdir()
    (tools / "runuser").write_text('#!/bin/sh\n[ "$1 $2 $3" = "-u vision --" ] || exit 9\nshift 3\nexec "$@"\n')
    (tools / "runuser").chmod(0o755)
    (tools / "python3").symlink_to(sys.executable)

    def asked(state: str, update: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": str(board.home), "PATH": f"{tools}:{os.environ['PATH']}"}
        argv = ["sh", str(module), state, str(update)]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)

    def update(name: str, content: bytes) -> Path:
        for part in ("files", "tmp"):
            (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / "files" / "bundle.tar").write_bytes(content)
        return tmp_path / name

    good, bad = update("good", bundled[3].read_bytes()), update("bad", bundled[3].read_bytes()[:512])
    assert (asked("SupportsRollback", bad).stdout, asked("NeedsArtifactReboot", bad).stdout) == ("Yes\n", "No\n")
    assert asked("Cleanup", bad).returncode == 0
    assert asked("ArtifactInstall", bad).returncode != 0 and asked("ArtifactRollback", bad).returncode == 0
    assert board.current == before
    installed = asked("ArtifactInstall", good)
    assert installed.returncode == 0 and board.current not in (before, None), installed.stderr
    assert asked("ArtifactRollback", good).returncode == 0 and board.current == before


def test_the_play_of_the_page_is_yaml_with_a_command_of_the_runner() -> None:
    (play,) = pytest.importorskip("yaml").safe_load(on_page("yaml", "hosts: cameras"))
    copy, install = play["tasks"]
    assert copy["ansible.builtin.copy"]["dest"] == "/tmp/vision-7.tar"
    assert install["ansible.builtin.command"].endswith("/current/runner.py --install /tmp/vision-7.tar")
