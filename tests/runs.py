"""Finished runs, written as the pipeline writes them, but without a device. Every text in them can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.pipeline.request import SHARED
from edgeprune.pipeline.run import SCHEMA
from edgeprune.records import (
    Artifact,
    Check,
    Confirmed,
    Device,
    Differences,
    Discarded,
    Epoch,
    Evidence,
    Experiment,
    Figures,
    Group,
    Groups,
    Interval,
    Layer,
    MeasuredPlan,
    Outcome,
    Plan,
    Profile,
    Provenance,
    Pruned,
    Record,
    Run,
    Samples,
    Scores,
    Slot,
    Span,
    TimedProcess,
    Tuned,
    Verdict,
    digest,
)
from edgeprune.storage import baselines, codec, evidence
from edgeprune.storage.profiles import ProfileFile
from edgeprune.storage.store import Store

WIDTH, KEPT = 32, 12


@dataclass(frozen=True)
class Texts:
    """Texts of the user and of the device in a run."""

    device: str = "Cortex-A72"
    layer: str = "net"
    metric: str = "metric"
    note: str = "48 to 50% of the original network, limit 50%"
    reason: str = "other processes used the processor"
    output: str = "logits"
    setting: str = "loss-curves"

    @staticmethod
    def all(text: str) -> Texts:
        """The same text everywhere."""
        return Texts(*[text] * 7)


def groups(layer: str) -> Groups:
    """Two convolutions and a locked classifier."""
    a, b, fc = (f"{layer}.{name}" for name in ("a", "b", "fc"))
    own = [(a, WIDTH, None), (b, WIDTH, None), (fc, 10, f"output of the model {layer}")]
    units = {name: Group(name, width, (Slot(f"{name}.weight", 0, tuple((i,) for i in range(width))),), why)
             for name, width, why in own}  # fmt: skip

    def span(name: str) -> Span:
        return Span(0, (((name,), 1),))

    layers = (
        Layer(a, "conv", f"{a}.weight", Span(3), span(a), 256, 9),
        Layer(b, "conv", f"{b}.weight", span(a), span(b), 256, 9),
        Layer(fc, "linear", f"{fc}.weight", span(b), Span(10), 1, 1),
    )
    return Groups("0" * 64, tuple(units.values()), layers, operators=7)


def profile(found: Groups, device: Device, target: str) -> Profile:
    """A profile of a device whose layers take time with their channels."""
    a, b, _ = found.groups
    full = found.full()
    widths = [{**full, a.name: n, b.name: m} for n in (4, 12, 20, 28) for m in (4, 12, 20, 28)]
    experiments = []
    for i, one in enumerate([{**full, a.name: 16, b.name: 16}, full, *widths]):
        layers = {layer.name: 900 + 40 * layer.macs(one) // 100 for layer in found.layers}
        runs = tuple(Run((sum(layers.values()) + 3000 + 10 * j,), 1) for j in range(2))
        experiments.append(
            Experiment(("anchor", "baseline")[i] if i < 2 else "fit", 0, one, Samples(runs), layers, 3000)
        )
    return Profile(target, "p", found.network, device, 1, "fp32", tuple(experiments))


def put(home: Path, texts: Texts | None = None, target: str = "pi", budget: str | None = "50%", **changed: Any) -> Path:
    """Write a finished run of the project in `home`, and return the folder of its verdict.

    Args:
        home: the project's folder.
        texts: of the user and of the device.
        target: its name.
        budget: None is a run that prunes nothing.
        changed: fields of the verdict.
    """
    said = texts or Texts()
    device = Device("aarch64", said.device, 4, "Linux 6.1", "onnxruntime", "1.20", "boot")
    made = Provenance(1_750_000_000, "p", "edgeprune.toml", target, "onnxruntime", "fp32", budget, device)
    found = groups(said.layer)
    with Store(home / "runs" / target) as own, Store(home / "runs" / SHARED) as shared:
        keys: dict[str, str] = {}

        def kept(store: Store, name: str, record: Any, *reads: str, **labels: Any) -> Path:
            content = {**labels, **{stage: keys[stage] for stage in reads}}
            keys[name] = digest([SCHEMA, name, content])
            facts = {"schema": SCHEMA, "reads": content, "settings": digest(labels), "made": asdict(made)}
            with store.create(name, keys[name], facts) as draft:
                for file in vars(record).values():
                    if isinstance(file, Path):
                        draft.path(str(file)).write_bytes(b"network")
                if isinstance(record, Artifact):
                    draft.path("model/model.onnx").write_bytes(b"network")
                if isinstance(record, Verdict):
                    evidence.write(draft.folder, evidence_of(said))
                draft.write_text(f"{name}.json", codec.dumps(record))
            return draft.entry.folder

        artifact = Artifact((Path("model/model.onnx"),), "1" * 64, "onnxruntime", "fp32", "2" * 64, 7)
        kept(shared, "survey" if budget else "trace", found)
        traced = next(iter(keys))
        kept(own, "original", artifact, traced)
        if budget:
            kept(shared, "scores", scores(found), traced, **{"[prune] importance": said.setting})
            plan = planned(found)
            kept(own, "plan", plan.plan, traced, "scores", **{"[budget] latency": budget})
            kept(own, "confirm", plan, traced, "scores", "plan")
            kept(
                own,
                "prune",
                Pruned(Path("pruned.safetensors"), Path("start.safetensors"), (900, 1800), True),
                "confirm",
            )
            epochs = (Epoch(0, None, 0.7), Epoch(1, 0.4, 0.91, 0.01), Epoch(2, 0.2, 0.90, 0.001))
            kept(own, "finetune", Tuned(Path("tuned.safetensors"), epochs), traced, "confirm", "prune")
            file = ProfileFile.of(home / "profiles" / target, "p", _target(target), found, device, "fp32")
            file.keep(profile(found, device, target))
        trained = ("finetune",) if budget else ()
        kept(own, "compile", artifact, traced, *trained)
        reads = {
            "package torch": "2.13.0",
            "device": device.identity,
            "[runtime] threads": 1,
            "[data] metric": said.metric,
        }
        verdict = replace(verdict_of(said, budget), **changed)
        return kept(
            own, "verify", verdict, traced, "original", "compile", *trained, **reads, **{"[budget] latency": budget}
        )


def checked(home: Path, target: str = "pi") -> None:
    """Add two checks to the history of the project in `home`."""
    for day in (1, 2):
        times = Interval(1e6 * day, 1.1e6 * day, 1.2e6 * day)
        record = Record(1_750_000_000 + 86_400 * day, "abc", "1" * 64, "d", Outcome.PASS, times, times, 1, 1, 0.9)
        baselines.remember(baselines.history_path(home / "profiles" / target, "p"), record)


def scores(found: Groups) -> Scores:
    """Scores under which later units are worth less."""
    units = {one.name: tuple((one.width - i) / 1000 for i in range(one.width)) for one in found.free}
    return Scores("loss-curves", units)


def planned(found: Groups) -> Confirmed:
    """A plan that keeps some units of each group, and its measurement."""
    keep = {one.name: tuple(range(KEPT)) for one in found.free}
    widths = {name: len(units) for name, units in keep.items()}
    predicted, original = Interval(0.9e6, 1.0e6, 1.1e6), Interval(1.9e6, 2e6, 2.1e6)
    plan = Plan(keep, predicted, original, 1.05e6, 0.02, 0.02, 0.0, "3" * 64)
    return Confirmed(plan, (MeasuredPlan(0, widths, 1.0e6, Interval(0.98e6, 0.99e6, 1.0e6), 1.05e6),))


def evidence_of(texts: Texts) -> Evidence:
    """Four processes of each network, one discarded process, and differences of one output."""

    def processes(ns: int) -> tuple[TimedProcess, ...]:
        return tuple(
            TimedProcess(tuple(ns + 1000 * i + 10 * j for j in range(9)), 9, ns + 1000.0 * i + 40, 5_000_000)
            for i in range(4)
        )

    lost = (Discarded(texts.reason, f"the most by {texts.device}", 3_000_000),)
    state: Mapping[str, int | float | str] = {"governor": texts.device, "load": 0.5}
    difference = Differences(texts.output, 3.0, 0.01, 5, (1e-9, 1e-8, 1e-7), (3, 2), 4, 9e-8, 1.0, 1.1, 20)
    return Evidence(processes(2_000_000), processes(990_000), lost, dict(state), dict(state), (difference,))


def verdict_of(texts: Texts, budget: str | None) -> Verdict:
    """A verdict that passes."""
    before = Figures(2.0, 2.1, 0.92, 1800, 180_000, 7200, 7)
    after = Figures(0.99, 1.0, 0.91, 900, 60_000, 3600, 7) if budget else before
    checks = [
        Check("output_cosine", Outcome.PASS, 1.0, 0.9999, "at least"),
        Check("metric_drop", Outcome.PASS, 0.01, 0.02, texts.note),
    ]
    if budget:
        checks.append(Check("latency_p50_ms", Outcome.PASS, 0.99, 1.05, texts.note))
    limit = 1.05 if budget else None
    return Verdict("1" * 64, limit, before, after, tuple(checks), metric_name=texts.metric)


def _target(name: str) -> Any:
    from edgeprune.records import Target

    return Target(Path(f"{name}.toml"), name, "local", "onnxruntime")
