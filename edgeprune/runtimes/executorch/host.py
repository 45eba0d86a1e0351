"""ExecuTorch on the host: the artifact is the .pte file, with XNNPACK as its delegate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.records import ModelFile, Precision
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.executorch import program
from edgeprune.runtimes.timing import NodeTime

INSTALL = "pip install 'edgeprune[executorch]'"
# Operators of XNNPACK with weights, as its profiler names them. They come in the order of the graph. XNNPACK executes a
# convolution of single pixels as a fully connected operator.
LAYERS = re.compile(r"(Convolution|Deconvolution|Fully Connected)\b")

CONVOLUTIONS = "conv3d", "conv_transpose3d", "convolution"  # operators of torch that may have three dimensions


class ExecuTorch(Runtime):
    """The CPU, with XNNPACK. An int8 artifact is quantised by PT2E, which needs the program of torch instead of a .pte."""

    name = "executorch"
    own = ".pte"
    loads = (".pte",)
    format = "pte"
    packages = ("executorch>=1.5,<1.6", "numpy")  # see `bindings`
    complete_packages = True  # the others are of its exporter, and torch
    converter = "executorch"
    quantizer = "torchao"
    install = INSTALL
    precisions: Mapping[str, tuple[Precision, ...]] = {"fp32": ("fp32",), "int8": ("int8",)}

    def model_file(self, path: Path) -> ModelFile:
        """See `Runtime.model_file`."""
        return program.model_file(path)

    def exported_as(self, precision: Precision) -> str:
        """See `Runtime.exported_as`."""
        return "pte" if precision == "fp32" else "pt2"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`. The file is a .pte in fp32, or a program of torch."""
        path = folder / "model.pte"
        with exported.open("rb") as file:
            lowered_already = file.read(8).endswith(program.IDENTIFIER)
        if lowered_already and precision == "fp32":
            return (exported.rename(path),)
        self.require(precision)
        import torch

        try:
            traced = torch.export.load(exported)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"executorch cannot convert the model: {reason(error)}") from error
        path.write_bytes(lowered(traced if precision == "fp32" else _quantized(traced, samples)))
        exported.unlink()
        return (path,)

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """Count the operators with weights. Any other operator is reported with the last one of these before it."""
        found, count = [], 0
        for node in nodes:
            count += bool(LAYERS.match(node.name))
            found.append((f"layer:{count - 1}" if count else node.name, node.ns))
        return tuple(found)


def lowered(traced: Any) -> bytes:
    """The .pte file of a program that torch exported.

    Raises:
        UsageError: ExecuTorch cannot express the program.
        RuntimeMissing: ExecuTorch is not installed.
    """
    from edgeprune.runtimes.formats.decompositions import EXECUTORCH

    with silenced():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise RuntimeMissing(f"executorch cannot be imported ({reason(error)}); {INSTALL}") from error
        _refuse_what_it_lacks(traced)
        _make_contiguous(traced)
        try:
            if any(node.target in EXECUTORCH for node in traced.graph.nodes):
                traced = traced.run_decompositions(EXECUTORCH)
            edge = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as error:  # the passes raise many types, all of them about the model
            raise UsageError(f"executorch cannot convert the model: {reason(error)}") from error


def _refuse_what_it_lacks(traced: Any) -> None:
    """A convolution over three dimensions is lowered, but fails when it runs: neither XNNPACK nor ExecuTorch has a kernel."""
    from edgeprune.graph import places

    for node in traced.graph.nodes:
        if getattr(node.target, "_opname", "") in CONVOLUTIONS and node.args[1].meta["val"].ndim == 5:  # the weight
            where = places.of_call(node)
            raise UsageError(f"{where}: executorch has no convolution over three dimensions; choose another runtime")


def _make_contiguous(traced: Any) -> None:
    """Store buffers that are not in the state dict contiguously. ExecuTorch 1.5 does so for others, and fails for these."""
    from torch.export.graph_signature import InputKind

    values = {node.name: node.meta for node in traced.graph.nodes if node.op == "placeholder"}
    for spec in traced.graph_signature.input_specs:
        if spec.kind is InputKind.BUFFER and spec.target in traced.constants:
            traced.constants[spec.target] = traced.constants[spec.target].contiguous()
            values[spec.arg.name]["val"] = values[spec.arg.name]["val"].contiguous()


def _quantized(traced: Any, samples: Calls) -> Any:
    """The program with quantised operators. Ranges come from the samples, and weights have a scale for each channel."""
    import torch

    with silenced():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        try:
            observed = prepare_pt2e(traced.module(check_guards=False), quantizer)
            calls = [tuple(torch.tensor(array) for array in call) for call in samples]
            with torch.no_grad():
                for call in calls:
                    observed(*call)
                return torch.export.export(convert_pt2e(observed), calls[0])
        except Exception as error:  # the quantiser raises many types, all of them about the model
            raise UsageError(f"executorch cannot quantise the model: {reason(error)}") from error


RUNTIME = ExecuTorch()
