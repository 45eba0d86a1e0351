"""Runs the model of the release that this file lies in. Standard library, numpy and the runtime; Python 3.8 and up.

    python3 runner.py --check              run the kept input and compare with the kept output: a line of JSON, exit 0 or 1
    python3 runner.py x.npy [y.npy …]      run these inputs, one file each: writes output_0.npy, … into the working folder

In a program of yours, which sees a new release once it loads `current` again:

    sys.path.insert(0, os.path.realpath("…/services/NAME/current"))
    import runner
    outputs = runner.load()([array, …])

`--site` is a folder to find the runtime in. See load.cpp for C++.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def load(folder=HERE):
    """The release's model, ready to be called: arrays in, arrays out."""
    with open(os.path.join(folder, "manifest.json")) as file:
        manifest = json.load(file)
    return LOADERS[manifest["runtime"]](os.path.join(folder, manifest["model"]), manifest)


def onnxruntime(path, manifest):
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home, from 1.32 on
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = manifest["threads"], 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs)))


def openvino(path, manifest):
    import openvino

    core, asked = openvino.Core(), ["runtime_options", "INFERENCE_PRECISION_HINT"]
    network = core.read_model(path)
    precision = str(network.get_rt_info(asked).astype(str)) if network.has_rt_info(asked) else "f32"
    settings = {"INFERENCE_NUM_THREADS": manifest["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(network, "CPU", dict(settings, INFERENCE_PRECISION_HINT=precision))
    request = compiled.create_infer_request()

    def call(inputs):
        results = request.infer(inputs)
        return [results[i].copy() for i in range(len(compiled.outputs))]

    return call


def tflite(path, manifest):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_path=path, num_threads=manifest["threads"])
    interpreter.allocate_tensors()

    def call(inputs):
        for detail, array in zip(interpreter.get_input_details(), inputs):
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]) if array.dtype.kind == "i" else array)
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]

    return call


def tensorrt(path, manifest):
    """The engine that was built here: in this process where TensorRT's Python module is, else by a trtexec for every call."""
    folder = os.path.dirname(path)
    spec = importlib.util.spec_from_file_location("edgeprune_engine", os.path.join(folder, "engine.py"))
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    version = manifest["device"]["runtime_version"].split(".")
    with open(os.path.join(folder, "build.json")) as file:
        build = json.load(file)
    plan = os.path.join(folder, "engine.plan")
    try:
        import tensorrt
    except ImportError:
        tensorrt = None
    if tensorrt is None or tensorrt.__version__.split(".")[:3] != version:  # another one would not load the engine
        if int(version[0]) < 10:  # it makes 32-bit integers of 64-bit ones
            return lambda inputs: by_trtexec(
                plan, build, manifest["dla"], [narrow(x) for x in inputs], engine.outputs_of
            )
        return lambda inputs: by_trtexec(plan, build, manifest["dla"], inputs, engine.outputs_of)
    return engine.Engine(tensorrt, engine.cuda(), plan, build, manifest["dla"]).call


def narrow(array):
    return array.astype("int32") if array.dtype.name == "int64" else array


def by_trtexec(plan, build, dla, inputs, outputs_of):
    argv = [shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec", "--loadEngine=" + plan]
    argv += ["--iterations=1", "--warmUp=0", "--duration=0"]
    if dla is not None:
        argv.append("--useDLACore=%d" % dla)
    with tempfile.TemporaryDirectory() as work:
        places = [os.path.join(work, "input-%d" % i) for i in range(len(inputs))]
        for array, place in zip(inputs, places):
            array.tofile(place)
        fed = ",".join("'%s':%s" % pair for pair in zip(build["inputs"], places))
        out = os.path.join(work, "out.json")
        asked = [*argv, "--loadInputs=" + fed, "--exportOutput=" + out]
        subprocess.run(asked, check=True, stdout=subprocess.DEVNULL, timeout=120)
        with open(out) as file:
            return outputs_of(file.read(), build["outputs"])


def null(path, manifest):
    return lambda inputs: inputs


LOADERS = {"onnxruntime": onnxruntime, "openvino": openvino, "tflite": tflite, "tensorrt": tensorrt, "null": null}


def kept_inputs():
    import numpy

    found = []
    while os.path.exists(os.path.join(HERE, "input_%d.npy" % len(found))):
        found.append(numpy.load(os.path.join(HERE, "input_%d.npy" % len(found)), allow_pickle=False))
    return found


def check():
    """The first output on the kept input, against the one that was kept when the release was verified."""
    import numpy

    with open(os.path.join(HERE, "manifest.json")) as file:
        limit = json.load(file)["relative_error"]
    model, inputs = load(), kept_inputs()
    wanted = numpy.load(os.path.join(HERE, "expected.npy"), allow_pickle=False).astype("float64")
    times, got = [], None
    for _ in range(5):
        start = time.perf_counter()
        got = numpy.asarray(model(inputs)[0]).astype("float64")
        times.append(time.perf_counter() - start)
    if got.shape != wanted.shape:
        return {"ok": False, "why": "the output is of shape %s, not %s" % (got.shape, wanted.shape)}
    error = float(numpy.abs(got - wanted).max() / max(float(numpy.abs(wanted).max()), 1e-30))
    return {"ok": error <= limit, "relative_error": error, "limit": limit, "median_ms": 1e3 * sorted(times)[2]}


def main(arguments):
    if "--site" in arguments:
        at = arguments.index("--site")
        sys.path.insert(0, arguments[at + 1])
        del arguments[at : at + 2]
    if arguments == ["--check"]:
        answer = check()
        print(json.dumps(answer))
        return 0 if answer["ok"] else 1
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    import numpy

    for i, output in enumerate(load()([numpy.load(path, allow_pickle=False) for path in arguments])):
        numpy.save("output_%d.npy" % i, output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
