"""Progress in a real notebook: a kernel runs a cell, and the messages are those that Jupyter gets."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete

STAGES = [f"stage{number}" for number in range(30)]
CELL = f"""
import sys
import time
from rich.console import Console
from edgeprune.reports import progress

assert hasattr(sys, "ps1")  # the API shows its progress where this is set
with progress.Watcher(Console(emoji=False)) as watch:
    watch.start("scores")
    for done in range(5):
        watch.step(done, 5, "a layer")
        time.sleep(2 * progress.REDRAW_S)
    for stage in {STAGES}:
        watch.start(stage)
        time.sleep(0.05)
        print("a line of the user during", stage)
        print("a warning during", stage, file=sys.stderr)
        watch.done(stage, "of the network")
"""


class Recorded(NotebookClient):
    """What Jupyter makes of the messages of a cell, and the text of all messages with content to show, in their order."""

    def __init__(self, cell: nbformat.NotebookNode) -> None:
        super().__init__(nbformat.v4.new_notebook(cells=[cell]), record_timing=False)  # type: ignore[no-untyped-call]
        self.texts: list[str] = []
        self.reset_execution_trackers()
        self.clear_before_next_output = False

    def take(self, message: dict[str, Any]) -> None:
        self.texts.append(str(message["content"].get("data", {}).get("text/plain", "")))
        with suppress(CellExecutionComplete):
            self.process_message(message, self.nb.cells[0], 0)


@pytest.fixture(scope="module")
def notebook() -> Recorded:
    """The cell, executed. `NotebookClient.execute` sometimes misses the kernel's reply, and waits until its time limit."""
    client = Recorded(nbformat.v4.new_code_cell(CELL))  # type: ignore[no-untyped-call]
    manager, kernel = start_new_kernel(kernel_name="python3")
    client.kc = kernel
    try:
        reply = kernel.execute_interactive(CELL, allow_stdin=False, output_hook=client.take, timeout=600)
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", client.nb.cells[0].outputs
    return client


def test_a_bar_moves_in_a_notebook(notebook: Recorded) -> None:
    bars = [text for text in notebook.texts if "%" in text and "scores" in text]
    assert [
        share for share in ("0%", "20%", "40%", "60%") if any(share in bar for bar in bars)
    ] == "0% 20% 40% 60%".split()
    assert any("left" in bar for bar in bars)


def test_a_notebook_keeps_the_line_of_each_finished_stage_and_what_the_user_prints(notebook: Recorded) -> None:
    shown = [output.get("text") or output["data"]["text/plain"] for output in notebook.nb.cells[0].outputs]
    text = "".join(shown)
    for stage in STAGES:
        assert text.count(f"a line of the user during {stage}\n") == text.count(f"a warning during {stage}\n") == 1
        assert text.count(f"{stage:<10} of the network") == 1
    assert "━" not in text  # the bar is gone
