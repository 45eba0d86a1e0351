"""The sections of a report: six questions about a finished run, each with its answer first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from edgeprune.errors import InconclusiveError
from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import reference_ns
from edgeprune.latency.stats import median_interval
from edgeprune.records import Amount, Check, Confirmed, Interval, Outcome, Plan, Profile, Scores, TimedProcess
from edgeprune.records.budget import amount_text, date_text
from edgeprune.reports import pictures
from edgeprune.reports.console import limit_texts
from edgeprune.reports.pictures import Picture
from edgeprune.reports.report.parts import (
    Line,
    Part,
    Section,
    bytes_text,
    count,
    figure,
    folded,
    pairs,
    percents,
    share,
    table,
    text,
    time,
    times,
)
from edgeprune.stages.series import front
from edgeprune.stages.series.finished import Finished
from edgeprune.stages.verdicts import history
from edgeprune.stages.verdicts.verdict import POLICY

POINTS = 12  # of the front
CONFIDENCE = POLICY.verify.confidence  # of all intervals, as in the checks
PROFILE_MISSING = "The profile is not beside the run folder, so the latency of single layers is not shown: {}"
MEASURED = "loss-curves"  # the importance criterion whose scores are losses
WORDS = {Outcome.PASS: "passes", Outcome.FAIL: "fails", Outcome.INCONCLUSIVE: "is inconclusive"}
NOT_PRUNED = "Nothing was pruned: the run has no budget."
WHOLE = "Nothing was cut: the original network meets the budget."


@dataclass(frozen=True)
class Point:
    """A plan on a front, as the picture takes it."""

    latency_ns: float
    loss: float


class View:
    """A finished run as a report shows it.

    Args:
        run: the run.
        like: in a report of many runs, an earlier view of the same target and precision. It shows their latency model.
        dots: how many raw times are drawn.
    """

    def __init__(self, run: Finished, like: View | None = None, dots: int = pictures.DOTS) -> None:
        self.run, self.verdict, self.evidence = run, run.verify, run.evidence
        self._like, self._dots = like, dots

    @cached_property
    def model(self) -> LatencyModel | None:
        """The latency model; None if the run has no profile, or if the profile is too small for a model."""
        if self.run.profile is None:
            return None
        try:
            return fit(self.run.survey, self.run.profile)
        except InconclusiveError:
            return None

    @property
    def title(self) -> str:
        """The project and the target."""
        return text(f"{self.run.made.project} on {self.run.made.target}")

    @property
    def heading(self) -> str:
        """The title, with the budget."""
        return ", ".join(filter(None, (self.title, text(self.run.made.budget))))

    @property
    def marks(self) -> list[str]:
        """What marks the figures: they are not those of a physical device."""
        return [kind for kind in ("emulated", "simulated") if getattr(self.verdict, kind)]

    @property
    def original_ns(self) -> float:
        """The original network's latency, whose unit all latencies have."""
        return 1e6 * self.verdict.baseline.p50_ms

    @property
    def budget_ns(self) -> float | None:
        """The budget; None without one."""
        return None if self.verdict.budget_ms is None else 1e6 * self.verdict.budget_ms

    @property
    def name(self) -> str:
        """What the second network is called."""
        return "artifact" if self.run.confirm is None or not self.is_cut else "pruned"

    @property
    def is_cut(self) -> bool:
        """Whether anything was removed."""
        return self.run.confirm is not None and self.run.confirm.plan.cuts(self.run.survey)

    def ms(self, ms: float) -> str:
        """A latency in milliseconds, in the unit of all latencies."""
        return time(1e6 * ms, self.original_ns)

    def sections(self) -> list[Section]:
        """All questions. The last one is left out if nothing was checked after the run."""
        found = [self.passed(), self.cut(), self.plan(), self.sure(), self.trained()]
        return [*found, self.later()] if self.run.history else found

    # ------------------------------------------------------------------------------------------------ did it pass?

    def passed(self) -> Section:
        """Figures before and after, the device, its state, versions, and the command that makes the run again."""
        made, run = self.run.made, self.run
        device = made.device
        parts: list[Part] = [table("Before and after", list(self._figures()))]
        if device is not None:
            known = {
                "processor": device.cpu,
                "machine": f"{device.machine}, {count(device.cores, 'core')}",
                "system": device.system,
                "runtime": f"{device.runtime} {device.runtime_version}",
                "precision": run.compile.precision,
                "threads": run.reads.get("[runtime] threads"),
                "marks": ", ".join(self.marks) or "none: these are the figures of a physical device",
            }
            parts.append(pairs("Device", {k: v for k, v in known.items() if v is not None}))
        if run.command:
            parts += [
                Line("The command that makes this run again, in the folder of the project:"),
                Line(run.command, True),
            ]
        day = date_text(made.created_s)
        parts.append(Line(f"Verified on {day}. The artifact has the SHA-256 {self.verdict.artifact}."))
        states = self.evidence.before, self.evidence.after
        if names := list(dict.fromkeys(name for state in states for name in state)):
            rows = [{"condition": n, "before": states[0].get(n), "after": states[1].get(n)} for n in names]
            parts.append(folded(table("State of the device while it was timed", rows)))
        parts.append(folded(pairs("Versions on the host", run.versions)))
        settings = {
            label: value for label, value in sorted(run.reads.items()) if label.startswith(("[", "file ", "weights "))
        }
        parts.append(folded(pairs("Settings, and digests of the files that were read", settings)))
        return Section("passed", "Did it pass?", self._passed(), parts)

    def _passed(self) -> str:
        checks, after = self.verdict.checks, self.verdict.pruned
        bad = [one for one in checks if one.outcome is not Outcome.PASS]
        outcome = self.verdict.outcome
        if outcome is Outcome.PASS:
            within = (
                "" if self.verdict.budget_ms is None else f", within the budget of {self.ms(self.verdict.budget_ms)}"
            )
            first = f"Yes: {count(len(checks), 'check')} pass. The median latency is {self.ms(after.p50_ms)}{within}."
        else:
            first = (
                f"{'No' if outcome is Outcome.FAIL else 'Not decided'}: {len(bad)} of {count(len(checks), 'check')} "
            )
            first += f"{'does' if len(bad) == 1 else 'do'} not pass. " + " ".join(map(_failed, bad[:3]))
        drop = after.metric - self.verdict.baseline.metric
        metric = (
            f" The {text(self.verdict.metric_name)} is {after.metric:.4f}, {drop:+.4f} from the original network's."
        )
        warned = f" The figures are {' and '.join(self.marks)}: they are not those of a physical device." * bool(
            self.marks
        )
        return first + metric + warned

    def _figures(self) -> Iterator[dict[str, str]]:
        """The rows of the table of figures."""
        before, after, kinds = (
            self.verdict.baseline,
            self.verdict.pruned,
            (self.evidence.original, self.evidence.pruned),
        )

        def row(name: str, *cells: str) -> dict[str, str]:
            return dict(zip(("", "original, fp32", self.name, "after / before"), (name, *cells), strict=True))

        halves = [np.array([one.median_ns for one in own]) for own in kinds]
        p50 = [times(_interval(own), self.original_ns) for own in halves]
        relative = _interval(halves[1] / halves[0])
        yield row("latency p50", p50[0], p50[1], percents(relative))
        p90 = [
            times(_p90(own, 1e6 * f.p90_ms), self.original_ns) for own, f in zip(kinds, (before, after), strict=True)
        ]
        yield row("latency p90", *p90, share(after.p90_ms, before.p90_ms))
        if self.verdict.budget_ms is not None:
            yield row("budget", "", self.ms(self.verdict.budget_ms), text(self.run.made.budget))
        metric = f"{before.metric:.4f}", f"{after.metric:.4f}", f"{after.metric - before.metric:+.4f}"
        yield row(text(self.verdict.metric_name), *metric)
        memory = [median(one.peak_memory_bytes for one in own) for own in kinds]
        yield row("peak memory", *map(bytes_text, memory), share(memory[1], memory[0]))
        yield row(
            "size", *map(bytes_text, (before.size_bytes, after.size_bytes)), share(after.size_bytes, before.size_bytes)
        )
        for name, key in (("parameters", "parameters"), ("MACs", "macs"), ("operators", "operators")):
            old, new = getattr(before, key), getattr(after, key)
            yield row(name, f"{old:,}", f"{new:,}", share(new, old))

    # ---------------------------------------------------------------------------------------------- what was cut?

    def cut(self) -> Section:
        """The network by layer before and after, removed blocks, locked groups and why."""
        groups, widths = self.run.survey, self.run.widths
        parts: list[Part] = []
        if self.model is not None:
            title = "Channels by layer, and latency in % of the original network's"
            parts.append(figure(title, pictures.network(groups, self.model, widths)))
        elif self.run.scores is not None:
            parts.append(Line(PROFILE_MISSING.format(f"profiles/{text(self.run.made.target)}/")))
        inner = groups.block_of
        rows = [
            {
                "group": one.name,
                "before": one.width,
                "after": widths[one.name],
                "note": f"removed with {inner[one.name].name}" if not widths[one.name] else "",
            }
            for one in groups.free
        ]
        parts.append(table("Channel groups", rows))
        if locked := [
            {"locked group": one.name, "units": one.width, "why": one.locked} for one in groups.groups if one.locked
        ]:
            parts.append(table("Locked groups", locked))
        return Section("cut", "What was cut?", self._cut(), [one for one in parts if not _is_empty(one)])

    def _cut(self) -> str:
        groups, widths = self.run.survey, self.run.widths
        locked = [one for one in groups.groups if one.locked]
        held = f" {count(len(locked), 'group is', 'groups are')} locked, and the table says why." * bool(locked)
        if self.run.confirm is None:
            return NOT_PRUNED
        if not self.is_cut:
            return WHOLE + held
        total, kept = (sum(of[one.name] for one in groups.free) for of in (groups.full(), widths))
        narrower = sum(a.channels(widths) != a.channels(groups.full()) for a in groups.layers)
        blocks = [text(block.name) for block in groups.removed(widths)]
        removed = f" {count(len(blocks), 'block is', 'blocks are')} removed: {', '.join(blocks)}." if blocks else ""
        removed = removed or (" No block is removed." if groups.blocks else "")
        return (
            f"{kept:,} of {total:,} channels remain in {count(len(groups.free), 'group')}, so {narrower} of"
            f" {count(len(groups.layers), 'layer')} are smaller.{removed}{held}"
        )

    # ----------------------------------------------------------------------------------------------- why this plan?

    def plan(self) -> Section:
        """Latency by width, predicted against confirmed, the front, and the proof in a sentence."""
        run = self.run
        if run.confirm is None:
            return Section("plan", "Why this plan?", NOT_PRUNED)
        parts: list[Part] = []
        if self._like is not None:
            parts.append(Line(f"The latency model and the front are those of {self._like.heading}: see there."))
        elif run.profile is not None and self.model is not None:
            by_width = pictures.latency_by_width(run.survey, run.profile, self.model, run.widths)
            parts.append(figure("Latency against width", by_width))
            error = f"{self.model.median_error:.1%}, and 90% of them are within {self.model.error:.1%}"
            parts.append(
                Line(
                    f"The latency model is fitted to {count(len(run.profile.variants), 'experiment')}."
                    f" Its median error on widths that it has not seen is {error}."
                    " The profiler's points give the shape of the lines, and the latencies of entire networks their scale."
                )
            )
        if len(run.confirm.plan.amounts) > 1:
            parts.append(table("Limits", [_amount(one) for one in run.confirm.plan.amounts]))
        if (own := run.confirm.of(run.made.target)).measured:
            parts.append(figure("Predicted and measured plans", pictures.confirmed(own)))
        if self._like is None and self.is_cut and self.model and run.scores is not None and run.profile is not None:
            parts.append(figure("The front", self._front(run.scores, run.profile, self.model, run.confirm.plan)))
        return Section("plan", "Why this plan?", self._plan(), parts)

    def _front(self, scores: Scores, profile: Profile, model: LatencyModel, plan: Plan) -> Picture:
        """The best plans at other latencies, with the plan of this run on the front and the budget as a line."""
        found = front.plans(self.run.survey, model, scores, reference_ns(profile), POINTS)
        knee, own = front.knee(found), Point(model.ns(self.run.widths), plan.loss)
        best = None if knee is None else found[knee]
        return pictures.front([*found, own], plan.budget_on(self.run.made.target), own, best)

    def _plan(self) -> str:
        if self.run.confirm is None or not self.is_cut:
            return WHOLE
        confirmed = self.run.confirm.of(self.run.made.target)
        plan, own = confirmed.plan, confirmed.measurement
        criterion = self.run.reads.get("[prune] importance", MEASURED)
        of = "raises the loss least" if criterion == MEASURED else f"removes the least importance ({text(criterion)})"
        proof = (
            f"Of all plans within the budget, it {of}: {plan.loss:.4g} before training, as estimated. The solver proves that"
            f" none has less than {plan.bound:.4g} (gap {plan.gap:.1g})."
        )
        if own is None:
            return proof
        off = abs(own.measured.mid / own.predicted_ns - 1)
        budget = time(own.budget_ns, self.original_ns)
        return (
            f"{proof} It was predicted to take {time(own.predicted_ns, self.original_ns)} and confirmed at"
            f" {times(own.measured, self.original_ns)} on the device, {off:.1%} off, in"
            f" {count(confirmed.rounds, 'round')}. It uses {own.share:.1%} of the budget, {budget} at that time."
            f"{self._binds(self.run.confirm)}"
        )

    def _binds(self, confirmed: Confirmed) -> str:
        """Which of several targets binds; empty for a single one."""
        if not confirmed.plan.targets:
            return ""
        together, binds = count(len(confirmed.plan.targets), "target"), text(confirmed.binds)
        return f" The plan is the same for {together}. {binds} binds: a looser limit elsewhere changes nothing."

    # ------------------------------------------------------------------------------------------------- how sure is it?

    def sure(self) -> Section:
        """Each check with its figure, limit and interval; raw times by process, drift, discarded processes."""
        found, checks = self.evidence, self.verdict.checks
        rows = [dict(zip(("outcome", "check", "value", "limit", "note"), _cells(one), strict=True)) for one in checks]
        parts: list[Part] = [
            table("Checks", rows),
            figure("Raw times by process", pictures.processes(found, self.budget_ns, self._dots)),
            figure("Drift of the machine", pictures.drift(self.run.profile, found)),
        ]
        facts = {one.reason: one.facts for one in found.discarded}
        lost = Counter(one.reason for one in found.discarded).most_common()
        rows = [{"reason": why, "processes": str(number), "what competed": facts[why]} for why, number in lost]
        parts += [table("Discarded processes", rows)] if rows else []
        return Section("sure", "How sure is it?", self._sure(), parts)

    def _sure(self) -> str:
        found, open_ = self.evidence, [one for one in self.verdict.checks if one.outcome is Outcome.INCONCLUSIVE]
        ratio = _interval(
            np.array([new.median_ns / old.median_ns for new, old in zip(found.pruned, found.original, strict=True)])
        )
        lost = count(len(found.discarded), "disturbed process was", "disturbed processes were")
        decided = f"{count(len(open_), 'check is', 'checks are')} inconclusive" if open_ else "Every check is decided"
        subject = "pruned network" if self.is_cut else "artifact"
        return (
            f"{decided}. The {subject} takes {100 * ratio.low:.1f} to {100 * ratio.high:.1f}% of the original network's"
            f" latency ({CONFIDENCE:.1%} confidence), by {count(len(found.pruned), 'process', 'processes')} of each,"
            f" interleaved. {lost} discarded."
        )

    # ------------------------------------------------------------------------- training, and differences of outputs

    def trained(self) -> Section:
        """Training curves, and how far the artifact's outputs are from torch's."""
        tuned, parts = self.run.finetune, list[Part]()
        if tuned is not None and tuned.history:
            parts.append(figure("Training", pictures.training(tuned, text(self.verdict.metric_name))))
        titles = [one.output for one in self.evidence.differences]
        for one, name in zip(self.evidence.differences, titles, strict=True):
            title = f"Differences of output {text(name)}" if len(titles) > 1 else "Differences of the output"
            parts.append(figure(title, pictures.differences(one)))
        question = "How was it trained, and does it compute the same?"
        return Section("trained", question, self._trained(), parts)

    def _trained(self) -> str:
        tuned, found = self.run.finetune, self.evidence.differences
        training = "Nothing was trained."
        if tuned is not None and tuned.reason:
            training = f"Nothing was trained: {text(tuned.reason)}."
        if tuned is not None and tuned.history:
            epochs = sum(one.loss is not None for one in tuned.history)
            first, best = tuned.history[0], tuned.best
            metric = f"the validation {text(self.verdict.metric_name)}"
            training = (
                f"Fine-tuning took {count(epochs, 'epoch')}, and epoch {best.epoch} was kept: {metric} was"
                f" {first.metric:.4f} before, and is {best.metric:.4f}."
            )
            if best is first:
                training = (
                    f"Fine-tuning took {count(epochs, 'epoch')}. None was better than the network before training, which"
                    f" was kept: {metric} is {best.metric:.4f}."
                )
        if not found:
            return training
        worst = max(found, key=lambda one: one.largest / one.tolerance if one.tolerance else 0.0)
        same = (
            f" The artifact's outputs differ from torch's by at most {worst.largest:.3g} (limit {worst.tolerance:.3g}),"
            f" on {count(worst.samples, 'sample')}; the worst is sample {worst.worst}."
        )
        return training + same

    # ------------------------------------------------------------------------------------------------ what came later?

    def later(self) -> Section:
        """The checks after the run, and where the latency changed its level."""
        checks, made = self.run.history, self.run.made
        found = history.history(made.project, made.target, self.verdict.emulated, checks, "p50_ns")
        last = checks[-1]
        day = date_text(last.created_s, "%Y-%m-%d")
        levels = count(len(found.changes), "change of level", "changes of level")
        own = "this artifact" if last.artifact == self.verdict.artifact else "another artifact"
        answer = (
            f"{count(len(checks), 'check')} of this project on this target {'is' if len(checks) == 1 else 'are'} on record,"
            f" with {levels} of the latency. The last one, on {day}, was of {own}, and {WORDS[last.outcome]}."
        )
        return Section("later", "What did later checks find?", answer, [figure("History", pictures.history(found))])


def _interval(values: np.ndarray) -> Interval:
    return median_interval(values, CONFIDENCE)


def _p90(own: tuple[TimedProcess, ...], mid: float) -> Interval:
    """The interval of a p90, in nanoseconds. `mid` is the verdict's: of all times, where the evidence has a part of them."""
    found = _interval(np.array([np.quantile(one.times_ns, 0.9) for one in own]))
    return Interval(min(found.low, mid), mid, max(found.high, mid))


def _cells(check: Check) -> tuple[str, str, str, str, str]:
    return (check.outcome.value, check.name, *limit_texts(check), check.note)


def _amount(one: Amount) -> dict[str, str]:
    value, limit, original = (amount_text(one.figure, size) for size in (one.value, one.limit, one.original))
    return {
        "limit on": one.name,
        "plan": value,
        "limit": limit,
        "used": share(one.value, one.limit),
        "original": original,
    }


def _failed(check: Check) -> str:
    value, limit = limit_texts(check)
    return f"{text(check.name)} {WORDS[check.outcome]}: {value}, limit {limit}."


def _is_empty(part: Part) -> bool:
    return part.kind == "table" and not part.rows  # type: ignore[union-attr]
