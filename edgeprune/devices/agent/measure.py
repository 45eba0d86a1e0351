"""Time models and compute their outputs, in a worker."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ...runtimes import machine, power
from ...runtimes.device import Array, Options, find_alone
from ...runtimes.timing import NodeTime, Run, Timing, warm_up
from ..validate import printable
from ..wire import Cycle, Energy, GetEnergy, GetOutputs, GetThroughput, Measurement, Outputs, Throughput, Time
from . import contention, undo
from .facts import conditions

PROFILED_RUNS = 100  # at most: times by node only rank the nodes
SETTLE_S = 0.2  # before energy is read: a sensor still averages over what was before
NODE_CHARS = 1 << 13
KIND_CHARS = 100


def time_models(job: Time) -> Measurement:
    """Time the models without a profiler, with the conditions before and after; then time nodes where the job asks."""
    runtime = find_alone(job.runtime)
    options, timing = Options(job.threads, job.dla), Timing(job.warmup_s, job.timed_s, job.runs_min, job.runs_max)
    if job.prepare:
        runtime.prepare(job.prepare.power_mode, job.prepare.jetson_clocks, undo.record)
    inputs = _loaded(job.inputs)
    before, begun = conditions(runtime), contention.snapshot()
    found, peak = runtime.measure(job.models, options, inputs, timing)
    after = {**conditions(runtime), **contention.between(begun, contention.snapshot(), os.getpid())}
    profiling = replace(timing, timed_s=job.profiled_s, runs_max=PROFILED_RUNS)
    for i, path in enumerate(job.profiled):
        nodes = runtime.profile(path, options, inputs, profiling)
        found[i] = replace(found[i], nodes=tuple(map(_safe, nodes)))
    return Measurement(tuple(found), peak, before, after)


def throughput(job: GetThroughput) -> Throughput:
    """Keep several inferences of a model running at the same time, with the conditions before and after."""
    runtime = find_alone(job.runtime)
    options, timing = Options(job.threads, job.dla, job.streams), Timing(job.warmup_s, job.timed_s, 1, 1)
    before = conditions(runtime)
    runs, spent_ns = runtime.throughput(job.model, options, _loaded(job.inputs), timing)
    return Throughput(runs, spent_ns, before, conditions(runtime))


def energy(job: GetEnergy) -> Energy:
    """The energy of idle windows and of windows that run a model, in turn, so that drift affects both."""
    runtime, meter = find_alone(job.runtime), power.meter()
    before = conditions(runtime)
    call = None
    if meter is not None:
        call = runtime.repeated(job.model, Options(job.threads, job.dla), _loaded(job.inputs))
    if meter is None or call is None:
        return Energy("", (), before, conditions(runtime))
    warm_up(call, Timing(job.warmup_s, job.window_s, 1, 1), time.perf_counter_ns)
    cycles = [_cycle(meter, call, job.window_s) for _ in range(job.cycles)]
    return Energy(printable(meter.source, KIND_CHARS), tuple(cycles), before, conditions(runtime))


def _cycle(meter: power.Meter, call: Run, window_s: float) -> Cycle:
    time.sleep(SETTLE_S)
    with power.Recorder(meter) as idle:
        time.sleep(window_s)
    _called(call, SETTLE_S)
    with power.Recorder(meter) as busy:
        runs = _called(call, window_s)
    return Cycle(idle.spent.uj, idle.spent.ns, busy.spent.uj, busy.spent.ns, runs)


def _called(call: Run, seconds: float) -> int:
    """Run a model for some time: how often."""
    until, runs = time.perf_counter_ns() + int(1e9 * seconds), 0
    while runs == 0 or time.perf_counter_ns() < until:
        call()
        runs += 1
    return runs


def _safe(node: NodeTime) -> NodeTime:
    """Names come from the model's file and may hold any character; the wire takes printable ones."""
    return NodeTime(
        printable(node.name, NODE_CHARS),
        node.ns,
        tuple(printable(name, NODE_CHARS) for name in node.fused),
        printable(node.kind, KIND_CHARS),
    )


def _loaded(paths: Sequence[str]) -> list[Array]:
    if not paths:
        return []
    import numpy

    return [numpy.array(numpy.load(path, allow_pickle=False), order="C") for path in paths]


def outputs(job: GetOutputs) -> Outputs:
    """Run samples until time or bytes are used up, and write a file for each output."""
    import numpy

    for name in machine.listed("."):
        if name.startswith("output-"):  # of an earlier job; the host has fetched it
            os.unlink(name)
    model = find_alone(job.runtime).load(job.model, Options(job.threads, job.dla))
    stacked = [numpy.load(path, allow_pickle=False, mmap_mode="r") for path in job.inputs]
    results: list[list[Array]] = []
    size, until, spent = 0, time.monotonic() + job.most_s, 0.0
    for i in range(job.start, len(stacked[0])):
        start = time.monotonic()
        result = model.call([numpy.ascontiguousarray(array[i]) for array in stacked])
        spent = time.monotonic() - start  # of the last call: the first may include a set-up
        results.append(result[: job.outputs])
        size = max(size, *(array.nbytes for array in results[-1]))
        if time.monotonic() > until or size * (len(results) + 1) > job.most_bytes:
            break
    files = []
    for i in range(job.outputs):
        files.append(os.path.abspath(f"output-{i}.npy"))
        numpy.save(files[-1], numpy.stack([result[i] for result in results]), allow_pickle=False)
    return Outputs(len(results), tuple(files), spent)
