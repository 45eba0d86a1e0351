#!/usr/bin/env python3
"""A stand-in for NVIDIA's trtexec, for machines without a GPU: it takes what the real one takes, and refuses what it refuses.

It parses the real ONNX file, runs it by ONNX Runtime on the CPU for its times and outputs, and writes the files that trtexec
writes, in its formats. Every banner of it says `[stand-in]`, and edgeprune marks all that comes from it `simulated`: it is no
measure of a Jetson, and its engines are no engines. A file `standin-version` beside it names the version that it stands for.

Flags by version are those that samples/common/sampleOptions.cpp of NVIDIA/TensorRT parses at the tags named below; the texts
and formats are those of sampleReporting.cpp there.
"""

import hashlib
import json
import os
import re
import sys
import time

MAGIC = b"edgeprune stand-in plan\n"
EVERY = (
    "allowGPUFallback avgRuns avgTiming device directIO dumpLayerInfo dumpOutput dumpProfile dumpRefit "
    "duration exportLayerInfo exportOutput exportProfile exportTimes exposeDMA help idleTime "
    "inputIOFormats iterations loadEngine loadInputs maxShapes memPoolSize minShapes noBuilderCache "
    "noDataTransfers noTF32 onnx optShapes outputIOFormats percentile persistentCacheRatio plugins "
    "preview profilingVerbosity refit safe saveEngine separateProfileRun shapes sleepTime sparsity "
    "streams tacticSources threads timeDeserialize timeRefit timingCacheFile useCudaGraph useDLACore "
    "useManagedMemory useSpinWait verbose warmUp"
)

MORE = {
    (8, 5): (  # tag 8.5.3
        "batch best buildOnly calib consistency deploy explicitBatch explicitPrecision fp16 heuristic int8 "
        "layerOutputTypes layerPrecisions maxBatch maxShapesCalib minShapesCalib minTiming model nvtxMode "
        "optShapesCalib output precisionConstraints restricted uff uffInput uffNHWC workspace"
    ),
    (8, 6): (  # tag v8.6.1
        "batch best buildDLAStandalone buildOnly builderOptimizationLevel calib consistency deploy "
        "dumpRawBindingsToFile dynamicPlugins excludeLeanRuntime explicitBatch explicitPrecision fp16 fp8 "
        "hardwareCompatibilityLevel heuristic ignoreParsedPluginLibs infStreams int8 layerDeviceTypes "
        "layerOutputTypes layerPrecisions leanDLLPath maxAuxStreams maxBatch maxShapesCalib minShapesCalib "
        "minTiming model nvtxMode optShapesCalib output precisionConstraints restricted setPluginsToSerialize "
        "skipInference staticPlugins tempdir tempfileControls uff uffInput uffNHWC useRuntime vc "
        "versionCompatible workspace"
    ),
    (10, 3): (  # tag v10.3.0
        "allocationStrategy allowWeightStreaming best bf16 buildDLAStandalone builderOptimizationLevel calib "
        "calibProfile consistency dumpOptimizationProfile dumpRawBindingsToFile dynamicPlugins "
        "errorOnTimingCacheMiss excludeLeanRuntime fp16 fp8 getPlanVersionOnly hardwareCompatibilityLevel "
        "ignoreParsedPluginLibs infStreams int4 int8 layerDeviceTypes layerOutputTypes layerPrecisions "
        "leanDLLPath markDebug maxAuxStreams maxShapesCalib minShapesCalib noCompilationCache optShapesCalib "
        "pi pluginInstanceNorm precisionConstraints profile restricted runtimePlatform saveDebugTensors "
        "setPluginsToSerialize skipInference staticPlugins stripAllWeights stripWeights stronglyTyped tempdir "
        "tempfileControls useProfile useRuntime vc versionCompatible weightStreamingBudget weightless"
    ),
    (10, 7): (  # tag v10.7.0
        "allocationStrategy allowWeightStreaming asyncFileReader best bf16 buildDLAStandalone "
        "builderOptimizationLevel calib calibProfile dumpOptimizationProfile dumpRawBindingsToFile "
        "dynamicPlugins errorOnTimingCacheMiss excludeLeanRuntime fp16 fp8 getPlanVersionOnly "
        "hardwareCompatibilityLevel ignoreParsedPluginLibs infStreams int4 int8 layerDeviceTypes "
        "layerOutputTypes layerPrecisions leanDLLPath markDebug maxAuxStreams maxShapesCalib maxTactics "
        "minShapesCalib monitorMemory noCompilationCache optShapesCalib pi pluginInstanceNorm "
        "precisionConstraints profile restricted runtimePlatform saveDebugTensors setPluginsToSerialize "
        "skipInference staticPlugins stripAllWeights stripWeights stronglyTyped tempdir tempfileControls "
        "useProfile useRuntime vc versionCompatible weightStreamingBudget weightless"
    ),
    (10, 16): (  # tag v10.16
        "adjustForDLA allocationStrategy allowWeightStreaming asyncFileReader best bf16 buildDLAStandalone "
        "builderOptimizationLevel calib calibProfile consistency cpuOnly decomposableAttentions "
        "distributiveIndependence dumpKernelText dumpOptimizationProfile dumpRawBindingsToFile dynamicPlugins "
        "enablePluginOverride errorOnTimingCacheMiss excludeLeanRuntime fp16 fp8 getPlanVersionOnly "
        "hardwareCompatibilityLevel ignoreParsedPluginLibs infStreams int4 int8 l2LimitForTiling "
        "layerDeviceTypes layerOutputTypes layerPrecisions leanDLLPath markDebug "
        "markUnfusedTensorsAsDebugTensors maxAuxStreams maxShapesCalib maxTactics minShapesCalib "
        "monitorMemory noCompilationCache optShapesCalib pi pluginInstanceNorm precisionConstraints profile "
        "refitFromOnnx remoteAutoTuningConfig reportCapabilityDLA restricted runtimePlatform safetyPlugins "
        "saveAllDebugTensors saveDebugTensors setPluginsToSerialize skipInference staticPlugins "
        "stripAllWeights stripWeights stronglyTyped tempdir tempfileControls tilingOptimizationLevel "
        "uint8AsymmetricQuantizationDLA useProfile useRuntime vc versionCompatible weightStreamingBudget "
        "weightless"
    ),
    (11, 1): (  # tag v11.1
        "accuracyAlgorithm accuracyThreshold adjustForDLA allocationStrategy allowWeightStreaming "
        "asyncFileReader atol buildDLAStandalone builderOptimizationLevel consistency continue cpuOnly "
        "decomposableAttentions distributiveIndependence dryRun dumpKernelText dumpOptimizationProfile "
        "dumpRawBindingsToFile dynamicPlugins enablePluginOverride errorOnTimingCacheMiss excludeLeanRuntime "
        "getPlanVersionOnly hardwareCompatibilityLevel helpBuildRoute ignoreParsedPluginLibs "
        "includeDataTransfers infStreams l2LimitForTiling layerDeviceTypes leanDLLPath loadRefOutputs "
        "markDebug markUnfusedTensorsAsDebugTensors maxAuxStreams maxTactics monitorMemory noCompilationCache "
        "noCudaGraph noSpinWait pi pluginInstanceNorm profile refPair refitFromOnnx remoteAutoTuningConfig "
        "reportCapabilityDLA rtol runtimePlatform safetyPlugins saveAllDebugTensors saveAllEngines "
        "saveDebugTensors setBuildRoute setPluginsToSerialize skipInference staticPlugins stripAllWeights "
        "stripWeights stronglyTyped tempdir tempfileControls tilingOptimizationLevel tuneBuildRouteFile "
        "tuneBuildRoutes tuningCacheFile tuningResultFile tuningSearch tuningTimeOut "
        "uint8AsymmetricQuantizationDLA useProfile useRuntime vc versionCompatible weightStreamingBudget"
    ),
}

FLAGS = {family: set((EVERY + " " + more).split()) for family, more in MORE.items()}
SWITCHES = set(
    "allowGPUFallback best bf16 buildOnly dumpLayerInfo dumpOutput dumpProfile fp16 fp8 help includeDataTransfers int4 int8"
    " noBuilderCache noCudaGraph noDataTransfers noSpinWait noTF32 separateProfileRun skipInference stronglyTyped useCudaGraph"
    " useSpinWait verbose".split()
)
ON_DLA = {
    "Conv",
    "Relu",
    "MaxPool",
    "AveragePool",
    "Add",
    "BatchNormalization",
    "Concat",
    "ConvTranspose",
    "Sigmoid",
    "Tanh",
}
ELEMENTWISE = {"Relu", "Clip", "Add", "Mul", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu"}


class Refused(Exception):
    """What trtexec ends with: lines of errors."""


def version():
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "standin-version")) as file:
            return tuple(map(int, file.read().strip().split(".")))
    except OSError:
        return (10, 3, 0)


VERSION = version()
FAMILY = max(family for family in FLAGS if family <= VERSION[:2])


def banner(kind):
    major, minor, patch = VERSION
    number = major * (10000 if major >= 10 else 1000) + minor * 100 + patch
    command = " ".join(["trtexec", *sys.argv[1:]])
    print("&&&& %s TensorRT.trtexec [TensorRT v%d] [stand-in] # %s" % (kind, number, command), flush=True)


def say(text, level="I"):
    stream = sys.stderr if level in "WEF" else sys.stdout
    print("[%s] [%s] %s" % (time.strftime("%m/%d/%Y-%H:%M:%S"), level, text), file=stream, flush=True)


def options(arguments):
    """`--flag` and `--flag=value`, each once; whatever else there is was not asked for."""
    found, unknown = {}, []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        name = flag[2:]
        if not flag.startswith("--") or name not in FLAGS[FAMILY] or name in found:
            unknown.append("%s %s" % (flag, value))
        else:
            found[name] = True if name in SWITCHES else value
    if unknown:
        helped()
        raise Refused(*("Unknown option: " + text for text in unknown))
    return found


def helped():
    print("=== Options ===\n" + "\n".join("  --%s" % name for name in sorted(FLAGS[FAMILY])))


# ------------------------------------------------------------------------------------------------------ building


def build(asked):
    """The plan of an ONNX file: the file itself, under a name that only this version of the stand-in takes."""
    try:
        import onnx

        with open(asked["onnx"], "rb") as file:
            content = file.read()
        network = onnx.load_from_string(content)
        onnx.checker.check_model(network)
    except Exception as error:  # whatever the parser says
        why = str(error).strip().splitlines()[0][:200]
        raise Refused(
            why, "Failed to parse onnx file", "Parsing model failed", "Failed to create engine from model or file."
        )
    say("Finished parsing network model. Parse time: 0.0")
    refuse_types(onnx, network, asked)
    fused = layers(network)
    fallbacks = on_dla(network, asked) if "useDLACore" in asked else []
    started = time.monotonic()
    session(content)  # what it cannot run, the real one could not build
    head = {"version": VERSION, "layers": fused, "verbosity": asked.get("profilingVerbosity", "layer_names_only")}
    head.update(dla=asked.get("useDLACore"), fallbacks=fallbacks)
    head["sha256"] = hashlib.sha256(content).hexdigest()
    plan = MAGIC + json.dumps(head).encode() + b"\n" + content
    if "timingCacheFile" in asked:
        with open(asked["timingCacheFile"], "a"):
            pass
    if "saveEngine" in asked:
        with open(asked["saveEngine"], "wb") as file:
            file.write(plan)
    say("Engine built in %g sec." % (time.monotonic() - started))
    return plan


def refuse_types(onnx, network, asked):
    """What the real builder refuses: types that its flags do not allow, zero points, and quantised biases."""
    strong = VERSION >= (11, 0) or "stronglyTyped" in asked
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in network.graph.initializer)
    pairs = [node for node in network.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if half and not strong and not {"fp16", "best"} & set(asked):
        raise Refused("Error Code 4: network has tensors of type Half but the FP16 builder flag is not set")
    if pairs and not strong and not {"int8", "best"} & set(asked):
        raise Refused("Error Code 4: network has Q/DQ layers but the INT8 builder flag is not set")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    for node in pairs:
        zero = values.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and (zero.dtype.name != "int8" or zero.any()):
            raise Refused("%s: only symmetric quantisation to INT8 is supported: the zero point must be 0" % node.name)


def layers(network):
    """The layers of the engine: each node that works with what is element-wise right behind it, as fused names are written."""
    quantising = ("QuantizeLinear", "DequantizeLinear")
    nodes = [node for node in network.graph.node if node.op_type not in (*quantising, "Constant")]
    through = {node.output[0]: node.input[0] for node in network.graph.node if node.op_type in quantising}
    owner, found = {}, []
    for node in nodes:
        first = node.input[0] if node.input else ""
        while first in through:
            first = through[first]
        before = owner.get(first)
        if before is not None and node.op_type in ELEMENTWISE and found[before]["open"]:
            found[before]["nodes"].append(node.name)
            found[before]["open"] = node.op_type != "Add"
        else:
            work = node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose")
            found.append({"nodes": [node.name], "type": node.op_type, "open": work})
            before = len(found) - 1
        for output in node.output:
            owner[output] = before
    return [{"name": " + ".join(layer["nodes"]), "nodes": layer["nodes"], "type": layer["type"]} for layer in found]


def on_dla(network, asked):
    if not (8, 0) <= VERSION[:2] <= (10, 7):
        raise Refused("Cannot create DLA engine, %s not available" % asked["useDLACore"])
    left = [node for node in network.graph.node if node.op_type not in ON_DLA]
    for node in left:
        if "allowGPUFallback" not in asked:
            raise Refused("%s is unsupported on DLA" % node.op_type)
        text = "[TRT] Layer '%s' (%s): Unsupported on DLA. Switching this layer's device type to GPU."
        say(text % (node.name, node.op_type.upper()), "W")
    return [node.name for node in left]


# ------------------------------------------------------------------------------------------------------- running


def session(content, profiling=False):
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = 1, 1
    settings.enable_profiling = profiling
    settings.profile_file_prefix = "standin"
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def loaded(path):
    with open(path, "rb") as file:
        plan = file.read()
    head, _, content = plan[len(MAGIC) :].partition(b"\n")
    if not plan.startswith(MAGIC) or tuple(json.loads(head)["version"]) != VERSION:
        broken = "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
        raise Refused(broken, "Engine deserialization failed", "Got invalid engine!", "Inference set up failed")
    return json.loads(head), content


DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


def inputs(session_, asked):
    """{name: array}: from the files given, else random numbers, as trtexec does."""
    import numpy

    files = {}
    for spec in filter(None, asked.get("loadInputs", "").split(",")):
        quoted = re.fullmatch(r"'(.+)':(.+)", spec)
        name, _, path = (quoted.group(1), "", quoted.group(2)) if quoted else spec.rpartition(":")
        files[name] = path
    found = {}
    for value in session_.get_inputs():
        wanted = numpy.dtype(DTYPES[value.type])
        dtype = numpy.dtype("int32") if wanted.name == "int64" and VERSION < (10, 0) else wanted
        size = int(numpy.prod(value.shape)) * dtype.itemsize
        if value.name in files:
            path = files.pop(value.name)
            if os.path.getsize(path) != size:
                note = "Note: Input binding size is: %d bytes but the file size is %d bytes." % (
                    size,
                    os.path.getsize(path),
                )
                raise Refused("Unexpected file size for input file: %s. %s" % (path, note))
            found[value.name] = numpy.fromfile(path, dtype).reshape(value.shape).astype(wanted)
        else:
            found[value.name] = numpy.random.default_rng(0).random(value.shape).astype(wanted)
    if files:
        raise Refused("Cannot find input tensor with name %r in the engine bindings!" % sorted(files)[0])
    return found


def infer(plan, asked):
    head, content = plan
    if head["dla"] is not None and asked.get("useDLACore") != head["dla"]:
        raise Refused("the engine needs --useDLACore=%s" % head["dla"])
    run = session(content)
    feed = inputs(run, asked)
    until = time.monotonic() + float(asked.get("warmUp", 200)) / 1000
    while time.monotonic() < until:
        run.run(None, feed)
    until, trace = time.monotonic() + float(asked.get("duration", 3)), []
    copied = "includeDataTransfers" in asked or (VERSION < (11, 0) and "noDataTransfers" not in asked)
    while len(trace) < int(asked.get("iterations", 10)) or time.monotonic() < until:
        marks = [time.perf_counter()]
        fed = {name: array.copy() for name, array in feed.items()} if copied else feed
        marks.append(time.perf_counter())
        results = run.run(None, fed)
        marks.append(time.perf_counter())
        results = [result.copy() for result in results] if copied else results
        marks.append(time.perf_counter())
        trace.append(marks)
    profiled = {"dumpProfile", "exportProfile"} & set(asked)
    if "exportTimes" in asked and (not profiled or "separateProfileRun" in asked or VERSION >= (11, 0)):
        export(asked["exportTimes"], times(trace))
    if "exportOutput" in asked:
        names = [value.name for value in run.get_outputs()]
        export(asked["exportOutput"], [output(name, result) for name, result in zip(names, results)])
    if profiled:
        rows = profile(content, head["layers"], feed, trace)
        if "exportProfile" in asked:
            export(asked["exportProfile"], rows)
    else:
        summary(trace)
    if "exportLayerInfo" in asked:
        detailed = head["verbosity"] == "detailed"
        told = [layer_info(layer) if detailed else layer["name"] for layer in head["layers"]]
        with open(asked["exportLayerInfo"], "w") as file:
            json.dump(
                {"Layers": told, "Bindings": [value.name for value in (*run.get_inputs(), *run.get_outputs())]}, file
            )


def export(path, rows):
    """As trtexec writes it: by hand, six significant digits."""
    with open(path, "w") as file:
        file.write("[\n  " + "\n, ".join(json.dumps(row) for row in rows) + "\n]\n")


def six(number):
    return float("%.6g" % number)


def times(trace):
    rows = []
    for start, fed, ran, done in ([1e3 * (mark - trace[0][0]) for mark in marks] for marks in trace):
        row = {"startEnqMs": fed, "endEnqMs": fed, "startH2dMs": start, "endH2dMs": fed, "startComputeMs": fed}
        row.update(endComputeMs=ran, startD2hMs=ran, endD2hMs=done, h2dMs=fed - start, computeMs=ran - fed)
        row.update(d2hMs=done - ran, latencyMs=done - start)
        rows.append({key: six(value) for key, value in row.items()})
    return rows


def output(name, result):
    values = [six(float(value)) for value in result.reshape(-1)]
    return {"name": name, "dimensions": "x".join(map(str, result.shape)), "values": values}


def profile(content, fused, feed, trace):
    """Milliseconds by fused layer: ONNX Runtime's of its nodes, shared out; nodes that it fused count with the one before."""
    run = session(content, profiling=True)
    count = max(3, min(20, len(trace)))
    for _ in range(count):
        run.run(None, feed)
    report = run.end_profiling()
    with open(report) as file:
        events = [event for event in json.load(file) if event.get("cat") == "Node"]
    os.unlink(report)
    owner = {node: i for i, layer in enumerate(fused) for node in layer["nodes"]}
    known = sorted(owner, key=len, reverse=True)
    spent = [0.0] * len(fused)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            name = next((node for node in known if event["name"].startswith(node)), None)
            if name is not None:
                spent[owner[name]] += event["dur"] / 1e3
    total = sum(spent) or 1.0
    rows = [{"count": count}]
    for layer, ms in zip(fused, spent):
        each = {
            "timeMs": six(ms),
            "averageMs": six(ms / count),
            "medianMs": six(ms / count),
            "percentage": six(100 * ms / total),
        }
        rows.append({"name": layer["name"], **each})
    return rows


def layer_info(layer):
    told = {"Name": layer["name"], "LayerType": layer["type"], "Inputs": [], "Outputs": []}
    if VERSION >= (8, 6):
        told["Metadata"] = "\x1e".join("[ONNX Layer: %s]" % node for node in layer["nodes"])
    return told


def summary(trace):
    def line(name, values):
        ordered = sorted(values)
        parts = {
            "min": ordered[0],
            "max": ordered[-1],
            "mean": sum(ordered) / len(ordered),
            "median": ordered[len(ordered) // 2],
        }
        parts.update(
            {
                "percentile(%d%%)" % p: ordered[max(len(ordered) - 1 - (100 - p) * len(ordered) // 100, 0)]
                for p in (90, 99)
            }
        )
        say("%s: %s" % (name, ", ".join("%s = %g ms" % pair for pair in parts.items())))

    say("=== Performance summary ===")
    say("Throughput: %g qps" % (len(trace) / (trace[-1][-1] - trace[0][0])))
    line("Latency", [1e3 * (marks[3] - marks[0]) for marks in trace])
    line("H2D Latency", [1e3 * (marks[1] - marks[0]) for marks in trace])
    line("GPU Compute Time", [1e3 * (marks[2] - marks[1]) for marks in trace])
    line("D2H Latency", [1e3 * (marks[3] - marks[2]) for marks in trace])


def main():
    banner("RUNNING")
    try:
        if not sys.argv[1:] or {"--help", "-h"} & set(sys.argv[1:]):
            helped()
            return 0
        asked = options(sys.argv[1:])
        say("edgeprune's stand-in: times are of ONNX Runtime on this CPU, and no measure of any GPU")
        if ("onnx" in asked) == ("loadEngine" in asked):
            raise Refused("Model missing or redundant: give --onnx or --loadEngine")
        if "onnx" in asked:
            plan = build(asked)
            head, _, content = plan[len(MAGIC) :].partition(b"\n")
            plan = json.loads(head), content
        else:
            plan = loaded(asked["loadEngine"])
        if {"buildOnly", "skipInference"} & set(asked):
            say(
                "Skipped inference phase since --%s is added."
                % ("buildOnly" if "buildOnly" in asked else "skipInference")
            )
        else:
            infer(plan, asked)
    except Refused as refused:
        for text in refused.args:
            say(text, "E")
        banner("FAILED")
        return 1
    except (OSError, ValueError, KeyError) as error:
        say("Uncaught exception detected: %s" % error, "E")
        banner("FAILED")
        return 1
    banner("PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
