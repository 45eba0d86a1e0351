"""A project of Python objects, or of a file, with the verbs as methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edgeprune.api import fleets, series, sweeps, verbs
from edgeprune.api.networks import Compressed
from edgeprune.errors import UsageError
from edgeprune.frontends import objects
from edgeprune.pipeline.request import read_project

if TYPE_CHECKING:
    from torch import nn


class Project:
    """What to compress, on what data, to which budget.

    Args:
        model: the trained network. It is copied, and stays unchanged.
        example_inputs: a tensor, a tuple of tensors, or a dict of tensors by the names of the model's arguments; (batch, ...)
            each. The artifact is made for these shapes.
        **options: each stands for a key of the project file; see `edgeprune.frontends.objects.Options`.

    Raises:
        UsageError: a keyword is unknown or wrong. The message names it.

    Example:
        >>> project = edgeprune.Project(model, example_inputs, train=train_loader, valid=valid_loader, metric=accuracy)
        >>> result = project.compress(target="raspberrypi", budget="12 ms")
        >>> result.model
    """

    def __init__(self, model: nn.Module, example_inputs: Any, **options: Unpack[objects.Options]) -> None:
        self.record = objects.project(model, example_inputs, options)

    @classmethod
    def from_onnx(cls, path: Path | str, example_inputs: Any = None, **options: Unpack[objects.Options]) -> Project:
        """The project of a network in a `.onnx` file. The artifact's inputs and outputs have the names of the file.

        Args:
            path: the file. It names the project unless `name` is given.
            example_inputs: as for `Project`. They give dynamic dimensions their sizes; by default a dynamic batch is 1.
            **options: as for `Project`.

        Raises:
            UsageError: the file cannot be converted, or a keyword is wrong.
            SecurityError: the file's weights lie outside its folder.
        """
        from edgeprune.frontends import onnx

        path = Path(path)
        model = onnx.network(path, example_inputs)
        inputs = onnx.example_inputs(path) if example_inputs is None else example_inputs
        options.setdefault("name", objects.name_of(path))
        return cls(model, inputs, **options)

    @classmethod
    def from_keras(cls, model: Any, example_inputs: Any = None, **options: Unpack[objects.Options]) -> Project:
        """The project of a Keras model.

        Args:
            model: a Keras model on its torch backend, or the path of a `.keras` or `.h5` file. It names the project unless
                `name` is given.
            example_inputs: as for `Project`. They give open sizes a value; by default they are one sample.
            **options: as for `Project`.

        Raises:
            UsageError: the model cannot be converted, or a keyword is wrong.
            SecurityError: the file holds code.
        """
        from edgeprune.frontends import keras

        if isinstance(model, str | Path):
            options.setdefault("name", objects.name_of(Path(model)))
            model = keras.files.load(Path(model))
        options.setdefault("name", objects.name_of(Path(f"{model.name}.keras")))
        network, inputs = keras.of_model(model, example_inputs)
        return cls(network, inputs if example_inputs is None else example_inputs, **options)

    @classmethod
    def read(cls, path: Path | str) -> Project:
        """The project of an `edgeprune.toml`; `path` is the file, or its folder."""
        project = cls.__new__(cls)
        project.record = read_project(path)
        return project

    def compress(self, target: str = "local", **options: Unpack[verbs.Options]) -> Compressed:
        """Prune the network to the budget, train it, compile it and verify it. See `edgeprune.run`.

        Raises:
            UsageError: neither the project nor the call gives a budget.
        """
        if options.get("budget") is None and not self.record.budget.prunes:
            raise UsageError('compress needs a budget: compress(budget="12 ms"); to keep all channels: verify()')
        return verbs.run(self, target, **options)

    profile = verbs.profile
    plan = verbs.plan
    front = series.front
    sweep = sweeps.sweep
    prune = verbs.prune
    finish = verbs.finish
    compile = verbs.compile
    verify = verbs.verify
    check = verbs.check
    deploy = fleets.deploy
    bundle = fleets.bundle
    groups = verbs.groups
    history = verbs.history
    rollback = fleets.rollback
    withdraw = fleets.withdraw

    def __repr__(self) -> str:
        return f"Project({self.record.name!r}, runs in {str(self.record.folder)!r})"
