"""TensorRT on a device, by its trtexec and its Python module, or by the one that there is: engines are built here, from ONNX,
kept here, and never come from elsewhere. trtexec builds and measures where it is; the module calls, since trtexec takes a
process for every call.

A part of the agent (`agent` is the agent's module). Standard library and numpy; Python 3.8 and up. What trtexec takes and
says is as in NVIDIA/TensorRT's samples/common (8.4 to 11.1), see docs/jetson.md. Beside each model.onnx lies a build.json:

    {"precision": "fp32" | "fp16" | "int8", "inputs": [name, …], "outputs": [name, …], "builds": how often, to keep the best}

    ~/.edgeprune/engines/
      KEY.plan, KEY.json      by digest of the model, TensorRT, GPU and flags; the least recently used go first
      timing-KEY.cache        what TensorRT measured of its kernels: the same choice at every build
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess

agent = globals()["agent"]  # put there by the agent, which loads this
engine = agent.loaded_module(os.path.join(os.path.dirname(__file__), "engine.py"))

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it
MODES_FILE = "/etc/nvpmodel.conf"
SUDO = "it needs sudo without a password for %s"
BANNER = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec(?: \[TensorRT v(\d+)\])?((?: \[[\w-]+\])*) #")
STAND_IN = "[stand-in]"
FELL_BACK = re.compile(r"Layer '(.+)' \(\w+\): Unsupported on DLA\. Switching this layer's device type to GPU")
LINE = re.compile(r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[([VIWEF])\] (.*)$")
HELP_S = 30.0
ENGINE_BYTES = 2 << 30
LINE_BYTES = 4096  # of a log, at most
TOLD_BYTES = 4 << 20
TOLD = re.compile(rb"\] \[[EF]\] |DLA")
TIMED_RUNS = 30  # of one process: processes differ by more than their runs do
WARM_UP = "--warmUp=%d" % round(1e3 * engine.WARM_UP_S)
TOLD_LINES = 4  # of trtexec's errors


# --------------------------------------------------------------------------------------- asking: argv, by version


def builder_flags(version, precision, dla):
    """Whether a network is strongly typed, so that the ONNX alone says its precision; else the flags that allow it.

    10 has strong types and 11 nothing else; a strongly typed network cannot go to the DLA, which has no fp32.
    """
    if version >= (11, 0) or (version >= (10, 0) and dla is None):
        return True, []
    on_dla = ["fp16"] if dla is not None and precision == "int8" else []
    return False, {"fp32": [], "fp16": ["fp16"], "int8": ["int8", *on_dla]}[precision]


def build_argv(version, onnx, plan, cache, precision, dla):
    """What builds an engine. Precision lives in the ONNX; builder flags only where that version needs them for it."""
    argv = ["--onnx=" + onnx, "--saveEngine=" + plan, "--timingCacheFile=" + cache, "--profilingVerbosity=detailed"]
    argv.append("--skipInference" if version >= (8, 6) else "--buildOnly")
    strong, flags = builder_flags(version, precision, dla)
    argv += ["--stronglyTyped"] * (strong and version < (11, 0)) + ["--" + flag for flag in flags]
    if precision == "fp32":
        argv.append("--noTF32")  # fp32 is what it says
    if dla is not None:
        argv += ["--useDLACore=%d" % dla, "--allowGPUFallback", "--verbose"]
    return argv


def run_argv(version, plan, inputs, dla):
    """What every inference has in common: inputs are (name, file). Copies are part of it, and told apart."""
    argv = ["--loadEngine=" + plan]
    if inputs:
        argv.append("--loadInputs=" + ",".join("'%s':%s" % pair for pair in inputs))
    if dla is not None:
        argv.append("--useDLACore=%d" % dla)
    # 11 leaves copies out and captures a graph unless told otherwise; before, one asks for what 11 does by itself.
    return argv + (["--includeDataTransfers", "--noCudaGraph"] if version >= (11, 0) else ["--useSpinWait"])


def time_argv(times, iterations):
    """Whole-network times, no profiler; so many iterations after the warm-up."""
    return [WARM_UP, "--duration=0", "--iterations=%d" % iterations, "--exportTimes=" + times]


def profile_argv(version, profile, layers):
    """Times by layer, and what the layers are made of: a run of its own, since profiling slows it down."""
    argv = [WARM_UP, "--duration=0", "--iterations=%d" % engine.PROFILED_RUNS]
    argv += ["--dumpProfile", "--exportProfile=" + profile, "--exportLayerInfo=" + layers]
    return argv if version >= (11, 0) else [*argv, "--separateProfileRun"]


def output_argv(output):
    """One inference, and its outputs."""
    return ["--warmUp=0", "--duration=0", "--iterations=1", "--exportOutput=" + output]


# ------------------------------------------------------------------------------------ understanding: pure parsers


def version_of(text):
    """The version in trtexec's first line, (major, minor, patch), and whether it is a stand-in.

    Up to 9 the banner holds a thousand a major version (v8502 is 8.5.2), since 10 ten thousand (v100300 is 10.3.0).
    """
    found = BANNER.search(text)
    if found is None or found.group(2) is None:
        raise agent.Failed("runtime-missing", "trtexec does not say its version: %s" % text[:200])
    number = int(found.group(2))
    unit = 10000 if number >= 100000 else 1000
    return (number // unit, number % unit // 100, number % 100), STAND_IN in found.group(3)


def passed(text, code):
    """Whether trtexec did what it was asked: its exit status alone is not enough, since it may crash after its work."""
    ends = [match.group(1) for match in BANNER.finditer(text)]
    return code == 0 and bool(ends) and ends[-1] == "PASSED"


def errors_of(text):
    """The errors that trtexec told, in one line."""
    found = [m.group(2) for m in map(LINE.match, text.splitlines()) if m and m.group(1) in "EF"]
    return "; ".join(line.strip() for line in found[:TOLD_LINES]) or "it said nothing"


def fallbacks_of(text):
    """The layers that the DLA could not take."""
    return sorted(set(FELL_BACK.findall(text)))


def times_of(text):
    """Nanoseconds on the GPU by run, and of the copies to it and back (medians together), from --exportTimes."""
    runs = numbers(json.loads(text))
    if not runs:
        raise ValueError("no run was timed")
    copies = sorted(run["h2dMs"] + run["d2hMs"] for run in runs)
    return [max(1, round(1e6 * run["computeMs"])) for run in runs], round(1e6 * copies[len(copies) // 2])


def numbers(runs):
    for run in runs:
        for key in ("computeMs", "h2dMs", "d2hMs"):
            if not 0 <= run[key] < 1e9:
                raise ValueError("%s is %r" % (key, run[key]))
    return runs


def layers_of(profile, layers):
    """Nanoseconds by layer from --exportProfile, with the ONNX nodes in each where --exportLayerInfo tells (since 8.6)."""
    known = {}
    for layer in json.loads(layers).get("Layers", []):
        if isinstance(layer, dict):
            known[layer["Name"]] = layer.get("Metadata", "")
    found = []
    for row in json.loads(profile):
        if "name" in row:
            ms = row.get("medianMs", row["averageMs"])
            if not 0 <= ms < 1e9:
                raise ValueError("%s takes %r ms" % (row["name"], ms))
            onnx = re.findall(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)", known.get(row["name"], ""))
            found.append({"name": row["name"], "ns": round(1e6 * ms), "onnx": onnx})
    return found


def power_mode_of(text):
    """The power mode's name and number, as `nvpmodel -q` says; None where it does not. Warnings may stand before and after."""
    name = None
    for line in text.splitlines():
        if "NV Power Mode:" in line:
            name = line.partition("NV Power Mode:")[2].strip()
        elif name and line.strip().isdigit():
            return name, int(line)
    return None


def power_modes_of(text):
    """{name: number} of /etc/nvpmodel.conf."""
    return {name: int(number) for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)}


def tegrastats_of(line):
    """What a line of tegrastats tells of clocks (MHz) and power (mW): only what is there, which depends on board and user."""
    found = {}
    emc = re.search(r"\bEMC_FREQ \d+%@(\d+)", line)
    gpu = re.search(r"\bGR3D_FREQ (?:\d+%)?@(?:\[([\d,]+)\]|(\d+))", line)
    power = re.search(r"\b(?:VDD_IN|POM_5V_IN) (\d+)(?:mW)?/", line)
    if emc:
        found["emc_mhz"] = int(emc.group(1))
    if gpu:
        found["gpu_mhz"] = max(int(value) for value in (gpu.group(1) or gpu.group(2)).split(","))
    if power:
        found["power_mw"] = int(power.group(1))
    return found


# -------------------------------------------------------------------------------------------------- running it


def trtexec():
    """trtexec's path, by PATH and then where JetPack puts it, or None."""
    return shutil.which("trtexec") or (TRTEXEC if os.access(TRTEXEC, os.X_OK) else None)


def module():
    """TensorRT's Python module, or None; one of another version than trtexec would not load its engines."""
    try:
        import tensorrt
    except ImportError:
        return None
    return tensorrt if trtexec() is None or version_in(tensorrt) == known_version()[0] else None


def version_in(found):
    return tuple(int(part) for part in found.__version__.split(".")[:3])


KNOWN = {}


def known_version():
    """TensorRT's version, (major, minor, patch), and whether it is a stand-in."""
    if "version" not in KNOWN:
        KNOWN["version"] = asked_version()
    return KNOWN["version"]


def asked_version():
    tool = trtexec()
    if tool is None:
        found = module()
        if found is None:
            text = "there is no trtexec, neither in PATH nor at %s, and no Python module tensorrt" % TRTEXEC
            raise agent.Failed("runtime-missing", text)
        return version_in(found), False
    try:
        done = subprocess.run(
            [tool, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=HELP_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise agent.Failed("runtime-missing", "trtexec does not run: %s" % error)
    return version_of(done.stdout.decode("utf-8", "backslashreplace"))


def ran(arguments, doing):
    """What trtexec told of its end, its errors and the DLA, and the most memory it held; `Failed` where it did not pass."""
    for argument in arguments:
        if argument.startswith("--export"):  # so that no earlier model's can be taken for this one's
            agent.remove(argument.partition("=")[2])
    with open("trtexec.log", "w+b") as log:
        process = subprocess.Popen([trtexec(), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        log.seek(0)
        text = told_in(log)
    if not passed(text, process.returncode):
        kind = "load" if doing == "build" else "run"
        raise agent.Failed(kind, "trtexec cannot %s it (%d): %s" % (doing, process.returncode, errors_of(text)))
    return text, usage.ru_maxrss * 1024


def told_in(log):
    """The lines that matter of a log of any length."""
    found, size = [], 0
    for line in iter(lambda: log.readline(LINE_BYTES), b""):
        if line.startswith(b"&&&&") or (TOLD.search(line) and size < TOLD_BYTES):
            found.append(line.decode("utf-8", "backslashreplace"))
            size += len(line)
    return "".join(found)


def read(path):
    with open(path) as file:
        return file.read()


@contextlib.contextmanager
def understood(what):
    """What was written by trtexec, or raised by TensorRT, as ours."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise agent.Failed("run", "%s: %s" % (what, error))


class TensorRt:
    """A model as an engine of this device."""

    def __init__(self, job, path, first=False):
        self.dla = job.get("dla")
        self.plan = self.engine(path, self.dla)
        self.build = how_to_build(path)
        self.arrays = agent.load_inputs(job, first) if job.get("inputs") else []
        self.fed = self.files(self.arrays)
        self.here = None  # the engine in this process
        if trtexec() is None or (first and module() is not None):
            with understood("TensorRT"):
                self.here = engine.Engine(module(), engine.cuda(), self.plan, self.build, self.dla)

    @staticmethod
    def version():
        return ".".join(map(str, known_version()[0]))

    @staticmethod
    def simulated():
        return known_version()[1]

    def files(self, arrays):
        """The inputs as trtexec reads them: raw bytes; up to 9 it makes 32-bit integers of 64-bit ones."""
        found = []
        for name, array in zip(self.build["inputs"], arrays):
            found.append((name, os.path.abspath("trtexec-input-%d" % len(found))))
            narrow = array.dtype.name == "int64" and known_version()[0] < (10, 0)
            (array.astype("int32") if narrow else array).tofile(found[-1][1])
        return found

    def trtexec(self, arguments, doing):
        return ran([*run_argv(known_version()[0], self.plan, self.fed, self.dla), *arguments], doing)

    def timed(self, iterations):
        """Nanoseconds by run, of the copies, and the process's peak memory."""
        if self.here is not None:
            with understood("TensorRT"):
                return (*self.here.timed(self.arrays, iterations), agent.peak_memory())
        _, peak = self.trtexec(time_argv("times.json", iterations), "time")
        with understood("trtexec's times"):
            return (*times_of(read("times.json")), peak)

    @classmethod
    def measured(cls, job):
        """Each model in processes of its own, one after the other, since trtexec takes one engine: replies, and the peak."""
        replies, peak = [], 0
        for path in job["models"]:
            model = cls(job, path)
            times, copies, most = model.timed(min(TIMED_RUNS, job["runs_max"]))
            left = json.loads(read(model.plan[: -len(".plan")] + ".json"))["fallbacks"]
            replies.append({"times_ns": times, "waited_ns": 0, "waits": 0, "copies_ns": copies, "fallbacks": len(left)})
            peak = max(peak, most)
        return replies, peak

    @classmethod
    def profile(cls, job, path):
        model = cls(job, path)
        if model.here is None:
            model.trtexec(profile_argv(known_version()[0], "profile.json", "layers.json"), "profile")
        with understood("TensorRT's profile"):
            if model.here is None:
                return layers_of(read("profile.json"), read("layers.json"))
            return layers_of(*model.here.profiled(model.arrays))

    def call(self, inputs):
        if self.here is not None:
            with understood("TensorRT"):
                return self.here.call(inputs)
        self.fed = self.files(inputs)
        self.trtexec(output_argv("outputs.json"), "run")
        with understood("trtexec's outputs"):
            return engine.outputs_of(read("outputs.json"), self.build["outputs"])

    @classmethod
    def engine(cls, path, dla=None):
        """The engine of model.onnx for this device: as it is kept, or built now."""
        version, _ = known_version()
        build = how_to_build(path)
        with open(path, "rb") as file:
            key = hashlib.sha256(json.dumps([version, board(), dla, build]).encode() + file.read()).hexdigest()[:32]
        cache = "timing-%s.cache" % hashlib.sha256(json.dumps([version, board()]).encode()).hexdigest()[:16]
        folder = os.path.join(agent.root(), "engines")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        plan, told = os.path.join(folder, key + ".plan"), os.path.join(folder, key + ".json")
        if os.path.exists(plan) and os.path.exists(told):
            os.utime(plan)
            return plan
        made = best_of(path, build, os.path.join(folder, cache), dla)
        for file, kept in ((made[0], plan), (made[1], os.path.join(folder, cache))):
            if os.path.exists(file):
                shutil.move(file, kept + ".new")
                agent.sync(kept + ".new")
                os.replace(kept + ".new", kept)
        agent.write(told, json.dumps({"version": version, "board": board(), "fallbacks": made[2]}).encode())
        make_room(folder, plan)
        return plan

    @staticmethod
    def conditions():
        """The state of a Jetson: what it tells to a user who is not root."""
        found = {}
        mode = power_mode_of(asked(["nvpmodel", "-q"]))
        if mode:
            found["power_mode"] = mode[0]
        found.update(tegrastats_of(one_line(["tegrastats", "--interval", "200"])))
        found.update(gpu_clocks())
        found.update(held_back())
        return found

    @staticmethod
    def prepare(wanted):
        """Bring this machine into the state that a target wants; see `prepare`."""
        prepare(wanted)


def how_to_build(path):
    """The build.json beside a model."""
    place = os.path.join(os.path.dirname(path), "build.json")
    if not os.path.exists(place):
        raise agent.Failed("load", "there is no build.json beside %s" % os.path.basename(path))
    return json.loads(read(place))


def best_of(path, build, known, dla):
    """Of several engines of one network the fastest: its file, its timing cache, and the layers that the DLA left.

    The first takes up what earlier builds have timed, and chooses as they did; the others time all anew.
    """
    version, best, least = known_version()[0], None, None
    for turn in range(build["builds"]):
        plan, cache = "engine-%d.plan" % turn, "timing-%d.cache" % turn
        agent.remove(cache)
        if turn == 0 and os.path.exists(known):
            shutil.copyfile(known, cache)
        if trtexec() is None:
            left = built(module(), path, plan, cache, build["precision"], dla)
        else:
            left = fallbacks_of(ran(build_argv(version, path, plan, cache, build["precision"], dla), "build")[0])
        if best is not None and agent.sha256(plan) == agent.sha256(best[0]):
            continue
        taken = typical_ns(plan, build, dla) if build["builds"] > 1 else 0
        if best is None or taken < least:
            best, least = (plan, cache, left), taken
    return best


def typical_ns(plan, build, dla):
    """What an engine takes, fed with whatever is there."""
    if trtexec() is None:
        with understood("TensorRT"):
            return agent.median(engine.Engine(module(), engine.cuda(), plan, build, dla).timed([], TIMED_RUNS)[0])
    ran([*run_argv(known_version()[0], plan, [], dla), *time_argv("best.json", TIMED_RUNS)], "time")
    with understood("trtexec's times"):
        return agent.median(times_of(read("best.json"))[0])


def make_room(folder, kept):
    """Drop the engines that were not used for longest."""
    plans = [os.path.join(folder, name) for name in agent.listed(folder) if name.endswith(".plan")]
    size = sum(map(os.path.getsize, plans))
    for plan in sorted(plans, key=os.path.getmtime):
        if size > ENGINE_BYTES and plan != kept:
            size -= os.path.getsize(plan)
            agent.remove(plan)
            agent.remove(plan[: -len(".plan")] + ".json")


def built(trt, path, plan, cache, precision, dla):
    """Build an engine by TensorRT's Python module; the layers that the DLA cannot take. As `build_argv` has trtexec do it."""
    version = known_version()[0]
    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    strong, flags = builder_flags(version, precision, dla)
    kinds = trt.NetworkDefinitionCreationFlag
    kind = kinds.STRONGLY_TYPED if strong else kinds.EXPLICIT_BATCH if version < (10, 0) else None
    network = builder.create_network(0 if kind is None else 1 << int(kind))
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            said = "; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, TOLD_LINES)))
            raise agent.Failed("load", "TensorRT cannot parse the model: %s" % said)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag.upper()))
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    left = []
    if dla is not None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        left = sorted(layer.name for layer in layers if not config.can_run_on_DLA(layer))
    known = b""
    with contextlib.suppress(OSError), open(cache, "rb") as file:
        known = file.read()
    config.set_timing_cache(config.create_timing_cache(known), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise agent.Failed("load", "TensorRT cannot build the model's engine")
    with open(plan, "wb") as file:
        file.write(bytes(engine))
    with open(cache + ".new", "wb") as file:
        file.write(bytes(config.get_timing_cache().serialize()))
    os.replace(cache + ".new", cache)
    return left


# ---------------------------------------------------------------------------------------------- a Jetson's state


def board():
    """What kind of board this is, by the device tree, and the system it runs: an engine is for both."""
    release = agent.first_line("/etc/nv_tegra_release")
    try:
        with open("/proc/device-tree/compatible", "rb") as file:
            return [file.read(1000).decode("ascii", "replace").strip("\0").replace("\0", " "), release]
    except OSError:
        return ["unknown", release]


def asked(argv, deadline_s=5.0):
    """What a tool prints, or an empty string where it is not there or fails."""
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=deadline_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[: 1 << 16].decode("utf-8", "backslashreplace")


def one_line(argv, deadline_s=3.0):
    """The first line of a tool that never ends."""
    if shutil.which(argv[0]) is None:
        return ""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        ready = agent.select.select([process.stdout], [], [], deadline_s)[0]
        return os.read(process.stdout.fileno(), 1 << 12).decode("utf-8", "backslashreplace") if ready else ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


GPUS = ("gv11b", "gp10b", "ga10b", "gb10b", "gpu")  # names of the device-tree node, by generation


def gpu_clocks(folder="/sys/class/devfreq"):
    """The GPU's clock and whether it is pinned, as jetson_clocks does: its lowest is its highest."""
    for entry in agent.listed(folder):
        place = os.path.join(folder, entry)
        node = agent.first_line(place + "/device/of_node/name") or entry.partition(".")[2]
        clocks = [agent.first_line("%s/%s_freq" % (place, name)) for name in ("cur", "min", "max")]
        if node in GPUS and all(clock.isdigit() for clock in clocks):
            now, least, most = map(int, clocks)
            return {"gpu_hz": now, "gpu_max_hz": most, "clocks_pinned": int(least == most)}
    return {}


COOLED = re.compile(r".*throttle-alert|hot-surface-alert|.*cpufreq.*|devfreq-.*gpu.*|(gpu|cpu)-balanced")
THROTTLED = 4  # the bit that a Raspberry Pi has for it


def held_back(thermal="/sys/class/thermal", monitors="/sys/class/hwmon"):
    """Whether heat holds a clock down now, and how often the supply did since the board was started."""
    found = {}
    kinds = [os.path.join(thermal, name) for name in agent.listed(thermal) if name.startswith("cooling_device")]
    states = [
        agent.first_line(kind + "/cur_state") for kind in kinds if COOLED.fullmatch(agent.first_line(kind + "/type"))
    ]
    if states:
        found["throttled"] = THROTTLED if any(state.isdigit() and int(state) > 0 for state in states) else 0
    counts = []
    for name in agent.listed(monitors):
        place = os.path.join(monitors, name)
        if agent.first_line(place + "/name") == "soctherm_oc":
            files = [file for file in agent.listed(place) if re.fullmatch(r"oc\d_(event|irq)_cnt", file)]
            counts += [agent.first_line(os.path.join(place, file)) for file in files]
    if counts:
        found["over_current_events"] = sum(int(count) for count in counts if count.isdigit())
    return found


def prepare(wanted):
    """Set the power mode and pin the clocks, where they are not so already; how to put them back is written down first.

    Clocks are stored before the power mode is changed and come back after it: they are those of the user's own mode.
    """
    pinning = wanted["jetson_clocks"] and not gpu_clocks().get("clocks_pinned")
    if pinning:
        os.makedirs(agent.root(), mode=0o700, exist_ok=True)
        kept = os.path.join(agent.root(), "clocks-%d.conf" % os.getpid())
        asked(["sudo", "-n", "jetson_clocks", "--store", kept], 30.0)
        if not os.path.exists(kept):
            raise agent.Failed("prepare", "jetson_clocks does not say how the clocks are: %s" % SUDO % "jetson_clocks")
        agent.write_undo([["sh", "-c", 'sudo -n jetson_clocks --restore "$0" && rm -f "$0"', kept]])
    if wanted["power_mode"]:
        set_power_mode(wanted["power_mode"])
    if pinning:
        asked(["sudo", "-n", "jetson_clocks"], 30.0)
        if not gpu_clocks().get("clocks_pinned"):
            raise agent.Failed("prepare", "jetson_clocks does not pin the clocks: %s" % SUDO % "jetson_clocks")


def set_power_mode(name):
    now = power_mode_of(asked(["nvpmodel", "-q"]))
    if now is None:
        raise agent.Failed("prepare", "nvpmodel does not say its power mode: is this a Jetson? take [prepare] out")
    modes = power_modes_of(read(MODES_FILE)) if os.path.exists(MODES_FILE) else {}
    if name not in modes:
        raise agent.Failed("prepare", "no power mode %r; known: %s" % (name, ", ".join(sorted(modes)) or "none"))
    if now[0] == name:
        return
    agent.write_undo([["sudo", "-n", "nvpmodel", "-m", str(now[1])]])
    asked(["sudo", "-n", "nvpmodel", "-m", str(modes[name])], 30.0)
    after = power_mode_of(asked(["nvpmodel", "-q"]))
    if after is None or after[0] != name:  # its exit status says nothing
        why = "%s, and some modes need a reboot" % SUDO % "nvpmodel"
        raise agent.Failed("prepare", "the power mode stays %s: %s" % (now[0], why))


agent.RUNTIMES["tensorrt"] = TensorRt
MODES = {}
