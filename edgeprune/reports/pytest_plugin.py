"""The pytest plugin: `assert latency(model, inputs, target="pi") <= "p90 5 ms"` in a project's own tests.

Every pytest loads it where edgeprune is installed. So it imports nothing heavy before a test needs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.devices.bench import Bench
    from edgeprune.records import Check, Samples, Target
    from edgeprune.stages.verdicts.accuracy import Timer

BARS = 10  # of the distribution that a failed comparison shows
WIDTH = 40  # of its longest bar, in characters


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        'latency(target="local", strict=False): a test that measures on this target; strict: inconclusive fails',
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that measures, so that `-m "not latency"` leaves it out."""
    for item in items:
        if "latency" in getattr(item, "fixturenames", ()) and item.get_closest_marker("latency") is None:
            item.add_marker("latency")


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """What a failed comparison shows: the decision and the distribution of the times."""
    return left.explained() if isinstance(left, Latency) and isinstance(right, str) and op == "<=" else None


class Latency:
    """A model's latency on a device. `<= "5 ms"` measures it until that is decided at 95 % confidence."""

    def __init__(self, timer: Timer, model: Path, strict: bool) -> None:
        self._timer, self._model, self._strict = timer, model, strict
        self._samples: Samples | None = None
        self._check: Check | None = None

    def __le__(self, limit: str) -> bool:
        """Compare with "5 ms" (of the median), "p90 5 ms" or "p99 5 ms".

        An inconclusive comparison skips the test. If the marker is strict, it raises `InconclusiveError`.
        """
        from edgeprune.errors import InconclusiveError, UsageError
        from edgeprune.frontends import sections
        from edgeprune.records import Outcome
        from edgeprune.stages.verdicts import comparison, verdict

        budget = sections.read_budget("latency", limit)
        if budget.fraction is not None:
            raise UsageError(f"latency: {limit!r} is a share; compare with a time, such as '5 ms'")
        timed = comparison.time_budgets(self._timer, [self._model], [budget])
        self._samples, self._check = timed.samples, verdict.budget(budget, timed)
        if self._check.outcome is Outcome.INCONCLUSIVE:
            if self._strict:
                raise InconclusiveError(self.explained()[0])
            pytest.skip(f"inconclusive: {self.explained()[0]}")
        return self._check.outcome is Outcome.PASS

    def explained(self) -> list[str]:
        """The last comparison, and a histogram of the times."""
        assert self._check is not None and self._samples is not None
        check = self._check
        return [
            f"{check.name} is {check.value:.4g}, limit {check.limit:.4g} ({check.note})",
            *_histogram(self._samples),
        ]


def _histogram(samples: Samples) -> list[str]:
    """One bar for each part of the distribution up to p99, in milliseconds, and what is above."""
    import numpy as np

    times = np.concatenate([run.times_ns for run in samples.runs]) / 1e6
    least, most = np.quantile(times, [0, 0.99])
    counts, edges = np.histogram(times, BARS, (least, most) if most > least else None)
    bars = [
        f"  {low:9.4g} to {high:9.4g} ms {'#' * round(WIDTH * count / max(counts))} {count}"
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    return [*bars, f"  {sum(times > edges[-1])} of {len(times)} above, at most {times.max():.4g} ms"]


@pytest.fixture
def latency(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Latency]]:
    """`latency(model, inputs, target="local")`: a model on a device, to compare with a budget.

    `model` is a network, which is compiled for the target's runtime, or the path of an artifact. `inputs` are example inputs,
    (batch, ...) each. The device is leased until the test ends. Raises the errors of `edgeprune.errors`.

        def test_latency(latency):
            assert latency(Net(), (torch.rand(1, 3, 96, 96),), target="pi") <= "p90 5 ms"
    """
    marked, strict = _marked(request.node.get_closest_marker("latency"))
    with ExitStack() as stack:
        benches: dict[Path, Bench] = {}

        def measured(model: nn.Module | Path | str, inputs: Sequence[Tensor], target: str | None = None) -> Latency:
            from edgeprune.devices import bench
            from edgeprune.frontends import toml
            from edgeprune.limits import LIMITS
            from edgeprune.stages.verdicts.accuracy import Timer

            to = toml.read_target(toml.find_target(target or marked, request.config.rootpath))
            if to.path not in benches:
                scratch = tmp_path / f"edgeprune-{len(benches)}"
                scratch.mkdir()
                opened = bench.open_bench(to, scratch, LIMITS.pytest_lease_s)
                benches[to.path] = stack.enter_context(opened)
            folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
            own = folder / "artifact"
            own.mkdir(parents=True)
            files = benches[to.path].save_inputs([_array(tensor) for tensor in inputs], folder)
            if isinstance(model, str | Path):
                path = _copied(Path(model), to.runtime, own)
            else:
                path = _compiled(model, inputs, to, own)
            return Latency(Timer(benches[to.path], files), path, strict)

        yield measured


def _marked(marker: pytest.Mark | None) -> tuple[str, bool]:
    """The target of a test's marker, and whether it is strict. Raises `UsageError` for an unknown argument."""
    from edgeprune.errors import UsageError

    def latency(target: str = "local", strict: bool = False) -> tuple[str, bool]:
        return target, strict

    if marker is None:
        return latency()
    try:
        return latency(*marker.args, **marker.kwargs)
    except TypeError as error:  # to ignore a misspelt argument would change what is measured
        raise UsageError(f'@pytest.mark.latency: {error}; write latency(target="local", strict=True)') from None


def _copied(model: Path, runtime: str, folder: Path) -> Path:
    """Copy an artifact's files to a separate folder: a device is sent every file beside a model."""
    from edgeprune import runtimes
    from edgeprune.errors import UsageError

    for file in runtimes.host(runtime).files(model):
        if not file.is_file():
            raise UsageError(f"latency: {file} is no file; give the path of an artifact for {runtime}")
        shutil.copyfile(file, folder / file.name)
    return folder / model.name


def _array(tensor: Tensor | Any) -> Any:
    import numpy as np

    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def _compiled(model: nn.Module, inputs: Sequence[Tensor], target: Target, folder: Path) -> Path:
    from edgeprune import runtimes
    from edgeprune.errors import UsageError
    from edgeprune.stages.compile import Compiler

    runtime = runtimes.host(target.runtime)
    precision = runtime.candidates(target.precision)[0]
    if target.precision not in ("fp32", "fp16"):
        raise UsageError(f"{target.path}: precision = {target.precision!r} needs data; give the path of an artifact")
    return Compiler(runtime, precision).compile(model.eval(), tuple(inputs), (), folder, "").files[0]
