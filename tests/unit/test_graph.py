"""Groups follow from the exported graph, and a wrong cut is never offered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Attention, Residual, Shared, conv, image, surveyed
from torch import Tensor, nn

from edgeprune.errors import CutError
from edgeprune.graph.groups import lock, make_recipe
from edgeprune.graph.trace import trace
from edgeprune.network.cut import cut, cut_as_is
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Groups


def members(groups: Groups) -> set[frozenset[tuple[str, int, int]]]:
    """Every unit of every free group as the set of (parameter, dim, index) it owns, without running statistics."""
    return {
        frozenset(
            (slot.parameter, slot.dim, index)
            for slot in group.slots
            if "running" not in slot.parameter
            for index in slot.indices[unit]
        )
        for group in groups.free
        for unit in range(group.width)
    }


def grouped(groups: int, inputs: int, outputs: int, transposed: bool = False) -> nn.Module:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(nn.Conv2d(3, inputs, 1), nn.ReLU(), kind(inputs, outputs, 1, groups=groups), nn.ReLU())


@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_convolution_loses_groups_or_the_same_channels_of_every_group(transposed: bool) -> None:
    model = nn.Sequential(*grouped(4, 16, 24, transposed), nn.Conv2d(24, 5, 1))
    groups = survey(model, image())
    assert {group.name: group.width for group in groups.free} == {"0": 4, "0:2": 4, "2": 6}
    keep = {"0": [0, 3], "0:2": [1, 2, 3], "2": [5]}
    small = cut(randomised(model), make_recipe(groups, keep), image()).get_submodule("2")
    assert (small.groups, small.in_channels, small.out_channels) == (2, 6, 2)
    layer = next(layer for layer in groups.layers if layer.name == "2")
    widths = groups.full() | {name: len(units) for name, units in keep.items()}
    assert layer.macs(widths) == 8 * 8 * 3 * 2 and layer.convolution_groups(widths) == 2
    assert layer.sizes(widths) == (6, 1)  # all inputs, and the outputs of one group: the latency depends on these
    fixed = next(layer for layer in lock(groups, "0:2", "no").layers if layer.name == "2")
    assert fixed.macs(widths) == 8 * 8 * 4 * 2 and fixed.sizes(widths) == (8, 1) and not fixed.loses_whole_groups
    whole = next(layer for layer in lock(lock(groups, "0:2", "no"), "2", "no").layers if layer.name == "2")
    assert whole.loses_whole_groups and whole.sizes(widths) == (4, 12)


def test_channels_inside_the_groups_are_cut_where_the_groups_are_fixed() -> None:
    """The groups are fixed if the convolution is the output, reads the input or if a shuffle has their number."""
    assert {g.name: g.width for g in survey(grouped(4, 16, 24)[:3], image()).free} == {"0:2": 4}
    reads = nn.Sequential(nn.Conv2d(3, 12, 1, groups=3), nn.ReLU(), nn.Conv2d(12, 5, 1))
    assert {g.name: g.width for g in survey(reads, image()).free} == {"0:2": 4}
    shuffled = nn.Sequential(*grouped(2, 8, 12), nn.ChannelShuffle(2), nn.Conv2d(12, 8, 1, groups=2))
    assert {g.name: g.width for g in survey(shuffled, image()).free} == {"0:2": 4, "2:2": 3}


def test_consecutive_convolutions_with_other_group_counts_share_what_they_can() -> None:
    model = nn.Sequential(*grouped(4, 24, 24), nn.Conv2d(24, 24, 1, groups=2), nn.ReLU(), nn.Conv2d(24, 5, 1))
    free = {group.name: group.width for group in survey(model, image()).free}
    # Four groups are two groups of two, and six inputs of each. Then six channels of each of the four, and twelve outputs.
    assert free == {"0": 2, "0:2": 2, "0:3": 6, "2": 6, "4": 12}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_the_cells_of_a_recurrence_and_its_projected_units_are_groups() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 16, 2, batch_first=True, bidirectional=True, proj_size=4)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0])

    inputs = (torch.randn(2, 5, 3),)
    groups = survey(Projected(), inputs)
    assert {group.name: group.width for group in groups.free} == {
        "rnn": 16,
        "rnn:2": 4,
    } and not groups.unknown_operators
    small = cut(randomised(Projected()), make_recipe(groups, {"rnn": [1, 4, 9], "rnn:2": [0, 3]}), inputs)
    assert (small.rnn.hidden_size, small.rnn.proj_size, small.fc.in_features) == (3, 2, 4)
    assert sum(layer.macs(groups.full()) for layer in groups.layers if layer.name.startswith("rnn")) == 2 * 5 * (
        2 * (64 * 3 + 64 * 4 + 16 * 4) + 2 * (64 * 8 + 64 * 4 + 16 * 4)
    )


def test_a_bilinear_layer_loses_inputs_of_both_sides_and_outputs() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 4)
            self.pairs, self.fc = nn.Bilinear(8, 4, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.pairs(self.a(x), self.b(x))))

    groups = survey(Pairs(), (torch.randn(2, 6),))
    assert {group.name: group.width for group in groups.free} == {"a": 8, "b": 4, "pairs": 10}
    layer = next(layer for layer in groups.layers if layer.name == "pairs")
    assert layer.macs(groups.full() | {"a": 3, "b": 2, "pairs": 7}) == 2 * 3 * 2 * 7
    small = cut(randomised(Pairs()), make_recipe(groups, {"a": [1, 2], "b": [0], "pairs": [5]}), (torch.randn(2, 6),))
    assert (small.pairs.in1_features, small.pairs.in2_features, small.pairs.out_features) == (2, 1, 1)


def test_a_residual_stream_is_one_group() -> None:
    groups = surveyed("Residual")
    stem = next(group for group in groups.free if group.name == "stem.0")
    assert {"stem.0.weight", "a1.0.weight", "a2.0.weight", "b1.0.weight", "short.weight"} <= {
        slot.parameter for slot in stem.slots
    }


def test_padding_shortcuts_leave_the_padded_channels_locked() -> None:
    groups = surveyed("OptionA")
    free = {group.name: group.width for group in groups.free}
    assert free == {"stem.0": 8, "b1.0": 16}
    padded = next(group for group in groups.groups if group.name == "b2.0")
    assert padded.width == 8 and "add" in (padded.locked or "")


def test_a_size_fixed_in_the_code_is_found_by_the_trial_cut() -> None:
    groups = surveyed("HardCoded")
    locked = next(group for group in groups.groups if group.name == "a.0")
    assert "trial cut fails" in (locked.locked or "") and "shape" in (locked.locked or "")
    assert [group.name for group in groups.free] == ["b.0"]
    assert not any("a.0" in span.groups for layer in groups.layers for span in (layer.inputs, layer.outputs))


def test_an_operator_without_a_rule_locks_its_inputs_and_is_reported() -> None:
    groups = surveyed("NoRule")
    assert groups.unknown_operators == ("aten.renorm.default",)
    assert "has no rule" in (next(g for g in groups.groups if g.name == "a.0").locked or "")


def test_the_channels_of_a_layer_normalisation_can_be_cut() -> None:
    groups = surveyed("Normalised")
    assert {group.name: group.normalised for group in groups.free} == {"a": True, "b": False}


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    model, groups = Shared(), surveyed("Shared")
    small = cut(model, make_recipe(groups, {"up": [0, 2, 5]}), image())
    assert small.down.weight is small.up.weight
    assert small.up.weight.shape == (3, 8)


def test_patterns_lock_by_name() -> None:
    groups = survey(Residual(), image(), ["a1.*"])
    locked = next(group for group in groups.groups if group.name == "a1.0")
    assert "a1.*" in (locked.locked or "")


def test_layers_know_their_channels_and_macs() -> None:
    groups = surveyed("Residual")
    layer = next(layer for layer in groups.layers if layer.name == "a1.0")
    assert layer.inputs.size(groups.full()) == 8 and layer.outputs.size(groups.full()) == 6
    assert layer.macs(groups.full()) == 8 * 8 * 9 * 8 * 6
    assert layer.macs(groups.full() | {"stem.0": 4}) == 8 * 8 * 9 * 4 * 6


def test_a_recipe_refuses_invalid_units() -> None:
    groups = surveyed("Residual")
    for keep in ({"head.fc": [0]}, {"stem.0": []}, {"stem.0": [8]}, {"missing": [0]}):
        with pytest.raises(ValueError):
            make_recipe(groups, keep)


@pytest.mark.parametrize("name", ["Plain", "Residual", "Concat", "Depthwise", "SqueezeExcite"])
def test_groups_agree_with_torch_pruning(name: str) -> None:
    """DepGraph's own implementation, on the structures that both handle (tests only)."""
    tp = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model, groups = NETS[name]().eval(), surveyed(name)
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=image()[0])
    names = {id(module): path for path, module in model.named_modules()}
    ours = members(groups)
    for group in groups.free:
        slot = next(slot for slot in group.slots if slot.parameter == f"{group.name}.weight" and slot.dim == 0)
        module = model.get_submodule(group.name)
        prune = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}[type(module)]
        for unit in range(group.width):
            theirs: set[tuple[str, int, int]] = set()
            for dependency, indices in dependencies.get_pruning_group(module, prune, list(slot.indices[unit])):
                layer, path = dependency.target.module, names.get(id(dependency.target.module))
                if path is None:
                    continue
                out = dependencies.is_out_channel_pruning_fn(dependency.handler)
                depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
                dim = 0 if out or isinstance(layer, nn.BatchNorm2d) or depthwise else 1
                theirs |= {(f"{path}.weight", dim, index) for index in indices}
                if dim == 0 and getattr(layer, "bias", None) is not None:
                    theirs |= {(f"{path}.bias", 0, index) for index in indices}
            assert frozenset(theirs) in ours


def widths_and_locks(name: str) -> dict[str, tuple[int, bool]]:
    return {group.name: (group.width, group.locked is None) for group in surveyed(name).groups}


def test_heads_and_their_width_are_separate_groups() -> None:
    """Layers have their product as a channel count. A width that the module's code fixes can be cut in the graph only."""
    groups = surveyed("Encoder")
    assert groups.form == "graph" and {"mix.1.query", "mix.1.query:2"} <= {group.name for group in groups.free}
    free = {group.name: group.width for group in groups.free}
    heads, width = "mix.0.query", "mix.0.query:2"
    assert (free[heads], free[width]) == (4, 6)
    model = randomised(NETS["Encoder"]())
    small = cut(model, make_recipe(groups, {heads: [0, 2, 3], width: [1, 5]}), image())
    assert small.get_parameter("mix.0.query.weight").shape[0] == 3 * 2
    assert small.get_parameter("mix.0.out.weight").shape[1] == 3 * 6  # the width of the values is another group
    layer = next(layer for layer in groups.layers if layer.name == "mix.0.out")
    assert layer.inputs.size(groups.full() | {heads: 3, "mix.0.value": 2}) == 6
    locked = lock(groups, "mix.0.value", "no")
    layer = next(layer for layer in locked.layers if layer.name == "mix.0.out")
    assert layer.inputs.terms == (((heads,), 6),)


def test_query_key_and_value_of_one_layer_are_cut_by_heads() -> None:
    found = widths_and_locks("Packed")
    assert found["qkv"] == (3, False) and found["qkv:2"] == (4, True) and found["qkv:3"] == (6, True)


def test_heads_of_torch_attention_are_removed_and_narrowed() -> None:
    groups = surveyed("Layers")
    free = {group.name: group.width for group in groups.free}
    assert (free["encoder.self_attn"], free["encoder.self_attn:2"]) == (4, 2)
    assert (free["decoder.multihead_attn"], free["decoder.multihead_attn:2"]) == (2, 4)
    keep = {"encoder.self_attn": [1, 3], "decoder.multihead_attn:2": [0, 1, 3], "decoder.self_attn": [1]}
    small = cut(randomised(NETS["Layers"]()), make_recipe(groups, keep), image())
    found = [
        (a.num_heads, a.head_dim)
        for a in (small.encoder.self_attn, small.decoder.multihead_attn, small.decoder.self_attn)
    ]
    assert found == [(2, 2), (2, 3), (1, 4)]


def test_a_matrix_on_the_right_of_a_product_is_a_layer() -> None:
    groups = surveyed("Transposed")
    free = {group.name: group.width for group in groups.free}
    assert free == {"stem.0": 8, "mix": 20, "up": 16, "attention.qkv": 4, "attention.qkv:2": 6}
    layers = {layer.name: layer for layer in groups.layers}
    widths = groups.full() | {"mix": 5, "attention.qkv": 2, "attention.qkv:2": 3, "stem.0": 4}
    assert layers["mix"].macs(widths) == 16 * 4 * 5 and layers["attention.qkv"].macs(widths) == 16 * 4 * 18
    keep = {"attention.qkv": [0, 3], "attention.qkv:2": [1, 2, 5], "up": [7]}
    attention = cut(randomised(NETS["Transposed"]()), make_recipe(groups, keep), image()).attention
    assert (attention.num_heads, attention.head_dim, attention.split_size, attention.qkv.nf) == (2, 3, 6, 18)


def test_the_layers_of_learned_queries_count() -> None:
    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.read = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(8, 6) / 3)
            self.keys, self.fc = nn.Linear(5, 6), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = (self.queries @ self.read) @ self.keys(x).transpose(1, 2)
            return self.fc(scores.softmax(-1) @ x)

    groups = survey(Latents(), (torch.randn(1, 7, 5),))
    assert [layer.name for layer in groups.layers] == ["read", "keys", "fc"]
    assert groups.macs(groups.full()) == 4 * 8 * 6 + 7 * 5 * 6 + 4 * 5 * 3


def test_another_class_may_have_the_name_of_hugging_faces_conv1d() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.weight = 12, nn.Parameter(torch.randn(12, 8, 3) / 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.conv1d(x, self.weight)

    model = nn.Sequential(nn.Conv1d(2, 8, 1), Conv1D(), nn.ReLU(), nn.Conv1d(12, 3, 1))
    assert {g.name: g.width for g in survey(model, (torch.randn(2, 2, 9),)).free} == {"0": 8, "1": 12}


def test_a_matrix_that_mixes_positions_is_no_layer() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last, self.graph = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 5, 1), nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.stem(x) @ self.graph)).mean(2)

    groups = survey(Places(), (torch.randn(1, 3, 6),))
    assert [layer.name for layer in groups.layers] == ["stem", "last"]
    assert [group.name for group in groups.free] == ["stem"]


def test_dead_nodes_lock_nothing_but_are_cut() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)
            self.side, self.side_fc, self.norm = nn.Conv2d(8, 6, 1), nn.Linear(6, 4), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.stem(x).relu()
            side = self.side_fc(self.side(self.norm(x)).mean((2, 3)).cumsum(1))
            out = self.fc(self.last(x).relu().mean((2, 3)))
            return (out, side) if self.training else out

    groups = survey(Auxiliary(), image())
    assert {"stem": 8, "last": 12}.items() <= {group.name: group.width for group in groups.free}.items()
    assert {layer.name for layer in groups.layers} == {"stem", "last", "fc"} and not groups.unknown_operators


@pytest.mark.parametrize("order", ["qkv", "kvq", "by head"])
def test_heads_are_counted_in_any_packing_order(order: str) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_dim = 4, 6
            self.qkv, self.out = nn.Linear(8, 72), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            if order == "by head":  # GPT-NeoX
                parts = self.qkv(x).view(n, t, self.num_heads, 3 * self.head_dim).transpose(1, 2).chunk(3, -1)
            else:
                parts = tuple(
                    y.view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
                )
            q, k, v = parts if order != "kvq" else (parts[2], *parts[:2])
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4)
            return self.out(y.transpose(1, 2).flatten(2))

    model = nn.Sequential(nn.Linear(3, 8), Packed(), nn.Linear(8, 2))
    groups = survey(model, (torch.randn(1, 5, 3),))
    assert sorted(group.width for group in groups.free) == [4, 6, 8, 8]


def test_a_recurrence_is_cut_by_units_in_all_its_gates_layers_and_directions() -> None:
    groups = surveyed("Recurrent")
    units = {group.name: group.width for group in groups.free}
    assert (units["lstm"], units["gru"], units["rnn"]) == (10, 12, 8)
    small = cut(NETS["Recurrent"](), make_recipe(groups, {"lstm": [0, 3, 9], "gru": [1]}), image())
    assert (small.lstm.hidden_size, small.gru.input_size, small.gru.hidden_size) == (3, 6, 1)
    assert small.lstm.weight_ih_l1_reverse.shape == (12, 6)


def test_cells_that_are_called_step_by_step_are_cut_by_units() -> None:
    groups = surveyed("Cells")
    units = {group.name: group.width for group in groups.free}
    assert units == {"stem": 10, "gru": 8, "lstm": 6, "rnn": 7}
    small = cut(NETS["Cells"](), make_recipe(groups, {"gru": [0, 3], "lstm": [1, 2, 5], "rnn": [4]}), image())
    assert (small.gru.hidden_size, small.lstm.input_size, small.lstm.hidden_size) == (2, 2, 3)


def test_an_initial_state_from_outside_locks_the_recurrence() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.fc(self.gru(x, state)[0][:, -1])

    groups = survey(Given(), (torch.randn(1, 3, 4), torch.randn(1, 1, 6)))
    assert not groups.free
    assert "initial state" in (next(group for group in groups.groups if group.name == "gru").locked or "")


def test_the_width_of_heads_can_be_cut_in_the_graph_if_the_scale_of_the_attention_follows_from_it() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 72), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (-1, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    inputs = (torch.randn(1, 3, 8),)
    assert any("scale of the attention" in (group.locked or "") for group in trace(Plain(), inputs).groups)
    assert sorted(group.width for group in survey(Plain(), inputs).free) == [4, 6, 6]  # query and value have their own


class Random(nn.Module):
    """A random stack of the structures that couple channels."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.blocks = nn.ModuleList()
        channels = 4
        self.stem = conv(3, channels)
        for kind, width in steps:
            if kind == "conv":
                self.blocks.append(conv(channels, width))
                channels = width
            elif kind == "residual":
                self.blocks.append(nn.Sequential(conv(channels, width), conv(width, channels)))
            elif kind == "cat":
                self.blocks.append(conv(channels, width))
                channels += width
            elif kind == "depthwise":
                self.blocks.append(conv(channels, channels, groups=channels))
            elif kind == "attention":
                self.blocks.append(Attention(("fused", "written", "einsum")[width % 3], channels, heads=width))
            elif kind == "up":
                self.blocks.append(nn.ConvTranspose2d(channels, width, 3, 1, 1))
                channels = width
            elif kind == "glu":
                self.blocks.append(nn.Sequential(conv(channels, 2 * width), nn.GLU(1)))
                channels = width
            elif kind == "pixels":
                self.blocks.append(nn.Sequential(conv(channels, 4 * width), nn.PixelShuffle(2), nn.AvgPool2d(2)))
                channels = width
            elif kind == "shuffle":
                self.blocks.append(nn.Sequential(conv(channels, 2 * width), nn.ChannelShuffle(2)))
                channels = 2 * width
            elif kind == "gru":
                self.blocks.append(nn.GRU(channels, width, bidirectional=True, batch_first=True))
                channels = 2 * width
            else:  # gate
                self.blocks.append(
                    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())
                )
        self.fc = nn.Linear(channels * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, _), block in zip(self.steps, self.blocks, strict=True):
            if kind == "residual":
                x = x + block(x)
            elif kind == "cat":
                x = torch.cat([x, block(x)], 1)
            elif kind == "gate":
                x = x * block(x)
            elif kind == "attention":
                x = x + block(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
            elif kind == "gru":
                x = block(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, x.shape[2:])
            else:
                x = block(x)
        return self.fc(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["conv", "residual", "cat", "depthwise", "gate"]), st.integers(2, 6)), max_size=4
    ),
    st.randoms(use_true_random=False),
)
def test_any_cut_of_a_random_network_equals_masking(steps: list[tuple[str, int]], random: object) -> None:
    torch.manual_seed(0)
    model = Random(steps)
    groups = trace(model, image())
    assert all(group.locked is None or group.slots[0].dim == 1 or group.name == "fc" for group in groups.groups)
    keep = {
        group.name: sorted(random.sample(range(group.width), random.randint(1, group.width)))  # type: ignore[attr-defined]
        for group in groups.free
    }
    cut(randomised(model), make_recipe(groups, keep), image())


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "residual", "cat", "attention", "up", "glu", "pixels", "shuffle", "gru"]),
            st.integers(2, 5),
        ),
        min_size=1,
        max_size=3,
    ),
    st.randoms(use_true_random=False),
)
def test_any_cut_of_surveyed_groups_equals_masking(steps: list[tuple[str, int]], random: object) -> None:
    torch.manual_seed(0)
    model = Random(steps)
    groups = survey(model, image())
    assert not groups.unknown_operators and groups.free
    keep = {
        group.name: sorted(random.sample(range(group.width), random.randint(1, group.width)))  # type: ignore[attr-defined]
        for group in groups.free
    }
    cut(randomised(model), make_recipe(groups, keep), image())


# Networks with groups that earlier versions offered and that cannot be cut.


class Shuffled(nn.Module):
    """A shuffle with a fixed number of channels, and many layers after it that could hide a wrong cut."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.rest = nn.Sequential(*(conv(16, 16, groups=16) if i % 2 else conv(16, 16, 1) for i in range(depth)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        return self.fc(self.rest(x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)).mean((2, 3)))


def test_an_error_is_found_through_many_layers() -> None:
    model = randomised(Shuffled(40))
    groups = trace(model, image())
    cut_as_is(model, make_recipe(groups, {"stem:2": [0, 2]}), image())  # positions inside a part
    with pytest.raises(CutError):
        cut_as_is(model, make_recipe(groups, {"stem": [0, 2]}), image())  # the code fixes the number of parts


class Decided(Shuffled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Saturated(Shuffled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x) - 1e6)


@pytest.mark.parametrize("net", [Decided, Saturated])
def test_uninformative_outputs_prove_nothing(net: type[Shuffled]) -> None:
    groups = survey(net(2), image())
    assert not groups.free
    assert any("proves nothing" in (group.locked or "") for group in groups.groups)


def test_an_output_projection_can_be_cut_without_the_heads() -> None:
    """The head counts and widths of the module then stay unchanged."""
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.fc = conv(3, 8), Attention(), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.mix(self.stem(x).flatten(2).transpose(1, 2)).mean(1))

    groups = survey(Mixed(), image())
    out = next(group for group in groups.free if group.name == "mix.out")
    for count in range(1, out.width):
        cut(randomised(Mixed()), make_recipe(groups, {"mix.out": range(count)}), image())


def test_a_block_that_clamps_its_input_is_not_removable() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.hardtanh(x + self.b(torch.relu(self.a(x))), -9, 9)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.fc = nn.Linear(8, 8), Clamped(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.stem(x)))

    assert not survey(Net(), (torch.randn(2, 8),)).blocks


def test_weight_norm_is_cut() -> None:
    layers = [torch.nn.utils.parametrizations.weight_norm(nn.Linear(*sizes)) for sizes in ((8, 12), (12, 10))]
    groups = survey(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(10, 3)), (torch.randn(2, 8),))
    assert {group.width for group in groups.free} == {12, 10}


def test_a_product_of_channels_with_themselves_is_locked() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(8, 6), nn.Linear(8, 4), nn.Linear(36 + 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.fc(torch.cat([torch.einsum("bi,bj->bij", y, y).flatten(1), self.b(x)], 1))

    groups = survey(Outer(), (torch.randn(2, 8),))
    assert [group.name for group in groups.free] == ["b"]
    assert any("with themselves" in (group.locked or "") for group in groups.groups)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.fc(net.a(x)) > 0,
        lambda net, x: (net.fc(net.a(x)), x[:, :0]),
        lambda net, x: tuple(net.fc(net.a(x)) for _ in range(net.a(x).shape[1] // 4)),
        lambda net, x: net.fc(torch.cat([net.a(x).narrow(1, -4, 4), net.a(x).narrow(1, 0, 4)], 1)),
        lambda net, x: net.fc(net.a(x)) * x.sum().item(),
        lambda net, x: net.fc(net.a(x).type_as(net.fc.weight)),
    ],
)
def test_a_survey_handles_unusual_models(forward: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)  # type: ignore[operator]

    survey(Net(), (torch.randn(2, 8),))


def test_a_decoder_shares_units_with_the_encoder_whose_state_it_reads() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.GRU(4, 6, batch_first=True), nn.GRU(4, 6, batch_first=True)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            fresh = x.new_zeros(1, len(x), self.encoder.hidden_size)
            return self.fc(self.decoder(x, self.encoder(x, fresh)[1])[0][:, -1])

    groups = survey(Pair(), (torch.randn(1, 3, 4),))
    (units,) = groups.free
    assert {slot.parameter.partition(".")[0] for slot in units.slots} == {"encoder", "decoder", "fc"}
