"""Formats of exported files, by the name in a runtime's `format`."""

from __future__ import annotations

from edgeprune.runtimes.formats.base import Template
from edgeprune.runtimes.formats.executorch import ProgramTemplate, PteTemplate
from edgeprune.runtimes.formats.ncnn import NcnnTemplate
from edgeprune.runtimes.formats.onnx import OnnxTemplate
from edgeprune.runtimes.formats.tflite import TfliteTemplate

FORMATS: dict[str, type[Template]] = {
    "ncnn": NcnnTemplate,
    "onnx": OnnxTemplate,
    "pt2": ProgramTemplate,
    "pte": PteTemplate,
    "tflite": TfliteTemplate,
}
