"""Runtimes, by the name that `[runtime] name` gives."""

from __future__ import annotations

from edgeprune.runtimes.base import Runtime
from edgeprune.runtimes.null.host import Null
from edgeprune.runtimes.onnxruntime.host import OnnxRuntime
from edgeprune.runtimes.openvino.host import OpenVino
from edgeprune.runtimes.tensorrt.host import TensorRt
from edgeprune.runtimes.tflite.host import TfLite

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime for runtime in (OnnxRuntime(), OpenVino(), TfLite(), TensorRt(), Null())
}
