"""Releases on the device: a signed bundle is checked, run, put into service, and taken out of it again.

A part of the agent (`agent` is the agent's module), done in a worker of its own. Standard library only; Python 3.8 and up.

    ~/.edgeprune/
      allowed_signers                   whose bundles are taken, in OpenSSH's format
      services/NAME/
        releases/DIGEST/                the files of a bundle; DIGEST is of its manifest.json, manifest.json.sig its signature
        current -> releases/DIGEST      what is in service
        previous -> releases/DIGEST     what a rollback goes back to
        switching                       while it is being switched: what to go back to
        lock

Whatever gets a name here is on the disk before, and a name changes hands by one rename. So a power cut at any moment leaves
the old release in service or the new one; who comes next finds `switching` and goes back to the old.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

agent = globals()["agent"]  # put there by the agent, which loads this

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
ENGINE = "engine.plan"  # TensorRT's, built here
NAMESPACE = "edgeprune"  # of signatures: one made for a mail or a commit is not valid here
MANIFEST_BYTES = 1 << 20
SAID_CHARS = 600
SAID_BYTES = 1 << 14
LISTED = 200  # releases told at most
FACTS = ("machine", "cpu", "cores")  # of a device, which its bundle must have been verified on


# ---------------------------------------------------------------------------------------------------- the jobs


def publish(job):
    """Take a bundle that lies in `source`: check it, run it, and only then give it its name. Nothing is switched."""
    with locked(job["service"]) as service:
        final, enrolled = os.path.join(service, "releases", job["digest"]), False
        if not os.path.isdir(final):
            part = final + ".part"
            made(part)
            try:
                manifest = copied(job["source"], part, job["digest"])
                first = not os.path.exists(signers())
                checked(part, job["digest"], candidate(part, job["signer"]) if first else signers())
                refuse_foreign(manifest, job["service"])
                refuse_older(manifest, service)
                prepare(part, manifest)
                run_check(part, manifest, job["check_s"])
                if first:
                    os.replace(candidate(part, job["signer"]), signers())
                    agent.sync(agent.root())
                    enrolled = True
                os.rename(part, final)
                agent.sync(os.path.dirname(final))
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        return {"enrolled": enrolled}


def activate(job):
    """Put a release into service: switch, run it through `current`, tell who serves it; back where any of it fails."""
    with locked(job["service"]) as service:
        old, before, new = pointed(service, "current"), pointed(service, "previous"), job["digest"]
        try:
            manifest = checked(os.path.join(service, "releases", new), new)
        except agent.Failed as error:
            raise agent.Failed(error.kind, "release %s is not put into service: %s; deploy again" % (new[:12], error))
        current = os.path.join(service, "current")
        if new == old:  # asked again, since the answer was lost, or to see that all is well
            return {"current": new, "previous": before, "check": run_check(current, manifest, job["check_s"])}
        state = {"old": old, "previous": before, "tell": job["tell"], "tell_s": job["tell_s"]}
        agent.write(os.path.join(service, "switching"), json.dumps(state).encode())
        try:
            if old:
                point(service, "previous", old)
            point(service, "current", new)
            found = run_check(current, manifest, job["check_s"])
            tell(service, state)
        except Exception as error:  # whatever it is, what is in service has to be what proved itself
            back = go_back(service)
            forget(service, job["keep"])
            raise agent.Failed("unhealthy", "%s; %s" % (error, back))
        drop(os.path.join(service, "switching"))
        forget(service, job["keep"])
        return {"current": new, "previous": pointed(service, "previous"), "check": found}


def releases(job):
    """What is on this device: every release of every service, and which of them are current and previous."""
    found = []
    services = os.path.join(agent.root(), "services")
    for name in agent.listed(services):
        with locked(name) as service:
            names = {kind: pointed(service, kind) for kind in ("current", "previous")}
            for digest in agent.listed(os.path.join(service, "releases")):
                if re.fullmatch("[0-9a-f]{64}", digest) and len(found) < LISTED:
                    found.append(told(service, name, digest, names))
    return {"releases": found}


def told(service, name, digest, names):
    folder = os.path.join(service, "releases", digest)
    reply = {"service": name, "digest": digest, "state": "kept"}
    for kind in ("previous", "current"):
        if names[kind] == digest:
            reply["state"] = kind
            reply["since_s"] = int(os.lstat(os.path.join(service, kind)).st_mtime)
    try:
        reply["manifest"] = checked(folder, digest)
    except agent.Failed as error:
        reply["damage"] = str(error)
    return reply


# ------------------------------------------------------------------------------------------------ what is checked


def signers():
    """Whose bundles are taken here: by the signer of the first one, and by whom somebody adds."""
    return os.path.join(agent.root(), "allowed_signers")


def candidate(part, signer):
    """The same of a first bundle, which is not taken yet."""
    path = os.path.join(part, ".signers")
    if not os.path.exists(path):
        agent.write(path, ('%s namespaces="%s" %s\n' % (NAMESPACE, NAMESPACE, signer)).encode())
    return path


def copied(source, part, digest):
    """The bundle's files, whole on the disk in `part`; its manifest."""
    manifest = loaded(source, digest)
    for name in (MANIFEST, SIGNATURE, *manifest["files"]):
        target = os.path.join(part, plain(name))
        try:
            with open(os.path.join(source, name), "rb") as reading, open(target, "wb") as writing:
                shutil.copyfileobj(reading, writing)
                writing.flush()
                os.fsync(writing.fileno())
        except FileNotFoundError:
            raise agent.Failed("refused", "the bundle lacks %s" % name)
    agent.sync(part)
    return manifest


def plain(name):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise agent.Failed("refused", "the bundle holds a file of the name %r" % name)
    return name


def loaded(folder, digest):
    """The manifest, which is what `digest` says."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            content = file.read(MANIFEST_BYTES)
    except OSError as error:
        raise agent.Failed("refused", "%s: %s" % (MANIFEST, error.strerror))
    if hashlib.sha256(content).hexdigest() != digest:
        raise agent.Failed("refused", "%s was altered: it is not the one that was signed" % MANIFEST)
    try:
        manifest = json.loads(content)
        entries = manifest["files"].items()
        assert all(isinstance(size, int) and isinstance(sha, str) for _, (size, sha) in entries)
        assert isinstance(manifest["created_s"], int) and isinstance(manifest["device"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise agent.Failed("refused", "%s is not a manifest" % MANIFEST)
    return manifest


def checked(folder, digest, by=None):
    """The manifest of a release, once its signature, by one who is allowed, and every file of it are what they were."""
    manifest = loaded(folder, digest)
    verify_signature(folder, by or signers())
    for name, (size, sha) in manifest["files"].items():
        path = os.path.join(folder, plain(name))
        if os.path.islink(path) or not os.path.isfile(path):
            raise agent.Failed("refused", "%s is missing" % name)
        if os.path.getsize(path) != size or agent.sha256(path) != sha:
            raise agent.Failed("refused", "%s was altered" % name)
    if manifest["runtime"] == "tensorrt" and by is None and not os.path.isfile(os.path.join(folder, ENGINE)):
        raise agent.Failed("refused", "%s is missing" % ENGINE)
    return manifest


def verify_signature(folder, allowed):
    """OpenSSH's own check of the signature."""
    argv = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", NAMESPACE, "-n", NAMESPACE]
    argv += ["-s", os.path.join(folder, SIGNATURE)]
    if not os.path.isfile(os.path.join(folder, SIGNATURE)):
        raise agent.Failed("refused", "the bundle is not signed")
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            done = subprocess.run(argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    except FileNotFoundError:
        raise agent.Failed("no-ssh-keygen", "there is no ssh-keygen to check signatures with")
    except subprocess.TimeoutExpired:
        raise agent.Failed("refused", "ssh-keygen took over 30 s to check the signature")
    if done.returncode:
        said = " ".join(done.stdout.decode("utf-8", "backslashreplace").split())[:SAID_CHARS]
        if "usage:" in said:
            raise agent.Failed("no-ssh-keygen", "the ssh-keygen is older than 8.1 and cannot check signatures")
        raise agent.Failed(
            "refused", "the signature is not by a key of %s (%s); add its line there" % (signers(), said)
        )


def refuse_foreign(manifest, service):
    """A bundle is for the service and the kind of device that it was verified on."""
    if manifest["service"] != service:
        raise agent.Failed("refused", "the bundle is of the service %r" % manifest["service"])
    own = {"machine": agent.platform.machine(), "cpu": agent.cpu_name(), "cores": len(os.sched_getaffinity(0))}
    for fact in FACTS:
        if manifest["device"].get(fact) != own[fact]:
            text = "the bundle was verified on another device: its %s is %r, this one's %r"
            raise agent.Failed("refused", text % (fact, manifest["device"].get(fact), own[fact]))


def refuse_older(manifest, service):
    """An old bundle, though signed, is no news: going back is what a rollback is for."""
    for digest in agent.listed(os.path.join(service, "releases")):
        known = age(os.path.join(service, "releases", digest), digest)
        if known >= manifest["created_s"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(known))
            why = "see to the clock of the machine that deploys, or roll back"
            raise agent.Failed("refused", "the bundle is older than one that is here, which is of %s; %s" % (when, why))


def prepare(folder, manifest):
    """What can only be made on this device, beside what was signed: TensorRT's engine."""
    if manifest["runtime"] == "tensorrt":
        engine = agent.RUNTIMES["tensorrt"].engine(os.path.join(folder, manifest["model"]), manifest["dla"])
        shutil.copyfile(engine, os.path.join(folder, ENGINE))
        agent.sync(os.path.join(folder, ENGINE))
        agent.sync(folder)


def run_check(folder, manifest, check_s):
    """Run the release as whoever serves it would: its runner's answer."""
    site = os.path.join(agent.root(), "site", manifest["runtime"])
    argv = [sys.executable, "-I", os.path.join(folder, "runner.py"), "--check", "--site", site]
    code, said = finished(argv, folder, check_s)
    if code is None:
        raise agent.Failed("unhealthy", "the release took over %g s to run" % check_s)
    if code:
        raise agent.Failed("unhealthy", "the release does not run: %s" % said[-SAID_CHARS:])
    try:
        return json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        raise agent.Failed("unhealthy", "the release gives no answer: %s" % said[-SAID_CHARS:])


def tell(service, state):
    """Have whoever serves `current` take it up."""
    if not state["tell"]:
        return
    try:
        code, said = finished(state["tell"], service, state["tell_s"])
    except OSError as error:
        raise agent.Failed("unhealthy", "[deploy] reload: %s" % error)
    if code is None:
        raise agent.Failed("unhealthy", "[deploy] reload took over %g s" % state["tell_s"])
    if code:
        raise agent.Failed("unhealthy", "[deploy] reload ended with %d: %s" % (code, said[-SAID_CHARS:]))


def finished(argv, folder, seconds):
    """A command's exit status and the end of what it said; None where it took too long, and then it is ended with all it
    started. What it leaves running in the background stays, and may hold its output open."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        output.seek(max(0, output.seek(0, os.SEEK_END) - SAID_BYTES))
        return code, output.read().decode("utf-8", "backslashreplace").strip()


# ---------------------------------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def locked(name):
    """A service's folder, which nobody else changes meanwhile; what a power cut left is cleared up."""
    service = os.path.join(agent.root(), "services", plain(name))
    made(os.path.join(service, "releases"))
    with open(os.path.join(service, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise agent.Failed("busy", "the releases of %s are being changed by another process; try again" % name)
        for left in agent.listed(os.path.join(service, "releases")):
            if left.endswith(".part"):
                shutil.rmtree(os.path.join(service, "releases", left), ignore_errors=True)
        for left in agent.listed(service):
            if left.endswith(".new"):
                os.unlink(os.path.join(service, left))
        if os.path.exists(os.path.join(service, "switching")):
            go_back(service)
        yield service


def go_back(service):
    """Undo a switch that did not come to its end: in words, what is in service now."""
    with open(os.path.join(service, "switching")) as file:
        state = json.load(file)
    for kind, digest in (("current", state["old"]), ("previous", state["previous"])):
        if digest:
            point(service, kind, digest)
        else:
            drop(os.path.join(service, kind))
    said = "back to %s" % state["old"][:12] if state["old"] else "nothing is in service, as before"
    try:
        if state["old"]:
            tell(service, state)
    except agent.Failed as error:
        said += ", but %s" % error
    drop(os.path.join(service, "switching"))
    return said


def pointed(service, kind):
    """The digest that `current` or `previous` points to, or None."""
    try:
        return os.path.basename(os.readlink(os.path.join(service, kind)))
    except OSError:
        return None


def point(service, kind, digest):
    """Have `current` or `previous` point to another release, in one step."""
    new = os.path.join(service, ".%s.new" % kind)
    agent.remove(new)
    os.symlink(os.path.join("releases", digest), new)
    os.replace(new, os.path.join(service, kind))
    agent.sync(service)


def forget(service, keep):
    """Drop the oldest releases, but neither the current nor the previous one."""
    releases = os.path.join(service, "releases")
    in_use = {pointed(service, "current"), pointed(service, "previous")}
    known = sorted((age(os.path.join(releases, digest), digest), digest) for digest in agent.listed(releases))
    for _, digest in known[: max(0, len(known) - keep)]:
        if digest not in in_use:
            shutil.rmtree(os.path.join(releases, digest), ignore_errors=True)


def age(folder, digest):
    """When a release was made; one that is damaged counts as the oldest."""
    try:
        return loaded(folder, digest)["created_s"]
    except agent.Failed:
        return 0


def drop(path):
    agent.remove(path)
    agent.sync(os.path.dirname(path))


def made(folder):
    """A folder, and those above it, on the disk."""
    if not os.path.isdir(folder):
        made(os.path.dirname(folder))
        os.mkdir(folder, 0o700)
        agent.sync(os.path.dirname(folder))


MODES = {"publish": publish, "activate": activate, "releases": releases}
