"""Reports in a real browser: no script runs, the console is silent, and a phone needs no sideways scrolling."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import pytest
from runs import Texts, checked, put

from edgeprune.stages.series import finished

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
from edgeprune.reports import report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = {"desk": 1280, "phone": 390}  # pixels
SECONDS = 300
RAN = "document.title = 'ran'; console.error('ran')"
HOSTILE = f'"\'></style></title></script><script>{RAN}</script><img src=x onerror="{RAN}"><svg onload="{RAN}">'
# A page of another origin cannot look into a report, so both are files, which the browser is told to trust.
FRAME = """<!doctype html><title>frame</title><iframe id="page" src="{page}" width="{width}" height="900"></iframe><pre></pre>
<script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  document.querySelector("pre").textContent = JSON.stringify({{
    title: page.title, overflow: root.scrollWidth - root.clientWidth, heads: page.querySelectorAll("h1").length,
    broken: [...page.images].length, drawn: [...page.querySelectorAll("svg")].every((one) => one.clientHeight > 20),
    data: JSON.parse((page.getElementById("edgeprune-data") || {{textContent: "null"}}).textContent) !== null,
  }});
}};
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine; apt-get install chromium"),
]


def browse(arguments: Sequence[str], profile: Path) -> tuple[str, list[str]]:
    """Run the browser: what it prints, and the messages on its console."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--allow-file-access-from-files"]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=SECONDS, check=True)
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def examined(page: Path, width: int, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What a browser of this width makes of a page, and the messages on its console."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    printed, console = browse(["--dump-dom", frame.as_uri()], folder / "profile")
    found = re.search(r"<pre>(.*?)</pre>", printed, re.DOTALL)
    assert found is not None and found[1], printed[:2000]
    facts: dict[str, object] = json.loads(unescape(found[1]))
    return facts, console


def screenshot(page: Path, width: int, folder: Path, name: str) -> Path:
    """A picture of a page, in EDGEPRUNE_SCREENSHOTS if that is set."""
    kept = Path(os.environ.get("EDGEPRUNE_SCREENSHOTS", folder))
    kept.mkdir(parents=True, exist_ok=True)
    picture = kept / f"{name}.png"
    browse([f"--window-size={width},6000", f"--screenshot={picture}", page.as_uri()], folder / "profile")
    return picture


def written(folder: Path, *verdicts: Path) -> Path:
    return report.write([finished.read(verdict) for verdict in verdicts], folder / "report.html")


@pytest.mark.parametrize("device", WIDTHS)
def test_a_report_is_drawn_without_a_console_message(tmp_path: Path, device: str) -> None:
    verdict = put(tmp_path)
    checked(tmp_path)
    page = written(tmp_path, verdict)
    facts, console = examined(page, WIDTHS[device], tmp_path)
    assert console == []
    assert facts == {
        "title": "p on pi · edgeprune",
        "overflow": 0,
        "heads": 1,
        "broken": 0,
        "drawn": True,
        "data": True,
    }
    assert screenshot(page, WIDTHS[device], tmp_path, f"report-{device}").stat().st_size > 50_000


def test_hostile_text_does_not_run(tmp_path: Path) -> None:
    page = written(tmp_path, put(tmp_path, Texts.all(HOSTILE)), put(tmp_path, Texts.all(HOSTILE), target="jetson"))
    facts, console = examined(page, WIDTHS["phone"], tmp_path)
    assert console == []
    assert facts == {"title": "2 runs · edgeprune", "overflow": 0, "heads": 1, "broken": 0, "drawn": True, "data": True}
    screenshot(page, WIDTHS["phone"], tmp_path, "report-hostile")


def test_a_bad_page_is_found(tmp_path: Path) -> None:
    """So that the tests above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(f"<title>{HOSTILE}<p style='width:2000px'>wide</p>")
    facts, console = examined(page, WIDTHS["phone"], tmp_path)
    assert facts["title"] == "ran" and int(str(facts["overflow"])) > 1000 and facts["broken"] == 1
    assert any("ran" in line for line in console)
