"""The latency model on real boards, as others measured them: layers, pruned networks, transformers and architectures.

    python benchmarks/real_boards.py --data DIR [--only tophub natgr hat help] [--repeats 3] [--out FILE]

edgeprune took none of these measurements. `DIR` holds four tables:

- TopHub's layers, from the logs of AutoTVM (tlc-pack/tophub);
- pruned networks on a Raspberry Pi 3B (NatGr/Master_Thesis);
- transformers on a Raspberry Pi 4 and a Xeon (mit-han-lab/hardware-aware-transformers);
- NAS-Bench-201 on a Raspberry Pi 4 and a Pixel 3 (HW-NAS-Bench and HELP).

The model is `edgeprune.latency.fit.fit`, as the product fits it.
For that, every table is stated as a profile of a network whose blocks can be removed.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor

from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import REPEATS
from edgeprune.records import Device, Experiment, Group, Groups, Layer, Profile, Run, Samples, Span
from edgeprune.records.profile import Role

FOLDS = 5
LEAST = 8  # layers of one geometry, so that a fold leaves some of them
SESSION_S = 30 * 86400  # a longer pause begins another session: its device and compiler were in another state
BOARDS = (
    "bcm2837",
    "rk3399-cpu",
    "kirin970",
    "snapdragon835",
    "pynq",
    "rk3399-mali",
    "tx2",
    "jetson-nano",
    "titanx",
    "1080ti",
)
SAMPLES = (10, 30, 100)  # networks measured on a new board
UNSEEN = 300  # networks that are then predicted
DRAWS = 5  # of these samples
KNOWN = 400  # networks measured on the known board
DEVICE = Device("unknown", "measured by others", 1, "none", "none", "0", "boot")
Row = dict[str, float | str | int]
Widths = dict[str, int]


@dataclass(frozen=True)
class Measured:
    """One network at some widths, and what it took."""

    widths: Widths
    ns: float
    layers: dict[str, float]


def profile(known: Sequence[Measured], anchors: int = 1) -> Profile:
    """State measurements as a profile. The tables have no anchor, so the one nearest the median is that."""
    middle = min(known, key=lambda m: abs(m.ns - np.median([k.ns for k in known])))
    roles: list[tuple[Role, Measured]] = [("fit", m) for m in known if m is not middle]
    roles += [("anchor", middle)] * anchors
    experiments = tuple(
        Experiment(
            role, 0, m.widths, Samples((Run((round(m.ns),), 1),)), {name: round(ns) for name, ns in m.layers.items()}
        )
        for role, m in roles
    )
    return Profile("board", "table", "table", DEVICE, 1, "fp32", experiments)


def figures(predicted: np.ndarray, measured: np.ndarray) -> Row:
    error = np.abs(predicted / measured - 1)
    return {
        "networks": len(error),
        "median": float(np.median(error)),
        "p95": float(np.quantile(error, 0.95)),
        "max": float(error.max()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.1).mean()),
    }


def ours(model: LatencyModel, unseen: Sequence[Measured]) -> list[tuple[float, float, float]]:
    """(low, expected, high) nanoseconds of each."""
    intervals = [model.predict(m.widths) for m in unseen]
    return [(i.low, i.mid, i.high) for i in intervals]


def holds(intervals: np.ndarray, measured: np.ndarray) -> Row:
    low, mid, high = intervals.T
    return {
        "holds": float(((low <= measured) & (measured <= high)).mean()),
        "interval": float(np.median(high / mid - 1)),
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- TopHub


@dataclass(frozen=True)
class Tuned:
    """A convolution of TopHub: its geometry, its channels and its latency."""

    geometry: tuple[str | int, ...]
    inputs: int
    outputs: int
    positions: int
    kernel: int
    stride: int
    depthwise: bool
    ns: float

    @property
    def macs(self) -> int:
        return self.positions * self.kernel * self.outputs * (1 if self.depthwise else self.inputs)


def tuned(data: Path, board: str) -> list[Tuned]:
    """The fp32 convolutions of a board in geometries of at least `LEAST` layers; of equal ones the fastest."""
    table = [r for r in rows_of(data / "tophub" / "tophub_layers.csv") if r["device"] == board]
    table = [r for r in table if r["dtype"] == "float32" and r["kind"] in ("conv", "depthwise")]
    table.sort(key=lambda r: float(r["measured_at"]))
    found: dict[tuple[str | int, ...], dict[tuple[int, int], Tuned]] = {}
    session, last = 0, float(table[0]["measured_at"])
    for r in table:
        at = float(r["measured_at"])
        session, last = session + (at - last > SESSION_S), at
        positions, kernel = int(r["out_h"]) * int(r["out_w"]), int(r["kh"]) * int(r["kw"])
        geometry = (r["task"], r["kh"], r["kw"], r["stride"], positions, session)
        layer = Tuned(
            geometry, int(r["cin"]), int(r["cout"]), positions, kernel, int(r["stride"]), r["kind"] == "depthwise",
            float(r["latency_ms"]) * 1e6,
        )  # fmt: skip
        same = found.setdefault(geometry, {})
        key = layer.inputs, layer.outputs
        same[key] = min(same.get(key, layer), layer, key=lambda x: x.ns)
    return [layer for same in found.values() if len(same) >= LEAST for layer in same.values()]


def as_network(layers: Sequence[Tuned]) -> tuple[Groups, list[Measured]]:
    """A network with one block for each geometry. A layer of the table is the network without all other blocks."""
    names = {geometry: str(i) for i, geometry in enumerate(dict.fromkeys(x.geometry for x in layers))}
    groups: list[Group] = []
    blocks: list[Layer] = []
    for geometry, name in names.items():
        same = [x for x in layers if x.geometry == geometry]
        ins, outs = (Span(0, (((f"{name}.{side}",), 1),)) for side in ("in", "out"))
        groups += [Group(f"{name}.in", max(x.inputs for x in same), ())]
        groups += [Group(f"{name}.out", max(x.outputs for x in same), ())]
        per_group = Span(1) if same[0].depthwise else None
        blocks.append(
            Layer(
                name, "conv", f"{name}.weight", outs if per_group else ins, outs, same[0].positions, same[0].kernel,
                per_group, within=f"{name}.out",
            )
        )  # fmt: skip
    nothing = {group.name: 0 for group in groups}
    measured = []
    for x in layers:
        name = names[x.geometry]
        widths = nothing | {f"{name}.in": x.inputs, f"{name}.out": x.outputs}
        measured.append(Measured(widths, x.ns, {name: x.ns}))
    return Groups("table", tuple(groups), tuple(blocks), operators=len(blocks)), measured


def forest(features: Callable[[Tuned], Sequence[float]], known: Sequence[Tuned], unseen: Sequence[Tuned]) -> np.ndarray:
    """A random forest on the logarithm of the latency."""
    model = RandomForestRegressor(100, random_state=0)
    model.fit([features(x) for x in known], np.log([x.ns for x in known]))
    result: np.ndarray = np.exp(model.predict([features(x) for x in unseen]))
    return result


def plain(x: Tuned) -> Sequence[float]:
    return x.inputs, x.outputs, x.positions, x.kernel, x.stride, x.depthwise


def as_nn_meter(x: Tuned) -> Sequence[float]:
    """The features of nn-Meter's forests (Zhang et al., MobiSys 2021): sizes, work and parameters."""
    parameters = x.kernel * x.outputs * (1 if x.depthwise else x.inputs)
    return x.positions, x.inputs, x.outputs, x.kernel, x.stride, x.macs, parameters


def by_kernel(known: Sequence[Tuned], unseen: Sequence[Tuned]) -> np.ndarray:
    """nn-Meter's way: a forest for each kind of kernel."""
    result = np.empty(len(unseen))
    for kind in {x.geometry[0] for x in unseen}:
        at = [i for i, x in enumerate(unseen) if x.geometry[0] == kind]
        same = [x for x in known if x.geometry[0] == kind]
        result[at] = forest(as_nn_meter, same, [unseen[i] for i in at])
    return result


def tophub(data: Path, repeats: int) -> Iterator[Row]:
    """AutoTVM kept the mean of many runs, so the anchor is entered as one that repeats exactly."""
    for board in BOARDS:
        layers = tuned(data, board)
        groups, measured = as_network(layers)
        truth: list[float] = []
        intervals: list[tuple[float, float, float]] = []
        others: dict[str, list[float]] = {"multiply-accumulates": [], "random forest": [], "nn-Meter's features": []}
        for seed in range(repeats):
            for part in np.array_split(np.random.default_rng(seed).permutation(len(layers)), FOLDS):
                kept = sorted(set(range(len(layers))) - set(part.tolist()))
                known, unseen = [layers[i] for i in kept], [layers[i] for i in part]
                truth += [x.ns for x in unseen]
                intervals += ours(
                    fit(groups, profile([measured[i] for i in kept], anchors=REPEATS)), [measured[i] for i in part]
                )
                rate = float(np.median([x.ns / x.macs for x in known]))
                others["multiply-accumulates"] += [rate * x.macs for x in unseen]
                others["random forest"] += forest(plain, known, unseen).tolist()
                others["nn-Meter's features"] += by_kernel(known, unseen).tolist()
        found, actual = np.array(intervals), np.array(truth)
        about: Row = {"source": "TopHub", "board": board}
        mine = figures(found[:, 1], actual) | holds(found, actual)
        yield about | {"predictor": "edgeprune"} | mine | {"networks": len(layers)}
        for name, predicted in others.items():
            yield about | {"predictor": name} | figures(np.array(predicted), actual) | {"networks": len(layers)}


# -------------------------------------------------------------------------------------------------------- NatGr


def natgr(data: Path, repeats: int) -> Iterator[Row]:
    """The sum of a table of layers is the only layer of a network here. So the model learns what the sum misses."""
    table = rows_of(data / "natgr_rpi3b" / "pruning_methods.csv")
    times = np.array([[float(r[key] or "nan") for key in ("table_time", "measured_time")] for r in table]) * 1e9
    times = times[np.isfinite(times).all(axis=1)]
    unit = 1e5  # nanoseconds: the table has four digits of a second
    span = Span(0, ((("sum",), 1),))
    layer = Layer("sum", "linear", "sum.weight", Span(1), span, 1, 1)
    groups = Groups("table", (Group("sum", round(times[:, 0].max() / unit), ()),), (layer,), operators=1)
    measured = [Measured({"sum": round(total / unit)}, ns, {"sum": total}) for total, ns in times]
    found = np.array(
        [ours(fit(groups, profile([*measured[:i], *measured[i + 1 :]])), [m])[0] for i, m in enumerate(measured)]
    )
    about: Row = {"source": "NatGr", "board": "Raspberry Pi 3B"}
    yield (
        about
        | {"predictor": "edgeprune, leave one out"}
        | figures(found[:, 1], times[:, 1])
        | holds(found, times[:, 1])
    )
    yield about | {"predictor": "sum of the table"} | figures(times[:, 0], times[:, 1])


# --------------------------------------------------------------------------------------- whole networks on a new board


def learned(groups: Groups, networks: Sequence[Measured], about: Row, anchors: int = 1) -> Iterator[Row]:
    """Fit the model to a few measured networks of a new board, and predict others."""
    for count in SAMPLES:
        intervals, truth, ranks = [], [], []
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(networks))[: count + UNSEEN]
            unseen = [networks[i] for i in order[count:]]
            found = ours(fit(groups, profile([networks[i] for i in order[:count]], anchors)), unseen)
            intervals += found
            truth += [m.ns for m in unseen]
            ranks.append(float(spearmanr([mid for _, mid, _ in found], truth[-UNSEEN:]).statistic))
        bounds, actual = np.array(intervals), np.array(truth)
        rank: Row = {"predictor": f"edgeprune, {count} networks", "rank": float(np.mean(ranks)), "samples": count}
        yield about | figures(bounds[:, 1], actual) | holds(bounds, actual) | rank | {"networks": len(networks)}


def hat(data: Path, repeats: int) -> Iterator[Row]:
    """The spread of most of these latencies is under 1 %, so the anchor is entered as one that repeats exactly."""
    for board, name in (("Raspberry Pi 4", "enfr_cpu_raspberrypi"), ("Xeon", "ende_cpu_xeon")):
        table = rows_of(data / "hat_rpi4" / f"wmt14{name}_all.csv")
        groups, networks = transformers(table)
        yield from learned(groups, networks, {"source": "HAT", "board": board}, anchors=REPEATS)


TOKENS, VOCABULARY, HEADS = (
    30,
    32768,
    512,
)  # of one sentence; output classes; width of the queries, the same in all networks


def transformers(table: Sequence[dict[str, str]]) -> tuple[Groups, list[Measured]]:
    """HAT's encoders and decoders: up to six blocks each, whose widths are the means that the table has."""
    widths, layers = {"encoder": 1, "decoder": 1}, []
    decoder, encoder = (Span(0, (((side,), 1),)) for side in ("decoder", "encoder"))
    layers.append(Layer("output", "linear", "output.w", decoder, Span(VOCABULARY), TOKENS, 1))
    for side, stream in (("encoder", encoder), ("decoder", decoder)):
        for i in range(6):
            inner = f"{side}.{i}"
            widths[inner] = 1
            ffn = Span(0, (((inner,), 1),))
            parts = {
                "qkv": (stream, Span(3 * HEADS)),
                "out": (Span(HEADS), stream),
                "up": (stream, ffn),
                "down": (ffn, stream),
            }
            if side == "decoder":
                parts |= {
                    "cross.q": (stream, Span(HEADS)),
                    "cross.kv": (encoder, Span(2 * HEADS)),
                    "cross.out": (Span(HEADS), stream),
                }
            layers += [
                Layer(f"{inner}.{part}", "linear", f"{inner}.{part}.w", ins, outs, TOKENS, 1, within=inner)
                for part, (ins, outs) in parts.items()
            ]
    networks = []
    for row in table:
        sizes = {side: int(row[f"{side}_embed_dim"]) for side in ("encoder", "decoder")}
        for side in ("encoder", "decoder"):
            ffn_width, depth = round(float(row[f"{side}_ffn_embed_dim_avg"])), int(row[f"{side}_layer_num"])
            sizes |= {f"{side}.{i}": ffn_width if i < depth else 0 for i in range(6)}
        ns = 1e6 * (float(row["latency_mean_encoder"]) + float(row["latency_mean_decoder"]))
        networks.append(Measured(sizes, ns, {}))
    full = {name: max(m.widths[name] for m in networks) for name in widths}
    groups = tuple(Group(name, width, ()) for name, width in full.items())
    return Groups("hat", groups, tuple(layers), operators=len(layers)), networks


STAGES = ((1, 1024), (2, 256), (4, 64))  # of NAS-Bench-201: widths relative to the first, positions
CELLS = 5  # in each stage
# Layers that every network has: inputs, outputs, positions and taps of the stem, of two reductions and of the classifier.
REDUCTIONS = tuple(
    (i, o, n, k) for i, n in ((16, 256), (32, 64)) for o in (2 * i,) for i, k in ((i, 9), (o, 9), (i, 1))
)
ALWAYS = ((3, 16, 1024, 9), *REDUCTIONS, (64, 10, 1, 1))
OPERATORS = {"nor_conv_1x1": 1, "nor_conv_3x3": 9, "avg_pool_3x3": 9}  # taps


EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # of a cell: from the input, node 0, to the output, node 3


def alive(chosen: Sequence[str]) -> list[int]:
    """The edges on a path from input to output. A converter drops the others."""
    present = [edge for edge in range(len(EDGES)) if chosen[edge] != "none"]
    reached, useful = {0}, {3}
    for edge in present:  # in the order of their sources' computation
        if EDGES[edge][0] in reached:
            reached.add(EDGES[edge][1])
    for edge in reversed(present):
        if EDGES[edge][1] in useful:
            useful.add(EDGES[edge][0])
    return [edge for edge in present if EDGES[edge][0] in reached and EDGES[edge][1] in useful]


def architectures(table: Sequence[dict[str, str]], column: str) -> tuple[Groups, list[Measured]]:
    """NAS-Bench-201 as one network with a block for each edge and operator. A pooling counts as a depthwise layer."""
    layers = [
        Layer(f"always.{i}", "conv", f"always.{i}.w", Span(inputs), Span(outputs), positions, taps)
        for i, (inputs, outputs, positions, taps) in enumerate(ALWAYS)
    ]
    names = []
    for edge in range(6):
        for operator, taps in OPERATORS.items():
            block = f"{edge}.{operator}"
            names.append(block)
            for i, (wider, positions) in enumerate(STAGES):
                span = Span(0, (((block,), wider),))
                per_group = Span(1) if operator == "avg_pool_3x3" else None
                name = f"{block}.{i}"
                layers.append(
                    Layer(name, "conv", f"{name}.w", span, span, CELLS * positions, taps, per_group, within=block)
                )
    networks = []
    for row in table:
        chosen = [part.split("~")[0] for part in row["arch"].replace("+", "").split("|") if part]
        there = {f"{edge}.{chosen[edge]}" for edge in alive(chosen)}
        networks.append(Measured({name: 16 * (name in there) for name in names}, 1e6 * float(row[column]), {}))
    groups = tuple(Group(name, 16, ()) for name in names)
    return Groups("nb201", groups, tuple(layers), operators=len(layers)), networks


def help_boards(data: Path, repeats: int) -> Iterator[Row]:
    """Networks with a block at least, on a new board. With a known board, its model gives the node times."""
    table = rows_of(data / "help_hwnasbench" / "nb201_latency.csv")
    columns = {"Raspberry Pi 4": "raspi4_ms", "Pixel 3": "pixel3_ms"}
    connected = [r for r in table if min(float(r[column]) for column in columns.values()) >= 1]
    for board, column in columns.items():
        ((known_board, known_column),) = ((b, c) for b, c in columns.items() if b != board)
        groups, networks = architectures(connected, column)
        networks = [m for m in networks if any(m.widths.values())]
        yield from learned(groups, networks, {"source": "HELP", "board": board})
        _, before = architectures(connected, known_column)
        before = [m for m in before if any(m.widths.values())]
        order = np.random.default_rng(99).permutation(len(before))[:KNOWN]
        model = fit(groups, profile([before[i] for i in order]))
        yield from learned(
            groups,
            [Measured(m.widths, m.ns, model.layer_ns(m.widths)) for m in networks],
            {"source": "HELP", "board": f"{board}, {known_board} known"},
        )


# --------------------------------------------------------------------------------------------------------------------


SOURCES = {"tophub": tophub, "natgr": natgr, "hat": hat, "help": help_boards}


def line(row: Row) -> str:
    cells = [f"{row['source']:<7} {row['board']:<31} {row['predictor']:<25} {row['networks']:>6}"]
    cells += [f"{row[key]:>7.1%}" for key in ("median", "p95", "max")] + [
        f"{row[key]:>6.0%}" for key in ("within_5", "within_10")
    ]
    cells += [f"{row['holds']:>6.0%} ±{row['interval']:.1%}"] if "holds" in row else []
    return " ".join(cells + ([f"{row['rank']:>6.3f}"] if "rank" in row else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tables")
    parser.add_argument("--only", choices=SOURCES, nargs="+", default=list(SOURCES))
    parser.add_argument("--repeats", type=int, default=3, help="of the five folds, with other splits")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    np.seterr(divide="ignore", over="ignore")  # a fold of a fold may lack a geometry
    print("Measured by others, not by edgeprune. TopHub: AutoTVM chose and tuned a kernel for each layer.")
    columns = [f"{name:>7}" for name in ("median", "p95", "max")] + [f"{name:>6}" for name in ("≤ 5 %", "≤ 10 %")]
    head = " ".join([f"{'source':<7} {'board':<31} {'predictor':<25} {'number':>6}", *columns])
    print(f"{head} {'holds, interval':>13} {'rank':>6}")
    rows = []
    for name in options.only:
        for row in SOURCES[name](options.data, options.repeats):
            rows.append(row)
            print(line(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
