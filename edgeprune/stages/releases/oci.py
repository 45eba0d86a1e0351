"""Push a bundle to an OCI registry, by oras. See docs/fleet.md.

The bundle's .tar file is the only layer of an artifact. Credentials come from `docker login` or `oras login`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import DeviceError, RuntimeMissing, UsageError, first_line
from edgeprune.limits import LIMITS
from edgeprune.records import Manifest

SCHEME = "oci://"
MEDIA_TYPE = "application/vnd.edgeprune.bundle.v1.tar"
LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3})(:\d+)?")
PATTERN = re.compile(  # of the distribution specification; the registry's name has a dot or a port
    r"oci://(?P<registry>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d{1,5})?|[A-Za-z0-9-]+:\d{1,5})"
    r"/(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)


@dataclass(frozen=True)
class Reference:
    """The place of a bundle in a registry: `oci://REGISTRY/NAME:TAG`."""

    registry: str
    name: str
    tag: str = ""

    @staticmethod
    def parse(text: str) -> Reference:
        """Raises `UsageError` for another form."""
        found = PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(
                f"-o {text!r} must be oci://REGISTRY/NAME:TAG, with a dot or a port in REGISTRY and lower case in NAME"
            )
        return Reference(found["registry"], found["name"], found["tag"] or "")

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}:{self.tag}"


def require() -> Any:
    """oras's module of clients. Raises `RuntimeMissing` if it is not installed."""
    try:
        from oras import client
    except ImportError:
        raise RuntimeMissing("oras is not installed; run: pip install 'edgeprune[oci]'") from None
    return client


def push(archive: bytes, known: Manifest, release: str, reference: Reference) -> str:
    """Push a bundle's archive. Only a registry on loopback may be without TLS.

    Args:
        archive: the .tar file.
        known: the bundle's manifest. Its number is in the file's name.
        release: the bundle's digest.
        reference: the place in the registry.

    Returns:
        The digest of the artifact's manifest, `sha256:…`. It is computed here, not taken from the registry.

    Raises:
        RuntimeMissing: oras is not installed.
        UsageError: the registry refuses the credentials.
        DeviceError: the registry does not answer, or refuses the bundle.
    """
    require()
    import requests
    from oras.auth import AuthenticationException

    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        file = Path(folder) / f"{known.service}-{known.sequence}.tar"
        file.write_bytes(archive)
        annotations = {"org.opencontainers.image.version": str(known.sequence), "edgeprune.release": release}
        try:
            pushed = _client(reference).push(
                str(reference),
                files=[f"{file}:{MEDIA_TYPE}"],
                disable_path_validation=True,  # oras otherwise takes only files below the working directory
                manifest_annotations=annotations,
                quiet=True,
            )
        except (requests.RequestException, AuthenticationException, ValueError) as error:
            raise DeviceError(f"{SCHEME}{reference}: the bundle was not pushed: {first_line(error)}") from error
    return f"sha256:{hashlib.sha256(pushed.request.body).hexdigest()}"


def _client(reference: Reference) -> Any:
    """A client of the registry, which was asked once: it answers, and takes the credentials."""
    plain = LOOPBACK.fullmatch(reference.registry) is not None
    url = f"{'http' if plain else 'https'}://{reference.registry}/v2/"
    client = _bounded("token", plain)
    if client.session.get(url).headers.get("Www-Authenticate", "").lower().startswith("basic"):
        client = _bounded("basic", plain)
        client.auth.load_configs(client.get_container(str(reference)))
        kept = getattr(client.auth, "_basic_auth", None)
        if not kept or client.session.get(url, headers=client.auth.get_auth_header()).status_code in (401, 403):
            there = reference.registry
            raise UsageError(f"{there} refuses the login; run: docker login {there}, or: oras login {there}")
    return client


def _bounded(backend: str, plain: bool) -> Any:
    """A client whose requests end. Without TLS, no proxy sees them."""
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> Any:
            return super().send(*args, **{**options, "timeout": options.get("timeout") or LIMITS.registry_s})

    client = require().OrasClient(insecure=plain, auth_backend=backend)
    client.session.trust_env = not plain
    for scheme in ("http://", "https://"):
        client.session.mount(scheme, Bounded())
    return client
