"""Every transport keeps the same contract: two with the real agent, the fake one from a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import wire
from edgeprune.devices.transports.base import Transport
from edgeprune.devices.transports.fake import Fake
from edgeprune.devices.transports.local import Local
from edgeprune.errors import DeviceError


def job(number: int, model: str, **changes: Any) -> dict[str, Any]:
    time = wire.Time(20.0, "null", 1, (model,), (), 0.01, 0.01, runs_min=5, runs_max=50, profiled_s=0.01)
    return wire.job_document(number, replace(time, **changes))


def answer(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The replies of the real agent with the null runtime."""
    if job["mode"] == "identify":
        return {"runtime": "null", "runtime_version": "0", "cores": 1}
    if not Path(job["models"][0]).exists():
        return {"error": "run", "message": "no such file"}
    ns = json.loads(Path(job["models"][0]).read_text())["ns"]
    nodes = {"nodes": [{"name": "null", "ns": ns, "fused": [], "kind": "Null"}]} if job["profiled"] else {}
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
    jobs = [wire.job_document(0, wire.Identify(20.0, "null"))]
    jobs += [job(1, remote), job(2, remote, profiled=(remote,)), job(3, remote)]
    replies = list(transport.call(jobs, 60))
    assert [reply["id"] for reply in replies] == [0, 1, 2, 3]
    assert replies[0]["runtime"] == "null" and replies[0]["cores"] >= 1
    assert all(time >= 100_000 for reply in (replies[1], replies[3]) for time in times(reply))
    assert len(times(replies[1])) >= 5 and replies[1]["peak_memory_bytes"] > 0
    assert replies[2]["models"][0]["nodes"] == [{"name": "null", "ns": 100_000, "fused": [], "kind": "Null"}]


def test_a_job_that_fails_is_one_reply_and_the_next_job_runs(transport: Transport, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"ns": 1000}')
    jobs = [job(0, str(tmp_path / "missing.json")), job(1, transport.put([model]))]
    failed, fine = list(transport.call(jobs, 60))
    assert "error" in failed and failed["message"]
    assert times(fine)


def test_uploaded_files_can_be_downloaded(transport: Transport, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"content")
    transport.get(str(there), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"content"
    with pytest.raises(DeviceError):
        transport.get(str(tmp_path / "nothing"), tmp_path / "here")


def test_closing_twice_is_fine(transport: Transport) -> None:
    transport.close()
    transport.close()
