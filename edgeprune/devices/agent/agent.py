"""The agent: runs on the device, holds the stopwatch. Standard library and the runtime only; Python 3.8 and up.

    python agent.py serve    reads requests, a line of JSON each, from standard input; streams framed replies
    python agent.py work     does one job in a fresh process; started by `serve` only

The first line is a hello, {"nonce", "who", "token", "silence_s"}; with a token the agent takes the board's lease and holds it
for as long as it lives. Every line after it is {"jobs": [job, ...]}: each job is answered, in order, by one frame on
standard output, measurements in a process of their own each:

    edgeprune <nonce> <bytes> <crc32, 8 hex digits>\\n<JSON of that many bytes>

The nonce is the host's, so that no banner or print can be taken for an answer. An empty line from the host only says that
it lives, and is answered by one: by the host's clock, since the device's may run slower. When standard input closes, or
says nothing for `silence_s`, the host is gone: the agent ends its worker and itself. All is kept in the folder of this file:

    agent-DIGEST.py    files/DIGEST/    site/RUNTIME/    work/
"""

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

STABLE = 0.02  # warm-up ends when two windows of runs in a row have medians this close
WINDOW = (3, 10)  # runs in such a window: enough to fill WINDOW_NS
WINDOW_NS = 20000000
PROFILED_RUNS = 100  # at most, for times by node: they rank
NARROW = 0.002  # timing ends when the interval of the median is at most this wide, relative to it
STDERR_CHARS = 2000
FACT_BYTES = 1 << 16  # read of a file or a program that tells a fact
FACT_CHARS = 100  # of a fact that is text
REPLY_BYTES = 64 << 20
STORE_BYTES = 1 << 30  # of files kept for later; the least recently used go first
SPARE_BYTES = 64 << 20  # left free on the disk
LEASE = "/tmp/edgeprune-lease"  # one for all users of the board
UNPACKED_BYTES = 4 << 30
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # the latter comes from an sshd whose connection broke


# ------------------------------------------------------------------------------------------------------ serve


class Failed(Exception):
    """A job that cannot be done: `kind` is what the host is told."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def serve():
    """Answer requests on standard input until it closes."""
    for ending in ENDINGS:
        signal.signal(ending, lambda *_: sys.exit(1))
    host = Host()
    hello = host.next_request()
    host.nonce = hello["nonce"]
    host.silence_s = hello.get("silence_s")
    try:
        lease = take_lease(hello, host) if hello.get("token") else None
    except Failed as error:
        host.reply({"error": error.kind, "message": str(error)})
        return
    folder = work_folder(lease)
    try:
        undo()  # of an agent that was killed
        host.reply({"pid": os.getpid(), "boot_id": boot_id(), "left": left_changed()})
        while True:
            for job in host.next_request()["jobs"]:
                host.reply(dict(answer(job, folder, host), id=job["id"]))
    finally:
        undo()
        shutil.rmtree(folder, ignore_errors=True)
        del lease


def undo():
    """Put back what this agent changed on this machine, or one that is gone, by the commands that were written down before."""
    for path in undo_files():
        _, pid, boot = os.path.basename(path)[: -len(".json")].split("-", 2)
        if int(pid) == os.getpid() or boot != boot_id()[:8] or not os.path.exists("/proc/" + pid):
            put_back(path)


def undo_files():
    names = [name for name in listed(root()) if name.startswith("undo-") and name.endswith(".json")]
    return [os.path.join(root(), name) for name in names]


def put_back(path):
    """Run the commands in a file; those that fail stay in it, for the next agent to try, and are said."""
    with open(path) as file:
        commands = json.load(file)
    left = []
    for argv in commands:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            done = False
        if not done:
            left.append(argv)
            print("could not put back what was changed: %s" % " ".join(argv), file=sys.stderr)
    if left:
        write(path, json.dumps(left).encode())
    else:
        os.unlink(path)


def left_changed():
    """The commands that could not be put back."""
    found = []
    for path in undo_files():
        with open(path) as file:
            found += [" ".join(argv) for argv in json.load(file)]
    return found


def write_undo(commands):
    """Have the agent that this worker is of run these commands when it ends, before those that are there."""
    os.makedirs(root(), mode=0o700, exist_ok=True)
    path = os.path.join(root(), "undo-%d-%s.json" % (os.getppid(), boot_id()[:8]))
    if os.path.exists(path):
        with open(path) as file:
            commands = commands + json.load(file)
    write(path, json.dumps(commands).encode())


def root():
    """The agent's folder on a device; where this machine is the device and it runs from the package, one like it."""
    here = home()
    return here if os.path.basename(here) == ".edgeprune" else os.path.expanduser("~/.edgeprune")


def write(path, content):
    """A small file in one step, on the disk."""
    with open(path + ".new", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    sync(os.path.dirname(path))


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sha256(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            sha.update(part)
    return sha.hexdigest()


def work_folder(lease):
    """A folder for what passes through; who holds the lease clears away what a killed agent left."""
    if lease is None:
        return tempfile.mkdtemp(prefix="edgeprune-")
    work = os.path.join(home(), "work")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work, mode=0o700)
    return work


def answer(job, folder, host):
    """The reply to one job."""
    try:
        if job["mode"] in HERE:
            return HERE[job["mode"]](job)
        return run_worker(job, folder, host)
    except Failed as error:
        return {"error": error.kind, "message": str(error)[:STDERR_CHARS]}
    except OSError as error:
        return {"error": "system", "message": "%s: %s" % (job["mode"], error)}


class Host:
    """Standard input and output: lines in, frames out, and signs of life."""

    def __init__(self):
        self.nonce, self.silence_s = "", None
        self.heard = time.monotonic()
        self.buffer = b""
        self.lines = []

    def wait(self, others, until):
        """Wait for one of `others`, the host, or the time `until`: what of `others` is ready. Exits when the host is gone."""
        stops = [until, self.heard + self.silence_s] if self.silence_s else [until]
        ready = select.select([0, *others], [], [], max(0, min(stops) - time.monotonic()))[0]
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                sys.exit(1)
            self.heard = time.monotonic()
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            self.lines += [line for line in lines if line]
            if b"" in lines:
                self.say(b"\n")
        elif self.silence_s and time.monotonic() - self.heard > self.silence_s:
            sys.exit(1)
        return [other for other in others if other in ready]

    def next_request(self):
        while not self.lines:
            self.wait([], time.monotonic() + 3600)
        return json.loads(self.lines.pop(0))

    def reply(self, document):
        payload = json.dumps(document, allow_nan=False).encode()
        self.say(b"\nedgeprune %s %d %08x\n" % (self.nonce.encode(), len(payload), zlib.crc32(payload)) + payload)

    def say(self, data):
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the host is gone, and with it whoever could be told
            sys.exit(1)


def take_lease(hello, host):
    """Lock the board for this host; an agent that the same host lost to a dropped link makes way."""
    for flags in (os.O_RDWR | os.O_NOFOLLOW, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT):
        try:
            lock = os.open(LEASE, flags | os.O_CLOEXEC, 0o666)
            break
        except FileNotFoundError:
            continue
    with contextlib.suppress(PermissionError):
        os.fchmod(lock, 0o666)
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            held = lease_holder(lock)
            ours = held.get("token") == hello["token"]
            # Whoever left a moment ago may still be going, and may not leave a switch of releases half done.
            if time.monotonic() - start > (45 if ours else 1):
                raise Failed("busy", "in use by %s since %s" % (held.get("who"), held.get("since")))
            if ours:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(held["pid"], signal.SIGTERM)
            host.wait([], time.monotonic() + 0.1)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.ftruncate(lock, 0)
    os.pwrite(
        lock,
        json.dumps({"who": hello["who"], "token": hello["token"], "since": since, "pid": os.getpid()}).encode(),
        0,
    )
    return os.fdopen(lock)


def lease_holder(lock):
    try:
        return json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}


def home():
    """The folder that all is kept in."""
    return os.path.dirname(os.path.abspath(__file__))


KEPT = {}  # folder of files -> bytes, the least recently used first; read once


def room(job):
    """Whether files are here already; if not, that they fit, and what an earlier upload left of them.

    Where they do not fit, what was not used for longest makes way.
    """
    files = os.path.join(home(), "files")
    folder = os.path.join(files, job["folder"])
    if os.path.isdir(folder):
        os.utime(folder)
        KEPT[folder] = KEPT.pop(folder, 0)
        return {"there": True}
    if not KEPT:
        for entry in sorted(os.scandir(files), key=lambda entry: entry.stat().st_mtime):
            KEPT[entry.path] = sum(file.stat().st_size for file in os.scandir(entry.path))
    KEPT.pop(folder + ".part", None)
    for path in list(KEPT):
        if sum(KEPT.values()) + job["bytes"] <= STORE_BYTES and free_bytes() >= job["bytes"] + SPARE_BYTES:
            break
        shutil.rmtree(path, ignore_errors=True)
        del KEPT[path]
    if free_bytes() < job["bytes"] + SPARE_BYTES:
        shutil.rmtree(folder + ".part", ignore_errors=True)
        needed = job["bytes"] + SPARE_BYTES >> 20
        raise Failed("disk-full", "%d MB are needed at %s and %d MB are free" % (needed, home(), free_bytes() >> 20))
    os.makedirs(folder + ".part", mode=0o700, exist_ok=True)
    return {"there": False, "half": {entry.name: entry.stat().st_size for entry in os.scandir(folder + ".part")}}


def free_bytes():
    return shutil.disk_usage(home()).free


def accept(job):
    """Unpack uploaded files, and give them their final name once each of them is what was sent; drop them otherwise."""
    folder = os.path.join(home(), "files", job["folder"])
    part = folder + ".part"
    try:
        for name, (size, wanted) in job["files"].items():
            inflated(os.path.join(part, name), size, wanted)
        os.rename(part, folder)
        sync(os.path.dirname(folder))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    KEPT[folder] = sum(size for size, _ in job["files"].values())
    return {}


def sync(folder):
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def inflated(path, size, wanted):
    """Unpack path.z to path, which must have this size and SHA-256."""
    sha, unpacker = hashlib.sha256(), zlib.decompressobj()
    try:
        with open(path + ".z", "rb") as source, open(path, "wb") as target:
            data = source.read(1 << 20)
            while data and target.tell() <= size:
                plain = unpacker.decompress(data, 1 << 20)
                sha.update(plain)
                target.write(plain)
                data = unpacker.unconsumed_tail or source.read(1 << 20)
            target.flush()
            os.fsync(target.fileno())
            right = target.tell() == size and sha.hexdigest() == wanted
    except zlib.error:
        right = False
    if not right:
        raise Failed("damaged", "%s arrived damaged" % os.path.basename(path))
    os.unlink(path + ".z")


def drop(job):
    """Remove an upload that failed."""
    shutil.rmtree(os.path.join(home(), "files", job["folder"] + ".part"), ignore_errors=True)
    return {}


def examine(job):
    """What the doctor asks: what is here, and in what state."""
    return {
        "python": "%d.%d" % sys.version_info[:2],
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1] or "unknown",
        "free_bytes": free_bytes(),
        "clock_s": time.time(),
        "cores": len(os.sched_getaffinity(0)),
        "pip": has("pip"),
    }


def has(module):
    import importlib.util

    return importlib.util.find_spec(module) is not None


def install(job):
    """Put a runtime into site/RUNTIME: unpack wheels that the host pushed, or have this machine's pip fetch them."""
    site = os.path.join(home(), "site", job["runtime"])
    part = site + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part, mode=0o700)
    try:
        if job["wheels"]:
            for wheel in job["wheels"]:
                unpack(wheel, part)
        else:
            pip_install(job["requirements"], part, job["deadline_s"])
        shutil.rmtree(site, ignore_errors=True)
        os.rename(part, site)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {"site": site}


def unpack(wheel, folder):
    """A wheel's files; what would land outside the folder, or is a link, is refused."""
    with zipfile.ZipFile(wheel) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED_BYTES or size + SPARE_BYTES > free_bytes():
            raise Failed("disk-full", "%s unpacks to %d MB" % (os.path.basename(wheel), size >> 20))
        for entry in archive.infolist():
            target = os.path.realpath(os.path.join(folder, entry.filename))
            if not target.startswith(os.path.realpath(folder) + os.sep) or entry.external_attr >> 28 == 0o12:
                raise Failed("wheel", "%s holds a file outside of itself" % os.path.basename(wheel))
            archive.extract(entry, folder)
    for data in [name for name in os.listdir(folder) if name.endswith(".data")]:
        for kind in ("purelib", "platlib"):
            source = os.path.join(folder, data, kind)
            for name in os.listdir(source) if os.path.isdir(source) else ():
                shutil.move(os.path.join(source, name), os.path.join(folder, name))
        shutil.rmtree(os.path.join(folder, data))


def pip_install(requirements, folder, deadline_s):
    argv = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*argv, "--only-binary=:all:", "--target", folder, "--", *requirements],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        raise Failed("pip", "pip took over %g s" % deadline_s)
    if done.returncode:
        raise Failed("pip", done.stderr.decode("utf-8", "backslashreplace").strip()[-STDERR_CHARS:])


def run_worker(job, folder, host):
    """One job in a fresh process of its own group: its reply, or an error that says how it ended."""
    until = time.monotonic() + job["deadline_s"]
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(dir=folder) as errors:
        worker = subprocess.Popen(
            [sys.executable, *(["-I"] if sys.flags.isolated else []), os.path.abspath(__file__), "work", str(writer)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            pass_fds=[writer],
            start_new_session=True,
            cwd=folder,
        )
        os.close(writer)
        try:
            try:
                worker.stdin.write(json.dumps(job).encode())
                worker.stdin.close()
            except BrokenPipeError:
                pass  # it ended before it read the job: its exit status says why
            reply, late = read_reply(reader, until, host)
        except SystemExit:
            if job.get("finishes"):  # the host is gone, and half done would be worse
                for ending in ENDINGS:
                    signal.signal(ending, signal.SIG_IGN)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(max(0, until - time.monotonic()))
            raise
        finally:
            os.close(reader)
            end(worker)
        if late:
            return {"error": "deadline", "message": "the job took over %g s" % job["deadline_s"]}
        if reply:
            return json.loads(reply)
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - STDERR_CHARS))
        said = errors.read().decode("utf-8", "backslashreplace").strip()
    if worker.returncode == -signal.SIGKILL:
        return {"error": "killed", "message": "the process was killed (out of memory?); " + said}
    if worker.returncode < 0:
        return {"error": "killed", "message": "the process died of signal %d; %s" % (-worker.returncode, said)}
    return {"error": "run", "message": "the process ended with %d and no reply; %s" % (worker.returncode, said)}


def read_reply(reader, deadline, host):
    """All that the worker writes until it closes the pipe, and whether it was late."""
    parts, size = [], 0
    while time.monotonic() < deadline:
        if host.wait([reader], deadline):
            part = os.read(reader, 1 << 20)
            if not part:
                return b"".join(parts), False
            parts.append(part)
            size += len(part)
            if size > REPLY_BYTES:
                break
    return b"", True


def end(worker):
    """Make sure that the worker and all it started are gone."""
    try:
        worker.wait(0.5)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    worker.wait()


# ------------------------------------------------------------------------------------------------------- work


def work(writer):
    """Do the job on standard input and write its reply to the pipe."""
    job = json.load(sys.stdin)
    if not job.get("finishes"):
        die_with_the_agent()
    site = os.path.join(home(), "site", job["runtime"])
    if os.path.isdir(site):
        sys.path.insert(0, site)
    try:
        modes = {"identify": identify, "state": state, "time": time_runs, "outputs": outputs}
        for path in job.get("parts", ()):
            modes.update(load_part(path))
        reply = modes[job["mode"]](job)
    except Failed as error:
        reply = {"error": error.kind, "message": str(error)[:STDERR_CHARS]}
    except MemoryError:
        reply = {"error": "memory", "message": "out of memory"}
    except OSError as error:
        reply = {"error": "system", "message": "%s: %s" % (job["mode"], error)}
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(reply, allow_nan=False).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no runtime tears down its threads now: some hang or crash there


def load_part(path):
    """Another file of the agent's, which few jobs need: the modes that it adds. It knows this one as `agent`."""
    return loaded_module(path, agent=sys.modules[__name__]).MODES


def loaded_module(path, **names):
    """A file as a module that knows these names."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(os.path.basename(path)[: -len(".py")], path)
    module = module_from_spec(spec)
    vars(module).update(names)
    spec.loader.exec_module(module)
    return module


def die_with_the_agent():
    """An agent that is killed can end nobody: the kernel does it (prctl PR_SET_PDEATHSIG)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def identify(job):
    """What this machine is."""
    return {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        # Major and minor: a patch release of the kernel does not make a board another one.
        "system": "%s %s" % (platform.system(), ".".join(platform.release().split(".")[:2])),
        "runtime": job["runtime"],
        "runtime_version": RUNTIMES[job["runtime"]].version(),
        "boot_id": boot_id(),
        "serial": hashlib.sha256(
            (first_line("/etc/machine-id") + first_line("/proc/device-tree/serial-number")).encode()
        ).hexdigest()[:16],
        # qemu's machine without a model of its own: only software runs it at this clock.
        "emulated": "linux,dummy-virt" in first_line("/proc/device-tree/compatible"),
        "simulated": getattr(RUNTIMES[job["runtime"]], "simulated", lambda: False)(),
    }


def boot_id():
    return first_line("/proc/sys/kernel/random/boot_id") or "unknown"


def cpu_name():
    """The processor's name, by /proc/cpuinfo, the device tree, or its part number."""
    fields = {}
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    parts = (fields.get("CPU implementer"), fields.get("CPU part"))
    return (
        fields.get("model name")
        or first_line("/proc/device-tree/model")
        or (all(parts) and "%s/%s" % parts)
        or platform.processor()
        or "unknown"
    )


def first_line(path):
    """The first line of a small file, or an empty string."""
    try:
        with open(path) as file:
            return file.readline(1000).strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        return ""


def state(job):
    """The state that times would be taken in now."""
    return {"conditions": conditions(RUNTIMES[job["runtime"]])}


def conditions(runtime):
    """The state that times are taken in; a fact that this machine does not tell is left out."""
    found = {"boot_id": boot_id(), "load": os.getloadavg()[0]}
    zones = [first_line("/sys/class/thermal/%s/temp" % name) for name in listed("/sys/class/thermal")]
    temperatures = [int(value) for value in zones if value.lstrip("-").isdigit()]
    if temperatures:
        found["temperature_mc"] = max(temperatures)
    cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq/"
    governor, frequency = first_line(cpufreq + "scaling_governor"), first_line(cpufreq + "scaling_cur_freq")
    if governor:
        found["governor"] = governor
    if frequency.isdigit():
        found["frequency_khz"] = int(frequency)
    for name, value in (("os", os_name()), ("firmware", firmware()), ("throttled", vcgencmd_throttled())):
        if value is not None:
            found[name] = value
    if hasattr(runtime, "conditions"):
        found.update(runtime.conditions())
    return found


def listed(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def os_name(places=("/etc/os-release", "/usr/lib/os-release")):
    """The operating system and its release, as it names itself to people (os-release(5)), or None."""
    for place in places:
        try:
            with open(place, encoding="utf-8", errors="replace") as file:
                lines = file.read(FACT_BYTES).splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip("\"'")[:FACT_CHARS] or None
    return None


def firmware(jetson="/etc/nv_tegra_release"):
    """What a board has below the operating system: a Raspberry Pi's firmware, a Jetson's L4T; elsewhere None."""
    said = vcgencmd("version")
    lines = [line.strip() for line in (said or "").splitlines()]
    told = [line for line in lines if line.startswith("version ")] or [first_line(jetson).lstrip("# ")]
    return told[0][:FACT_CHARS] or None


def vcgencmd_throttled():
    """A Raspberry Pi's throttling flags: bits 0 to 3 now, 16 to 19 since boot; elsewhere None."""
    said = vcgencmd("get_throttled")
    try:
        return None if said is None else int(said.strip().partition("throttled=")[2], 16)
    except ValueError:
        return None


def vcgencmd(question):
    """What a Raspberry Pi's firmware answers; None elsewhere."""
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        said = subprocess.run([tool, question], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
        return said.stdout[:FACT_BYTES].decode("ascii", "replace")
    except (subprocess.TimeoutExpired, OSError):
        return None


def time_runs(job):
    """Whole-network times of models without a profiler, the conditions around them and, where asked for, times by node after.

    Several models take turns in one process: whatever slows this machine for a moment, slows all of them.
    """
    runtime = RUNTIMES[job["runtime"]]
    if job.get("prepare"):
        runtime.prepare(job["prepare"])
    before = conditions(runtime)
    if hasattr(runtime, "measured"):  # by a program of its own
        replies, peak = runtime.measured(job)
    else:
        replies = take_turns([model.run for model in [runtime(job, path) for path in job["models"]]], job)
        peak = peak_memory()
    after = conditions(runtime)
    for reply, path in zip(replies, job.get("profiled", ())):
        reply["nodes"] = runtime.profile(job, path)
    return {"models": replies, "peak_memory_bytes": peak, "before": before, "after": after}


def scheduled():
    """How long this process has waited for a processor that others had, and how often it got one (Linux, sched-stats)."""
    fields = first_line("/proc/self/schedstat").split()
    return (int(fields[1]), int(fields[2])) if len(fields) == 3 else (0, 0)


def take_turns(runs, job):
    """Warm each up until it is stable, then time them in turns, one inference after the other: for each the nanoseconds in the
    order taken, and how long and how often it waited for a processor."""
    clock = time.perf_counter_ns
    for run in runs:
        warm_up(run, job, clock)
    gc.collect()
    gc.disable()
    replies = [{"times_ns": [], "waited_ns": 0, "waits": 0} for _ in runs]
    start, fewest, check = clock(), 0, job["runs_min"]
    spent = int(job["timed_s"] * 1e9) * len(runs)
    while fewest < job["runs_max"] and (fewest < job["runs_min"] or clock() < start + spent):
        for run, reply in zip(runs, replies):
            if len(runs) > 1:
                run()  # the others have used the caches
            waited, waits = scheduled()
            reply["times_ns"] += window(run, clock)
            now = scheduled()
            reply["waited_ns"] += now[0] - waited
            reply["waits"] += now[1] - waits
        fewest = min(len(reply["times_ns"]) for reply in replies)
        if fewest >= check and clock() > start + spent // 2:  # a few alike within a moment say little
            if all(narrow(reply["times_ns"]) for reply in replies):
                break
            check = 2 * fewest
    gc.enable()
    return replies


def warm_up(run, job, clock):
    until, last = clock() + int(job["warmup_s"] * 1e9), None
    while True:
        middle = median(window(run, clock))
        if (last and abs(middle - last) <= STABLE * last) or clock() > until:
            return
        last = middle


def repeat(run, job):
    """The times of one alone, in nanoseconds."""
    return take_turns([run], job)[0]["times_ns"]


def window(run, clock):
    times = []
    while len(times) < WINDOW[0] or (len(times) < WINDOW[1] and sum(times) < WINDOW_NS):
        times.append(timed(run, clock))
    return times


def median(times):
    return sorted(times)[len(times) // 2]


def middle_mean(times):
    """The mean of the middle half: finer than the clock's ticks, and blind to the runs that something disturbed."""
    ordered = sorted(times)
    middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    return sum(middle) // len(middle)


def narrow(times):
    """Whether the distribution-free 95 % interval of the median (binomial, normal approximation) is narrow enough."""
    ordered, n = sorted(times), len(times)
    half = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half))]
    return high - low <= NARROW * ordered[n // 2]


def timed(run, clock):
    """One inference in nanoseconds, at least one: a clock may tick slower than that."""
    start = clock()
    run()
    return max(1, clock() - start)


def outputs(job):
    """Run stacked samples from `start` on, as many as time and bytes allow; replies with the files of their outputs."""
    import numpy

    for name in listed("."):
        if name.startswith("output-"):  # of an earlier job, and fetched by now
            os.unlink(name)
    model = RUNTIMES[job["runtime"]](job, job["models"][0], first=True)
    stacked = [numpy.load(path, allow_pickle=False, mmap_mode="r") for path in job["inputs"]]
    results, size, until, spent = [], 0, time.monotonic() + job["most_s"], 0.0
    for i in range(job["start"], len(stacked[0])):
        start = time.monotonic()
        result = model.call([numpy.ascontiguousarray(array[i]) for array in stacked])
        spent = time.monotonic() - start  # of the last one: the first may set things up
        results.append(result[: job["outputs"]])
        size = max(size, *(array.nbytes for array in results[-1]))
        if time.monotonic() > until or size * (len(results) + 1) > job["most_bytes"]:
            break
    files = []
    for i in range(job["outputs"]):
        files.append(os.path.abspath("output-%d.npy" % i))
        numpy.save(files[-1], numpy.stack([result[i] for result in results]), allow_pickle=False)
    return {"count": len(results), "files": files, "spent_s": spent}


def peak_memory():
    """The most memory this process ever held, in bytes."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------------------------------- runtimes


def load_inputs(job, first):
    """The inputs of a job; of stacked ones, the first."""
    import numpy

    arrays = [numpy.load(path, allow_pickle=False) for path in job["inputs"]]
    return [numpy.ascontiguousarray(array[0] if first else array) for array in arrays]


class OnnxRuntime:
    """ONNX Runtime on the CPU, one inference at a time."""

    def __init__(self, job, path, first=False, profiling=False):
        module = self.module()
        options = module.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.enable_profiling = profiling
        options.profile_file_prefix = os.path.abspath("profile")
        try:
            self.session = module.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding's exceptions have no common base of their own
            raise Failed("load", "onnxruntime cannot load the model: %s" % error)
        self.names = [value.name for value in self.session.get_inputs()]
        feed = dict(zip(self.names, load_inputs(job, first)))
        self.run = lambda: self.session.run(None, feed)

    @staticmethod
    def module():
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home, from 1.32 on
        try:
            import onnxruntime
        except ImportError as error:
            raise Failed("runtime-missing", "onnxruntime cannot be imported: %s" % error)
        onnxruntime.set_default_logger_severity(3)
        return onnxruntime

    @classmethod
    def version(cls):
        return cls.module().__version__

    def call(self, inputs):
        return self.session.run(None, dict(zip(self.names, inputs)))

    @classmethod
    def profile(cls, job, path):
        """Nanoseconds a run and node. Event times are whole microseconds, cut off: half of one is added back."""
        model = cls(job, path, profiling=True)
        repeat(model.run, dict(job, timed_s=job["profiled_s"], runs_max=PROFILED_RUNS))
        report = model.session.end_profiling()
        with open(report) as file:
            events = json.load(file)
        os.unlink(report)
        runs = sum(event.get("name") == "model_run" for event in events)
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
        # Every run executes the same nodes in the same order; nodes that the optimiser added may share a name.
        return [
            {
                "name": node["name"][: -len("_kernel_time")],
                "ns": middle_mean([1000 * event["dur"] + 500 for event in nodes[i :: len(nodes) // runs]]),
            }
            for i, node in enumerate(nodes[: len(nodes) // runs])
        ]


class OpenVino:
    """OpenVINO on the CPU, one stream; in the precision that the file asks for, since CPUs with bf16 would slip into it."""

    def __init__(self, job, path, first=False, profiling=False):
        module = self.module()
        settings = {
            "INFERENCE_NUM_THREADS": job["threads"],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profiling,
        }
        asked = ["runtime_options", "INFERENCE_PRECISION_HINT"]
        try:
            core = module.Core()
            network = core.read_model(path)
            precision = str(network.get_rt_info(asked).astype(str)) if network.has_rt_info(asked) else "f32"
            self.compiled = core.compile_model(network, "CPU", dict(settings, INFERENCE_PRECISION_HINT=precision))
        except RuntimeError as error:
            raise Failed("load", "openvino cannot load the model: %s" % error)
        self.request = self.compiled.create_infer_request()
        self.inputs = load_inputs(job, first)
        for i, array in enumerate(self.inputs):
            self.request.set_input_tensor(i, module.Tensor(array, shared_memory=True))
        self.run = self.request.infer

    @staticmethod
    def module():
        try:
            import openvino
        except ImportError as error:
            raise Failed("runtime-missing", "openvino cannot be imported: %s" % error)
        return openvino

    @classmethod
    def version(cls):
        return cls.module().__version__.split("-")[0]

    def call(self, inputs):
        results = self.request.infer(inputs)
        return [results[i].copy() for i in range(len(self.compiled.outputs))]

    @classmethod
    def profile(cls, job, path):
        """Mean nanoseconds a run and node, with the names of the nodes fused into it."""
        model = cls(job, path, profiling=True)
        model.run()
        first = model.mean_ns()
        runs = 1

        def counted():
            nonlocal runs
            model.run()
            runs += 1

        repeat(counted, dict(job, timed_s=job["profiled_s"], runs_max=PROFILED_RUNS))
        fused = {}
        for op in model.compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            names = str(info["originalLayersNames"].astype(str)) if "originalLayersNames" in info else ""
            fused[op.get_friendly_name()] = [name for name in names.split(",") if name]
        return [
            {"name": name, "ns": without_first(mean, runs, first.get(name, 0)), "fused": fused.get(name, [])}
            for name, mean in model.mean_ns().items()
        ]

    def mean_ns(self):
        """Nanoseconds by node that was executed: the mean over every run since the model was compiled."""
        return {
            node.node_name: node.real_time.total_seconds() * 1e9
            for node in self.request.profiling_info
            if node.status == node.EXECUTED
        }


def without_first(mean, runs, first):
    """The mean of all runs but the first, which allocates and may take ten times as long."""
    return max(0, round((runs * mean - first) / (runs - 1)))


class TfLite:
    """LiteRT, or its older package, on the CPU with XNNPACK."""

    def __init__(self, job, path, first=False):
        self.load(job, model_path=path)
        self.slots = [(detail["index"], detail["dtype"]) for detail in self.interpreter.get_input_details()]
        self.results = [detail["index"] for detail in self.interpreter.get_output_details()]
        self.set_inputs(load_inputs(job, first))

    def load(self, job, **source):
        try:
            self.interpreter = self.module().Interpreter(num_threads=job["threads"], **source)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Failed("load", "tflite cannot load the model: %s" % error)
        self.run = self.interpreter.invoke

    def set_inputs(self, arrays):
        for (slot, dtype), array in zip(self.slots, arrays):
            # The converter makes 32-bit integers of 64-bit ones, which is what torch counts tokens in.
            self.interpreter.set_tensor(slot, array.astype(dtype) if array.dtype.kind == "i" else array)

    @staticmethod
    def module():
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            try:
                from tflite_runtime import interpreter
            except ImportError:
                raise Failed("runtime-missing", "ai_edge_litert cannot be imported: %s" % error)
        return interpreter

    @classmethod
    def version(cls):
        from importlib.metadata import version

        name = cls.module().__name__.partition(".")[0].replace("_", "-")
        return version(name) if name == "ai-edge-litert" else "%s %s" % (name, version(name))

    def call(self, inputs):
        self.set_inputs(inputs)
        self.run()
        return [self.interpreter.get_tensor(index) for index in self.results]

    @classmethod
    def profile(cls, job, path):
        """Nanoseconds by operator. Python sees no profiler here, so the host cut the model into one file an operator."""
        with open(path, "rb") as file:
            operators = json.loads(file.readline())
            found, known = [], {}
            for operator in operators:
                content = file.read(operator["bytes"])
                if content not in known:  # the same operator at the same shapes takes the same time
                    alone = cls.__new__(cls)
                    alone.load(job, model_content=content)
                    for detail in alone.interpreter.get_input_details():
                        alone.interpreter.tensor(detail["index"])()[...] = (
                            0.5 if detail["dtype"]().dtype.kind == "f" else 0
                        )
                    share = job["profiled_s"] / len(operators)
                    known[content] = median(repeat(alone.run, dict(job, timed_s=share, warmup_s=share, runs_max=50)))
                found.append({"name": operator["name"], "ns": known[content]})
        return found


class Null:
    """No runtime at all: the model is a JSON file {"ns": a run} and its output is its input. For tests of all the rest."""

    def __init__(self, job, path, first=False):
        with open(path) as file:
            self.model = json.load(file)

    @staticmethod
    def version():
        return "0"

    def run(self):
        until = time.perf_counter_ns() + self.model["ns"]
        while time.perf_counter_ns() < until:
            pass
        if self.model.get("raises"):
            os.kill(os.getpid(), self.model["raises"])
        if self.model.get("hangs"):
            time.sleep(self.model["hangs"])

    def call(self, inputs):
        return inputs

    @classmethod
    def profile(cls, job, path):
        return [{"name": "null", "ns": cls(job, path).model["ns"]}]


RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino, "tflite": TfLite, "null": Null}
HERE = {"room": room, "accept": accept, "drop": drop, "examine": examine, "install": install}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        work(int(sys.argv[2]))
