"""The examples run anywhere: on their built-in samples where no data is given."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgeprune.frontends import toml
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.frontends.trial import check_data
from edgeprune.network.survey import survey

EXAMPLES = Path(__file__).parents[2] / "examples"
METADATA = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
PROJECTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/*.toml"))
QUICK = "control/edgeprune.toml", "digits/edgeprune.toml", "image/edgeprune.toml"


@pytest.mark.parametrize(
    "name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in PROJECTS]
)
def test_an_example_is_complete_without_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    if name.startswith("detection/"):
        pytest.importorskip("pycocotools")
    project = toml.read_project(EXAMPLES / name)
    model, inputs = build_model(project), example_inputs(project)
    check_data(model, project)
    groups = survey(model, inputs, project.prune.lock)
    assert not groups.unknown_operators
    assert groups.macs(groups.least()) < 0.2 * groups.macs(groups.full())


def test_the_digits_are_those_of_scikit_learn_in_their_split() -> None:
    datasets, selection = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.model_selection")
    data = datasets.load_digits()
    rest, test = selection.train_test_split(range(1797), test_size=0.2, stratify=data.target, random_state=0)
    train, valid = selection.train_test_split(rest, test_size=0.25, stratify=data.target[rest], random_state=0)
    order = [*train, *valid, *test]
    with np.load(EXAMPLES / "digits" / "digits.npz") as packed:
        assert (packed["images"] == data.images[order]).all() and (packed["labels"] == data.target[order]).all()


def test_the_digits_need_only_what_the_core_installs() -> None:
    """A new user installs no extra before `edgeprune demo`."""
    core = {re.split("[<>=]", line)[0] for line in METADATA["dependencies"]}
    for name in ("digits.py", "train.py"):
        tree = ast.parse((EXAMPLES / "digits" / name).read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in imports}
        tops = {one.partition(".")[0] for one in names}
        assert tops <= core | set(sys.stdlib_module_names) | {"digits"}


def test_data_is_read_from_the_given_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = runpy.run_path(str(EXAMPLES / "sources.py"))
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    assert sources["found"]("x.npz") is None and sources["downloaded"]("nowhere", "0") is None
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="EDGEPRUNE_DATA names a folder without it"):
        sources["found"]("x.npz")
    (tmp_path / "x.npz").touch()
    assert sources["found"]("x.npz") == tmp_path / "x.npz"
    monkeypatch.setenv("EDGEPRUNE_DATA", "download")
    assert sources["found"]("x.npz") is None


def test_a_download_is_the_commit_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a repository of the test's: git checks that every file is what the commit says."""
    origin, cache = tmp_path / "origin", tmp_path / "cache"
    origin.mkdir()
    git = [
        "git",
        "-C",
        str(origin),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "uploadpack.allowAnySHA1InWant=true",
    ]
    (origin / "data.csv").write_text("1,2\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "data"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    sources = runpy.run_path(str(EXAMPLES / "sources.py"))
    download = sources["downloaded"]
    download.__globals__["CACHE"] = cache
    monkeypatch.setenv("EDGEPRUNE_DATA", "download")
    folder = download(str(origin), commit)
    assert folder == cache / commit and (folder / "data.csv").read_text() == "1,2\n"
    assert download("gone", commit) == folder  # kept
    with pytest.raises(subprocess.CalledProcessError):
        download(str(origin), "0" * 40)


# ------------------------------------------------------------------------------------------------------- detection


@pytest.fixture
def detection(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("pycocotools")
    monkeypatch.syspath_prepend(EXAMPLES / "detection")
    return importlib.import_module("detection")


def told(detection: ModuleType, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of a detector that is sure of the truth."""
    outputs = {}
    for name, stride in detection.STRIDES.items():
        classes, boxes = detection.assigned(targets, stride)
        logits = torch.full((*classes.shape, detection.CLASSES), -9.0)
        logits[classes >= 0, classes[classes >= 0]] = 9.0
        side = detection.SIDE // stride
        outputs[name] = torch.cat([logits, boxes], -1).transpose(1, 2).reshape(len(targets), -1, side, side)
    return outputs


def test_a_detector_that_tells_the_truth_has_no_loss_and_all_precision(detection: ModuleType) -> None:
    _, targets = detection.scenes("test", 32, seed=1)
    outputs = told(detection, targets)
    assert detection.loss(outputs, targets) < 1e-3
    assert detection.mean_average_precision(outputs, targets) == pytest.approx(1)
    found = [sorted(row[:4].round(2).tolist() for row in rows) for rows in detection.detections(outputs)]
    wanted = [sorted(row[:4].tolist() for row in rows if row[4] >= 0) for rows in targets]
    assert found == wanted  # each digit once, in one of the two outputs


def test_the_precision_counts_missed_digits_wrong_classes_and_wrong_edges(detection: ModuleType) -> None:
    there = torch.tensor([[[8, 8, 20, 26, 3], [40, 30, 52, 58, 3]]], dtype=torch.float32)
    first, other, taller = there[:, :1], there.clone(), there[:, :1] + torch.tensor([0, 0, 0, 5, 0])
    other[..., 4] = 5
    score = detection.mean_average_precision
    assert score(told(detection, first), there) == pytest.approx(51 / 101)  # COCO's recalls from 0 to 0.50, of 101
    assert score(told(detection, other), there) == 0
    assert score(told(detection, torch.full_like(there, -1)), there) == 0
    assert score(told(detection, taller), first) == pytest.approx(
        0.6
    )  # 18 of 23 rows: right up to 0.75 of 0.50 to 0.95


def test_the_scenes_of_an_epoch_are_always_the_same_and_new_in_the_next(detection: ModuleType) -> None:
    train = detection.train_batches()
    epochs = []
    for epoch in (1, 1, 2):
        train.set_epoch(epoch)
        epochs.append(next(iter(train))[0])
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])


def test_a_box_encloses_its_digit(detection: ModuleType) -> None:
    pictures, targets = detection.scenes("valid", 32, seed=1)
    for picture, rows in zip(pictures[:, 0].float(), targets, strict=True):
        outside = torch.ones_like(picture, dtype=torch.bool)
        for left, top, right, bottom, _ in rows[rows[:, 4] >= 0].int().tolist():
            assert picture[top:bottom, left:right].max() > 90
            outside[top:bottom, left:right] = False
        assert picture[outside].max() < 90 + 60  # the brightest background, and noise


# ---------------------------------------------------------------------------------------------------- segmentation


@pytest.fixture
def segmentation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "segmentation")
    return importlib.import_module("segmentation")


def test_the_classes_of_a_tile_turn_with_its_pixels(segmentation: ModuleType) -> None:
    pixels = torch.arange(segmentation.SIDE**2).reshape(segmentation.SIDE, -1) % 100
    for seed in range(8):
        tile, classes = segmentation.random_tile(pixels.byte(), pixels, np.random.default_rng(seed))
        gain = tile.float().sum() / classes.sum()
        assert (tile.float() - gain * classes).abs().max() <= 1


def test_no_pixel_is_in_two_parts_of_the_image(segmentation: ModuleType) -> None:
    rows = [range(512)[part] for part in segmentation.ROWS.values()]
    assert sorted(row for part in rows for row in part) == list(range(512))
    assert sum(batch.numel() for batch, _ in segmentation.test_batches()) == 128 * 512


def test_the_overlap_is_that_of_the_nuclei(segmentation: ModuleType) -> None:
    targets = torch.tensor([[[0, 1, 1, 0]]])
    right, half = (torch.nn.functional.one_hot(t, 2).movedim(-1, 1) for t in (targets, torch.tensor([[[0, 0, 1, 1]]])))
    assert segmentation.nucleus_iou(right, targets) == 1
    assert segmentation.nucleus_iou(half, targets) == pytest.approx(1 / 3)
    assert segmentation.loss(40.0 * right, targets) < 1e-3 < segmentation.loss(40.0 * half, targets)
