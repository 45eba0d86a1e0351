"""Signed bundles and the releases on a device."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records.device import Device
from edgeprune.records.verdict import Verdict


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and what it was verified on: the part of it that is signed.

    `model` is the file to load, `relative_error` how far the kept output may be missed, of the largest one, `files` are {name:
    (bytes, SHA-256)}.
    """

    schema: int
    service: str
    target: str
    created_s: int
    edgeprune: str
    runtime: str
    model: str
    precision: str
    threads: int
    dla: int | None
    artifact: str
    relative_error: float
    device: Device
    verdict: Verdict
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Release:
    """A bundle on a device: "current" is in service and "previous" was before, each since then; others are "kept".

    `damage` says why it would not be put into service, and then nothing is known of what it holds.
    """

    host: str
    service: str
    digest: str
    state: str
    since_s: int | None = None
    manifest: Manifest | None = None
    damage: str = ""
