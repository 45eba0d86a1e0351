"""Every transport keeps the same promises: two with the real agent, the fake one from a script."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices.agent import AGENT
from edgeprune.devices.transports.base import Transport
from edgeprune.devices.transports.fake import Fake
from edgeprune.devices.transports.local import Local
from edgeprune.errors import DeviceError

CAPS = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 50, "deadline_s": 20.0, "profiled_s": 0.01}


def job(number: int, model: str, mode: str = "time") -> dict[str, Any]:
    base = {
        "id": number,
        "mode": mode,
        "runtime": "null",
        "threads": 1,
        "models": [model],
        "inputs": [],
    }
    return {**base, **CAPS}


def answer(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the real agent says of the null runtime."""
    if job["mode"] == "identify":
        return {"runtime": "null", "runtime_version": "0", "cores": 1}
    if not Path(job["models"][0]).exists():
        return {"error": "run", "message": "no such file"}
    ns = json.loads(Path(job["models"][0]).read_text())["ns"]
    nodes = {"nodes": [{"name": "null", "ns": ns}]} if "profiled" in job else {}
    return {"models": [{"times_ns": [ns] * 5, **nodes}], "peak_memory_bytes": 1}


def times(reply: Mapping[str, Any]) -> list[int]:
    (model,) = reply["models"]
    return list(model["times_ns"])


@pytest.fixture(params=["local", "fake", "ssh"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    if request.param == "ssh":
        made: Transport = request.getfixturevalue("sshd").transport()
    else:
        made = Local() if request.param == "local" else Fake(answer)
    with closing(made):
        yield made


def test_jobs_are_answered_in_order(transport: Transport, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"ns": 100000}')
    remote = transport.put([model])
    jobs = [job(i, remote, mode) for i, mode in enumerate(["identify", "time", "time", "time"])]
    jobs[2]["profiled"] = [remote]
    replies = list(transport.call(jobs, 60))
    assert [reply["id"] for reply in replies] == [0, 1, 2, 3]
    assert replies[0]["runtime"] == "null" and replies[0]["cores"] >= 1
    assert all(time >= 100_000 for reply in (replies[1], replies[3]) for time in times(reply))
    assert len(times(replies[1])) >= 5 and replies[1]["peak_memory_bytes"] > 0
    assert replies[2]["models"][0]["nodes"] == [{"name": "null", "ns": 100_000}]


def test_a_job_that_fails_is_one_reply_and_the_next_goes_on(transport: Transport, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"ns": 1000}')
    jobs = [job(0, str(tmp_path / "missing.json")), job(1, transport.put([model]))]
    failed, fine = list(transport.call(jobs, 60))
    assert "error" in failed and failed["message"]
    assert times(fine)


def test_files_come_back(transport: Transport, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"content")
    transport.get(str(there), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"content"
    with pytest.raises(DeviceError):
        transport.get(str(tmp_path / "nothing"), tmp_path / "here")


def test_closing_twice_is_fine(transport: Transport) -> None:
    transport.close()
    transport.close()


def test_the_agent_is_for_old_devices_and_stands_alone() -> None:
    """Python 3.8 syntax, one file, nothing imported at the top but the standard library."""
    tree = ast.parse(AGENT.read_text(), feature_version=(3, 8))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert names and set(names) <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.ImportFrom) for node in tree.body)
