#!/usr/bin/env python3
"""A stand-in for NVIDIA's trtexec on machines without a GPU. It accepts and refuses the arguments that the real one does.

The stand-in parses the ONNX file, and runs it by ONNX Runtime on the CPU for times and outputs. It writes the files of trtexec
in their formats. Every banner says `[stand-in]`, and edgeprune marks all results from it `simulated`: they say nothing about a
Jetson. A file `standin-version` beside it holds the version that it stands for.

The flags are those of samples/common/sampleOptions.cpp in NVIDIA/TensorRT, at the tags in TAGS. The texts and formats are
those of sampleReporting.cpp there. This file must run without edgeprune, on Python 3.8 with onnx and onnxruntime.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, NamedTuple, Sequence

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"edgeprune stand-in plan\n"
TAGS = {(8, 5): "8.5.3", (8, 6): "v8.6.1", (10, 3): "v10.3.0", (10, 7): "v10.7.0", (10, 16): "v10.16", (11, 1): "v11.1"}
# The first and the last of these versions that parse a flag -> the flags.
RANGES = {
    ((8, 5), (11, 1)): "allowGPUFallback avgRuns avgTiming device directIO dumpLayerInfo dumpOutput dumpProfile "
    "dumpRefit duration exportLayerInfo exportOutput exportProfile exportTimes exposeDMA help idleTime inputIOFormats "
    "iterations loadEngine loadInputs maxShapes memPoolSize minShapes noBuilderCache noDataTransfers noTF32 onnx optShapes "
    "outputIOFormats percentile persistentCacheRatio plugins preview profilingVerbosity refit safe saveEngine "
    "separateProfileRun shapes sleepTime sparsity streams tacticSources threads timeDeserialize timeRefit timingCacheFile "
    "useCudaGraph useDLACore useManagedMemory useSpinWait verbose warmUp",
    ((8, 5), (10, 16)): "best calib fp16 int8 layerOutputTypes layerPrecisions maxShapesCalib minShapesCalib "
    "optShapesCalib precisionConstraints restricted",
    ((8, 5), (8, 6)): "batch buildOnly deploy explicitBatch explicitPrecision heuristic maxBatch minTiming model "
    "nvtxMode output uff uffInput uffNHWC workspace",
    ((8, 5), (10, 3)): "consistency",
    ((8, 6), (11, 1)): "buildDLAStandalone builderOptimizationLevel dumpRawBindingsToFile dynamicPlugins "
    "excludeLeanRuntime hardwareCompatibilityLevel ignoreParsedPluginLibs infStreams layerDeviceTypes leanDLLPath "
    "maxAuxStreams setPluginsToSerialize skipInference staticPlugins tempdir tempfileControls useRuntime vc "
    "versionCompatible",
    ((8, 6), (10, 16)): "fp8",
    ((10, 3), (11, 1)): "allocationStrategy allowWeightStreaming dumpOptimizationProfile errorOnTimingCacheMiss "
    "getPlanVersionOnly markDebug noCompilationCache pi pluginInstanceNorm profile runtimePlatform saveDebugTensors "
    "stripAllWeights stripWeights stronglyTyped useProfile weightStreamingBudget",
    ((10, 3), (10, 16)): "bf16 calibProfile int4 weightless",
    ((10, 7), (11, 1)): "asyncFileReader maxTactics monitorMemory",
    ((10, 16), (11, 1)): "adjustForDLA consistency cpuOnly decomposableAttentions distributiveIndependence "
    "dumpKernelText enablePluginOverride l2LimitForTiling markUnfusedTensorsAsDebugTensors refitFromOnnx "
    "remoteAutoTuningConfig reportCapabilityDLA safetyPlugins saveAllDebugTensors tilingOptimizationLevel "
    "uint8AsymmetricQuantizationDLA",
    ((11, 1), (11, 1)): "accuracyAlgorithm accuracyThreshold atol continue dryRun helpBuildRoute includeDataTransfers "
    "loadRefOutputs noCudaGraph noSpinWait refPair rtol saveAllEngines setBuildRoute tuneBuildRouteFile tuneBuildRoutes "
    "tuningCacheFile tuningResultFile tuningSearch tuningTimeOut",
}
FLAGS = {
    version: {flag for (first, last), flags in RANGES.items() if first <= version <= last for flag in flags.split()}
    for version in TAGS
}
ON_DLA = set("Conv Relu MaxPool AveragePool Add BatchNormalization Concat ConvTranspose Sigmoid Tanh".split())
ELEMENTWISE = set("Relu Clip Add Mul Sigmoid Tanh HardSwish HardSigmoid LeakyRelu".split())
# Operators whose layer takes the element-wise ones right behind them.
FUSING = ("Conv", "Gemm", "MatMul", "ConvTranspose")
QUANTISING = ("QuantizeLinear", "DequantizeLinear")
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}

Asked = Dict[str, str]  # flag -> value, "" for a switch
Feed = Dict[str, "np.ndarray"]


class Refused(Exception):
    """trtexec fails with these lines."""


def _version() -> tuple[int, ...]:
    try:
        return tuple(map(int, Path(__file__).with_name("standin-version").read_text().strip().split(".")))
    except OSError:
        return (10, 3, 0)


VERSION = _version()
FAMILY = max(family for family in FLAGS if family <= VERSION[:2])


def banner(kind: str) -> None:
    """Print the line that trtexec begins and ends with."""
    major, minor, patch = VERSION
    number = major * (10000 if major >= 10 else 1000) + minor * 100 + patch
    command = "trtexec " + " ".join(sys.argv[1:])
    print(f"&&&& {kind} TensorRT.trtexec [TensorRT v{number}] [stand-in] # {command}", flush=True)


def log(text: str, level: str = "I") -> None:
    """Print a line as trtexec does."""
    stream = sys.stderr if level in "WEF" else sys.stdout
    print(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{level}] {text}", file=stream, flush=True)


def options(arguments: Iterable[str]) -> Asked:
    """`--flag` and `--flag=value`, each at most once. Any other argument is refused."""
    found: Asked = {}
    unknown = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        name = flag[2:]
        if not flag.startswith("--") or name not in FLAGS[FAMILY] or name in found:
            unknown.append(f"{flag} {value}")
        else:
            found[name] = value
    if unknown:
        print_options()
        raise Refused(*(f"Unknown option: {text}" for text in unknown))
    return found


def print_options() -> None:
    print("=== Options ===\n" + "\n".join(f"  --{name}" for name in sorted(FLAGS[FAMILY])))


# ------------------------------------------------------------------------------------------------------ building


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: the nodes that it fuses."""

    name: str
    nodes: list[str]
    type: str


@dataclass(frozen=True)
class Plan:
    """An engine: the ONNX file, and what is reported about it. Only the version that built it loads it."""

    layers: Sequence[Layer]
    verbosity: str
    dla: str | None
    content: bytes

    def dump(self) -> bytes:
        """The file of the engine."""
        head = {"version": VERSION, "layers": [asdict(layer) for layer in self.layers]}
        text = json.dumps({**head, "verbosity": self.verbosity, "dla": self.dla})
        return MAGIC + text.encode() + b"\n" + self.content

    @classmethod
    def load(cls, data: bytes) -> Plan:
        """The engine of a file."""
        text, _, content = data[len(MAGIC) :].partition(b"\n")
        head = json.loads(text) if data.startswith(MAGIC) else {}
        if tuple(head.get("version", ())) != VERSION:
            broken = "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
            raise Refused(broken, "Engine deserialization failed", "Got invalid engine!", "Inference set up failed")
        return cls([Layer(**layer) for layer in head["layers"]], head["verbosity"], head["dla"], content)


def build(asked: Asked) -> Plan:
    """Build the engine of an ONNX file."""
    network, content = parsed(asked["onnx"])
    log("Finished parsing network model. Parse time: 0.0")
    refuse_types(network, asked)
    if "useDLACore" in asked:
        place_on_dla(network, asked)
    started = time.monotonic()
    session(content)  # the real tool could not build what ONNX Runtime cannot run
    verbosity = asked.get("profilingVerbosity", "layer_names_only")
    plan = Plan(fused(network), verbosity, asked.get("useDLACore"), content)
    if "timingCacheFile" in asked:
        Path(asked["timingCacheFile"]).touch()
    if "saveEngine" in asked:
        Path(asked["saveEngine"]).write_bytes(plan.dump())
    log(f"Engine built in {time.monotonic() - started:g} sec.")
    return plan


def parsed(path: str) -> tuple[Any, bytes]:
    """The network of an ONNX file, and the file's content."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        content = Path(path).read_bytes()
        network = onnx.load_from_string(content)
        onnx.checker.check_model(network)
        return network, content
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        failed = ("Failed to parse onnx file", "Parsing model failed", "Failed to create engine from model or file.")
        raise Refused(reason, *failed) from error


def refuse_types(network: Any, asked: Asked) -> None:
    """Refuse types that the flags do not allow, zero points and quantised biases, as the real builder does."""
    import onnx

    strong = VERSION >= (11, 0) or "stronglyTyped" in asked
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in network.graph.initializer)
    pairs = [node for node in network.graph.node if node.op_type in QUANTISING]
    if half and not strong and not {"fp16", "best"} & set(asked):
        raise Refused("Error Code 4: network has tensors of type Half but the FP16 builder flag is not set")
    if pairs and not strong and not {"int8", "best"} & set(asked):
        raise Refused("Error Code 4: network has Q/DQ layers but the INT8 builder flag is not set")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    for node in pairs:
        zero = values.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and (zero.dtype.name != "int8" or zero.any()):
            raise Refused(f"{node.name}: only symmetric quantisation to INT8 is supported: the zero point must be 0")


def fused(network: Any) -> list[Layer]:
    """The layers of the engine. Element-wise nodes right behind a convolution or product belong to its layer."""
    nodes = [node for node in network.graph.node if node.op_type not in (*QUANTISING, "Constant")]
    through = {node.output[0]: node.input[0] for node in network.graph.node if node.op_type in QUANTISING}
    owner: dict[str, list[Any]] = {}
    found: list[list[Any]] = []
    for node in nodes:
        first = node.input[0] if node.input else ""
        while first in through:
            first = through[first]
        group = owner.get(first)
        takes = group is not None and group[0].op_type in FUSING and group[-1].op_type != "Add"
        if group is None or not takes or node.op_type not in ELEMENTWISE:
            group = []
            found.append(group)
        group.append(node)
        owner.update(dict.fromkeys(node.output, group))
    names = [[node.name for node in group] for group in found]
    return [Layer(" + ".join(own), own, group[0].op_type) for own, group in zip(names, found)]


def place_on_dla(network: Any, asked: Asked) -> None:
    """Warn about layers that run on the GPU instead of the DLA. Without --allowGPUFallback, they are refused."""
    if not (8, 0) <= VERSION[:2] <= (10, 7):
        raise Refused(f"Cannot create DLA engine, {asked['useDLACore']} not available")
    for node in network.graph.node:
        if node.op_type in ON_DLA:
            continue
        if "allowGPUFallback" not in asked:
            raise Refused(f"{node.op_type} is unsupported on DLA")
        layer = f"[TRT] Layer '{node.name}' ({node.op_type.upper()})"
        log(f"{layer}: Unsupported on DLA. Switching this layer's device type to GPU.", "W")


# ------------------------------------------------------------------------------------------------------- running


class Marks(NamedTuple):
    """The times of one inference: its start, and the ends of the copy to the device, the computation, and the copy back."""

    start: float
    fed: float
    computed: float
    done: float


def session(content: bytes, profiling: bool = False) -> Any:
    """Load a network into ONNX Runtime, with one thread."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = 1, 1
    settings.enable_profiling = profiling
    settings.profile_file_prefix = "standin"
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def inputs(run: Any, asked: Asked) -> Feed:
    """Name -> array, from the given files. The others are random, as in trtexec."""
    import numpy as np

    files = {}
    for spec in filter(None, asked.get("loadInputs", "").split(",")):
        quoted = re.fullmatch(r"'(.+)':(.+)", spec)
        name, _, path = (quoted.group(1), "", quoted.group(2)) if quoted else spec.rpartition(":")
        files[name] = path
    found = {}
    for value in run.get_inputs():
        wanted = np.dtype(DTYPES[value.type])
        path = files.pop(value.name, None)
        if path is None:
            found[value.name] = np.random.default_rng(0).random(value.shape).astype(wanted)
            continue
        dtype = np.dtype("int32") if wanted.name == "int64" and VERSION < (10, 0) else wanted
        size, given = int(np.prod(value.shape)) * dtype.itemsize, os.path.getsize(path)
        if given != size:
            note = f"Note: Input binding size is: {size} bytes but the file size is {given} bytes."
            raise Refused(f"Unexpected file size for input file: {path}. {note}")
        found[value.name] = np.fromfile(path, dtype).reshape(value.shape).astype(wanted)
    if files:
        raise Refused(f"Cannot find input tensor with name {min(files)!r} in the engine bindings!")
    return found


def infer(plan: Plan, asked: Asked) -> None:
    """Run the engine, and write the files that the flags ask for."""
    if plan.dla is not None and asked.get("useDLACore") != plan.dla:
        raise Refused(f"the engine needs --useDLACore={plan.dla}")
    run = session(plan.content)
    feed = inputs(run, asked)
    trace, results = timed(run, feed, asked)
    profiled = {"dumpProfile", "exportProfile"} & set(asked)
    if "exportTimes" in asked and (not profiled or "separateProfileRun" in asked or VERSION >= (11, 0)):
        export(asked["exportTimes"], [times(marks, trace[0].start) for marks in trace])
    if "exportOutput" in asked:
        export(asked["exportOutput"], [output(kept.name, result) for kept, result in zip(run.get_outputs(), results)])
    if profiled:
        rows = profile(plan, feed, max(3, min(20, len(trace))))
        if "exportProfile" in asked:
            export(asked["exportProfile"], rows)
    else:
        print_summary(trace)
    if "exportLayerInfo" in asked:
        detailed = plan.verbosity == "detailed"
        layers = [layer_info(layer) if detailed else layer.name for layer in plan.layers]
        bindings = [node.name for node in (*run.get_inputs(), *run.get_outputs())]
        Path(asked["exportLayerInfo"]).write_text(json.dumps({"Layers": layers, "Bindings": bindings}))


def timed(run: Any, feed: Feed, asked: Asked) -> tuple[list[Marks], list[np.ndarray]]:
    """The times of every inference after the warm-up, and the outputs of the last one."""
    until = time.monotonic() + float(asked.get("warmUp", 200)) / 1000
    while time.monotonic() < until:
        run.run(None, feed)
    until = time.monotonic() + float(asked.get("duration", 3))
    trace: list[Marks] = []
    copied = "includeDataTransfers" in asked or (VERSION < (11, 0) and "noDataTransfers" not in asked)
    while len(trace) < int(asked.get("iterations", 10)) or time.monotonic() < until:
        start = time.perf_counter()
        fed = {name: array.copy() for name, array in feed.items()} if copied else feed
        fed_at = time.perf_counter()
        results = run.run(None, fed)
        computed_at = time.perf_counter()
        results = [result.copy() for result in results] if copied else results
        trace.append(Marks(start, fed_at, computed_at, time.perf_counter()))
    return trace, results


def profile(plan: Plan, feed: Feed, count: int) -> list[dict[str, Any]]:
    """Milliseconds by layer in `count` runs: the sums of ONNX Runtime's times of the layer's nodes."""
    run = session(plan.content, profiling=True)
    for _ in range(count):
        run.run(None, feed)
    report = Path(run.end_profiling())
    events = [event for event in json.loads(report.read_text()) if event.get("cat") == "Node"]
    report.unlink()
    owner = {node: i for i, layer in enumerate(plan.layers) for node in layer.nodes}
    known = sorted(owner, key=len, reverse=True)
    spent = [0.0] * len(plan.layers)
    for event in events:
        # ONNX Runtime names a fused node after its first one.
        name = next((node for node in known if event["name"].startswith(node)), None)
        if name is not None and event["name"].endswith("_kernel_time"):
            spent[owner[name]] += event["dur"] / 1e3
    total = sum(spent) or 1.0
    rows: list[dict[str, Any]] = [{"count": count}]
    for layer, ms in zip(plan.layers, spent):
        average = {"averageMs": six(ms / count), "medianMs": six(ms / count)}
        rows.append({"name": layer.name, "timeMs": six(ms), **average, "percentage": six(100 * ms / total)})
    return rows


def export(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a list of objects, one a line, as trtexec does."""
    Path(path).write_text("[\n  " + "\n, ".join(json.dumps(row) for row in rows) + "\n]\n")


def six(number: float) -> float:
    """trtexec writes six significant digits."""
    return float(f"{number:.6g}")


def times(marks: Marks, origin: float) -> dict[str, float]:
    """A row of --exportTimes, in milliseconds from `origin` on."""
    start, fed, computed, done = (1e3 * (mark - origin) for mark in marks)
    row = {"startEnqMs": fed, "endEnqMs": fed, "startH2dMs": start, "endH2dMs": fed, "startComputeMs": fed}
    row.update(endComputeMs=computed, startD2hMs=computed, endD2hMs=done, h2dMs=fed - start, computeMs=computed - fed)
    row.update(d2hMs=done - computed, latencyMs=done - start)
    return {key: six(value) for key, value in row.items()}


def output(name: str, result: np.ndarray) -> dict[str, Any]:
    """A row of --exportOutput."""
    values = [six(float(value)) for value in result.reshape(-1)]
    return {"name": name, "dimensions": "x".join(map(str, result.shape)), "values": values}


def layer_info(layer: Layer) -> dict[str, Any]:
    """A row of --exportLayerInfo, with the detailed verbosity."""
    row: dict[str, Any] = {"Name": layer.name, "LayerType": layer.type, "Inputs": [], "Outputs": []}
    if VERSION >= (8, 6):
        row["Metadata"] = "\x1e".join(f"[ONNX Layer: {node}]" for node in layer.nodes)
    return row


def print_summary(trace: Sequence[Marks]) -> None:
    """Print the times as trtexec does."""
    log("=== Performance summary ===")
    log(f"Throughput: {len(trace) / (trace[-1].done - trace[0].start):g} qps")
    count = len(trace)
    parts = {"Latency": (0, 3), "H2D Latency": (0, 1), "GPU Compute Time": (1, 2), "D2H Latency": (2, 3)}
    for name, (first, last) in parts.items():
        ms = sorted(1e3 * (marks[last] - marks[first]) for marks in trace)
        found = {"min": ms[0], "max": ms[-1], "mean": sum(ms) / count, "median": ms[count // 2]}
        for percent in (90, 99):
            found[f"percentile({percent}%)"] = ms[max(count - 1 - (100 - percent) * count // 100, 0)]
        log(f"{name}: {', '.join(f'{key} = {value:g} ms' for key, value in found.items())}")


def main() -> int:
    """trtexec's command line. Returns its exit code."""
    banner("RUNNING")
    if not sys.argv[1:] or {"--help", "-h"} & set(sys.argv[1:]):
        print_options()
        return 0
    reasons: Sequence[str] = ()
    try:
        execute(options(sys.argv[1:]))
    except Refused as refused:
        reasons = refused.args
    except (ImportError, OSError, ValueError, KeyError) as error:
        reasons = (f"Uncaught exception detected: {error}",)
    for text in reasons:
        log(text, "E")
    banner("FAILED" if reasons else "PASSED")
    return 1 if reasons else 0


def execute(asked: Asked) -> None:
    """Build or load the engine, and run it."""
    log("edgeprune's stand-in: times are of ONNX Runtime on this CPU, and say nothing about a GPU")
    if ("onnx" in asked) == ("loadEngine" in asked):
        raise Refused("Model missing or redundant: give --onnx or --loadEngine")
    plan = build(asked) if "onnx" in asked else Plan.load(Path(asked["loadEngine"]).read_bytes())
    skipped = [flag for flag in ("buildOnly", "skipInference") if flag in asked]
    if skipped:
        log(f"Skipped inference phase since --{skipped[0]} is added.")
    else:
        infer(plan, asked)


if __name__ == "__main__":
    sys.exit(main())
