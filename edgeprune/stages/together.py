"""One network on several targets: the result, from the common run. The pipeline's stages make it; see `bounds.targets`."""

from __future__ import annotations

from collections.abc import Callable

from edgeprune.pipeline.run import Run
from edgeprune.records import Outcome, Result, Together
from edgeprune.stages import bounds, confirm, result


def together(run: Run, answer: Callable[[Run], Result] = result.result) -> Together:
    """The results of all targets. Runs every stage that is missing: first the common ones, then each target's own.

    Args:
        run: the common run.
        answer: the result of a target's run.
    """
    confirmed = run.record(confirm.STAGE)
    results = tuple(answer(member) for _, member in bounds.targets(run))
    shares = {one.target: one.share for one in confirmed.measurements}
    worst = Outcome.worst(one.status for one in results)
    return Together(result.SCHEMA, worst, confirmed.binds, shares, results)
