"""Files of public exporters go to a verified artifact on every runtime of this machine. A run takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_runs import SUBJECTS, check_run


@pytest.mark.parametrize("target", ["local", "local-openvino", "local-tflite"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_file_goes_to_a_verified_artifact_at_half_the_latency(name: str, target: str, tmp_path: Path) -> None:
    check_run(name, target, tmp_path)
