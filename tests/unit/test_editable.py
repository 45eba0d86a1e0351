"""A network whose code fixes sizes is cut as its exported graph, whose sizes follow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nets import conv, image
from torch import Tensor, nn

from edgeprune.errors import CutError
from edgeprune.graph.editable import GraphNetwork, as_graph, reserved
from edgeprune.graph.groups import make_recipe
from edgeprune.network import weights
from edgeprune.network.adapter import adapted, with_own_outputs
from edgeprune.network.cut import cut, cut_as_is, formed, sliced
from edgeprune.network.outputs import tensors
from edgeprune.network.preprocessing import preprocessed
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Groups, Preprocess
from edgeprune.runtimes.formats.base import fold


class Net(nn.Module):
    """A convolution, an operation with sizes in its code, and a layer for every result of it."""

    def __init__(self, body: Callable[[Tensor], Tensor], width: int, reads: int) -> None:
        super().__init__()
        self.body, self.a, self.b = body, nn.Conv2d(3, width, 1), nn.Conv2d(reads, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self.a(x).relu())).mean((2, 3))


def unequal(x: Tensor) -> Tensor:
    first, second = torch.split(x, [4, 12], 1)
    return torch.cat([second, first.sigmoid()], 1)


def shifted(x: Tensor) -> Tensor:
    return x[:, 2:10] + x[:, 8:]


def with_constants(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(x.shape[0], 16, 1, 1).expand(-1, -1, 8, 8)], 2) * torch.full((1, 16, 1, 1), 0.5)


# Name -> (operation, channels that it reads, channels that it makes, widths of the groups that can be cut)
BODIES: dict[str, tuple[Callable[[Tensor], Tensor], int, int, list[int]]] = {
    "split": (lambda x: torch.cat([part.relu() for part in torch.split(x, 4, 1)[::-1]], 1), 16, 16, [16]),
    "unequal split": (unequal, 16, 16, [16]),
    "chunks": (lambda x: torch.cat(x.chunk(4, 1)[1:], 1), 16, 12, [4]),
    "view": (lambda x: x.view(x.shape[0], 4, 4, 64).transpose(1, 2).reshape(x.shape[0], 16, 8, 8), 16, 16, [4, 4]),
    "unflatten": (lambda x: x.unflatten(1, (4, 4)).relu().flatten(1, 2), 16, 16, [4, 4]),
    "windows": (shifted, 16, 8, [2, 4]),
    "channel by number": (lambda x: x * x[:, 5:6], 16, 16, [15]),
    "select": (lambda x: x.select(1, 3).unsqueeze(1) + x, 16, 16, [15]),
    "narrow": (lambda x: x.narrow(1, 4, 8), 16, 8, [8]),
    "constants": (with_constants, 16, 16, [16]),
    "expand": (lambda x: torch.cat([x, x[:, :1].expand(-1, 16, -1, -1)], 1), 16, 32, [15, 16]),
    "repeat": (lambda x: x + x[:, :1].repeat(1, 16, 1, 1), 16, 16, [15]),
    "group norm": (lambda x: F.group_norm(x, 4), 16, 16, [4, 4]),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    body, width, reads, _ = BODIES[name]
    return Net(body, width, reads).eval()


@cache
def surveyed(name: str) -> Groups:
    """The groups of one of `BODIES`."""
    return survey(network(name), image())


def halved(groups: Groups) -> dict[str, dict[int, tuple[int, ...]]]:
    """Every other unit of each group."""
    return make_recipe(groups, {group.name: range(0, group.width, 2) for group in groups.free})


@pytest.mark.parametrize("name", BODIES)
def test_sizes_in_the_users_code_follow_a_cut(name: str) -> None:
    pruned = cut(randomised(network(name)), halved(surveyed(name)), image())  # proves it
    assert pruned(torch.zeros(3, 3, 8, 8)).shape == (3, 4)
    assert pruned.get_parameter("a.weight").shape[0] < 16


@pytest.mark.parametrize("name", BODIES)
def test_all_channels_that_the_mathematics_allows_can_be_cut(name: str) -> None:
    assert sorted(group.width for group in surveyed(name).free) == sorted(BODIES[name][3])


def test_a_network_without_sizes_in_its_code_keeps_its_class() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8), nn.Flatten(1), nn.Linear(512, 4)).eval()
    groups = survey(model, image())
    assert groups.form == "module"
    assert type(cut(model, halved(groups), image())) is nn.Sequential


class Trained(nn.Module):
    """Batch-norm, dropout, a block that can be removed, a split by a number, and an output of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv(3, 16), Block()
        self.drop, self.fc, self.other, self.unused = nn.Dropout(0.5), *(nn.Linear(n, 4) for n in (16, 16, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first, second = torch.split(self.stem(x), [6, 10], 1)
        x = self.block(torch.cat([first.sigmoid(), second], 1))
        return {"logits": self.fc(self.drop(x).mean((2, 3))), "features": self.other(x.amax((2, 3)))}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 12), nn.Conv2d(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(0)
    return adapted(randomised(Trained()))


@pytest.fixture(scope="module")
def groups() -> Groups:
    """The groups of `Trained`."""
    return survey(adapted(Trained()), image())


def test_a_cut_graph_trains_like_the_model(trained: nn.Module, groups: Groups) -> None:
    """Batch-norm and dropout follow the mode, and the loss gets the outputs in the user's form."""
    assert groups.form == "graph"
    pruned = sliced(formed(trained, groups, image()), halved(groups))
    before = copy.deepcopy(pruned.state_dict())
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(pruned(x)[0], pruned(x)[0])
    pruned.train()
    made = pruned(x)
    assert set(made) == {"logits", "features"}
    assert not torch.equal(made["logits"], pruned(x)["logits"])  # dropout
    (made["logits"].sum() + made["features"].sum()).backward()
    changed = [name for name, tensor in pruned.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed and all("running" in name for name in changed)
    used = [name for name, parameter in pruned.named_parameters() if parameter.grad is not None]
    assert set(used) == {name for name, _ in trained.named_parameters() if not name.startswith("unused")}
    assert set(with_own_outputs(pruned.eval())(x)) == {"logits", "features"}


def test_a_graph_has_the_state_dict_of_the_model_and_takes_any_batch(trained: nn.Module) -> None:
    graph = as_graph(trained, image())
    assert graph.state_dict().keys() == trained.state_dict().keys()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 8, 8)
        for ours, theirs in zip(graph(x), trained(x), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_block_is_removed_from_a_graph(trained: nn.Module, groups: Groups) -> None:
    assert [block.name for block in groups.blocks] == ["block"]
    keep = dict.fromkeys(groups.blocks[0].groups, ())
    pruned = cut_as_is(formed(trained, groups, image()), make_recipe(groups, keep), image())
    assert not [name for name, _ in pruned.named_parameters() if name.startswith("block")]
    assert copy.deepcopy(pruned)(*image())[0].shape == (1, 4)


def test_batch_norm_is_folded_in_a_graph(trained: nn.Module, groups: Groups) -> None:
    assert ("stem.0", "stem.1") in groups.folds
    pruned = sliced(formed(trained, groups, image()), halved(groups))
    folded = fold(pruned, groups.folds)
    assert isinstance(folded, GraphNetwork)
    assert not [node for node in folded.graph.nodes if "batch_norm" in str(node.target)]
    for ours, theirs in zip(tensors(folded(*image())), tensors(pruned(*image())), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_cut_graph_is_saved_and_loaded_for_the_users_class(trained: nn.Module, tmp_path: Path) -> None:
    """Preprocessing comes back, too. The new instance has other weights."""
    trained = preprocessed(trained, Preprocess((0.5,), (2.0,), 1.0))
    groups = survey(trained, image())
    recipe = halved(groups)
    pruned = sliced(formed(trained, groups, image()), recipe).eval()
    weights.save(tmp_path / "pruned.safetensors", pruned, recipe)
    torch.manual_seed(1)
    loaded = weights.load(tmp_path / "pruned.safetensors", Trained())
    x = torch.rand(3, 3, 8, 8)
    for ours, theirs in zip(tensors(loaded(x)), tensors(pruned(x)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_graph_may_answer_with_nan_where_the_model_does(tmp_path: Path) -> None:
    """Such as an attention over padding only: a network is loaded for tokens that are all zero."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.fc = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            weights = torch.zeros(tokens.shape).masked_fill(tokens == 0, float("-inf")).softmax(-1)
            first, second = torch.split(self.mix(self.embed(tokens)), [4, 12], -1)
            return self.fc((torch.cat([first.relu(), second], -1) * weights[..., None]).sum(1))

    torch.manual_seed(0)
    model, inputs = Padded().eval(), (torch.randint(1, 9, (1, 5)),)
    groups = survey(model, inputs)
    assert groups.form == "graph"
    recipe = halved(groups)
    pruned = sliced(formed(model, groups, inputs), recipe)
    weights.save(tmp_path / "pruned.safetensors", pruned, recipe)
    assert torch.equal(weights.load(tmp_path / "pruned.safetensors", Padded())(*inputs), pruned(*inputs))


class Named(nn.Module):
    """A network that needs its graph, with a layer of a given name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.named, self.fc = name, nn.Conv2d(16, 4, 1)
        self.add_module(name, nn.Conv2d(3, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(unequal(getattr(self, self.named)(x).relu())).mean((2, 3))


@pytest.mark.parametrize("name", ["source", "weights", "names"])
def test_a_layer_of_a_graph_may_have_the_name_of_an_attribute_elsewhere(name: str, tmp_path: Path) -> None:
    groups = survey(Named(name).eval(), image())
    assert groups.form == "graph"
    pruned = cut(randomised(Named(name)), halved(groups), image())
    weights.save(tmp_path / "pruned.safetensors", pruned, halved(groups))
    assert torch.equal(weights.load(tmp_path / "pruned.safetensors", Named(name))(*image()), pruned(*image()))


@pytest.mark.parametrize("name", ["code", "graph", "meta", "recompile", "exported_from", "takes_any_batch"])
def test_a_name_that_graph_modules_use_themselves_is_one_line(name: str) -> None:
    assert reserved(Named(name)) == [name]
    message = f"^torch's graph modules have an attribute '{name}' of their own; give yours another name$"
    with pytest.raises(CutError, match=message):
        as_graph(Named(name).eval(), image())
    assert survey(Named(name).eval(), image()).form == "module"


def test_a_model_with_a_fixed_batch_size_has_no_graph() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, 64)

    with pytest.raises(CutError, match="batch"):
        as_graph(Fixed(), (torch.zeros(1, 6, 64),))
