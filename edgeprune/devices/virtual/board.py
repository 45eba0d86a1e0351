"""The virtual board: an aarch64 machine under qemu, for users who have no board. Its clock counts instructions.

    ~/.cache/edgeprune/board/
      id_ed25519, known_hosts      the login of `targets/virtual-pi.toml`; made once
      host_ed25519                 the board's host key
      image-KEY/                   kernel, initrd, root image; rebuilt when this module changes
      qemu.pid, monitor, console   of the running board

With `-icount`, the time of the guest is an instruction count. It repeats to 0.1 %. It says nothing about the caches, the
bandwidth or the vector units of a real Pi. So edgeprune marks every figure from here `emulated`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeprune.devices import install
from edgeprune.errors import BusyError, DeviceError, UsageError
from edgeprune.limits import LIMITS

HOME = Path("~/.cache/edgeprune/board")
HOST, PORT, USER = "127.0.0.1", 2822, "pi"
SUITE = "bookworm"
TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "ssh-keygen": "openssh-client",
}
PACKAGES = (
    "base-files base-passwd bash coreutils dash sed grep tar gzip util-linux mount hostname procps iproute2 libc-bin"
    " openssh-server openssh-sftp-server python3 passwd login libstdc++6 libgomp1 ncurses-base findutils mawk diffutils"
)
# The stand-in needs onnx to parse models.
WHEELS = ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0", "onnx==1.23.2")
# Without the packages that they name: see `Runtime.complete_packages`.
ALONE = ("ncnn==1.0.20261020", "executorch==1.5.1")
STAND_IN = Path(__file__).with_name("trtexec.py")
TRTEXEC = "usr/src/tensorrt/bin/trtexec"  # where JetPack installs it
PLATFORM = install.WheelPlatform("aarch64", python=(3, 11), glibc=(2, 36))  # of bookworm
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "sch_netem")
DISK = "2G"  # sparse
MEMORY_MB = 1024
UID = 1500

INITRD_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod "/lib/$module"; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /sbin/init
"""
INIT = f"""#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/sshd
hostname virtual-pi
chown -R {UID}:{UID} /home/{USER}
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
/usr/sbin/sshd
while :; do sleep 3600; done
"""
SSHD_CONFIG = f"""HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin no
AllowUsers {USER}
PrintMotd no
UseDNS no
MaxStartups 50
Subsystem sftp internal-sftp
"""


def up(report: Callable[[str], None] = print) -> None:
    """Boot the board, and wait until it answers. Its image is built first where there is none.

    Args:
        report: is called with a line for each step.

    Raises:
        UsageError: packages of this machine are missing; the message names them.
        DeviceError: the board does not boot.
        BusyError: another process starts the board, or its port is in use.
    """
    home = _home()
    with _locked(home):
        if _pid() is not None:
            report(f"the virtual board runs already, at {HOST}:{PORT}")
            return
        _require_tools()
        image = _image(home, report)
        _boot(home, image)
        report(f"the virtual board answers at {HOST}:{PORT}. Try: edgeprune doctor virtual-pi")


def down(report: Callable[[str], None] = print) -> None:
    """Power the board off. Files that were written on it are lost."""
    pid = _pid()
    if pid is None:
        report("the virtual board does not run")
        return
    os.kill(pid, signal.SIGTERM)
    _wait_until(lambda: _pid() is None, LIMITS.end_s, f"the virtual board does not end within {LIMITS.end_s:g} s")
    report("the virtual board is off")


def status() -> str:
    """One line: whether the board runs, and whether it answers."""
    if _pid() is None:
        return "off. Start it: edgeprune board up"
    return f"up at {HOST}:{PORT}" if _answers() else f"running, but nothing answers at {HOST}:{PORT}"


def monitor(command: str) -> str:
    """Send a command to qemu's monitor, such as "set_link n0 off", "stop", "cont" or "system_reset". Returns its answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMITS.end_s)
        try:
            connection.connect(str(_home() / "monitor"))
        except OSError as error:
            raise DeviceError("the virtual board does not run. Start it: edgeprune board up") from error
        _read_prompt(connection)
        connection.sendall(command.encode() + b"\n")
        return _read_prompt(connection)


def _read_prompt(connection: socket.socket) -> str:
    text = b""
    while not text.endswith(b"(qemu) ") and len(text) < LIMITS.stderr_bytes:
        part = connection.recv(4096)
        if not part:
            break
        text += part
    return text.decode("utf-8", "backslashreplace")


def _home() -> Path:
    home = HOME.expanduser()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with open(home / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError("another process starts the virtual board. Wait for it.") from error
        yield


def _pid() -> int | None:
    """The process of the running board. A pid file may be older than the last reboot, so the command line is checked."""
    try:
        pid = int((_home() / "qemu.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(_home() / "monitor").encode() in command else None


def _require_tools() -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    if missing:
        raise UsageError(
            f"the virtual board needs {', '.join(missing)}. Run: apt-get install --no-install-recommends {' '.join(missing)}"
        )


# -------------------------------------------------------------------------------------------------------- boot


def _boot(home: Path, image: Path) -> None:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, PORT)) == 0:
            raise BusyError(f"another program listens on {HOST}:{PORT}. End it, then run: edgeprune board up")
    for name in ("monitor", "console", "qemu.pid"):
        (home / name).unlink(missing_ok=True)
    argv = [
        "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "1", "-m", str(MEMORY_MB),
        "-icount", "shift=1,sleep=on", "-display", "none", "-snapshot", "-daemonize",
        "-pidfile", str(home / "qemu.pid"),
        "-monitor", f"unix:{home / 'monitor'},server,nowait",
        "-serial", f"file:{home / 'console'}",
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"),
        "-append", "console=ttyAMA0 quiet panic=-1",
        "-drive", f"if=none,file={image / 'root.img'},format=raw,id=d0", "-device", "virtio-blk-pci,drive=d0",
        "-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:{HOST}:{PORT}-:22",
        "-device", "virtio-net-pci,netdev=n0,romfile=",
    ]  # fmt: skip
    _do(argv, 30)
    try:
        # The forwarded port accepts connections before the guest is ready. The guest is ready once sshd sends its banner.
        _wait_until(_answers, LIMITS.board_boot_s, f"the virtual board does not answer. See {home / 'console'}")
    except DeviceError:
        down(lambda text: None)
        raise


def _answers() -> bool:
    try:
        with socket.create_connection((HOST, PORT), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait_until(true: Callable[[], bool], deadline_s: float, error: str) -> None:
    until = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > until:
            raise DeviceError(error)
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------- image


def _image(home: Path, report: Callable[[str], None]) -> Path:
    """The folder of the image, built where there is none. A killed build leaves no image."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + STAND_IN.read_bytes()).hexdigest()[:12]
    image = home / f"image-{recipe}"
    if image.is_dir():
        return image
    report("building the virtual board's image (once; about half a minute)")
    _keys(home)
    work = home / "building"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    root = work / "root"
    try:
        _debian(work, root)
        _kernel(work, root)
        _configure(home, root)
        _wheels(root)
        out = work / "image"
        _do(["truncate", "-s", DISK, str(out / "root.img")], 10)
        _do(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(out / "root.img")], 120)
        for old in home.glob("image-*"):
            shutil.rmtree(old)
        out.rename(image)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return image


def _keys(home: Path) -> None:
    for name in ("id_ed25519", "host_ed25519"):
        if not (home / name).exists():
            _do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(home / name)], 30)
    kind, key, *_ = (home / "host_ed25519.pub").read_text().split()
    (home / "known_hosts").write_text(f"[{HOST}]:{PORT} {kind} {key}\n")


def _debian(work: Path, root: Path) -> None:
    """Unpack packages without configuring them, so that no program of the guest runs here."""
    (work / "debs").mkdir()
    hook = work / "hook.sh"
    hook.write_text(
        "set -e\n"
        'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"\n'
        f"cd {shlex.quote(str(work / 'debs'))}\n"
        "kernel=$(apt-cache depends linux-image-cloud-arm64 | awk '/Depends: linux-image-/ {print $2; exit}')\n"
        'apt-get download -q "$kernel" busybox-static\n'
    )
    argv = ["mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract"]
    argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--extract-hook=sh {shlex.quote(str(hook))}"]
    argv += [f"--include={','.join(PACKAGES.split())}", SUITE, str(root)]
    sources = _sources()
    if sources:
        path = work / "board.sources"
        path.write_text(sources)
        argv.append(str(path))
    _do(argv, LIMITS.board_build_s)


def _sources() -> str:
    """This machine's package sources of the suite, for arm64. Without any, mmdebstrap uses its default mirror."""
    stanzas = []
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in path.read_text().split("\n\n"):
            lines = [line for line in stanza.splitlines() if line and not line.startswith(("#", "Architectures:"))]
            suites = [name for line in lines if line.startswith("Suites:") for name in line.split()[1:]]
            if any(name == SUITE or name.startswith(f"{SUITE}-") for name in suites):
                stanzas.append("\n".join([*lines, "Architectures: arm64"]))
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]
    for line in (line for path in lists if path.is_file() for line in path.read_text().splitlines()):
        words = [word for word in line.split() if not (word.startswith("[") and word.endswith("]"))]
        if words[:1] == ["deb"] and len(words) > 3 and (words[2] == SUITE or words[2].startswith(f"{SUITE}-")):
            stanzas.append(
                f"Types: deb\nURIs: {words[1]}\nSuites: {words[2]}\nComponents: {' '.join(words[3:])}\nArchitectures: arm64"
            )
    return "\n\n".join(stanzas) + "\n" if stanzas else ""


def _kernel(work: Path, root: Path) -> None:
    """The kernel, and a small initrd: busybox, and the modules of the disk and the network."""
    out, tree, initrd = work / "image", work / "kernel", work / "initrd"
    out.mkdir()
    for deb in (work / "debs").glob("*.deb"):
        _do(["dpkg-deb", "-x", str(deb), str(tree)], 60)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, out / "vmlinuz")
    version = kernel.name.removeprefix("vmlinuz-")
    _do(["depmod", "-b", str(tree), version], 60)
    modules = tree / "lib" / "modules" / version
    for folder in ("bin", "lib", "dev", "root"):
        (initrd / folder).mkdir(parents=True)
    shutil.copy(next(tree.glob("*/busybox"), tree / "usr/bin/busybox"), initrd / "bin" / "busybox")
    order = _with_dependencies(modules / "modules.dep", MODULES)
    for name in order:
        shutil.copyfile(modules / name, initrd / "lib" / Path(name).name)
    (initrd / "modules").write_text("".join(f"{Path(name).name}\n" for name in order))
    (initrd / "init").write_text(INITRD_INIT)
    (initrd / "init").chmod(0o755)
    with open(out / "initrd", "wb") as archive:
        names = "\n".join(str(path.relative_to(initrd)) for path in sorted(initrd.rglob("*")))
        _do(["cpio", "-o", "-H", "newc", "--quiet"], 60, cwd=initrd, stdin=names.encode(), stdout=archive.fileno())


def _with_dependencies(table: Path, names: Sequence[str]) -> list[str]:
    """Module files in the order to load them. Modules that are built into the kernel are not in the table."""
    needs: dict[str, list[str]] = {}
    for line in table.read_text().splitlines():
        file, _, others = line.partition(":")
        needs[Path(file).name.partition(".ko")[0]] = [*reversed(others.split()), file]
    return list(dict.fromkeys(file for name in names for file in needs.get(name, [])))


def _configure(home: Path, root: Path) -> None:
    """Do what the packages' scripts would have done, and allow the login."""
    master = root / "usr/share/base-passwd"
    passwd, group = (master / "passwd.master").read_text(), (master / "group.master").read_text()
    user = f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n"
    etc = {
        "passwd": passwd + "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n" + user,
        "group": group + f"{USER}:x:{UID}:\n",
        "shadow": f"root:*:19000:0:99999:7:::\n{USER}:*:19000:0:99999:7:::\n",
        "hosts": "127.0.0.1 localhost virtual-pi\n",
        "machine-id": secrets.token_hex(16) + "\n",
        "ssh/sshd_config": SSHD_CONFIG,
        "ssh/ssh_host_ed25519_key": (home / "host_ed25519").read_text(),
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    }
    for name, text in etc.items():
        (root / "etc" / name).write_text(text)
    for name in ("shadow", "ssh/ssh_host_ed25519_key"):
        (root / "etc" / name).chmod(0o600)
    init = root / "usr/sbin/init"
    init.unlink(missing_ok=True)
    init.write_text(INIT)
    init.chmod(0o755)
    ssh = root / "home" / USER / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    keys = ssh / "authorized_keys"
    shutil.copyfile(home / "id_ed25519.pub", keys)
    keys.chmod(0o600)
    awk = root / "usr/bin/awk"
    if not awk.is_symlink():
        awk.symlink_to("mawk")


def _wheels(root: Path) -> None:
    """Install the runtimes system-wide, as the package manager of a Pi does."""
    site = root / "opt" / "site"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    argv += ["--target", str(site), *install.platform_options(PLATFORM)]
    _do([*argv, *WHEELS], LIMITS.board_build_s)
    _do([*argv, "--no-deps", *ALONE], LIMITS.board_build_s)
    (root / "usr/lib/python3/dist-packages/board.pth").write_text("/opt/site\n")
    trtexec = root / TRTEXEC
    trtexec.parent.mkdir(parents=True)
    shutil.copyfile(STAND_IN, trtexec)
    trtexec.chmod(0o755)
    if sys.version_info[:2] == PLATFORM.python:  # saves every process there from compiling for seconds
        folders = [str(site), str(root / "usr/lib/python3.11")]
        argv = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-x", "/executorch/", "-s", str(root), *folders]
        _do(argv, LIMITS.board_build_s)


def _do(
    argv: Sequence[str], deadline_s: float, cwd: Path | None = None, stdin: bytes = b"", stdout: int | None = None
) -> None:
    """Run a tool. Raises `DeviceError` with the end of its standard error."""
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=deadline_s,
            cwd=cwd,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{argv[0]} took over {deadline_s:g} s") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        errors = [line for line in lines if line.startswith(("E:", "ERROR", "error"))] or lines
        raise DeviceError(f"{argv[0]} ended with {done.returncode}: {'; '.join(errors[-3:])}")
