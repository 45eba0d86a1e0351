"""What trtexec takes, by version, and what it prints. Pure: nothing is run here.

It is as in samples/common of NVIDIA/TensorRT, 8.4 to 11.1; see docs/jetson.md. It travels to devices: standard library and
numpy, Python 3.8 and up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Tuple

from ..device import Array, Failed
from ..timing import NodeTime

Version = Tuple[int, int, int]
WARM_UP_S = 0.2
PROFILED_RUNS = 100
BANNER = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec(?: \[TensorRT v(\d+)\])?((?: \[[\w-]+\])*) #")
STAND_IN = "[stand-in]"
REGION = "{ForeignNode["
COPY = re.compile(r" (to nvm|from nvm|copy finish|finish)$")  # to the DLA and back
FELL_BACK = (  # in the words of 8.5 and later, then of earlier versions
    re.compile(r"Layer '(.+)' \(\w+\): Unsupported on DLA\. Switching this layer's device type to GPU"),
    re.compile(r"Default DLA is enabled but layer (.+) is not (?:supported|running) on DLA, falling back to GPU"),
    re.compile(r"Validation failed for DLA layer: (.+)\. Switching to GPU fallback"),
    re.compile(r"DLA only supports FP16 and Int8 precision type\. Switching (.+) device type to GPU"),
)
WARM_UP = f"--warmUp={round(1e3 * WARM_UP_S)}"


# ------------------------------------------------------------------------------------------------- argv, by version


def builder_flags(version: Version, precision: str, dla: int | None) -> tuple[bool, list[str]]:
    """Whether the network is strongly typed, and else the flags that allow its precision.

    In a strongly typed network, the ONNX file gives the precision. TensorRT 10 has strong types, and 11 has nothing else.
    A strongly typed network cannot run on the DLA, which has no fp32.
    """
    if version >= (11, 0) or (version >= (10, 0) and dla is None):
        return True, []
    on_dla = ["fp16"] if dla is not None and precision == "int8" else []
    return False, {"fp32": [], "fp16": ["fp16"], "int8": ["int8", *on_dla]}[precision]


def build_argv(version: Version, onnx: str, plan: str, cache: str, precision: str, dla: int | None) -> list[str]:
    """Arguments that build an engine. Builder flags are added only where this version needs them."""
    argv = [f"--onnx={onnx}", f"--saveEngine={plan}", f"--timingCacheFile={cache}", "--profilingVerbosity=detailed"]
    argv.append("--skipInference" if version >= (8, 6) else "--buildOnly")
    strong, flags = builder_flags(version, precision, dla)
    argv += ["--stronglyTyped"] * (strong and version < (11, 0)) + [f"--{flag}" for flag in flags]
    if precision == "fp32":
        argv.append("--noTF32")  # fp32 must not become TF32
    if dla is not None:
        argv += [f"--useDLACore={dla}", "--allowGPUFallback", "--verbose"]
    return argv


def run_argv(version: Version, plan: str, inputs: Sequence[tuple[str, str]], dla: int | None) -> list[str]:
    """Arguments of every inference. Inputs are pairs of name and file. trtexec reports the copies separately."""
    argv = [f"--loadEngine={plan}"]
    if inputs:
        argv.append("--loadInputs=" + ",".join(f"'{name}':{file}" for name, file in inputs))
    if dla is not None:
        argv.append(f"--useDLACore={dla}")
    # By default 11 omits the copies, captures a graph and spins; before 11, spinning is an option.
    return argv + (["--includeDataTransfers", "--noCudaGraph"] if version >= (11, 0) else ["--useSpinWait"])


def time_argv(times: str, iterations: int) -> list[str]:
    """Arguments for whole-network times without a profiler: so many iterations after the warm-up."""
    return [WARM_UP, "--duration=0", f"--iterations={iterations}", f"--exportTimes={times}"]


def streams_argv(version: Version, times: str, streams: int, seconds: float) -> list[str]:
    """Arguments that keep several inferences running at the same time, for so many seconds."""
    flag = "infStreams" if version >= (8, 6) else "streams"
    return [WARM_UP, f"--duration={max(1, round(seconds))}", f"--{flag}={streams}", f"--exportTimes={times}"]


def profile_argv(version: Version, profile: str, layers: str) -> list[str]:
    """Arguments for times by layer and the content of the layers. It is a separate run, since a profiler slows it down."""
    argv = [WARM_UP, "--duration=0", f"--iterations={PROFILED_RUNS}"]
    argv += ["--dumpProfile", f"--exportProfile={profile}", f"--exportLayerInfo={layers}"]
    return argv if version >= (11, 0) else [*argv, "--separateProfileRun"]


def output_argv(output: str) -> list[str]:
    """Arguments for one inference and its outputs."""
    return ["--warmUp=0", "--duration=0", "--iterations=1", f"--exportOutput={output}"]


# -------------------------------------------------------------------------------------------------------- parsers


def version_of(text: str) -> tuple[Version, bool]:
    """The version in trtexec's first line, and whether it is a stand-in.

    Up to 9, the banner counts a thousand for a major version: v8502 is 8.5.2. From 10 on it counts ten thousand: v100300.
    """
    found = BANNER.search(text)
    if found is None or found.group(2) is None:
        raise Failed("runtime-missing", f"trtexec does not print its version: {text[:200]}")
    number = int(found.group(2))
    unit = 10000 if number >= 100000 else 1000
    return (number // unit, number % unit // 100, number % 100), STAND_IN in found.group(3)


def passed(text: str, code: int) -> bool:
    """Whether trtexec did its work. The exit status is not enough: trtexec may crash after its work."""
    ends = [match.group(1) for match in BANNER.finditer(text)]
    return code == 0 and bool(ends) and ends[-1] == "PASSED"


def fallbacks_of(text: str) -> list[str]:
    """The layers that the DLA could not run."""
    return sorted({layer for words in FELL_BACK for layer in words.findall(text)})


def times_of(text: str) -> tuple[list[int], int]:
    """Read --exportTimes: nanoseconds on the GPU by run, and the median nanoseconds of the copies there and back."""
    runs = _numbers(json.loads(text))
    if not runs:
        raise ValueError("no run was timed")
    copies = sorted(run["h2dMs"] + run["d2hMs"] for run in runs)
    return [max(1, round(1e6 * run["computeMs"])) for run in runs], round(1e6 * copies[len(copies) // 2])


def completed(text: str) -> tuple[int, int]:
    """Read --exportTimes of several streams: the runs, and the nanoseconds from the first start to the last end."""
    runs = json.loads(text)
    spent_ms = max(run["endD2hMs"] for run in runs) - min(run["startH2dMs"] for run in runs)
    if not 0 < spent_ms < 1e9:
        raise ValueError(f"the runs take {spent_ms!r} ms")
    return len(runs), round(1e6 * spent_ms)


def _numbers(runs: list[dict[str, float]]) -> list[dict[str, float]]:
    for run in runs:
        for key in ("computeMs", "h2dMs", "d2hMs"):
            if not 0 <= run[key] < 1e9:
                raise ValueError(f"{key} is {run[key]!r}")
    return runs


def layers_of(profile: str, layers: str) -> list[NodeTime]:
    """Read --exportProfile and --exportLayerInfo: the time of every layer, with its ONNX nodes (since 8.6)."""
    known, kinds = {}, {}
    for layer in json.loads(layers).get("Layers", []):
        if isinstance(layer, dict):
            known[layer["Name"]] = str(layer.get("Metadata") or "")
            kinds[layer["Name"]] = str(layer.get("LayerType", ""))
    found = []
    for row in json.loads(profile):
        if "name" in row:
            ms = row.get("medianMs", row["averageMs"])
            if not 0 <= ms < 1e9:
                raise ValueError(f"{row['name']} takes {ms!r} ms")
            onnx = re.findall(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)", known.get(row["name"], ""))
            found.append(NodeTime(row["name"], round(1e6 * ms), tuple(onnx), kinds.get(row["name"], "")))
    return regions_of(found)


def regions_of(rows: Sequence[NodeTime]) -> list[NodeTime]:
    """Each region of the DLA as one layer, with its copies. Its own row is short: the GPU waits in the copy that follows.

    Its nodes are not named: the first of them would get the time of all.
    """
    if not any(COPY.search(row.name) for row in rows):
        return [replace(row, fused=()) if row.kind == "DLA" else row for row in rows]
    found: list[NodeTime] = []
    region, before = -1, 0  # the place of the last region, and what was copied for the next one
    for row in rows:
        if row.name.startswith(REGION):
            region = len(found)
            found.append(replace(row, ns=row.ns + before, fused=()))
            before = 0
        elif not COPY.search(row.name):
            found.append(row)
        elif row.name.endswith(" to nvm") or region < 0:
            before += row.ns
        else:
            found[region] = replace(found[region], ns=found[region].ns + row.ns)
    if region >= 0:
        return [replace(row, ns=row.ns + before) if i == region else row for i, row in enumerate(found)]
    return list(rows)


def outputs_of(text: str, names: Sequence[str]) -> list[Array]:
    """Read --exportOutput: the outputs of the last run in this order, as fp32 arrays of six digits."""
    import numpy

    found: dict[str, Any] = {}
    for output in json.loads(re.sub(r"(?<=[\[,\s])-?nan(?=[\],\s])", "NaN", text)):
        shape = [int(size) for size in output["dimensions"].split("x")]
        found[output["name"]] = numpy.array(output["values"], "float32").reshape(shape)
    return [found[name] for name in names]
