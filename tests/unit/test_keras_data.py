"""Data as Keras users have it: arrays of NumPy, a PyDataset, and arrays of other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_project import made

from edgeprune.errors import UsageError
from edgeprune.frontends.data import Split
from edgeprune.frontends.keras import files
from edgeprune.records import Project

IMAGES, LABELS = np.ones((4, 2, 2, 1)), np.array([[0], [1], [2], [1]], np.uint8)


class Foreign:
    """An array of another library, as TensorFlow's and JAX's: it only converts to NumPy."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class Repeatable:
    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def split(tmp_path: Path, data: Any) -> Split:
    class Given:
        where, name = "[data] train", "given"

        def load(self) -> Any:
            return lambda: data

        def guarded(self, where: str = "") -> Any:
            from contextlib import nullcontext

            return nullcontext()

    project: Project = made(tmp_path)
    return Split(replace(project, data=replace(project.data, train=Given())), "train")


@pytest.mark.parametrize("wrap", [lambda array: array, Foreign])
def test_arrays_become_tensors_of_torchs_usual_types(wrap: Any, tmp_path: Path) -> None:
    ((images,), labels), *rest = split(tmp_path, Repeatable((wrap(IMAGES), wrap(LABELS))))
    assert not rest
    assert images.dtype == torch.float32 and images.shape == (4, 2, 2, 1)
    assert labels.dtype == torch.int64 and labels.flatten().tolist() == [0, 1, 2, 1]


def test_bytes_and_real_targets_keep_their_type(tmp_path: Path) -> None:
    batch = IMAGES.astype(np.uint8), np.eye(4, dtype=np.float32)
    ((images,), targets), *_ = split(tmp_path, Repeatable(batch))
    assert images.dtype == torch.uint8 and targets.dtype == torch.float32


def test_an_array_that_cannot_be_written_to_is_copied(tmp_path: Path) -> None:
    fixed = IMAGES.astype(np.float32)
    fixed.setflags(write=False)
    ((images,), _), *_ = split(tmp_path, Repeatable((fixed, LABELS)))
    images += 1
    assert fixed.max() == 1


def test_text_is_no_array_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch 0 holds a ndarray and a ndarray; give a tensor"):
        list(split(tmp_path, Repeatable((np.array(["a", "b", "c", "d"]), LABELS))))


def test_a_dataset_of_keras_is_read_to_its_end_every_time(tmp_path: Path) -> None:
    keras = files.require_keras()

    class Data(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return IMAGES + index, LABELS

    read = split(tmp_path, Data())
    for _ in range(2):
        assert [float(images.mean()) for (images,), _ in read] == [1, 2, 3]
