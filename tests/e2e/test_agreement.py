"""A model and files of samples are enough: the whole pipeline without labels, on a real runtime."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from small import command, settled


@pytest.mark.nightly
def test_a_run_without_labels_agrees_with_the_original_and_is_reused(project: Path) -> None:
    names = runpy.run_path(str(project.with_name("blobs.py")))
    images = np.concatenate([batch.numpy() for batch, _ in names["train"]()])
    (project.parent / "calibration").mkdir()
    for number, image in enumerate(images):
        np.save(project.parent / "calibration" / f"{number}.npy", image)
    text = project.read_text()
    begin, end = text.index("[data]"), text.index("[budget]")
    project.write_text(f'{text[:begin]}[data]\nsamples = "calibration/*.npy"\n\n{text[end:]}')

    run = command("run", "--project", project, "--json")
    settled(run)
    found = run.json
    assert found["metric_name"] == "agreement with the original"
    assert found["baseline"]["metric"] == pytest.approx(1.0) and found["pruned"]["metric"] >= 0.98
    (check,) = (one for one in found["checks"] if one["name"] == "agreement_drop")
    assert check["outcome"] == "pass" and "on the 51 test samples" in check["note"]
    assert "validation agreement with the original" in run.err

    again = command("run", "--project", project, "--json")
    assert json.loads(again.out)["artifact"] == found["artifact"]
    assert "redone" not in again.err
