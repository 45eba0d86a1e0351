"""No runtime: the artifact is a JSON file with the time of a run. It is for tests of everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeprune.records import Precision
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime
from edgeprune.runtimes.timing import NodeTime


class Null(Runtime):
    """A run takes a nanosecond for every eight bytes of the exported file."""

    name = "null"
    loads = ()
    packages = ()
    converter = quantizer = "numpy"
    install = "nothing to install"
    precisions: Mapping[str, tuple[Precision, ...]] = {"fp32": ("fp32",)}

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """Write the time of a run."""
        path = folder / "model.json"
        path.write_text(json.dumps({"ns": exported.stat().st_size // 8}))
        exported.unlink()
        return (path,)

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """There is nothing to translate."""
        return tuple((node.name, node.ns) for node in nodes)


RUNTIME = Null()
