"""No runtime: the model is a JSON file {"ns": time of a run}, and its output is its input. It is for tests of the rest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from ..device import Array, Model, Options, Runtime
from ..timing import NodeTime, Timing


class NullModel(Model):
    """Waits. The key "raises" makes it die of a signal, and "hangs" makes it sleep for seconds."""

    def __init__(self, path: str) -> None:
        self._path = path
        with open(path) as file:
            self._model = json.load(file)
        self.ns = int(self._model["ns"])

    def feed(self, inputs: Sequence[Array]) -> None:
        """There is nothing to feed."""

    def run(self) -> None:
        """Wait for as long as the file says."""
        until = time.perf_counter_ns() + self.ns
        while time.perf_counter_ns() < until:
            pass
        if self._model.get("raises"):
            os.kill(os.getpid(), self._model["raises"])
        if self._model.get("hangs"):
            time.sleep(self._model["hangs"])

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs are the inputs."""
        return list(inputs)

    def twin(self) -> NullModel:
        """Nothing is shared."""
        return NullModel(self._path)


class Null(Runtime):
    """Always installed."""

    def version(self) -> str:
        """It has one version."""
        return "0"

    def load(self, path: str, options: Options) -> NullModel:
        """Read the JSON file."""
        return NullModel(path)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """One node that takes the whole time."""
        return [NodeTime("null", NullModel(path).ns, kind="Null")]


RUNTIME = Null()
