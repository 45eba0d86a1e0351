"""`--dry-run` forecasts what a run sends and how long it takes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.frontends import toml
from edgeprune.records import Device, Experiment, Limit, Profile, Run, Samples, Target
from edgeprune.records.budget import Limited
from edgeprune.stages import forecast as forecasting
from edgeprune.storage import codec


def minutes(lines: list[str]) -> tuple[float, float]:
    found = re.fullmatch(r"expected: ([\d.]+) to ([\d.]+) minutes of the device's time", lines[-1])
    assert found, lines
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("name", ["local", pytest.param("raspberrypi", marks=pytest.mark.slow)])
def test_a_forecast_lists_what_is_sent_and_how_long_it_takes(name: str, project: Path) -> None:
    known, target = toml.read_project(project), toml.read_target(toml.find_target(name, project.parent))
    profile, whole = (forecasting.forecast(known, target, whole) for whole in (False, True))
    assert profile[:-1] == whole[: len(profile) - 1]
    assert any("ssh" in line for line in profile) == any("sftp" in line for line in whole) == (name == "raspberrypi")
    assert sum("to confirm plans" in line for line in whole) == 1 and not any("confirm" in line for line in profile)
    assert 0 < minutes(profile)[0] < minutes(whole)[0] < minutes(whole)[1]
    sent = next(line for line in whole if "artifact" in line)
    weights = 4 * (16 * 9 + 2 * 16 + 24 * 16 * 9 + 24 + 4 * 96 + 4)
    assert f"at most {2 * weights:,} bytes" in sent


def test_several_precisions_take_longer(project: Path) -> None:
    known, one = toml.read_project(project), Target(project, "t", "local", "onnxruntime")
    several = forecasting.forecast(known, replace(one, precision="auto"), False)
    assert any("to choose from fp32, fp16, int8" in line for line in several)
    assert minutes(several) > minutes(forecasting.forecast(known, one, False))


@pytest.mark.parametrize(
    ("figure", "text", "least_s"), [("memory", "50%", 0), ("throughput", "150%", 20), ("energy", "50%", 100)]
)
def test_a_limit_that_the_device_measures_is_in_the_forecast(
    figure: Limited, text: str, least_s: float, project: Path
) -> None:
    known, target = toml.read_project(project), Target(project, "t", "local", "onnxruntime")
    limited = replace(known, budget=replace(known.budget, **{figure: Limit.parse(figure, text)}))
    without, found = (forecasting.forecast(one, target, True) for one in (known, limited))
    (line,) = set(found[:-1]) - set(without)
    assert f"agent: {figure}, for its limit" in line
    assert minutes(found)[0] - minutes(without)[0] > least_s / 60
    assert minutes(found)[1] > minutes(without)[1]


def test_engines_are_counted_and_their_minutes_come_from_the_users_own_profile(tmp_path: Path) -> None:
    parts = [forecasting.Part((), 1.0, 2.0, (31, 181)), forecasting.Part((), 1.0, 2.0, (4, 4))]
    (unknown,) = forecasting._engines(parts, tmp_path)
    assert "builds 35 to 185 engines" in unknown and "not known before the first profile" in unknown
    runs = tuple(Run((1000,), 1, after={"engine_s": seconds}) for seconds in (50.0, 60.0, 70.0))
    device = Device("aarch64", "cpu", 4, "Linux", "tensorrt", "10.3.0", "boot")
    experiment = Experiment("anchor", 0, {"a": 1}, Samples(runs))
    profile = Profile("jetson", "net", "digest", device, 1, "fp16", (experiment,))
    (tmp_path / "net-00000000.json").write_text(codec.dumps_kept(profile))
    (known,) = forecasting._engines(parts, tmp_path)
    assert "35 to 185 minutes more, at 60 s each" in known


def test_only_a_runtime_that_builds_engines_has_a_line_about_them(project: Path) -> None:
    known, one = toml.read_project(project), Target(project, "t", "local", "onnxruntime")
    assert not any("engines" in line for line in forecasting.forecast(known, one, True))
    lines = forecasting.forecast(known, replace(one, runtime="tensorrt", precision="fp16"), True)
    assert sum("engines" in line for line in lines) == 1


FIXED = """
import torch
from torch import nn

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.b(self.a(x).reshape(-1, 2, 4, 16).relu().reshape(-1, 8 * 16))

def inputs():
    return (torch.randn(1, 3, 4, 4),)
"""


def test_a_network_that_is_cut_as_its_graph_has_a_forecast(project: Path) -> None:
    (project.parent / "fixed.py").write_text(FIXED)
    lines = project.read_text().splitlines()
    keys = {"factory": "fixed:Fixed", "inputs": "fixed:inputs"}
    text = [line for line in lines if not line.startswith(("factory", "inputs", "weights"))]
    text.insert(text.index("[model]") + 1, "\n".join(f'{key} = "{value}"' for key, value in keys.items()))
    project.write_text("\n".join(text))
    target = toml.read_target(toml.find_target("local", project.parent))
    assert minutes(forecasting.forecast(toml.read_project(project), target, False))
