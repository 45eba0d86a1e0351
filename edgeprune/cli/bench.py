"""`edgeprune bench`: how fast model files run."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import typer

from edgeprune.cli.answers import LINE_WIDTH, only_answer_on_stdout, put, require_places, screen, write_export
from edgeprune.cli.options import OfBench
from edgeprune.errors import InconclusiveError
from edgeprune.limits import LIMITS


def bench(options: OfBench) -> None:
    """Measure the files and print their figures."""
    from edgeprune.devices.patience import Patience, parse
    from edgeprune.frontends.feeds import Given
    from edgeprune.reports import bench as reports
    from edgeprune.stages import bench as stage

    exports = {path: reports.exporter(path) for path in options.export or []}
    given = Given.parse(options.shape or [], options.input or [], options.batch)
    asked = stage.Asked(
        files=tuple(options.files),
        targets=tuple(options.target or ()),
        given=given,
        streams=options.streams,
        layers=options.layers or any(map(reports.needs_layers, exports)),
        seconds=LIMITS.bench_s if options.time is None else parse(options.time, "--time"),
    )
    subjects = stage.subjects(asked)
    if options.dry_run:
        print("\n".join(stage.forecast(asked, subjects)))
        return
    require_places(exports)
    from edgeprune.pipeline.request import Quiet
    from edgeprune.reports.progress import Watcher

    with only_answer_on_stdout(options.as_json):
        shown = screen(sys.stderr if options.as_json else sys.stdout, LINE_WIDTH)
        with nullcontext(Quiet()) if options.quiet else Watcher(shown) as watch:
            seconds = LIMITS.bench_patience_s if options.patience is None else parse(options.patience)
            patience = Patience(seconds, watch.note, accepting=True)
            wait_s = LIMITS.lease_wait_s if options.wait else 0.0
            found, samples = stage.measure(asked, subjects, patience, watch, wait_s)
    put(found, options.as_json, reports.show)
    for path, write in exports.items():
        write_export(path, write(found, samples))
    if found.status == "inconclusive":
        raise typer.Exit(InconclusiveError.exit_code)
