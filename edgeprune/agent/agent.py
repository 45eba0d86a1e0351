"""The agent: runs on the device, holds the stopwatch. Standard library and the runtime only; Python 3.8 and up.

    python agent.py serve    reads one request, a line of JSON, from standard input; streams framed replies
    python agent.py work     does one job in a fresh process; started by `serve` only

A request is {"nonce", "jobs": [job, ...]}; every job is done in a process of its own, in order, and answered by one
frame on standard output:

    edgeprune <nonce> <bytes> <crc32, 8 hex digits>\\n<JSON of that many bytes>

The nonce is the host's, so that no banner or print can be taken for an answer. Standard input stays open for as long as
the host lives: when it closes, the agent ends its worker and itself.
"""

import gc
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
import zlib

STABLE = 0.02  # warm-up ends when two windows of runs in a row have medians this close
WINDOW = 10  # runs in such a window
STDERR_CHARS = 2000
REPLY_BYTES = 64 << 20


# ------------------------------------------------------------------------------------------------------ serve


def serve():
    """Answer the one request on standard input."""
    request = json.loads(sys.stdin.buffer.readline())
    for job in request["jobs"]:
        payload = json.dumps(dict(run_worker(job), id=job["id"]), allow_nan=False).encode()
        header = "\nedgeprune %s %d %08x\n" % (request["nonce"], len(payload), zlib.crc32(payload))
        sys.stdout.buffer.write(header.encode() + payload)
        sys.stdout.buffer.flush()


def run_worker(job):
    """One job in a fresh process of its own group: its reply, or an error that says how it ended."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(
            [sys.executable, *(["-I"] if sys.flags.isolated else []), os.path.abspath(__file__), "work", str(writer)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        try:
            try:
                worker.stdin.write(json.dumps(job).encode())
                worker.stdin.close()
            except BrokenPipeError:
                pass  # it ended before it read the job: its exit status says why
            reply, late = read_reply(reader, time.monotonic() + job["deadline_s"])
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


def read_reply(reader, deadline):
    """All that the worker writes until it closes the pipe, and whether it was late."""
    parts, size = [], 0
    while True:
        left = deadline - time.monotonic()
        ready = select.select([reader, sys.stdin], [], [], max(0, left))[0]
        if not ready:
            return b"", True
        if sys.stdin in ready and not os.read(sys.stdin.fileno(), 65536):
            raise SystemExit(1)  # the host is gone
        if reader in ready:
            part = os.read(reader, 1 << 20)
            if not part:
                return b"".join(parts), False
            parts.append(part)
            size += len(part)
            if size > REPLY_BYTES:
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


class Failed(Exception):
    """A job that cannot be done: `kind` is what the host is told."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def work(writer):
    """Do the job on standard input and write its reply to the pipe."""
    job = json.load(sys.stdin)
    try:
        reply = {"identify": identify, "time": time_runs, "nodes": time_nodes, "outputs": outputs}[job["mode"]](job)
    except Failed as error:
        reply = {"error": error.kind, "message": str(error)[:STDERR_CHARS]}
    except MemoryError:
        reply = {"error": "memory", "message": "out of memory"}
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(reply, allow_nan=False).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no runtime tears down its threads now: some hang or crash there


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
        "boot_id": first_line("/proc/sys/kernel/random/boot_id") or "unknown",
    }


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
    except OSError:
        return ""


def time_runs(job):
    """Whole-network times, no profiler."""
    model = RUNTIMES[job["runtime"]](job, profiling=False)
    return {"times_ns": repeat(model.run, job), "peak_memory_bytes": peak_memory()}


def time_nodes(job):
    """Times by node, from the runtime's own profiler."""
    model = RUNTIMES[job["runtime"]](job, profiling=True)
    runs = len(repeat(model.run, job))
    return {"runs": runs, "nodes": model.nodes()}


def repeat(run, job):
    """Warm up until stable, then time one inference after the other: nanoseconds in the order taken."""
    clock = time.perf_counter_ns
    warm_until, last = clock() + int(job["warmup_s"] * 1e9), None
    while True:
        window = sorted(timed(run, clock) for _ in range(WINDOW))
        middle = window[WINDOW // 2]
        if (last and abs(middle - last) <= STABLE * last) or clock() > warm_until:
            break
        last = middle
    gc.collect()
    gc.disable()
    times, until = [], clock() + int(job["timed_s"] * 1e9)
    while len(times) < job["runs_min"] or (clock() < until and len(times) < job["runs_max"]):
        times.append(timed(run, clock))
    gc.enable()
    return times


def timed(run, clock):
    """One inference in nanoseconds, at least one: a clock may tick slower than that."""
    start = clock()
    run()
    return max(1, clock() - start)


def outputs(job):
    """Run every stacked sample and store the stacked outputs."""
    import numpy

    model = RUNTIMES[job["runtime"]](job, profiling=False, first=True)
    stacked = [numpy.load(path, allow_pickle=False, mmap_mode="r") for path in job["inputs"]]
    results = [model.call([array[i] for array in stacked]) for i in range(len(stacked[0]))]
    for i, path in enumerate(job["outputs"]):
        numpy.save(path, numpy.stack([result[i] for result in results]), allow_pickle=False)
    return {"count": len(results), "outputs": len(results[0])}


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

    def __init__(self, job, profiling, first=False):
        module = self.module()
        options = module.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.enable_profiling = profiling
        options.profile_file_prefix = os.path.join(tempfile.gettempdir(), "edgeprune-%d" % os.getpid())
        try:
            self.session = module.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding's exceptions have no common base of their own
            raise Failed("load", "onnxruntime cannot load the model: %s" % error)
        self.names = [value.name for value in self.session.get_inputs()]
        feed = dict(zip(self.names, load_inputs(job, first)))
        self.run = lambda: self.session.run(None, feed)

    @staticmethod
    def module():
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

    def nodes(self):
        """Mean nanoseconds a run and node. Event times are whole microseconds, cut off: half of one is added back."""
        path = self.session.end_profiling()
        with open(path) as file:
            events = json.load(file)
        os.unlink(path)
        totals, counts = {}, {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                totals[name] = totals.get(name, 0) + 1000 * event["dur"] + 500
                counts[name] = counts.get(name, 0) + 1
        most = max(counts.values())
        return [{"name": name, "ns": total // most} for name, total in totals.items()]


class OpenVino:
    """OpenVINO on the CPU, one stream; precision explicit, since CPUs with bf16 would slip into it."""

    def __init__(self, job, profiling, first=False):
        module = self.module()
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}[job["precision"]],
            "INFERENCE_NUM_THREADS": job["threads"],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profiling,
        }
        try:
            self.compiled = module.Core().compile_model(job["model"], "CPU", settings)
        except RuntimeError as error:
            raise Failed("load", "openvino cannot load the model: %s" % error)
        self.request = self.compiled.create_infer_request()
        self.inputs = load_inputs(job, first)
        for i, array in enumerate(self.inputs):
            self.request.set_input_tensor(i, module.Tensor(array, shared_memory=True))
        self.run = self.request.infer
        if profiling:
            self.request.infer()
            self.runs, self.first_us = 1, self.mean_us()
            self.run = self.counted

    def counted(self):
        self.request.infer()
        self.runs += 1

    def mean_us(self):
        """Microseconds by node that was executed: the mean over every run since the model was compiled."""
        return {
            node.node_name: node.real_time.total_seconds() * 1e6
            for node in self.request.profiling_info
            if node.status == node.EXECUTED
        }

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

    def nodes(self):
        """Mean nanoseconds a run and node, with the names of the nodes fused into it.

        The first run is taken out: it allocates, and a node may take ten times as long.
        """
        fused = {}
        for op in self.compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            names = str(info["originalLayersNames"].astype(str)) if "originalLayersNames" in info else ""
            fused[op.get_friendly_name()] = [name for name in names.split(",") if name]
        return [
            {
                "name": name,
                "ns": max(0, round(1000 * (self.runs * mean - self.first_us.get(name, 0)) / (self.runs - 1))),
                "fused": fused.get(name, []),
            }
            for name, mean in self.mean_us().items()
        ]


class Null:
    """No runtime at all: the model is a JSON file {"ns": a run} and its output is its input. For tests of all the rest."""

    def __init__(self, job, profiling, first=False):
        with open(job["model"]) as file:
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

    def nodes(self):
        return [{"name": "null", "ns": self.model["ns"]}]


RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino, "null": Null}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        work(int(sys.argv[2]))
