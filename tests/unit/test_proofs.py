"""Proofs that the user's own weights cannot give: folds and final cuts are judged with random parameters."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import Plain, image
from torch import Tensor, nn

from edgeprune.graph.groups import make_recipe
from edgeprune.network.observe import observe
from edgeprune.network.prove import is_provable
from edgeprune.network.survey import randomised, survey, whole
from edgeprune.records import Plan
from edgeprune.runtimes.formats.onnx import OnnxTemplate
from edgeprune.stages import prune


class Folded(nn.Module):
    """A convolution and a batch-norm, written in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)))


class OwnConvolution(Folded):
    """Without the bias that folding adds."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(F.conv2d(x, self.a.weight)))


class OwnNorm(Folded):
    def forward(self, x: Tensor) -> Tensor:
        n = self.bn
        return self.b(F.batch_norm(self.a(x), n.running_mean, n.running_var, n.weight, n.bias))


class ReadsTheNorm(Folded):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)).view(-1, self.bn.num_features, 8, 8))


class NoMomentum(Folded):
    """Statistics that are averages over all batches of training."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, momentum=None)


class NoScale(Folded):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, affine=False)


class NoStatistics(Folded):
    """Statistics of the batch itself, in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)


class SharedNorm(Folded):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)) + self.bn(self.c(x)).relu())


class SharedConvolution(Folded):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norms[0](self.a(x)) + self.norms[1](self.a(x.flip(3))).relu())


class OverPositions(nn.Module):
    """A norm over another dimension than the outputs of the linear layer, of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x[:, 0])))


@pytest.mark.parametrize("net", [Folded, NoMomentum])
def test_a_batch_norm_is_folded(net: type[nn.Module]) -> None:
    assert survey(net(), image()).folds == whole(net(), image()).folds == (("a", "bn"),)


@pytest.mark.parametrize(
    "net",
    [
        *(Folded, OwnConvolution, OwnNorm, ReadsTheNorm, NoMomentum, NoScale, NoStatistics),
        *(SharedNorm, SharedConvolution, OverPositions),
    ],
)
def test_folding_never_changes_what_is_computed(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomised(net())
    x = torch.randn(image()[0].shape)
    groups = survey(model, image())
    session = onnxruntime.InferenceSession(
        OnnxTemplate.export(model, image(), groups.folds), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"input_0": x.numpy()})
    expected = model(x).detach().numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


class Untrained(Plain):
    """A head of zeros, whose outputs are all zero."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


def test_a_network_whose_outputs_are_all_alike_is_cut() -> None:
    model = Untrained().eval()
    groups = survey(model, image())
    assert groups.free
    keep = {group.name: tuple(range(group.width // 2)) for group in groups.free}
    assert not is_provable(model, make_recipe(groups, keep), image())
    plan = Plan(keep, *[None] * 7)  # type: ignore[arg-type] # only the units count
    before = copy.deepcopy(model.state_dict())
    found = prune.prune(model, groups, plan, image(), lambda one: observe(one, [(image(), torch.zeros(1))] * 4))
    assert found.untrained.a[0].out_channels == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for network in (found.untrained, found.start):  # it is observed in another memory layout
        assert all(tensor.is_contiguous() for tensor in network.state_dict().values())


def test_a_wrong_cut_of_such_a_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.errors import CutError
    from edgeprune.network import cut

    model = Untrained().eval()
    groups = survey(model, image())
    plan = Plan({groups.free[0].name: (0, 1)}, *[None] * 7)  # type: ignore[arg-type] # only the units count
    slicing = cut._slice
    monkeypatch.setattr(
        cut, "_slice", lambda t, dims: slicing(t, {d: (i[::-1] if d == 1 else i) for d, i in dims.items()})
    )
    with pytest.raises(CutError, match="differs from the masked original"):
        prune.prune(model, groups, plan, image(), lambda one: observe(one, [(image(), torch.zeros(1))] * 4))


def test_prunings_that_share_their_data_observe_the_original_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data(list[object]):
        __hash__ = object.__hash__

    observed: list[object] = []
    found = SimpleNamespace(nbytes=10)
    monkeypatch.setattr("edgeprune.network.observe.observe", lambda model, batches: observed.append(batches) or found)

    def reads(data: Data, network: str = "n", seed: int = 0) -> prune.Reads:
        return SimpleNamespace(train=data, survey=SimpleNamespace(network=network), finetune_seed=seed)  # type: ignore[return-value]

    data = Data()
    assert prune._observer(reads(data))(nn.Identity()) is prune._observer(reads(data))(nn.Identity()) is found
    assert len(observed) == 1
    for other in (reads(Data()), reads(data, network="m"), reads(data, network="m", seed=1)):
        prune._observer(other)(nn.Identity())
    assert len(observed) == 4
    monkeypatch.setattr(prune, "LIMITS", replace(prune.LIMITS, observed_bytes=9))
    for count in (5, 6):
        prune._observer(reads(Data()))(nn.Identity())
        assert len(observed) == count
