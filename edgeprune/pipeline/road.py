"""The verbs in order, each done once: what the run folder already holds is reused.

A stage's key is the digest of everything that its result follows from: the user's files, the versions of the libraries,
the device, and the stages before it. torch takes seconds to import, so it is imported inside the stages that need it: a
run that reuses everything never does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgeprune import runtimes
from edgeprune.errors import DeviceError, UsageError
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.records import (
    Artifact,
    Baseline,
    Budget,
    Choice,
    Confirmed,
    Device,
    Epoch,
    Explanation,
    Groups,
    History,
    Outcome,
    Plan,
    Profile,
    Project,
    Recipe,
    Release,
    Report,
    Result,
    Round,
    Scores,
    Survey,
    Target,
    Verdict,
    Widths,
    digest,
)
from edgeprune.storage import codec, provenance
from edgeprune.storage.store import Draft, Entry, Store, read_capped, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from edgeprune.devices.bench import Bench
    from edgeprune.runtimes.formats.base import Template

SCHEMA = 1  # of the run folder and of the JSON result
LOCKED_TOLD = 3  # locked groups that the survey's line names; the plan's table names all
KEPT_SAMPLES = 32  # validation samples, with what torch makes of them, kept beside an artifact
START = "start.safetensors"  # the cut network that training starts from
SOURCES = "project"  # the file beside it that has the digest of what it follows from but for the device
CALIBRATED = 300  # training samples that int8 ranges come from
EVENTS = "tensorboard"  # the folder beside the stages' own
# What must have run before a stage's work begins (attributes of Road).
NEEDS = {
    "baseline": ("groups",),
    "precision": ("baseline",),
    "scores": ("groups",),
    "plan": ("profile", "scores"),
    "prune": ("plan",),
    "finetune": ("pruned",),
    "compile": ("tuned",),
    "verify": ("baseline", "artifact"),
}

log = logging.getLogger("edgeprune")
Noun = TypeVar("Noun")


class Watch(Protocol):
    """Who is told how a run goes."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, note: str) -> None:
        """The stage in progress moved on."""

    def done(self, stage: str, note: str) -> None:
        """A stage ended, or was reused: `note` is what there is to say of it."""


class Quiet:
    """Tells nobody."""

    def start(self, stage: str) -> None: ...

    def step(self, done: int, total: int, note: str) -> None: ...

    def done(self, stage: str, note: str) -> None: ...


@contextmanager
def open_road(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Iterator[Road]:
    """The road of one project on one target, its run folder locked for as long as the context lasts.

    `project` is the path of an `edgeprune.toml` or of its folder, `target` a name or the path of a target file; `budget`
    ("12 ms", "50%") replaces the file's; `fresh` redoes what the run folder and the profile hold; `wait` waits for a device
    that somebody else holds. Raises `UsageError` for bad files and `BusyError` where another run holds the folder or the
    device.
    """
    known, to = _asked(project, target, budget)
    with ExitStack() as stack:
        store = stack.enter_context(Store(known.path.parent / "runs" / to.name))
        yield Road(known, to, store, stack, watch or Quiet(), fresh, LIMITS.lease_wait_s if wait else 0.0)


def forecast(project: Path | str, target: str, whole: bool = True, deploy: bool = False) -> list[str]:
    """What `run`, `deploy`, or `profile` alone (not `whole`) would send to the device and run there, at most; touches neither
    it nor the run folder."""
    known, to = _asked(project, target, None)

    from edgeprune.stages import deploy as deploying
    from edgeprune.stages import forecast as forecasting

    lines = forecasting.forecast(known, to, whole)
    return lines + deploying.forecast(to) if deploy else lines


def follow(project: Path | str, target: str, budget: str | None) -> None:
    """What every process but the first does under torchrun: wait until the first trains, and train with it.

    Raises `UsageError` for bad files.
    """
    from edgeprune.frontends import user_code as user
    from edgeprune.network import surgery as network
    from edgeprune.stages import finetune as finetuning
    from edgeprune.stages import parallel

    known, _ = _asked(project, target, budget)
    with TemporaryDirectory(prefix="edgeprune-") as name:
        start, checkpoint = Path(name) / START, Path(name) / "checkpoint.safetensors"
        content = parallel.share()
        if not content:  # there was nothing to train
            return
        start.write_bytes(content)
        content = parallel.share()
        if content:
            checkpoint.write_bytes(content)
        teacher = user.build_model(known)
        small = network.load(start, teacher)
        finetuning.finetune(known, small, teacher, checkpoint, lambda path, write: None, lambda epoch: None)


def _read_project(project: Path | str, budget: str | None = None) -> Project:
    path = Path(project)
    return toml.read_project(path / "edgeprune.toml" if path.is_dir() else path, budget)


def _asked(project: Path | str, target: str, budget: str | None) -> tuple[Project, Target]:
    known = _read_project(project, budget)
    to = toml.read_target(toml.find_target(target, known.path.parent))
    try:
        runtimes.RUNTIMES[to.runtime].candidates(to.precision)
    except UsageError as error:
        raise UsageError(f"{to.path}: [runtime] precision = {to.precision!r}: {error}") from error
    return known, to


class Road:
    """One project on one target. Each noun is a property: asking for it walks what is missing of the road."""

    def __init__(
        self,
        project: Project,
        target: Target,
        store: Store,
        stack: ExitStack,
        watch: Watch,
        fresh: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        self.project, self.target = project, target
        self._store, self._stack, self._watch, self._fresh, self._wait_s = store, stack, watch, fresh, wait_s
        self._lease = stack.enter_context(ExitStack())
        self._bench: Bench | None = None
        self._device: Device | None = None
        self._runtime = runtimes.RUNTIMES[target.runtime]
        self._profile: Profile | None = None
        self._variants: dict[str, Path] = {}
        self._keys: dict[str, str] = {}

    # --------------------------------------------------------------------------------------------- the stages

    @cached_property
    def groups(self) -> Groups:
        """The network's channel groups, each proved on a trial cut."""

        def work(draft: Draft) -> str:
            from edgeprune.network import surgery as network

            found = network.survey(self._model, self._inputs, self.project.lock)
            draft.write_text("groups.json", codec.dumps(found))
            locked = [f"{g.name} ({g.locked.partition(':')[0]})" for g in found.groups if g.locked and g.width > 1]
            more = f" and {len(locked) - LOCKED_TOLD} more" if len(locked) > LOCKED_TOLD else ""
            blocks = f", {len(found.blocks)} blocks removed" if found.blocks else ""
            told = f"locked: {', '.join(locked[:LOCKED_TOLD]) or 'none'}{more}"
            return f"{len(found.free)} channel groups can be cut{blocks}; {told}"

        return self._read(self._stage("survey", work), "groups.json", Groups)

    @cached_property
    def baseline(self) -> Artifact:
        """The unpruned network in fp32, compiled: what a share of a budget and a drop of the metric refer to."""
        return self._stored(self._compiled("baseline", lambda: self._model, "fp32"))

    @cached_property
    def precision(self) -> str:
        """The precision of everything but the baseline: the target's, or the one that was measured to be best."""
        candidates = self._runtime.candidates(self.target.precision)
        return candidates[0] if len(candidates) == 1 else self.choice.precision

    @cached_property
    def choice(self) -> Choice:
        """The precisions that the target allows, measured on the unpruned network."""

        def work(draft: Draft) -> str:
            from edgeprune.stages import verify as verifying

            allowed = self._runtime.candidates(self.target.precision)
            made: dict[str, Artifact] = {}
            refused: UsageError | None = None
            for name in allowed:
                folder = self.scratch / f"candidate-{name}"
                folder.mkdir()
                try:
                    made[name] = self.baseline if name == "fp32" else self._artifact(self._model, name, folder, "")
                except UsageError as error:
                    log.warning("%s is left out: %s", name, error)
                    refused = error
            if refused is not None and not made:
                raise refused
            found = verifying.fastest(self.project, self.bench, self._inputs, self.baseline, made, self.scratch)
            draft.write_text("choice.json", codec.dumps(found))
            told = (f"{c.precision} {c.latency.mid / 1e6:.3f} ms, metric {c.metric:.4f}" for c in found.candidates)
            return f"{found.precision} ({'; '.join(told)})"

        return self._read(self._stage("precision", work), "choice.json", Choice)

    @property
    def profile(self) -> Profile:
        """What the device answered about variants of this network; nothing is measured twice."""
        if self._profile is None:
            self._profile = self._profiled()
        return self._profile

    def _profiled(self) -> Profile:
        from edgeprune.stages import profile as profiling

        path = self._profile_path
        self._watch.start("profile")
        if path.exists() and not self._fresh:
            profile = codec.loads_kept(Profile, read_capped(path, LIMITS.json_bytes).decode(), str(path))
        else:
            to = self.target
            profile = Profile(
                to.name, self.project.name, self.groups.network, self.device, to.threads, self.precision, ()
            )
        known, first = len(profile.experiments), profile.next_batch
        owners = self.template.owners(self.groups.layers)
        steps = profiling.measure(
            self.bench, self.variant, owners, self.groups, profile, self.input_files, self._watch.step
        )
        for profile in steps:
            self._keep(profile)
        new = len(profile.experiments) - known
        processes = profile.next_batch - first
        self._watch.done("profile", f"{known} experiments reused, {new} measured in {processes} processes; {path}")
        return profile

    @property
    def explanation(self) -> Explanation:
        """The latency model that the profile gives, explained; beside it, what other targets' profiles say of this network."""
        from edgeprune.latency import explain as explaining

        beside = {}
        for path in sorted(self._profile_path.parents[1].glob(f"*/{self.project.name}-{'[0-9a-f]' * 8}.json")):
            other = codec.loads_kept(Profile, read_capped(path, LIMITS.json_bytes).decode(), str(path))
            if other.network == self.groups.network and other.target != self.target.name:
                beside[other.target] = other
        return explaining.explain(self.groups, self.profile, beside)

    @cached_property
    def scores(self) -> Scores:
        """What every channel is worth."""

        def work(draft: Draft) -> str:
            from edgeprune.frontends import user_code as user
            from edgeprune.network import importance

            user.check_data(self._model, self.project)
            criterion = importance.CRITERIA[self.project.importance]
            batches, loss = user.batches(self.project, "train"), user.loss_function(self.project)
            draft.write_text("scores.json", codec.dumps(criterion(self._model, self.groups, batches, loss)))
            return f"{self.project.importance} on the training data"

        return self._read(self._stage("scores", work), "scores.json", Scores)

    @cached_property
    def plan(self) -> Plan:
        """The first plan: exact on the profile as it stands, not yet confirmed on the device."""

        def work(draft: Draft) -> str:
            from edgeprune.stages import confirm as confirming

            plan = confirming.plans(self.groups, self.scores, self.project.budget, self.profile)[0]
            draft.write_text("plan.json", codec.dumps(plan))
            if not plan.cuts(self.groups):
                return f"the unpruned network meets {self.project.budget} as it is: nothing to prune"
            gone = ", ".join(block.name for block in self.groups.removed({**self.groups.full(), **plan.widths}))
            kept, all_ = sum(plan.widths.values()), sum(group.width for group in self.groups.free)
            channels = f"keeps {kept} of {all_} channels" + (f", removes {gone}" if gone else "")
            return f"{channels}, predicted {plan.predicted.mid / 1e6:.3f} ms, gap {plan.gap:.1e}"

        return self._read(self._stage("plan", work), "plan.json", Plan)

    @cached_property
    def confirmed(self) -> Confirmed:
        """The plan whose latency was measured on the device, and the rounds it took."""
        return self._read(self._pruned, "confirmed.json", Confirmed)

    @cached_property
    def pruned(self) -> Path:
        """The cut network, as good as it gets without training: kept indices and tensors; `edgeprune.load` brings it back."""
        return self._pruned.path("pruned.safetensors")

    @cached_property
    def _pruned(self) -> Entry:
        def work(draft: Draft) -> str:
            from edgeprune.frontends import user_code as user
            from edgeprune.network import surgery as network
            from edgeprune.stages import prune as pruning

            found = self._confirm()
            pruned = pruning.prune(
                self._model, self.groups, found.plan, self._inputs, user.batches(self.project, "train")
            )
            draft.write_text("confirmed.json", codec.dumps(found))
            network.save(draft.path("pruned.safetensors"), pruned.untrained, pruned.recipe)
            network.save(draft.path(START), pruned.start, pruned.recipe)
            left, all_ = network.parameters(pruned.untrained), network.parameters(self._model)
            kept = f"{left:,} of {all_:,} parameters kept, proved"
            return kept + ("; layers fitted to what is left" if pruned.fitted else "")

        return self._stage("prune", work)

    def _confirm(self) -> Confirmed:
        """A plan whose latency was measured; what was measured for it goes into the profile."""
        from edgeprune.stages import confirm as confirming

        if not self.plan.cuts(self.groups):
            return Confirmed(self.plan, ())  # there is nothing to confirm

        def measured(turn: int, plans: Sequence[Plan]) -> tuple[Profile, list[Round]]:
            self._watch.start("confirm")
            profile, rounds = confirming.measure(
                self.bench, self.variant, self.input_files, self.groups, self.profile, self.project.budget, turn, plans
            )
            self._keep(profile)
            figures = "; ".join(
                f"predicted {r.predicted_ns / 1e6:.3f} ms, measured {r.measured.mid / 1e6:.3f} ms: {100 * r.share:.1f}%"
                for r in rounds
            )
            self._watch.done("confirm", f"{figures} of the budget")
            return profile, rounds

        return confirming.confirm(self.groups, self.scores, self.project.budget, self.profile, measured)

    @cached_property
    def tuned(self) -> Path:
        """The cut network after fine-tuning, in the same format as `pruned`."""
        shared: list[bytes] = []

        def work(draft: Draft) -> str:
            from edgeprune.latency import model as latency
            from edgeprune.network import surgery as network
            from edgeprune.stages import events as tracking
            from edgeprune.stages import finetune as finetuning
            from edgeprune.stages import parallel

            self._release()
            untrained = network.load(self.pruned, self._model)
            teacher = self._model
            if not self.project.epochs or not self._cuts:
                network.save(draft.path("tuned.safetensors"), untrained, self._recipe)
                draft.write_text("history.json", codec.dumps(list[Epoch]()))
                return "no epochs asked for" if self._cuts else "nothing was cut, nothing to train"
            checkpoint = self._store.scratch("finetune", self._key("finetune")) / "checkpoint.safetensors"
            if self._fresh:
                checkpoint.unlink(missing_ok=True)

            events = self._events / f"{self.project.budget}-{self._key('finetune')[:8]}".replace(" ", "")
            widths = {**self.groups.full(), **self.confirmed.plan.widths}
            tracking.layers(events, self.groups, latency.draft(self.groups, self.profile), widths)

            start = self._pruned.path(START)
            shared.append(parallel.share(start.read_bytes()))
            parallel.share(checkpoint.read_bytes() if checkpoint.exists() else b"")

            def on_epoch(epoch: Epoch) -> None:
                tracking.epoch(events, epoch)
                self._watch.step(epoch.epoch, self.project.epochs, f"validation metric {epoch.metric:.4f}")

            small = network.load(start, self._model)
            found = finetuning.finetune(self.project, small, teacher, checkpoint, self._store.save, on_epoch, untrained)
            network.save(draft.path("tuned.safetensors"), found.model, self._recipe)
            draft.write_text("history.json", codec.dumps(list(found.history)))
            return (
                f"best of {self.project.epochs} epochs is {found.best.epoch}: validation metric {found.best.metric:.4f}"
            )

        entry = self._stage("finetune", work)
        if not shared and self._several:
            from edgeprune.stages import parallel

            parallel.share()  # there was nothing to train: the others need not wait
        return entry.path("tuned.safetensors")

    @cached_property
    def artifact(self) -> Artifact:
        """The fine-tuned network, compiled for the target's runtime."""
        return self._stored(self._compile)

    @cached_property
    def _compile(self) -> Entry:
        def tuned() -> nn.Module:
            from edgeprune.network import surgery as network

            return network.load(self.tuned, self._model)

        return self._compiled("compile", tuned, self.precision)

    @cached_property
    def verdict(self) -> Verdict:
        """All checks of the artifact on the device."""

        def work(draft: Draft) -> str:
            from edgeprune.network import surgery as network
            from edgeprune.stages import events as tracking
            from edgeprune.stages import verify as verifying

            widths = {**self.groups.full(), **self.confirmed.plan.widths}
            found = verifying.verify(
                self.project,
                self.bench,
                self._inputs,
                (self._model, network.load(self.tuned, self._model)),
                (self.baseline, self.artifact),
                (self.groups.macs(self.groups.full()), self.groups.macs(widths)),
                self.scratch,
            )
            draft.write_text("verdict.json", codec.dumps(found))
            tracking.front(self._events, found.pruned)
            return (
                f"{found.outcome}: {sum(c.outcome == 'pass' for c in found.checks)} of {len(found.checks)} checks pass"
            )

        def decided(entry: Entry) -> bool:
            return self._read(entry, "verdict.json", Verdict).outcome is not Outcome.INCONCLUSIVE

        return self._read(self._stage("verify", work, decided), "verdict.json", Verdict)

    @property
    def result(self) -> Result:
        """The whole road, as `--json` prints it."""
        verdict, confirmed, plan = self.verdict, self.confirmed, self.confirmed.plan
        full = self.groups.full()
        turn = next((t for t in confirmed.rounds if t.widths == plan.widths), None)
        return Result(
            schema=SCHEMA,
            status=verdict.outcome,
            target=self.target.name,
            runtime=self.target.runtime,
            precision=self.precision,
            emulated=verdict.emulated,
            simulated=verdict.simulated,
            budget_ms=verdict.budget_ms,
            predicted_ms=(turn.predicted_ns if turn else plan.predicted.mid) / 1e6,
            confirmed_ms=(turn.measured.mid if turn else plan.predicted.mid) / 1e6,
            rounds=confirmed.turns,
            baseline=verdict.baseline,
            pruned=verdict.pruned,
            plan={"gap": plan.gap, "widths": {name: [width, full[name]] for name, width in plan.widths.items()}},
            checks=verdict.checks,
            artifact=self.artifact.files[0],
            run=self._store.folder,
        )

    def deploy(self) -> list[Release]:
        """Put the verified artifact into service on the target's hosts: what runs on each of them now."""
        from edgeprune.frontends import user_code as user
        from edgeprune.stages import deploy as deploying

        deploying.require_ready(self.project.name, self.target)
        verdict = self.verdict
        deploying.require(verdict, self.target)
        self._watch.start("deploy")
        stacked, _ = user.stacked(self.project, "valid", self._inputs, 1)
        (outputs,) = self.bench.outputs(self.artifact.files[0], [column[:1] for column in stacked])
        folder = self.scratch / "bundle"
        folder.mkdir()
        bundle = deploying.bundle(
            self.project.name,
            self.target,
            self.device,
            self.artifact,
            verdict,
            [c[0] for c in stacked],
            outputs[0],
            folder,
        )
        self._release()  # each host is leased by itself
        patience = LIMITS.heal_s if self.target.prepare else 0.0  # the agent that leaves puts things back first
        return deploying.deploy(self.target, bundle, partial(self._watch.done, "deploy"), max(self._wait_s, patience))

    def check(self, budgets: Sequence[Budget] = (), baseline: Path | None = None, reason: str = "") -> Report:
        """Hold the artifact against its budgets and its baseline; with a `reason` it becomes the baseline.

        The artifact is the one that was compiled last from the project as it is now, for whatever state the device was in; the
        road is walked where there is none. `budgets` replace the project's. See `edgeprune.checking`.
        """
        from edgeprune.stages import accuracy
        from edgeprune.stages import check as checking
        from edgeprune.storage import baselines

        place = baselines.place_of(baseline or self._profiles / f"{self.project.name}.baseline.json")
        known = baselines.read(place) if not reason and (baseline is not None or place.is_file()) else None
        compiled = self._compiled_last
        artifact = self._stored(compiled)
        wanted = tuple(dict.fromkeys(budgets or self.project.budgets or (self.project.budget,)))
        unpruned = self.baseline if any(budget.fraction is not None for budget in wanted) else None
        self._watch.start("check")
        now, reference, failed = checking.measure(
            self.project, self.target, self.bench, self._inputs, self.input_files, artifact, wanted, unpruned,
            known.measured if known else None,
        )  # fmt: skip
        checks = [*checking.against_budgets(wanted, now.samples, reference or now.samples), *failed]
        stacked, expected = _kept_calls(compiled)
        try:
            got = accuracy.outputs_of(self.bench, artifact, stacked, len(expected))
            checks += accuracy.numerics(expected, got, artifact.precision)
        except accuracy.NotFinite as error:
            checks.append(error.check("output_not_finite"))
        kept, lost = baselines.artifact(place, known) if known else (None, "")
        files = self.input_files
        report = checking.check(self.project, self.target, self.bench, files, artifact, now, checks, known, kept, lost)
        created_s, commit = int(time.time()), checking.commit_of(self.project.path.parent)
        if reason and now.metric is None:
            report = replace(report, baseline="not made, since the metric is no finite number; mend the artifact first")
        elif reason:
            (layer_ns,) = checking.operators(self.bench, [artifact.files[0]], files)
            made = Baseline(self.project.name, self.target.name, reason, commit, created_s, now, layer_ns)
            baselines.declare(place, made, artifact)
            report = replace(report, baseline=f"made now: {reason}; {place}")
        record = checking.record(now, report.outcome, commit, created_s, reason)
        try:
            baselines.remember(self._profiles / f"{self.project.name}.history.jsonl", record)
        except (UsageError, OSError) as error:  # what was decided stands, whether or not it can be written down
            log.warning("the history does not have this check: %s", error)
        passed = sum(check.outcome is Outcome.PASS for check in report.checks)
        self._watch.done("check", f"{report.outcome}: {passed} of {len(report.checks)} checks pass")
        return report

    @property
    def _compiled_last(self) -> Entry:
        """The artifact of the project as it is now, with the calls to check it by, whatever device it was planned on."""
        settings = provenance.settings(self.project, self.target)

        def current(entry: Entry) -> bool:
            return entry.path(SOURCES).is_file() and entry.path(SOURCES).read_text() == settings

        return self._store.newest("compile", current) or self._compile

    # ---------------------------------------------------------------------------------- what the stages share

    @property
    def bench(self) -> Bench:
        """The device, leased and identified until the road ends or training begins."""
        if self._bench is None:
            from edgeprune.devices.bench import open_bench

            bench = self._lease.enter_context(open_bench(self.target, self.scratch, self._wait_s))
            if self._device is not None and self._device.identity != bench.device.identity:
                raise DeviceError(f"{self.target.name}: another device answers than when this run began; run again")
            self._bench, self._device = bench, bench.device
        return self._bench

    def _release(self) -> None:
        """Give the device back: others may use it while this machine trains."""
        self._bench = None
        self._lease.close()

    @property
    def device(self) -> Device:
        """What the device says it is."""
        return self._device or self.bench.device

    @cached_property
    def scratch(self) -> Path:
        """A folder for files that need not outlast the process."""
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="edgeprune-")))

    @cached_property
    def template(self) -> Template:
        """The network exported once, to slice variants from."""
        from edgeprune.runtimes.formats import FORMATS

        return FORMATS[self._runtime.format](self._model, self._inputs, self.groups)

    @cached_property
    def input_files(self) -> list[Path]:
        """The example inputs as files for the device."""
        return self.bench.save_inputs([tensor.numpy() for tensor in self._inputs], self.scratch)

    def variant(self, widths: Widths, reference: bool = False) -> Path:
        """The file for the device of the network at these widths (units kept a group), with random weights; the `reference`
        is in fp32 whatever the target's precision."""
        precision = "fp32" if reference else self.precision
        name = digest([dict(widths), precision])
        if name not in self._variants:
            folder = self.scratch / f"variant-{name[:16]}"
            folder.mkdir()
            exported = folder / f"exported.{self._runtime.format}"
            exported.write_bytes(self.template.variant(widths))
            samples = [] if precision == "fp32" else self._calibration[:1]
            self._variants[name] = self._runtime.convert(exported, folder, precision, samples, exact=False)[0]
        return self._variants[name]

    @cached_property
    def _calibration(self) -> list[tuple[np.ndarray, ...]]:
        """Calls with training samples: the ranges of an int8 artifact come from them."""
        import torch

        from edgeprune.frontends import user_code as user

        torch.manual_seed(self.project.seed)  # the data may shuffle and augment
        columns, _ = user.stacked(self.project, "train", self._inputs, CALIBRATED)
        return list(zip(*columns, strict=True))

    def _artifact(self, network: nn.Module, precision: str, folder: Path, source: str) -> Artifact:
        from edgeprune.stages import compile as compiling

        samples = self._calibration if precision.startswith("int8") else []
        return compiling.compile_model(
            network, self._inputs, self.groups.folds, self._runtime, precision, folder, source, samples
        )

    def _compiled(self, stage: str, network: Callable[[], nn.Module], precision: str) -> Entry:
        def work(draft: Draft) -> str:
            folder = draft.path("model")
            folder.mkdir()
            made = network()
            artifact = self._artifact(made, precision, folder, self._key(stage))
            names = [file.relative_to(folder).as_posix() for file in artifact.files]
            draft.write_text("artifact.json", codec.dumps(replace(artifact, files=tuple(map(Path, names)))))
            if stage == "compile":
                self._keep_calls(draft, made)
                draft.write_text(SOURCES, provenance.settings(self.project, self.target))
            left = f"{artifact.operators} operators, of {self.groups.operators} in torch's graph"
            return f"{self.target.runtime} {precision}, {artifact.size_bytes / 1e3:.1f} kB, {left}"

        return self._stage(stage, work)

    def _stored(self, entry: Entry) -> Artifact:
        """The artifact that a stage holds, its files by where they are."""
        stored = self._read(entry, "artifact.json", Artifact)
        return replace(stored, files=tuple(entry.path("model") / file for file in stored.files))

    def _keep_calls(self, draft: Draft, network: nn.Module) -> None:
        """Calls with validation samples, and what torch makes of them: what a check of the artifact needs no torch for."""
        import numpy as np

        from edgeprune.frontends import user_code as user
        from edgeprune.stages import accuracy

        stacked, targets = user.stacked(self.project, "valid", self._inputs, KEPT_SAMPLES)
        for i, column in enumerate(stacked):
            np.save(draft.path(f"calls/input_{i}.npy"), column, allow_pickle=False)
        expected = accuracy.computed(network, stacked, len(targets))
        np.save(draft.path("calls/expected.npy"), expected, allow_pickle=False)

    @property
    def _several(self) -> bool:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun's

    @property
    def _events(self) -> Path:
        return self._store.folder / EVENTS

    # -------------------------------------------------------------------------------------- keys and the store

    def _stage(
        self, name: str, work: Callable[[Draft], str], holds: Callable[[Entry], bool] = lambda entry: True
    ) -> Entry:
        """The entry of a stage: as it was found, if it `holds`, or made by `work`, which returns a note on what it made."""
        key = self._key(name)
        entry = None if self._fresh else self._store.find(name, key)
        if entry is not None and holds(entry):
            self._watch.done(name, "reused")
            return entry
        for before in NEEDS.get(name, ()):
            getattr(self, before)  # what the stage builds on comes first, so that stages never nest
        self._watch.start(name)
        with self._store.create(name, key) as draft:
            note = work(draft)
        self._watch.done(name, note)
        return draft.entry

    def _key(self, stage: str) -> str:
        """What a stage follows from, as one digest."""
        if stage not in self._keys:
            self._keys[stage] = digest([SCHEMA, stage, *self._parts(stage)])
        return self._keys[stage]

    def _parts(self, stage: str) -> Sequence[object]:
        p, t, key = self.project, self.target, self._key
        data = p.train, p.valid, p.test, p.clean
        match stage:
            case "survey":
                return provenance.sources(p), p.factory, p.inputs, p.lock, p.preprocess
            case "baseline":
                return key("survey"), t.runtime, provenance.installed(self._runtime.converter)
            case "precision":
                quantizer, device = provenance.installed(self._runtime.quantizer), self.device.identity
                where = device, t.threads, *provenance.state(t), t.precision
                return key("baseline"), quantizer, *where, data, p.metric, p.closed_loop, p.max_metric_drop
            case "scores":
                return key("survey"), p.importance, data, p.loss
            case "plan":
                where = self.device.identity, t.threads, *provenance.state(t), self.precision
                return key("scores"), *where, str(p.budget)
            case "prune":
                return key("plan"), START
            case "finetune":
                return key("prune"), p.epochs, p.learning_rate, p.ema, p.seed, p.metric, p.closed_loop, p.augment
            case "compile":
                return key("finetune"), key("baseline"), provenance.installed(self._runtime.quantizer), SOURCES
            case "verify":
                return key("compile"), p.metric, p.closed_loop, p.max_metric_drop
        raise ValueError(f"no stage {stage}")

    @property
    def _profiles(self) -> Path:
        return _profiles(self.project, self.target)

    @property
    def _profile_path(self) -> Path:
        t = self.target
        key = digest([self.groups.network, self.device.identity, t.threads, self.precision, *provenance.state(t)])[:8]
        return self._profiles / f"{self.project.name}-{key}.json"

    def _keep(self, profile: Profile) -> None:
        self._profile = profile
        write_atomic(self._profile_path, codec.dumps_kept(profile).encode())

    @staticmethod
    def _read(entry: Entry, file: str, noun: type[Noun]) -> Noun:
        path = entry.path(file)
        return codec.loads(noun, path.read_text(), str(path))

    # ------------------------------------------------------------------------------------------- the user's code

    @cached_property
    def _model(self) -> nn.Module:
        from edgeprune.frontends import user_code as user

        return user.build_model(self.project)

    @cached_property
    def _inputs(self) -> tuple[Tensor, ...]:
        from edgeprune.frontends import user_code as user

        return user.example_inputs(self.project)

    @property
    def _cuts(self) -> bool:
        return self.confirmed.plan.cuts(self.groups)

    @property
    def _recipe(self) -> Recipe:
        from edgeprune.graph import groups as graph

        return graph.recipe(self.groups, self.confirmed.plan.keep)


def _profiles(project: Project, target: Target) -> Path:
    """Where what a device answered is kept."""
    return project.path.parent / "profiles" / target.name


def _kept_calls(entry: Entry) -> tuple[list[np.ndarray], np.ndarray]:
    """What `Road._keep_calls` kept: inputs (calls, batch, …), outputs (samples, …)."""
    import numpy as np

    paths = sorted((entry.path("calls")).glob("input_*.npy"), key=lambda path: int(path.stem.rpartition("_")[2]))
    inputs = [np.load(path, allow_pickle=False) for path in paths]
    return inputs, np.load(entry.path("calls") / "expected.npy", allow_pickle=False)


def survey(project: Path | str) -> Survey:
    """What of a project's model can be cut; no device is asked."""
    from edgeprune.frontends import user_code as user
    from edgeprune.latency import explain as explaining
    from edgeprune.network import surgery as network

    known = _read_project(project)
    groups = network.survey(user.build_model(known), user.example_inputs(known), known.lock)
    return explaining.survey(known.name, groups)


def read_history(project: Path | str, target: str, figure: str) -> History:
    """A figure over the checks of a project on a target. Raises `UsageError` where there were none."""
    from edgeprune.stages import check as checking
    from edgeprune.storage import baselines

    known, to = _asked(project, target, None)
    records = baselines.history(_profiles(known, to) / f"{known.name}.history.jsonl")
    return checking.history(known.name, to, records, figure)
