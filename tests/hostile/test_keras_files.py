"""Keras files that are damaged, or that would run code: one line with the file, and nothing of them is run."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kerasmodels import Input, L, keras

from edgeprune.errors import EdgepruneError, RuntimeMissing, SecurityError, UsageError
from edgeprune.frontends import keras as frontend
from edgeprune.frontends.keras import files


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with files.silent():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    keras.Sequential([Input((8, 8, 3)), L.Conv2D(4, 3, activation="relu", name="conv"), L.Flatten(), L.Dense(2)]).save(
        path
    )
    return path


def refused(path: Path, kind: type[EdgepruneError]) -> str:
    with pytest.raises(kind) as caught:
        frontend.network(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and caught.value.exit_code == kind.exit_code
    return text


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A `.keras` with another description."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    target = path.with_name("changed.keras")
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return target


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in config["config"]["layers"] if one["config"]["name"] == name)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_layer_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    keras.Sequential([Input((4,)), L.Lambda(lambda x: x + 1, name="own code"), L.Dense(2)]).save(path)
    assert "layer 'own code' (Lambda) holds code" in refused(path, SecurityError)


def test_a_pickled_module_is_refused(file: Path) -> None:
    def wrap(config: dict[str, Any]) -> None:
        layer(config, "conv")["class_name"] = "TorchModuleWrapper"

    assert "TorchModuleWrapper" in refused(changed(file, wrap), SecurityError)


def test_a_lambda_in_the_place_of_a_function_is_refused(file: Path) -> None:
    def wrap(config: dict[str, Any]) -> None:
        layer(config, "conv")["config"]["activation"] = {"class_name": "__lambda__", "config": {"value": "gA=="}}

    refused(changed(file, wrap), SecurityError)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("my.layers", "Conv2D"),
        ("keras.utils", "get_file"),
        ("kerasx", "Conv2D"),
    ],
)
def test_a_class_that_is_not_in_the_table_is_not_imported(module: str, name: str, file: Path) -> None:
    def replace(config: dict[str, Any]) -> None:
        layer(config, "conv").update(module=module, class_name=name)

    text = refused(changed(file, replace), UsageError)
    assert "[model] factory" in text
    assert module not in ("my.layers", "kerasx") or "custom object" in text


def test_a_function_that_is_no_activation_is_not_called(file: Path) -> None:
    def replace(config: dict[str, Any]) -> None:
        function = {"module": "keras.utils", "class_name": "function", "config": "get_file"}
        layer(config, "conv")["config"]["activation"] = function

    assert "'get_file' is not of Keras" in refused(changed(file, replace), UsageError)


def test_a_registered_object_is_named(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class Twice(L.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return 2 * x

    keras.Sequential([Input((4,)), Twice(name="twice"), L.Dense(2)]).save(tmp_path / "own.keras")
    text = refused(tmp_path / "own.keras", UsageError)
    assert "'twice' is a custom object ('mine>Twice')" in text and "[model] factory" in text


def test_layers_that_need_more_weights_than_the_file_holds_take_no_memory(file: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["config"]["units"] = 1_000_000_000

    assert "holds fewer weights than its layers need" in refused(changed(file, grow), UsageError)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n" + bytes(64)])
def test_a_file_that_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    refused(path, UsageError)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_truncated_file_is_one_line(suffix: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    files.load(file).save(path)
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, UsageError)


def test_a_folder_and_a_missing_part_are_one_line(file: Path, tmp_path: Path) -> None:
    refused(tmp_path, UsageError)
    with zipfile.ZipFile(tmp_path / "part.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    assert "has no config.json and model.weights.h5" in refused(tmp_path / "part.keras", UsageError)


def test_weights_without_their_model_are_named(file: Path, tmp_path: Path) -> None:
    files.load(file).save_weights(tmp_path / "only.weights.h5")
    assert "holds weights without their model" in refused(tmp_path / "only.weights.h5", UsageError)


@pytest.mark.parametrize("text", ["[", "[]", "7", '{"a": ' * 100_000, '{"class_name": "Sequential"}', "{}"])
def test_a_description_that_is_no_model_is_one_line(text: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", text)
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    refused(path, UsageError)


def test_an_archive_that_expands_is_not_read(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(64 << 20))
    assert "larger inside than a model" in refused(path, UsageError)


def test_links_to_other_files_are_not_followed(file: Path, tmp_path: Path) -> None:
    import h5py

    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as other:
        other["key"] = [1.0, 2.0]
    path = tmp_path / "link.h5"
    files.load(file).save(path)
    with h5py.File(path, "a") as held:
        held["stolen"] = h5py.ExternalLink(str(secret), "key")
    assert "'stolen' in it is a link" in refused(path, SecurityError)
    with h5py.File(path, "a") as held:
        del held["stolen"]
        held.create_dataset("outside", (4,), "f4", external=[(str(secret), 0, 16)])
    assert "'outside' in it is a link" in refused(path, SecurityError)


def test_control_characters_in_names_are_not_printed(file: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        layer(config, "conv").update(class_name="Lambda")
        layer(config, "conv")["config"]["name"] = "\x1b[31mred\nline"

    assert "\x1b" not in refused(changed(file, rename), SecurityError)


def test_another_backend_of_this_process_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.require_keras().config, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"Keras runs on jax in this process.*KERAS_BACKEND=torch"):
        frontend.network(file)


def test_without_keras_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeprune\[keras\]'"):
        frontend.network(file)
