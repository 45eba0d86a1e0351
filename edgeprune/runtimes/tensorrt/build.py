"""Build engines on the device, from ONNX, and keep them there.

    ~/.edgeprune/engines/
      KEY.plan, KEY.json      by digest of model, TensorRT, GPU and flags; the least recently used are dropped
      timing-KEY.cache        TensorRT's measurements of its kernels: they repeat its choice at every build

It travels to devices: standard library and TensorRT, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import machine
from ..device import Failed, Options
from ..timing import median
from . import jetson, tool
from .engine import Engine
from .log import REASONS
from .trtexec import build_argv, builder_flags, fallbacks_of, run_argv, time_argv, times_of

BUILT_S: list[float] = []  # the seconds of each build of this process
ENGINE_BYTES = 2 << 30  # of engines that are kept
TIMED_RUNS = 30  # of one process: processes differ by more than their runs do


@dataclass(frozen=True)
class Built:
    """An engine's file, its timing cache, and the layers that the DLA could not run."""

    plan: str
    cache: str
    fallbacks: list[str]


def how_to_build(path: str) -> dict[str, Any]:
    """The build.json beside a model: precision, inputs, outputs, and how many engines to choose from."""
    place = os.path.join(os.path.dirname(path), "build.json")
    if not os.path.exists(place):
        raise Failed("load", f"there is no build.json beside {os.path.basename(path)}")
    found: dict[str, Any] = json.loads(tool.read(place))
    return found


def engine_of(path: str, options: Options) -> str:
    """The engine of model.onnx for this device: a kept one, or a new one."""
    version, _ = tool.known_version()
    build, board = how_to_build(path), jetson.board()
    with open(path, "rb") as file:
        content = json.dumps([version, board, options.dla, build]).encode() + file.read()
    key = hashlib.sha256(content).hexdigest()[:32]
    folder = os.path.join(machine.root(), "engines")
    cache = os.path.join(
        folder, f"timing-{hashlib.sha256(json.dumps([version, board]).encode()).hexdigest()[:16]}.cache"
    )
    os.makedirs(folder, mode=0o700, exist_ok=True)
    plan, facts = os.path.join(folder, key + ".plan"), os.path.join(folder, key + ".json")
    if os.path.exists(plan) and os.path.exists(facts):
        os.utime(plan)
        return plan
    best = fastest(path, build, cache, options)
    _keep(best.plan, plan)
    _keep(best.cache, cache)
    machine.write(facts, json.dumps({"version": version, "board": board, "fallbacks": best.fallbacks}).encode())
    _drop_oldest(folder, plan)
    return plan


def fallbacks(plan: str) -> int:
    """How many layers of a kept engine the DLA could not run."""
    return len(json.loads(tool.read(plan[: -len(".plan")] + ".json"))["fallbacks"])


def _keep(made: str, kept: str) -> None:
    if os.path.exists(made):
        shutil.move(made, kept + ".new")
        machine.sync(kept + ".new")
        os.replace(kept + ".new", kept)


def _drop_oldest(folder: str, kept: str) -> None:
    """Drop the least recently used engines until the others fit."""
    plans = [os.path.join(folder, name) for name in machine.listed(folder) if name.endswith(".plan")]
    size = sum(map(os.path.getsize, plans))
    for plan in sorted(plans, key=os.path.getmtime):
        if size > ENGINE_BYTES and plan != kept:
            size -= os.path.getsize(plan)
            machine.remove(plan)
            machine.remove(plan[: -len(".plan")] + ".json")


def fastest(path: str, build: Mapping[str, Any], known: str, options: Options) -> Built:
    """Build several engines of one network and return the fastest.

    The first build uses the timing cache of earlier builds, and chooses as they did. The others time all kernels again.
    """
    best: Built | None = None
    least = 0
    for number in range(build["builds"]):
        plan, cache = os.path.abspath(f"engine-{number}.plan"), os.path.abspath(f"timing-{number}.cache")
        machine.remove(cache)
        if number == 0 and os.path.exists(known):
            shutil.copyfile(known, cache)
        made = Built(plan, cache, _build(path, plan, cache, build["precision"], options.dla))
        if best is not None and machine.sha256(plan) == machine.sha256(best.plan):
            continue
        spent = typical_ns(plan, build, options) if build["builds"] > 1 else 0
        if best is None or spent < least:
            best, least = made, spent
    if best is None:
        raise Failed("load", 'build.json asks for no engine: "builds" must be 1 or more')
    return best


def _build(path: str, plan: str, cache: str, precision: str, dla: int | None) -> list[str]:
    """Build one engine: the layers that the DLA cannot run."""
    start = time.monotonic()
    if tool.trtexec() is None:
        found = built(path, plan, cache, precision, dla)
    else:
        arguments = build_argv(tool.known_version()[0], path, plan, cache, precision, dla)
        found = fallbacks_of(tool.run(arguments, "build", os.getcwd())[0])
    BUILT_S.append(time.monotonic() - start)
    return found


def typical_ns(plan: str, build: Mapping[str, Any], options: Options) -> int:
    """The median nanoseconds of an engine on arbitrary inputs."""
    if tool.trtexec() is None:
        with tool.understood("TensorRT"):
            return median(Engine(tool.module(), plan, build, options).timed([], TIMED_RUNS)[0])
    arguments = [*run_argv(tool.known_version()[0], plan, [], options.dla), *time_argv("best.json", TIMED_RUNS)]
    tool.run(arguments, "time", os.getcwd())
    with tool.understood("trtexec's times"):
        return median(times_of(tool.read("best.json"))[0])


def built(path: str, plan: str, cache: str, precision: str, dla: int | None) -> list[str]:
    """Build an engine by TensorRT's Python module, as `build_argv` makes trtexec do it.

    Returns:
        The layers that the DLA cannot run.
    """
    trt = tool.module()
    assert trt is not None
    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = _parsed(trt, builder, logger, path, _network_flags(trt, precision, dla))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_precision(trt, config, precision, dla)
    left = [] if dla is None else _use_dla(trt, config, network, dla)
    known = b""
    with contextlib.suppress(OSError), open(cache, "rb") as file:
        known = file.read()
    config.set_timing_cache(config.create_timing_cache(known), False)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise Failed("load", "TensorRT cannot build the model's engine")
    with open(plan, "wb") as file:
        file.write(bytes(made))
    with open(cache + ".new", "wb") as file:
        file.write(bytes(config.get_timing_cache().serialize()))
    os.replace(cache + ".new", cache)
    return left


def _network_flags(trt: Any, precision: str, dla: int | None) -> int:
    version = tool.known_version()[0]
    kinds = trt.NetworkDefinitionCreationFlag
    if builder_flags(version, precision, dla)[0]:
        return 1 << int(kinds.STRONGLY_TYPED)
    return 1 << int(kinds.EXPLICIT_BATCH) if version < (10, 0) else 0


def _parsed(trt: Any, builder: Any, logger: Any, path: str, flags: int) -> Any:
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            errors = "; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, REASONS)))
            raise Failed("load", f"TensorRT cannot parse the model: {errors}")
    return network


def _set_precision(trt: Any, config: Any, precision: str, dla: int | None) -> None:
    for flag in builder_flags(tool.known_version()[0], precision, dla)[1]:
        config.set_flag(getattr(trt.BuilderFlag, flag.upper()))
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)


def _use_dla(trt: Any, config: Any, network: Any, dla: int) -> list[str]:
    config.default_device_type, config.DLA_core = trt.DeviceType.DLA, dla
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return sorted(layer.name for layer in layers if not config.can_run_on_DLA(layer))
