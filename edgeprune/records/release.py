"""Signed bundles and the releases on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.records.answer import Answer
from edgeprune.records.device import Device
from edgeprune.records.target import Precision
from edgeprune.records.verdict import Verdict

ReleaseState = Literal["current", "previous", "kept"]


@dataclass(frozen=True)
class Manifest:
    """The signed part of a bundle: its files, and the verification that it passed.

    Attributes:
        schema: the version of this record.
        service: the project's name; a host keeps its releases in a folder of this name.
        target: the name of the target that it was verified on.
        created_s: when, in seconds since 1970.
        edgeprune: the version that made it.
        runtime: the name of the runtime.
        model: the file to load.
        precision: the artifact's.
        threads: CPU threads of an inference.
        dla: the core of the deep-learning accelerator; None if it is not used.
        artifact: the digest of the artifact.
        relative_error: how far a host's outputs may be from the kept ones, relative to the largest one.
        device: the device of the verification.
        verdict: the outcome of the verification.
        files: {name: (bytes, SHA-256)} of all other files of the bundle.
    """

    schema: int
    service: str
    target: str
    created_s: int
    edgeprune: str
    runtime: str
    model: str
    precision: Precision
    threads: int
    dla: int | None
    artifact: str
    relative_error: float
    device: Device
    verdict: Verdict
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, repr=False)
class Release(Answer):
    """A bundle on a host.

    Attributes:
        host: its name.
        service: the project's name.
        digest: the digest of the manifest's file.
        state: "current" is deployed, "previous" was deployed before it, and others are "kept".
        since_s: since when it has been in this state, in seconds since 1970; None if it is "kept".
        manifest: its manifest; None if it is damaged.
        damage: why it cannot be deployed; empty if it can be.
    """

    host: str
    service: str
    digest: str
    state: ReleaseState
    since_s: int | None = None
    manifest: Manifest | None = None
    damage: str = ""
