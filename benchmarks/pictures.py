"""Draws the pictures of the README and of docs/concepts.md: the digits' front, their network before and after pruning, and the
latency of layers by width.

    python benchmarks/pictures.py [--target local] [--project examples/digits] [--out docs/pictures]

It runs the project first, and reuses what an earlier run has measured. Without --project it runs a copy of the example, so the
checkout does not change.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeprune.api import verbs
from edgeprune.api.series import front
from edgeprune.latency.fit import draft
from edgeprune.reports import pictures
from edgeprune.reports.pictures import Picture
from edgeprune.stages.series import finished

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "digits"


@dataclass(frozen=True)
class Own:
    """The plan of the run, as a point of the front."""

    latency_ns: float
    loss: float


def drawn(project: Path, target: str) -> dict[str, Picture]:
    """The pictures, by the names of their files."""
    verbs.run(project, target)
    run = finished.read(project / "runs" / target)
    if run.confirm is None or run.profile is None:
        raise SystemExit(f"{project}: nothing was pruned on {target}, so there is nothing to draw")
    found = front(project, target)
    knee = None if found.knee is None else found.points[found.knee]
    model, plan = draft(run.survey, run.profile), run.confirm.plan
    own = Own(model.ns(run.widths), plan.loss)
    return {
        "front": pictures.front([*found.points, own], plan.budget_ns, own, knee),
        "network": pictures.network(run.survey, model, run.widths),
        "latency": pictures.latency_by_width(run.survey, run.profile, model, run.widths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="local")
    parser.add_argument("--project", type=Path, help="a folder with a project file and earlier runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        project = options.project or Path(shutil.copytree(EXAMPLE, Path(scratch) / EXAMPLE.name))
        for name, picture in drawn(project, options.target).items():
            print(f"{picture.save(options.out / f'{name}.svg')}: {picture.alt}")


if __name__ == "__main__":
    main()
