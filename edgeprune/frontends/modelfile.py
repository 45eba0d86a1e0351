"""Models that are files instead of Python code: the keys of `[model]` that name one, and how each is read.

A model file stands for two functions: one that makes the network, and one that makes example inputs. So the rest of edgeprune
treats it as functions that a user wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.errors import UsageError
from edgeprune.frontends import hub
from edgeprune.frontends.functions import guarded
from edgeprune.frontends.sources import installed
from edgeprune.records import Function, Preprocess
from edgeprune.storage.store import file_sha256

if TYPE_CHECKING:
    from torch import nn

Made = Literal["network", "example_inputs"]


@dataclass(frozen=True)
class Format:
    """How a kind of model file is read.

    Attributes:
        module: has the functions `network(path)` -> nn.Module and `example_inputs(path)`, as `[model] inputs` returns them.
        packages: whose versions the network depends on.
        sized: whether `network` also takes the user's example inputs, which give dynamic dimensions their sizes.
        preprocesses: whether the module has `preprocess(path)`, the `[preprocess]` that the file brings, or None.
        writes: whether the module has `write(path, network, target)`, which writes a pruned network as such a file.
    """

    module: str
    packages: tuple[str, ...]
    sized: bool = False
    preprocesses: bool = False
    writes: bool = False


FORMATS: Mapping[str, Format] = {  # by the key of [model]
    "keras": Format("edgeprune.frontends.keras", ("keras",), sized=True, writes=True),
    "onnx": Format("edgeprune.frontends.onnx", ("onnx",), sized=True),
    "tensorflow": Format("edgeprune.frontends.tensorflow", ("tensorflow-cpu", "tensorflow", "tf2onnx"), sized=True),
    "transformers": Format("edgeprune.frontends.huggingface", ("transformers",), preprocesses=True),
}


@dataclass(frozen=True)
class FileModel:
    """One of the two functions that a model file stands for; see `records.Function`.

    Attributes:
        where: the project's file, the key and the value, for messages.
        key: the key of `[model]`.
        file: the model file, or the folder.
        made: what the function makes.
        inputs: the user's function of example inputs, if there is one.
    """

    where: str
    key: str
    file: Path
    made: Made
    inputs: Function | None = None

    @property
    def name(self) -> str:
        """See `records.Function.name`."""
        return f"{self.key}:{self.made}"

    def load(self) -> Callable[..., Any]:
        """See `records.Function.load`."""
        if not self.file.exists():
            raise UsageError(f"{self.where}: {self.file} does not exist; correct the path")
        function = partial(getattr(import_module(FORMATS[self.key].module), self.made), self.file)
        inputs = self.inputs if FORMATS[self.key].sized and self.made == "network" else None
        return function if inputs is None else lambda: function(inputs.load()())

    def sources(self) -> Mapping[str, str]:
        """See `records.Function.sources`."""
        content = {f"file {name}": file_sha256(file) for name, file in files(self.file).items()}
        return content | {f"package {name}": installed(name) for name in FORMATS[self.key].packages}

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """See `records.Function.guarded`."""
        return guarded(self.file.parent, where or self.where)

    def write(self, network: nn.Module, folder: Path) -> None:
        """Write a pruned network as a file of the same format and name, if that is possible.

        Raises:
            UsageError: the pruned network cannot be written in this format.
        """
        if FORMATS[self.key].writes:
            import_module(FORMATS[self.key].module).write(self.file, network, folder / self.file.name)


def located(where: str, key: str, folder: Path, name: str) -> Path:
    """A model file, or the folder of a model. A model on Hugging Face's hub is downloaded once.

    Args:
        where: the project's file, the key and the value, for messages.
        key: of `[model]`.
        folder: what paths are relative to.
        name: a path, or a name on the hub.
    """
    path = folder / name
    return path if key != "transformers" or path.exists() or not hub.is_name(name) else hub.folder(where, name)


def preprocess_of(factory: Function) -> Preprocess | None:
    """The preprocessing that a model file brings; None if it brings none."""
    if not isinstance(factory, FileModel) or not FORMATS[factory.key].preprocesses:
        return None
    found: Preprocess | None = import_module(FORMATS[factory.key].module).preprocess(factory.file)
    return found


def files(path: Path) -> dict[str, Path]:
    """A model's file, or the files of its folder and of the folders inside, by their names there."""
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return {file.relative_to(path.parent if file == path else path).as_posix(): file for file in found}
