"""ONNX's operators, as torch's functions and layers. To add one, add one function with `@operator(NAME)`.

The function gets the builder, the node, and a value for each input (None where an input is left out). It returns a value, or a
sequence of them.
"""

from edgeprune.frontends.onnx.operators import (  # noqa: F401 - they fill the table
    branches,
    elementwise,
    layers,
    pooling,
    recurrence,
    reductions,
    shapes,
)
from edgeprune.frontends.onnx.operators.table import OPERATORS as OPERATORS
