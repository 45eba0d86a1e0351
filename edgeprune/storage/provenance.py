"""What a result follows from, as digests: the user's files and settings, and the libraries that make something of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Project, Target, digest
from edgeprune.storage.store import file_sha256

LIBRARIES = "edgeprune", "torch", "onnx", "onnxruntime", "numpy"
SKIPPED = {"runs", "profiles", "__pycache__", "venv", "node_modules"}


def settings(project: Project, target: Target) -> str:
    """Digest of what an artifact follows from but for the device and the libraries of this machine: another runtime is no
    reason to train again, but to check. Of files and settings alone, so that no stage runs for it."""
    p, t = project, target
    network = contents(p), p.factory, p.inputs, p.lock, p.preprocess, p.importance
    data = p.train, p.valid, p.test, p.clean, p.augment, p.loss, p.metric, p.closed_loop
    training = p.epochs, p.learning_rate, p.ema, p.seed, str(p.budget)
    return digest([network, data, training, t.runtime, t.precision, t.threads, t.dla])


def sources(project: Project) -> str:
    """Digest of what the user's model and data are made of, and of the libraries that make something of it."""
    return digest([contents(project), {name: installed(name) for name in LIBRARIES}])


def contents(project: Project) -> dict[str, str]:
    """Digests of the Python files beside the project file, and of the weights.

    Data that the code reads from elsewhere is not seen; `--fresh` is for that. Raises `UsageError` where there are too many.
    """
    root = project.path.parent
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(root).parts)
    )
    if len(files) > LIMITS.source_files:
        raise UsageError(f"{root}: over {LIMITS.source_files} Python files; keep edgeprune.toml in a folder of its own")
    hashes = {path.relative_to(root).as_posix(): file_sha256(path) for path in files}
    if project.weights is not None:
        hashes["weights"] = file_sha256(project.weights) if project.weights.is_file() else "missing"
    return hashes


def state(target: Target) -> list[object]:
    """What a target asks of a Jetson, which what is measured follows from; nothing elsewhere."""
    asked: list[object] = [target.dla, target.power_mode, target.clocks_pinned, target.prepare]
    return asked if any(key is not None for key in asked) else []


def installed(package: str) -> str:
    """The version of a package, "none" where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
