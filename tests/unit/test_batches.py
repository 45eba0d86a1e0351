"""Batches of tuples and mappings, with inputs by name, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_project import made

from edgeprune.errors import UsageError
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.model import Network, example_inputs
from edgeprune.frontends.trial import Checker

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
