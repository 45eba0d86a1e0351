"""A resumed run equals an uninterrupted one, and all targets share the stages that do not depend on a target.

The targets have the null runtime, whose latencies follow from the sizes of files. The network is small.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from small import FILE, MODULE, command, kill_after, start

TARGET = '[connect]\ntransport = "local"\n[runtime]\nname = "null"\n'
SHUFFLED = {
    "DataLoader": """
def train():
    samples = torch.utils.data.TensorDataset(*(torch.cat(column) for column in zip(*_data(0, 256))))
    return torch.utils.data.DataLoader(samples, 32, shuffle=True, generator=torch.Generator().manual_seed(5))
""",
    "numpy": """
import numpy

class Shuffled:
    def __iter__(self):
        images, labels = (torch.cat(column) for column in zip(*_data(0, 256)))
        order = torch.from_numpy(numpy.random.permutation(len(labels)))
        return iter([(images[part], labels[part]) for part in order.split(32)])

def train():
    return Shuffled()
""",
}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two targets and a profile of the first. Its network is built from the seed."""
    folder = tmp_path_factory.mktemp("profiled") / "blobs"
    (folder / "targets").mkdir(parents=True)
    (folder / "blobs.py").write_text(MODULE.replace("48", "16").replace("64", "24"))
    (folder / "edgeprune.toml").write_text(FILE.replace('weights = "blobs.safetensors"\n', ""))
    for name in ("one", "two"):
        (folder / "targets" / f"{name}.toml").write_text(TARGET)
    measured = command("profile", "--project", folder, "--target", "one")
    assert measured.code == 0, measured.err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("order", ["DataLoader", pytest.param("numpy", marks=pytest.mark.nightly)])
def test_a_resumed_run_equals_an_uninterrupted_one(order: str, profiled: Path, tmp_path: Path) -> None:
    uninterrupted, resumed = (
        Path(shutil.copytree(profiled, tmp_path / name / "blobs", symlinks=True)) for name in ("one", "two")
    )
    for folder in (uninterrupted, resumed):
        (folder / "blobs.py").write_text((folder / "blobs.py").read_text() + SHUFFLED[order])

    run = command("prune", "--project", uninterrupted, "--target", "one", "--json")
    assert run.code == 0 and "0 measured" in run.err, run.err
    kill_after(start("prune", "--project", resumed, "--target", "one", "--json"), "scores ")
    rest = command("prune", "--project", resumed, "--target", "one", "--json")
    assert rest.code == 0 and "scores     reused" in rest.err and "0 measured" in rest.err, rest.err

    def files(name: str) -> tuple[Path, Path]:
        (one,), (other,) = (folder.glob(f"runs/*/{name}") for folder in (uninterrupted, resumed))
        return one, other

    for name in ("scores-*/scores.json", "plan-*/plan.json"):
        one, other = files(name)
        assert one.read_bytes() == other.read_bytes(), name
    one, other = files("prune-*/pruned.safetensors")
    assert kept(one) == kept(other)
    theirs = load_file(other)
    assert all(bool((tensor == theirs[name]).all()) for name, tensor in load_file(one).items())


def kept(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        found: str = file.metadata()["recipe"]
    return found


@pytest.mark.slow
def test_scores_are_computed_once_for_two_targets(profiled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(profiled, tmp_path / "blobs", symlinks=True))
    first, second = (command("plan", "--project", folder, "--target", name, "--json") for name in ("one", "two"))
    assert first.code == second.code == 0, first.err + second.err
    assert "scores     loss-curves" in first.err and "0 measured" in first.err
    assert "scores     reused" in second.err and "0 experiments reused" in second.err
