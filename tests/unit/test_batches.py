"""Batches of tuples and mappings, with inputs by name, and what is wrong with them in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_project import made

from edgeprune.errors import UsageError
from edgeprune.frontends.calls import calls, joined
from edgeprune.frontends.data import Loss, Metric, Split, stacked
from edgeprune.frontends.dataset import examine
from edgeprune.frontends.model import Network, example_inputs
from edgeprune.frontends.trial import Checker
from edgeprune.records import Project

CODE = """
from collections import UserDict

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, mask, ids):
        hidden = self.words(ids) * mask[..., None]
        return {{"hidden": hidden, "logits": self.fc(hidden.mean(1))}}

build = Net

def inputs():
    return {inputs}

IDS, MASK, LABELS = torch.arange(8).reshape(2, 4), torch.ones(2, 4), torch.tensor([0, 2])

def train():
    return [{batch}]

valid = train

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs["logits"], targets)

def metric(outputs, targets):
    assert outputs["hidden"].shape == (len(targets), 4, 8)
    return float((outputs["logits"].argmax(1) == targets).float().mean())
"""
NAMED = "{'ids': torch.zeros(1, 4, dtype=torch.long), 'mask': torch.ones(1, 4)}"
GOOD = {
    "mapping and targets": "({'mask': MASK, 'ids': IDS}, LABELS)",
    "list": "[{'mask': MASK, 'ids': IDS}, LABELS]",
    "labels in the mapping": "{'ids': IDS, 'labels': LABELS, 'mask': MASK}",
    "another key": "{'ids': IDS, 'mask': MASK, 'y': LABELS}",
    "text beside": "{'ids': IDS, 'mask': MASK, 'target': LABELS, 'text': ['a', 'b']}",
    "as of transformers": "UserDict({'labels': LABELS, 'mask': MASK, 'ids': IDS})",
    "by position": "((IDS, MASK), LABELS)",
}


@pytest.mark.parametrize("batch", GOOD.values(), ids=list(GOOD))
def test_inputs_by_name_reach_the_model_by_name(batch: str, tmp_path: Path) -> None:
    project = made(tmp_path, CODE.format(inputs=NAMED, batch=batch), loss="m:loss", metric="m:metric")
    network = Network(project)
    ((ids, mask), labels) = next(iter(Split(project, "train")))
    assert ids.dtype == torch.long and mask.tolist() == [[1.0] * 4] * 2 and labels.tolist() == [0, 2]
    assert network.structure.names == ("hidden", "logits")
    outputs = network.module(ids, mask)
    assert [tuple(tensor.shape) for tensor in outputs] == [(2, 4, 8), (2, 3)]
    assert 0 <= Metric(project, network.structure)(outputs, labels) <= 1
    assert Loss(project, network.structure)(outputs, labels).requires_grad
    Checker(network, project).first(scored=True, trained=True)


BAD = {
    "no targets": (NAMED, "{'ids': IDS, 'mask': MASK}", "has the keys ids, mask; give the targets under one of labels"),
    "two targets": (NAMED, "{'ids': IDS, 'label': LABELS, 'y': LABELS}", "has both label and y"),
    "an input is missing": (NAMED, "({'ids': IDS}, LABELS)", "lacks the input mask, which .*inputs = 'm:inputs' has"),
    "another input": (
        NAMED, "({'ids': IDS, 'mask': MASK, 'types': IDS}, LABELS)", "has the tensor types, which .* lacks; add it there",
    ),
    "no names": ("(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))", "({'ids': IDS}, LABELS)", "inputs by name .*dict"),
    "one tensor": (NAMED, "IDS", "batch 0 is a Tensor; give pairs of .*, or dicts with the key labels"),
    "text as targets": (NAMED, "{'ids': IDS, 'mask': MASK, 'labels': ['a', 'b']}", "holds a dict and a list; give a tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "batch", "reason"), BAD.values(), ids=list(BAD))
def test_a_batch_that_does_not_fit_is_one_line(inputs: str, batch: str, reason: str, tmp_path: Path) -> None:
    project = made(tmp_path, CODE.format(inputs=inputs, batch=batch))
    with pytest.raises(UsageError, match=rf"\[data\] train = 'm:train'.*{reason}"):
        list(Split(project, "train"))


def test_cleaning_gets_inputs_by_name(tmp_path: Path) -> None:
    code = CODE.format(inputs=NAMED, batch=GOOD["labels in the mapping"])
    code += "def clean(inputs, targets):\n    return {name: x[:1] for name, x in inputs.items()}, targets[:1]\n"
    ((ids, mask), labels) = next(iter(Split(made(tmp_path, code, clean="m:clean"), "train")))
    assert len(ids) == len(mask) == len(labels) == 1


def test_example_inputs_by_name_must_be_tensors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a tuple of tensors, .* or a dict of tensors by name"):
        example_inputs(made(tmp_path, CODE.format(inputs="{'ids': [1, 2]}", batch="1")))


def test_the_default_reads_the_logits_and_remarks_on_a_guess(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = CODE.format(inputs=NAMED, batch=GOOD["labels in the mapping"])
    known = made(tmp_path / "a", code)
    network = Network(known)
    Checker(network, known).first(scored=False, trained=False)
    assert not caplog.records, "one of them is named logits"
    code = code.replace('"hidden": hidden', '"features": self.fc(hidden.mean(1))').replace('"logits"', '"classes"')
    known = made(tmp_path / "b", code)
    Checker(Network(known), known).first(scored=False, trained=False)
    (record,) = caplog.records
    assert "loss is missing, so the default reads output 'features' of features, classes" in record.getMessage()


def test_an_output_that_is_not_of_the_samples_is_one_line(tmp_path: Path) -> None:
    code = CODE.format(inputs=NAMED, batch=GOOD["labels in the mapping"]).replace(
        '"hidden": hidden', '"penalty": hidden.sum()'
    )
    known = made(tmp_path, code)
    with pytest.raises(
        UsageError, match=r"returns output penalty of shape \(\) for 2 targets; leave it out in a wrapper"
    ):
        Checker(Network(known), known).first(scored=False, trained=False)


RECURRENT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x, h, c):
        y, state = self.lstm(x, (h, c))
        return self.fc(y), state

build = Net

def inputs():
    return torch.zeros(5, 1, 3), torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)

def train():
    batch = lambda n: ((torch.randn(5, n, 3), torch.zeros(2, n, 4), torch.zeros(2, n, 4)), torch.randn(n, 5, 2))
    return [batch(4), batch(3)]

valid = train

def loss(outputs, targets):
    return nn.functional.mse_loss(outputs[0].transpose(0, 1), targets)

def metric(outputs, targets):
    y, (h, c) = outputs
    assert y.shape[1] == h.shape[1] == c.shape[1] == len(targets)
    return -float(nn.functional.mse_loss(y.transpose(0, 1), targets))
"""


def with_dims(project: Project, *dims: int) -> Project:
    return replace(project, data=replace(project.data, batch_dims=dims))


def test_samples_may_be_in_any_dimension_and_a_state_may_go_in_and_out(tmp_path: Path) -> None:
    project = with_dims(made(tmp_path, RECURRENT, loss="m:loss", metric="m:metric"), 1, 1, 1, 0)
    network = Network(project)
    assert network.structure.batch_dims == (1, 1, 1), "those of the outputs are found"
    Checker(network, project).first(scored=True, trained=True)
    split = Split(project, "valid")
    with torch.no_grad():
        outputs = [network.module.eval()(*inputs) for inputs, _ in split]
        alone, targets = stacked(split, network.inputs)
        assert [array.shape for array in alone] == [(7, 5, 1, 3), (7, 2, 1, 4), (7, 2, 1, 4)] and len(targets) == 7
        calls = [network.module(*(torch.from_numpy(array[i]) for array in alone)) for i in range(7)]
    found = joined([np.stack(column) for column in zip(*calls, strict=True)], 7, network.structure.batch_dims)
    for together, one in zip(zip(*outputs, strict=True), found, strict=True):
        assert torch.cat(together, 1).shape == one.shape
    Metric(project, network.structure)([torch.from_numpy(array) for array in found], targets)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_calls_and_their_join_keep_the_order_of_the_samples(size: int) -> None:
    arrays, dims = [np.random.rand(2, 7, 3), np.random.rand(7, 2)], (1, 0)
    split = calls(arrays, size, dims)
    assert [array.shape[1:] for array in split] == [(2, size, 3), (size, 2)]
    for again, array in zip(joined(split, 7, dims), arrays, strict=True):
        assert np.array_equal(again, array)


def test_wrong_batch_dimensions_are_one_line(tmp_path: Path) -> None:
    project = with_dims(made(tmp_path, RECURRENT), 1, 0)
    with pytest.raises(UsageError, match=r"\[data\] batch_dims has 2 numbers, and the model has 3 inputs; give one"):
        example_inputs(project)
    project = made(tmp_path / "none", RECURRENT)
    with pytest.raises(UsageError, match=r"batch sizes \[5, 2, 2\].* say where the samples are: .*\[data\] batch_dims"):
        example_inputs(project)
    project = with_dims(made(tmp_path / "other", RECURRENT), 1, 1, 1, 1)
    with pytest.raises(UsageError, match=r"\[4, 4, 4\] inputs and 5 targets; .*\[data\] batch_dims"):
        next(iter(Split(project, "train")))


def test_inputs_may_be_of_any_type(tmp_path: Path) -> None:
    code = CODE.format(
        inputs="(torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4).half())",
        batch="((IDS.int(), MASK.bool(), MASK.half()), LABELS)",
    ).replace(
        "def forward(self, mask, ids):", "def forward(self, ids, mask, weight):\n        mask = mask * weight.float()"
    )
    project = made(tmp_path, code, loss="m:loss", metric="m:metric")
    Checker(Network(project), project).first(scored=True, trained=True)
    found, _ = stacked(Split(project, "valid"), example_inputs(project))
    assert [array.dtype.name for array in found] == ["int32", "bool", "float16"]


def test_the_data_of_a_model_whose_time_comes_first_can_be_examined(tmp_path: Path) -> None:
    project = with_dims(made(tmp_path, RECURRENT, loss="m:loss", metric="m:metric"), 1, 1, 1, 0)
    texts = [finding.what for finding in examine(project)]
    assert any("[data] train: 7 samples" in text for text in texts), texts
