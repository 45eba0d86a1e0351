"""What a model returns reaches the user's loss and metric in the user's own form, whatever runs in between."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.network.adapter import adapted, structure_of
from edgeprune.network.outputs import Structure, main_of, tensors
from edgeprune.network.survey import survey
from edgeprune.records import Check, Outcome
from edgeprune.stages import training
from edgeprune.stages.verdicts import accuracy

Pair = namedtuple("Pair", "features scores")


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()
    step: int = 3


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As those of transformers: keys are attributes, and what is None is no key."""

    def __init__(self, **parts: Any) -> None:
        super().__init__({name: part for name, part in parts.items() if part is not None})
        self.__dict__.update(parts)


class Attributes(dict):  # type: ignore[type-arg]
    """A dict whose keys are its attributes."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.__dict__ = self


A, B, INDEX = torch.ones(2, 3), torch.full((2, 4), 2.0), torch.tensor([1, 0])
FORMS: dict[
    str, tuple[Any, tuple[str, ...], int]
] = {  # outputs, the names of the tensors, and the place of the main one
    "tensor": (A, ("",), 0),
    "tuple": ((INDEX, A, None), ("0", "1"), 1),
    "list": ([A, [B]], ("0", "1.0"), 0),
    "named tuple": (Pair(A, B), ("features", "scores"), 0),
    "dict": ({"aux": A, "logits": B}, ("aux", "logits"), 1),
    "dict in a dict": ({"aux": A, "head": {"out": B}}, ("aux", "head.out"), 1),
    "data class": (Answer(A, None, (B,)), ("logits", "hidden.0"), 0),
    "model output": (ModelOutput(loss=None, hidden=A, logits=B), ("hidden", "logits"), 1),
    "dict of attributes": (Attributes(hidden=A, logits=B), ("hidden", "logits"), 1),
    "integers only": ({"index": INDEX}, ("index",), 0),
}


@pytest.mark.parametrize(("outputs", "names", "main"), FORMS.values(), ids=list(FORMS))
def test_outputs_of_any_form_become_tensors_and_the_same_form_again(
    outputs: Any, names: tuple[str, ...], main: int
) -> None:
    structure = Structure.of(outputs)
    assert (structure.names, structure.main) == (names, main)
    assert main_of(outputs) is tensors(outputs)[main]
    others = [tensor + 5 for tensor in tensors(outputs)]
    rebuilt = structure.rebuilt(others)
    assert type(rebuilt) is type(outputs)
    assert all(a is b for a, b in zip(tensors(rebuilt), others, strict=True))
    if hasattr(outputs, "logits"):
        assert rebuilt.logits is others[names.index("logits")]


def test_what_is_no_tensor_is_kept_if_it_is_plain() -> None:
    rebuilt = Structure.of(Answer(A)).rebuilt([B])
    assert rebuilt.loss is None and rebuilt.step == 3 and rebuilt.logits is B
    assert Structure.of({"logits": A, "cache": object()}).rebuilt([B]) == {"logits": B, "cache": None}


class Named(nn.Module):
    """Takes keyword arguments in another order than the caller's, and returns a data class."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, *, mask: Tensor, x: Tensor) -> Answer:
        hidden = x * mask
        return Answer(self.fc(hidden), None, (hidden,))


def test_an_adapted_model_takes_and_returns_tensors_by_position() -> None:
    torch.manual_seed(0)
    plain, (x, mask) = Named().eval(), (torch.rand(2, 3), torch.ones(2, 3))
    model = copy.deepcopy(adapted(copy.deepcopy(plain), ("x", "mask")))
    found = model(x, mask)
    assert isinstance(found, tuple) and torch.equal(found[0], plain(x=x, mask=mask).logits)
    assert list(model.state_dict()) == list(plain.state_dict())
    structure = structure_of(model, (x, mask))
    assert structure is not None and isinstance(structure.rebuilt(found), Answer) and isinstance(model(x, mask), tuple)
    assert isinstance(model.train()(x, mask), Answer), "in training, the user's own form"


def test_an_adapted_model_is_exported_with_its_tensors() -> None:
    model = adapted(Named().eval(), ("x", "mask"))
    program = torch.export.export(model, (torch.rand(2, 3), torch.ones(2, 3)))
    assert len(program.graph_signature.user_inputs) == len(program.graph_signature.user_outputs) == 2


def test_a_model_without_tensors_has_no_structure() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    assert structure_of(adapted(Nothing()), (A,)) is None


SCORES, AUX = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 5)


@pytest.mark.parametrize(
    ("trained", "original", "pairs"),
    [
        (SCORES, SCORES, 1),
        ({"logits": SCORES, "aux": AUX}, {"logits": SCORES, "aux": AUX}, 1),  # a name says which
        ((SCORES, AUX, INDEX), (SCORES, AUX, INDEX), 2),  # it is not certain: all with real numbers
        ({"logits": SCORES, "aux": AUX}, SCORES, 1),  # auxiliary outputs in training only
        ((AUX, {"out": SCORES}), SCORES, 1),
    ],
)
def test_the_main_output_is_distilled_or_all_if_it_is_not_certain(trained: Any, original: Any, pairs: int) -> None:
    found = training._distilled(trained, tensors(original), Structure.of(original))
    assert len(found) == pairs
    assert all(a.shape == b.shape for a, b in found) and any(a is SCORES and b is SCORES for a, b in found)


def compared(expected: list[np.ndarray], got: list[np.ndarray]) -> list[Check]:
    structure = Structure.of({f"o{i}": torch.from_numpy(array) for i, array in enumerate(expected)})
    return accuracy.compared(expected, got, "fp32", structure)


def test_all_outputs_of_an_artifact_are_compared_with_torch_s() -> None:
    right, wrong, index = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32), np.array([0, 1, 2])
    assert Outcome.of(compared([right, wrong], [right, wrong])) is Outcome.PASS
    failed = [check for check in compared([right, right], [right, wrong]) if check.outcome is Outcome.FAIL]
    assert failed and all("output o1" in check.note for check in failed)
    assert Outcome.of(compared([right, index], [right, index[::-1].copy()])) is Outcome.PASS, "a tie may move an index"
    assert Outcome.of(compared([index], [index[::-1].copy()])) is Outcome.FAIL


def test_only_the_main_output_is_a_choice() -> None:
    """The largest of some features may be another one if two are nearly equal."""
    scores, features = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32)
    near = features + np.array([[0, 1e-6, 0]], np.float32)
    assert Outcome.of(compared([scores, features], [scores, near])) is Outcome.PASS
    assert Outcome.of(compared([features, scores], [near, scores])) is Outcome.FAIL


def test_a_model_whose_samples_are_not_first_is_cut_in_its_own_form() -> None:
    """A graph takes other sizes of the first dimension only, and training has other batches than the example."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:  # the code fixes the width
            return self.b(torch.relu(self.a(x)).reshape(*x.shape[:2], 16))

    x = (torch.zeros(5, 1, 6),)
    assert survey(adapted(Heads()), x).form == "graph"
    assert survey(adapted(Heads(), (), (1,)), x).form != "graph"
