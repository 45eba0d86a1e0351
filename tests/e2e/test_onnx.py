"""An .onnx file and samples without labels are enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_runs import check_run


@pytest.mark.slow
def test_a_file_goes_to_a_verified_artifact_at_half_the_latency(tmp_path: Path) -> None:
    check_run("ResNet", "local", tmp_path)
