"""Signed bundles of verified artifacts.

A bundle holds the artifact, a sample input with the output that it gave at verification, a runner, and a manifest. An SSH key
signs the manifest. See docs/deploy.md.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import bundle as bundling
from edgeprune.devices.agent import keys
from edgeprune.devices.agent.trust import MANIFEST, MANIFEST_BYTES, SIGNATURE
from edgeprune.errors import UsageError
from edgeprune.records import Artifact, Device, Manifest, Target, Verdict
from edgeprune.stages.releases import signing
from edgeprune.storage import codec
from edgeprune.storage.store import file_sha256, read_capped, write_atomic

SCHEMA = 1  # of the manifest
RELATIVE_ERROR = 1e-3  # of the kept output's largest value: the file and the kind of device are the same


@dataclass(frozen=True)
class Verified:
    """An artifact with its verdict, and a sample call that hosts check releases by.

    Attributes:
        device: the device of the verification.
        artifact: the artifact.
        verdict: the outcome of the verification.
        inputs: the inputs of one call, (batch, ...) each.
        expected: the artifact's first output for them, (batch, ...).
    """

    device: Device
    artifact: Artifact
    verdict: Verdict
    inputs: Sequence[np.ndarray]
    expected: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A signed bundle in a folder on this machine.

    Attributes:
        files: its files, the manifest first.
        manifest: the manifest's content.
        digest: SHA-256 of the manifest's file, in hex.
        signer: the public key of the signature.
    """

    files: tuple[Path, ...]
    manifest: Manifest
    digest: str
    signer: str


def require_name(service: str) -> None:
    """Raises `UsageError` if the service's name cannot name a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", service):
        raise UsageError(
            f"{service!r} cannot name a folder on devices. Rename the project's folder: letters, digits, '_', '-' and '.'"
            " are allowed."
        )


def bundle(service: str, target: Target, verified: Verified, folder: Path, sequence: int) -> Bundle:
    """Make a signed bundle.

    Args:
        service: the name of the service; the hosts name a folder after it.
        target: the target of the verification.
        verified: what was verified on it.
        folder: an empty folder for the bundle.
        sequence: the number of the release; devices refuse a bundle whose number is not above those that they have.

    Raises:
        UsageError: there is no key to sign with, or the service's name cannot name a folder.
    """
    require_name(service)
    key = signing.require_key(target)
    artifact = verified.artifact
    model, *_ = [Path(shutil.copy(path, folder / path.name)) for path in artifact.files]
    _write_sample(verified, folder)
    _write_runner(target.runtime, folder)
    manifest = Manifest(
        schema=SCHEMA,
        service=service,
        target=target.name,
        created_s=int(time.time()),
        edgeprune=version("edgeprune"),
        runtime=target.runtime,
        model=model.name,
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        artifact=artifact.sha256,
        relative_error=RELATIVE_ERROR,
        device=verified.device,
        verdict=verified.verdict,
        sequence=sequence,
        reload=target.deploy.reload,
        keep=target.deploy.keep,
        files={path.name: (path.stat().st_size, file_sha256(path)) for path in sorted(folder.iterdir())},
    )
    path = folder / MANIFEST
    path.write_text(codec.dumps(manifest), encoding="utf-8")
    signing.sign(path, key)
    return read(folder)


def read(folder: Path) -> Bundle:
    """A bundle that `bundle` made in a folder.

    Raises:
        UsageError: it is not a bundle, or a file is missing.
    """
    path = folder / MANIFEST
    manifest = codec.loads(Manifest, read_capped(path, MANIFEST_BYTES).decode("utf-8", "replace"), str(path))
    others = [folder / name for name in sorted((SIGNATURE, *manifest.files))]
    for file in others:
        if not file.is_file():
            raise UsageError(f"{file} is missing; make the bundle again")
    return Bundle((path, *others), manifest, file_sha256(path), keys.signer(str(folder / SIGNATURE)))


def write(made: Bundle, output: Path) -> None:
    """Copy a bundle into a new folder, or into a .tar file. The same bundle gives the same bytes.

    Raises:
        UsageError: the folder exists, or cannot be written.
    """
    try:
        if output.suffix == ".tar":
            write_atomic(output, archive(made))
            return
        output.mkdir(parents=True)
        for file in made.files:
            shutil.copy(file, output / file.name)
    except FileExistsError as error:
        raise UsageError(f"{output} exists; name a new folder, or a file that ends in .tar") from error
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error


def archive(made: Bundle) -> bytes:
    """A bundle as a .tar file: plain files by their names, without folders, owners and times."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in made.files:
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = file.stat().st_size, 0o644
            with open(file, "rb") as stream:
                tar.addfile(entry, stream)
    return content.getvalue()


def _write_sample(verified: Verified, folder: Path) -> None:
    for i, array in enumerate(verified.inputs):
        np.save(folder / f"input_{i}.npy", array, allow_pickle=False)
    np.save(folder / "expected.npy", verified.expected, allow_pickle=False)


def _write_runner(runtime: str, folder: Path) -> None:
    """The code that loads the model: runner.py for Python, and load.cpp for C++."""
    (folder / "runner.py").write_bytes(bundling.runner())
    snippet = runtimes.snippet(runtime)
    if snippet is not None:
        shutil.copy(snippet, folder / "load.cpp")
