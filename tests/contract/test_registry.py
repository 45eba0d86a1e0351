"""Bundles in a real OCI registry: Docker's registry on loopback."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from releases import bundle
from sshd import keygen
from test_together import folder, rules

from edgeprune.errors import DeviceError, UsageError
from edgeprune.pipeline.request import requests
from edgeprune.pipeline.run import open_common
from edgeprune.stages import deploy
from edgeprune.stages.releases import bundles, oci
from edgeprune.stages.releases.bundles import Bundle

REGISTRY = shutil.which("docker-registry")
Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a registry at an address, with a login or TLS if asked. Returns its HOST:PORT."""
    pytest.importorskip("oras")
    if REGISTRY is None:
        pytest.skip("no registry on this machine; apt-get install docker-registry")
    with ExitStack() as stack:

        def start(address: str = "127.0.0.1", **sections: object) -> str:
            with socket.create_server((address, 0)) as free:
                port = free.getsockname()[1]
            config = {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
                "http": {"addr": f"{address}:{port}", **sections.pop("http", {})},  # type: ignore[dict-item]
                **sections,
            }
            file = tmp_path / f"{port}.yml"
            file.write_text(json.dumps(config))  # JSON is YAML
            process = subprocess.Popen([str(REGISTRY), "serve", str(file)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
            for _ in range(200):
                try:
                    socket.create_connection((address, port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            return f"{address}:{port}"

        yield start


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "b", keygen(tmp_path / "key"), sequence=7)


def push(made: Bundle, where: str) -> str:
    return oci.push(bundles.archive(made), made.manifest, made.digest, oci.Reference.parse(where))


def test_a_pushed_bundle_is_found_by_its_digest_and_pulled_as_the_same_file(
    serve: Serve, made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy sees what goes to this machine without TLS
    there = serve()
    digest = push(made, f"oci://{there}/team/vision:7")
    kind = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"http://{there}/v2/team/vision/manifests/{digest}", headers=kind)
    content = opener.open(asked, timeout=10).read()
    assert digest == "sha256:" + hashlib.sha256(content).hexdigest()
    annotations = json.loads(content)["annotations"]
    assert (annotations["edgeprune.release"], annotations["org.opencontainers.image.version"]) == (made.digest, "7")

    monkeypatch.delenv("HTTP_PROXY")
    from oras.client import OrasClient

    (pulled,) = OrasClient(insecure=True).pull(target=f"{there}/team/vision:7", outdir=str(tmp_path / "device"))
    assert Path(pulled).name == "vision-7.tar" and Path(pulled).read_bytes() == bundles.archive(made)
    with tarfile.open(pulled) as archive:
        assert "manifest.json" in archive.getnames()


def test_a_registry_takes_the_kept_login_and_no_other(
    serve: Serve, made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bcrypt

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "users").write_bytes(b"anna:" + bcrypt.hashpw(b"right", bcrypt.gensalt(4)) + b"\n")
    there = serve(auth={"htpasswd": {"realm": "r", "path": str(tmp_path / "users")}})
    (tmp_path / ".docker").mkdir()
    kept = tmp_path / ".docker" / "config.json"
    for password in ("", "wrong"):
        login = {there: {"auth": base64.b64encode(f"anna:{password}".encode()).decode()}} if password else {}
        kept.write_text(json.dumps({"auths": login}))
        with pytest.raises(UsageError, match=f"refuses the login; run: docker login {there}"):
            push(made, f"oci://{there}/vision:7")
    kept.write_text(json.dumps({"auths": {there: {"auth": base64.b64encode(b"anna:right").decode()}}}))
    assert push(made, f"oci://{there}/vision:7").startswith("sha256:")


def test_a_registry_elsewhere_needs_tls_with_a_known_certificate(
    serve: Serve, made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; it only finds this machine's own address
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    monkeypatch.setenv("NO_PROXY", address)
    with pytest.raises(DeviceError, match="the bundle was not pushed"):
        push(made, f"oci://{serve(address)}/vision:7")  # it speaks plain http
    certificate, key = certified(address, tmp_path)
    there = serve(address, http={"tls": {"certificate": str(certificate), "key": str(key)}})
    with pytest.raises(DeviceError, match="the bundle was not pushed"):
        push(made, f"oci://{there}/vision:7")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert push(made, f"oci://{there}/vision:7").startswith("sha256:")


def certified(address: str, folder: Path) -> tuple[Path, Path]:
    """The files of a self-signed certificate of an address, and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return files


def test_a_registry_that_does_not_answer_is_one_line(made: Bundle) -> None:
    pytest.importorskip("oras")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DeviceError, match="the bundle was not pushed") as error:
        push(made, f"oci://127.0.0.1:{port}/vision:7")
    assert "\n" not in str(error.value)


def test_the_tag_is_the_number_of_the_release_unless_one_is_given(
    serve: Serve, made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = serve()
    monkeypatch.setattr(deploy, "bundled", lambda run, **options: made)
    with open_common(requests(folder(tmp_path), ["one", "two"]), rules([])) as run:
        (alone,) = deploy.written(run.members["one"], f"oci://{there}/vision").bundles
        both = deploy.written(run, f"oci://{there}/vision:v1").bundles
    assert (alone.path, alone.number, alone.release) == (f"oci://{there}/vision:7", 7, made.digest)
    assert [one.path for one in both] == [f"oci://{there}/vision:v1-one", f"oci://{there}/vision:v1-two"]
    assert {one.digest for one in both} == {alone.digest}, "the same bundle has the same digest"
