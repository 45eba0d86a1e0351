"""Notes which lines of edgeprune the processes of the tests run, and prints the others.

    python tests/covered/covered.py FOLDER       the folder that COVERED named while the tests ran

SlipCover instruments modules when they are imported. On two cores the tests take 12 % longer with it. With the tracer of
coverage.py they take twice as long, since before Python 3.14 it is also called for every line of torch.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import slipcover
from slipcover.slipcover import add_summaries

SOURCE = Path(__file__).parents[2] / "edgeprune"
OMITTED = [
    str(SOURCE / "devices/virtual/trtexec.py"),  # a program of the virtual board, started by its path
    str(SOURCE / "runtimes/formats/assignments.py"),  # torch reads its bytecode
]
NEVER = 1 << 30  # hits after which SlipCover looks through all functions, to remove the probes of lines that were seen


def begin() -> None:
    """Instrument what this process imports from now on, and write a file when it ends. Forks write files of their own."""
    counter = slipcover.Slipcover(exclude_lines=[], d_miss_threshold=NEVER)

    def write() -> None:
        ran = {name: file["executed_lines"] for name, file in counter.get_coverage()["files"].items()}
        Path(os.environ["COVERED"], f"{os.getpid()}.json").write_text(json.dumps(ran))

    slipcover.ImportManager(counter, slipcover.FileMatcher(sources=[str(SOURCE)], omit=OMITTED)).__enter__()
    os.register_at_fork(after_in_child=counter.signal_child_process)
    atexit.register(write)


def main(folder: Path) -> None:
    """Print a line for each file of which some line did not run."""
    ran = defaultdict[Path, set[int]](set)
    for path in folder.glob("*.json"):
        for name, lines in json.loads(path.read_text()).items():
            ran[Path(name).resolve()].update(lines)
    found = slipcover.Slipcover(source=[str(SOURCE)], omit=OMITTED, exclude_also=["if TYPE_CHECKING:"]).get_coverage()
    for name, file in found["files"].items():
        lines = set(file["missing_lines"])
        file["executed_lines"] = sorted(lines & ran[Path(name).resolve()])
        file["missing_lines"] = sorted(lines - ran[Path(name).resolve()])
    add_summaries(found)
    slipcover.print_coverage(found, skip_covered=True, missing_width=60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
