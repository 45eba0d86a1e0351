"""Networks from ONNX files: a module of torch's layers with the file's weights.

`file` reads and checks. `build` goes through the nodes; `operators` has a function for each operator, and `patterns` finds
layers that are spelled as several. `scopes` and `residuals` find the modules, and `writing` makes them. `check` compares the
result with ONNX Runtime.
"""

from edgeprune.frontends.onnx.network import example_inputs as example_inputs
from edgeprune.frontends.onnx.network import network as network
