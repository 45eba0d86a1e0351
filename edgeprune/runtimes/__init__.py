"""Runtimes, by the name that `[runtime] name` gives."""

from __future__ import annotations

from edgeprune.runtimes.base import Runtime
from edgeprune.runtimes.null import Null
from edgeprune.runtimes.onnxruntime import OnnxRuntime
from edgeprune.runtimes.openvino import OpenVino
from edgeprune.runtimes.tensorrt import TensorRt
from edgeprune.runtimes.tflite import TfLite

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime for runtime in (OnnxRuntime(), OpenVino(), TfLite(), TensorRt(), Null())
}
