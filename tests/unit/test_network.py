"""Cuts are proved, and pruned networks are saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from nets import NETS, Blocks, Residual, Shared, image, surveyed
from torch import Tensor, nn

from edgeprune.errors import CutError, UsageError
from edgeprune.graph.editable import as_graph
from edgeprune.graph.groups import make_recipe
from edgeprune.network import weights
from edgeprune.network.cut import cut
from edgeprune.network.folding import fold
from edgeprune.network.layout import channels_first, channels_last
from edgeprune.network.preprocessing import preprocessed
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Preprocess


def test_a_recipe_that_mixes_up_channels_is_refused() -> None:
    """The shapes fit but the channels do not. Only the proof finds that."""
    model, groups = randomised(Residual()), surveyed("Residual")
    recipe = {name: dict(dims) for name, dims in make_recipe(groups, {"a1.0": [0, 1, 2]}).items()}
    recipe["a2.0.weight"][1] = (3, 4, 5)
    with pytest.raises(CutError, match="differs from the masked original"):
        cut(model, recipe, image())


def test_a_recipe_without_a_reading_layer_is_refused() -> None:
    model, groups = Residual(), surveyed("Residual")
    recipe = {name: dims for name, dims in make_recipe(groups, {"a1.0": [0, 1]}).items() if name != "a2.0.weight"}
    with pytest.raises(CutError, match="forward raises"):
        cut(model, recipe, image())


@pytest.mark.parametrize("name", ["Residual", "Grouped", "Shared", "Concat", "Blocks"])
def test_a_pruned_network_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, groups = randomised(NETS[name]()), surveyed(name)
    recipe = make_recipe(groups, {group.name: range(0, group.width, 2) for group in groups.free})
    small = cut(model, recipe, image())
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    again = weights.load(tmp_path / "cut.safetensors", NETS[name]())
    assert torch.equal(again(*image()), small(*image()))
    assert weights.count_parameters(again) == weights.count_parameters(small) < weights.count_parameters(model)


def test_blocks_that_pass_their_input_through_are_found_and_removed(tmp_path: Path) -> None:
    """Only innermost blocks, and none that changes its input. A block is removed if its inner groups keep nothing."""
    model, groups = randomised(Blocks()), surveyed("Blocks")
    assert [block.name for block in groups.blocks] == ["stage.0", "stage.1", "attending"]
    assert groups.blocks[0].groups == ("stage.0.first.0", "stage.0.second.0")
    gone = dict.fromkeys((*groups.blocks[0].groups, *groups.blocks[2].groups), ())
    recipe = make_recipe(groups, {**gone, "stage.1.first.0": (1, 3)})
    small = cut(model, recipe, image())
    assert isinstance(small.stage[0], nn.Identity) and isinstance(small.attending, nn.Identity)
    assert small.stage[1].first[0].out_channels == 2
    widths = {**groups.full(), **dict.fromkeys(gone, 0)}
    assert [block.name for block in groups.removed(widths)] == ["stage.0", "attending"]
    assert groups.macs(groups.full()) - groups.macs(widths) == sum(
        layer.macs(groups.full()) for layer in groups.layers if layer.name.startswith(("stage.0.", "attending."))
    )
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    again = weights.load(tmp_path / "cut.safetensors", Blocks())
    assert torch.equal(again(*image()), small(*image())) and isinstance(again.attending, nn.Identity)


def test_half_a_block_cannot_be_removed() -> None:
    groups = surveyed("Blocks")
    with pytest.raises(ValueError, match="cannot keep units"):
        make_recipe(groups, {"stage.0.first.0": ()})


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    model, groups = Residual(), surveyed("Residual")
    recipe = make_recipe(groups, {"a1.0": [0]})
    weights.save(tmp_path / "cut.safetensors", cut(model, recipe, image()), recipe)
    with pytest.raises(UsageError, match="does not belong"):
        weights.load(tmp_path / "cut.safetensors", Shared())


def test_an_invalid_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(UsageError, match="cannot be read"):
        weights.load(tmp_path / "x.safetensors", Residual())
    with pytest.raises(UsageError):
        weights.load(tmp_path / "missing.safetensors", Residual())


def test_constants_of_the_code_are_not_randomised() -> None:
    """A logarithm after a fixed filterbank. Random filters would make it NaN, and every cut would fail."""

    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.full((8, 6), 0.5), persistent=False)
            self.up, self.fc = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.up((x.square() @ self.bank + 1e-3).log())))

    groups = survey(Front(), (torch.randn(2, 8),))
    assert [group.name for group in groups.free] == ["up"]
    assert torch.equal(randomised(Front()).bank, torch.full((8, 6), 0.5))


def test_the_original_stays_unchanged() -> None:
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut(model, make_recipe(surveyed("Residual"), {"a1.0": [1]}), image())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_dynamic_or_untraceable_model_is_a_clear_error() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Ragged(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nonzero(x)

    with pytest.raises(UsageError, match=r"torch\.export cannot trace"):
        survey(Branches(), image())
    with pytest.raises(UsageError, match=r"dynamic shape.*fixed-size"):
        survey(Ragged(), image())


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_without_shapes_is_one_line_and_a_compiled_one_is_taken_out() -> None:
    with pytest.raises(UsageError, match=r"^0\.weight has no shape yet; call the model once first$"):
        survey(nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d()), image())
    compiled = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert [group.name for group in survey(compiled, image()).free] == ["0"]


class Scaled(nn.Linear):
    """Weights with an equalised learning rate, as in StyleGAN: the code scales them down."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 1e-4 * self.weight, self.bias)


def test_a_signal_that_the_code_scales_down_is_found_near_the_user_s_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(6, 16), nn.ReLU(), Scaled(16, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for layer in model[0], model[2]:
            layer.weight.mul_(1e4)
            layer.bias.mul_(0)
    assert [group.name for group in survey(model, (torch.randn(2, 6),)).free] == ["0", "2"]


def test_a_cut_is_proved_where_all_remaining_channels_are_zero() -> None:
    """Normalising divides a channel that is nearly zero by 1e-12."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Normalise(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model[0].bias[0] = -1e3  # silent
    groups = survey(model, image())
    assert cut(model, make_recipe(groups, {"0": [0]}), image())[3].in_channels == 1


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("of_graph", [False, True])
def test_a_batch_norm_after_a_transposed_convolution_is_folded(of_graph: bool) -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 1, groups=2),
        nn.BatchNorm2d(4),
    )
    model = randomised(model)
    groups = survey(model, image())
    assert groups.folds == (("0", "1"),)
    form = as_graph(model, image()) if of_graph else model
    folded = fold(form, groups.folds)
    assert torch.allclose(folded(*image()), model(*image()), atol=1e-5)
    assert not torch.equal(folded.get_parameter("0.weight"), model.get_parameter("0.weight"))


PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255)


def test_a_pruned_network_keeps_its_preprocessing_in_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Residual().eval()
    model = preprocessed(copy.deepcopy(plain), PREPROCESS)
    raw = torch.randint(0, 256, image()[0].shape)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESS.mean, PREPROCESS.std))
    assert torch.allclose(model(raw), plain((raw / 255 - mean) / std), atol=1e-5)
    groups = survey(model, (raw,))
    recipe = make_recipe(groups, {"a1.0": [0, 2]})
    small = cut(model, recipe, (raw,))
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    again = weights.load(tmp_path / "cut.safetensors", plain)
    assert torch.equal(again(raw), small(raw))
    assert again.state_dict().keys() == plain.state_dict().keys()


class Backwards(torch.autograd.Function):
    """Uses `view` on the gradient."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.view(-1).view(gradient.shape)


class Convolution(nn.Module):
    """Uses `view` on its activations, which needs channels-first memory, at a given place."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 6 * 6, 2)
        self.where = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if (self.where == "in evaluation" and not self.training) or (self.where == "in training" and self.training):
            x = x.view(len(x), -1).view(x.shape)
        if self.where == "backwards":
            x = Backwards.apply(x)
        x = self.last(x)
        if self.where == "outside":
            return x
        assert self.where != "never" or x.is_contiguous()
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("where", ["", "in evaluation", "in training", "backwards", "outside", "never"])
def test_channels_last_is_used_only_if_the_model_and_its_users_support_it(where: str) -> None:
    torch.manual_seed(0)
    model, x = Convolution(where).eval(), torch.randn(5, 3, 8, 8)
    before = model(x)
    assert channels_last(model, (x,)) is model
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == (not where)
    assert not model.training and model.conv.weight.grad is None
    assert torch.allclose(model(x), before, atol=1e-6)
    assert channels_first(model).conv.weight.is_contiguous()


def test_channels_beside_an_input_of_the_model_can_be_cut() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(14, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.cat([torch.relu(self.a(x)), x], 1))))

    groups = survey(Skip(), (torch.zeros(1, 6),))
    assert [group.name for group in groups.free] == ["a", "b"]
    small = cut(randomised(Skip()), make_recipe(groups, {"a": [0, 5]}), (torch.zeros(1, 6),))
    assert small.b.weight.shape == (8, 2 + 6), "the columns of the input stay"
