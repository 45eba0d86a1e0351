"""OpenVINO's intermediate representation: model.xml, and its weights in model.bin beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.parsers import expat

from edgeprune.errors import UsageError, quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Precision, TensorSpec
from edgeprune.storage.store import read_capped

DTYPES = {"boolean": "bool", "f16": "float16", "f32": "float32", "f64": "float64"} | {
    f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
}
DIGITS = 18  # of a size
NO_OPERATORS = "Parameter", "Const", "Result"


def read(path: Path) -> ModelFile:
    """See `Runtime.model_file`."""
    reader = _Reader(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise usage_error(f"{path}: its weights {weights.name} are missing; put them beside it")
    return ModelFile(
        path=path,
        files=(path, weights),
        inputs=tuple(reader.inputs),
        outputs=tuple(reader.outputs),
        operators=dict(reader.operators),
        precision=reader.precision,
    )


class _Reader:
    """Reads the layers of a network as they are parsed. A document type, which could name entities, is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.inputs: list[TensorSpec] = []
        self.outputs: list[str] = []
        self.operators: Counter[str] = Counter()
        self.precision: Precision = "fp32"
        self._layer: dict[str, str] = {}
        self._root = ""
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        try:
            parser.Parse(read_capped(path, LIMITS.ir_bytes), True)
        except (expat.ExpatError, LookupError) as error:
            raise usage_error(
                f"{path}: is not XML, or is truncated: {quoted(str(error))}; get the file again"
            ) from error
        if self._root != "net" or not self.operators:
            raise usage_error(f"{path}: is not a network of OpenVINO; give the .xml that it saved")

    def _refuse(self, *_: object) -> None:
        raise self._error("has a document type, which no network of OpenVINO has; get the file again")

    def _error(self, text: str) -> UsageError:
        return usage_error(f"{self._path}: {text}")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._root = self._root or tag
        if tag == "layer":
            self._layer = attributes
            kind, name = attributes.get("type", ""), attributes.get("name", "")
            if kind == "Result":
                self.outputs.append(name)
            if kind == "FakeQuantize":
                self.precision = "int8"
            if kind not in NO_OPERATORS:
                self.operators[kind] += 1
        elif tag == "data" and self._layer.get("type") == "Parameter":
            self.inputs.append(self._spec(attributes))
            self._layer = {}

    def _spec(self, attributes: dict[str, str]) -> TensorSpec:
        name, dtype = self._layer.get("name", ""), attributes.get("element_type", "")
        shape = attributes.get("shape", "")
        sizes = [part.strip() for part in shape.split(",")] if shape.strip() else []
        if sizes == ["..."]:
            return TensorSpec(name, DTYPES.get(dtype, dtype), None)
        return TensorSpec(
            name, DTYPES.get(dtype, dtype), tuple(int(s) if s.isdecimal() and len(s) <= DIGITS else "?" for s in sizes)
        )
