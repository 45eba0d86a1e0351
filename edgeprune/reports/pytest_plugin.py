"""pytest's plugin: `assert latency(model, inputs, target="pi") <= "p90 5 ms"` in a project's own tests.

Loaded by every pytest where edgeprune is installed, so nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.devices.bench import Bench
    from edgeprune.records import Budget, Check, Samples

BARS = 10  # of a distribution
WIDTH = 40  # of the longest


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        'latency(target="local", strict=False): a test that measures, on this target; strict: what cannot be decided fails',
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test that measures has the marker, so that `-m "not latency"` leaves them out."""
    for item in items:
        if "latency" in getattr(item, "fixturenames", ()) and item.get_closest_marker("latency") is None:
            item.add_marker("latency")


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """What a failed comparison shows: the decision and the distribution behind it."""
    return left.explained() if isinstance(left, Latency) and isinstance(right, str) and op == "<=" else None


class Latency:
    """What a model takes on a device; `<= "5 ms"` measures it until that is decided at 95 % confidence."""

    def __init__(self, bench: Bench, model: Path, files: Sequence[Path], strict: bool) -> None:
        self._bench, self._model, self._files, self._strict = bench, model, files, strict
        self._samples: Samples | None = None
        self._check: Check | None = None

    def __le__(self, limit: str) -> bool:
        """Against "5 ms", of the median, or "p90 5 ms", "p99 5 ms". What stays open skips the test, or raises if strict."""
        from edgeprune.errors import InconclusiveError, UsageError
        from edgeprune.frontends import toml
        from edgeprune.records import Outcome
        from edgeprune.stages import check as checking

        budget: Budget = toml.read_budget("latency", limit)
        if budget.fraction is not None:
            raise UsageError(f"latency: {limit!r} is a share; compare with a time, such as '5 ms'")
        (self._samples,) = checking.timed(self._bench, [self._model], self._files, [budget])
        self._check = checking.against_budget(budget, self._samples, self._samples)
        if self._check.outcome is Outcome.INCONCLUSIVE:
            if self._strict:
                raise InconclusiveError("; ".join(self.explained()[:1]))
            pytest.skip(f"inconclusive: {self.explained()[0]}")
        return self._check.outcome is Outcome.PASS

    def explained(self) -> list[str]:
        """The last decision, and a bar for every part of the distribution."""
        assert self._check is not None and self._samples is not None
        check = self._check
        lines = [f"{check.name} is {check.value:.4g}, limit {check.limit:.4g} ({check.note})"]
        import numpy as np

        times = np.concatenate([run.times_ns for run in self._samples.runs]) / 1e6
        least, most = np.quantile(times, [0, 0.99])
        counts, edges = np.histogram(times, BARS, (least, most) if most > least else None)
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            lines.append(f"  {low:9.4g} to {high:9.4g} ms {'#' * round(WIDTH * count / max(counts))} {count}")
        return [*lines, f"  {sum(times > edges[-1])} of {len(times)} above, at most {times.max():.4g} ms"]


@pytest.fixture
def latency(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Latency]]:
    """`latency(model, inputs, target="local")`: a model on a device, to be compared with a budget.

    `model` is a network, compiled for the target's runtime, or the path of an artifact; `inputs` are example inputs. The
    device is held until the test ends. Raises the errors of `edgeprune.errors`.
    """
    marked, strict = _marked(request.node.get_closest_marker("latency"))
    with ExitStack() as stack:
        benches: dict[Path, Bench] = {}

        def measured(model: nn.Module | Path | str, inputs: Sequence[Tensor], target: str | None = None) -> Latency:
            from edgeprune.devices import bench
            from edgeprune.frontends import toml
            from edgeprune.limits import LIMITS

            to = toml.read_target(toml.find_target(target or marked, request.config.rootpath))
            if to.path not in benches:
                scratch = tmp_path / f"edgeprune-{len(benches)}"
                scratch.mkdir()
                opened = bench.open_bench(to, scratch, LIMITS.pytest_lease_s)
                benches[to.path] = stack.enter_context(opened)
            folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            files = benches[to.path].save_inputs([_array(tensor) for tensor in inputs], folder)
            own = folder / "artifact"
            own.mkdir()
            if isinstance(model, str | Path):
                path = _copied(Path(model), to.runtime, own)
            else:
                path = _compiled(model, inputs, to, own)
            return Latency(benches[to.path], path, files, strict)

        yield measured


def _marked(marker: pytest.Mark | None) -> tuple[str, bool]:
    """The target that a test's marker names, and whether it is strict."""
    from edgeprune.errors import UsageError

    def latency(target: str = "local", strict: bool = False) -> tuple[str, bool]:
        return target, strict

    if marker is None:
        return latency()
    try:
        return latency(*marker.args, **marker.kwargs)
    except TypeError as error:  # a misspelt argument that is dropped would change what is measured
        raise UsageError(f'@pytest.mark.latency: {error}; write latency(target="local", strict=True)') from None


# What an artifact of a runtime has beside the file to load, by that file's name.
BESIDE: Mapping[str, Callable[[Path], Path]] = {
    "openvino": lambda model: model.with_suffix(".bin"),
    "tensorrt": lambda model: model.with_name("build.json"),
}


def _copied(model: Path, runtime: str, folder: Path) -> Path:
    """An artifact in a folder of its own: a device is sent all that lies beside a model, and there may be anything."""
    from edgeprune.errors import UsageError

    files = [model] + ([BESIDE[runtime](model)] if runtime in BESIDE else [])
    for file in files:
        if not file.is_file():
            raise UsageError(f"latency: {file} is no file; give the path of an artifact for {runtime}")
        shutil.copyfile(file, folder / file.name)
    return folder / model.name


def _array(tensor: Tensor | Any) -> Any:
    import numpy as np

    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def _compiled(model: nn.Module, inputs: Sequence[Tensor], target: Any, folder: Path) -> Path:
    from edgeprune import runtimes
    from edgeprune.errors import UsageError
    from edgeprune.stages.compile import compile_model

    runtime = runtimes.RUNTIMES[target.runtime]
    precision = runtime.candidates(target.precision)[0]
    if target.precision not in ("fp32", "fp16"):
        raise UsageError(f"{target.path}: precision = {target.precision!r} needs data; give the path of an artifact")
    return compile_model(model.eval(), tuple(inputs), (), runtime, precision, folder, "").files[0]
