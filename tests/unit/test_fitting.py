"""Weights load as torch loads them, in whichever of the usual ways they were saved. The rule is tried on random models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends.fitting import fitted

State = dict[str, Tensor]
WORDS = st.sampled_from(["a", "b", "conv", "module", "model", "net", "0", "1", "encoder"])
PREFIXES = st.sampled_from(
    ["", "module.", "_orig_mod.", "model.", "state_dict.", "state_dict.model.", "ema.module.", "a.b."]
)


class Tied(nn.Module):
    """An output layer that shares the weights of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.emb.weight
        self.register_buffer("positions", torch.arange(4))
        self.register_buffer("computed", torch.ones(2), persistent=False)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Layers at random paths, some of which contain others, and some of which are shared."""
    model = nn.Module()
    layers: list[nn.Module] = []
    for path in draw(st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=5)):
        holder = model
        for name in path[:-1]:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        size = draw(st.integers(1, 3))
        shared = layers[-1:] if holder is model else []  # a module must not contain itself
        if path[-1] not in holder._modules:
            layers.append(draw(st.sampled_from([nn.Linear(size, 2), nn.BatchNorm1d(size), *shared])))
            holder.add_module(path[-1], layers[-1])
    return model


def saved(model: nn.Module, prefix: str = "") -> State:
    """The model's state under a prefix, with other values than the model has."""
    values: dict[int, Tensor] = {}
    state = model.state_dict()
    for tensor in state.values():
        fresh = torch.randn(tensor.shape) if tensor.is_floating_point() else tensor + 1
        values.setdefault(tensor.data_ptr(), fresh)
    return {prefix + name: values[tensor.data_ptr()] for name, tensor in state.items()}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=200, deadline=None)
@given(models(), PREFIXES, st.data())
def test_any_model_loads_from_its_own_state_under_any_prefix_with_tied_tensors_stored_once(
    model: nn.Module, prefix: str, data: st.DataObject
) -> None:
    state = saved(model)
    stored = {prefix + name: tensor for name, tensor in state.items()}
    pointers: dict[int, str] = {}
    for name, tensor in state.items():
        if pointers.setdefault(tensor.data_ptr(), name) != name and data.draw(st.booleans()):
            del stored[prefix + name]  # as safetensors does
        elif name.endswith("num_batches_tracked") and data.draw(st.booleans()):
            del stored[prefix + name]  # as in old checkpoints
    found = fitted("w", model, stored)
    kept = {name: tensor for name, tensor in found.state.items() if not name.endswith("num_batches_tracked")}
    assert equal(kept, {name: tensor for name, tensor in state.items() if name in kept})
    assert (f"prefix {prefix} stripped" in found.notes) == bool(prefix)


@settings(max_examples=100, deadline=None)
@given(models(), PREFIXES, st.data())
def test_a_checkpoint_without_a_parameter_or_with_one_more_is_refused(
    model: nn.Module, prefix: str, data: st.DataObject
) -> None:
    """A lost tensor is never filled from another one, unless both are one tensor in the model."""
    stored = saved(model, prefix)
    name = data.draw(st.sampled_from([name for name, tensor in stored.items() if tensor.is_floating_point()]))
    shared = [other for other in stored if stored[other] is stored[name]]
    if data.draw(st.booleans()):
        for other in shared:
            del stored[other]
    else:
        stored[f"{prefix}strange.weight"] = torch.zeros(7, 7, 7)
    with pytest.raises(UsageError, match="does not fit"):
        fitted("w", model, stored)


WRAPPED: dict[str, Callable[[State], State]] = {
    "DataParallel": lambda s: {f"module.{name}": t for name, t in s.items()},
    "torch.compile": lambda s: {f"_orig_mod.{name}": t for name, t in s.items()},
    "DataParallel of torch.compile": lambda s: {f"module._orig_mod.{name}": t for name, t in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(9), **{f"module.{name}": t for name, t in s.items()}},
    "Lightning": lambda s: {
        **{f"state_dict.model.{name}": t for name, t in s.items()},
        "state_dict.loss.class_weights": torch.ones(3),
    },
    "checkpoint": lambda s: {f"model_state_dict.{name}": t for name, t in s.items()},
    "thop": lambda s: {
        **s,
        **{f"norm.{n}": torch.zeros(1, dtype=torch.float64) for n in ("total_ops", "total_params")},
    },
    "without counters": lambda s: {name: t for name, t in s.items() if "tracked" not in name},
    "with a buffer that is computed now": lambda s: {**s, "computed": torch.ones(2)},
    "with position numbers of an old version": lambda s: {**s, "emb.position_ids": torch.arange(9)},
    "a part in a wrapper": lambda s: {name.replace("norm.", "norm.module."): t for name, t in s.items()},
    "half precision": lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
    "equal copies": lambda s: {
        **{f"model.{n}": t for n, t in s.items()},
        **{f"ema.{n}": t.clone() for n, t in s.items()},
    },
    "a dictionary for each part": lambda s: dict(reversed(s.items())),
    "safetensors of a tied model": lambda s: {name: t for name, t in s.items() if name != "emb.weight"},
}


@pytest.mark.parametrize("save", WRAPPED.values(), ids=WRAPPED)
def test_weights_that_were_saved_in_a_usual_way_load(save: Callable[[State], State]) -> None:
    model = Tied()
    state = saved(model)
    found = fitted("w", model, save(state))
    model.load_state_dict(found.state)
    expected = saved_as_half(state) if save is WRAPPED["half precision"] else state
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected[name].float()), name


def saved_as_half(state: State) -> State:
    return {name: tensor.half() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("way", "note"),
    [
        ("DataParallel", "prefix module. stripped"),
        ("Lightning", "1 other tensor ignored: state_dict.loss.class_weights"),
        ("thop", "2 bookkeeping tensors ignored"),
        ("without counters", "1 counter not in the file"),
        ("a part in a wrapper", "names of wrappers removed"),
        ("half precision", "float16 converted"),
        ("safetensors of a tied model", "1 tied tensor filled"),
    ],
)
def test_every_adaptation_is_said(way: str, note: str) -> None:
    model = Tied()
    assert note in fitted("w", model, WRAPPED[way](saved(model))).notes


def test_weights_that_fit_as_they_are_need_no_note() -> None:
    model = Tied()
    assert fitted("w", model, saved(model)).notes == ()


def test_weights_of_a_part_of_the_model_s_wrapper_are_found() -> None:
    """The checkpoint is of the network; the model holds the network as `net`."""
    model = nn.Module()
    model.net = nn.Linear(2, 2)
    found = fitted("w", model, saved(model.net))
    assert set(found.state) == {"net.weight", "net.bias"} and found.notes == ("prefix net. added",)


def test_the_model_s_own_hooks_may_rename_tensors() -> None:
    """torch's weight norm renames weight_g and weight_v of older checkpoints."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    old = {
        f"module.{name}": torch.randn(shape)
        for name, shape in (("bias", (3,)), ("weight_g", (3, 1)), ("weight_v", (3, 3)))
    }
    found = fitted("w", model, old)
    assert torch.equal(model.get_parameter("parametrizations.weight.original0"), old["module.weight_g"])
    assert found.notes == ("prefix module. stripped", "names changed by the model's own hooks")


def test_an_ambiguous_checkpoint_names_the_candidates() -> None:
    model = Tied()
    stored = {**saved(model, "model."), **saved(model, "ema.module.")}
    with pytest.raises(
        UsageError, match=r"ambiguous: the model's tensors are there as model\.\*, ema\.module\.\*; save only"
    ):
        fitted("w", model, stored)
    with pytest.raises(UsageError, match=r"ambiguous: .* as \*, ema\.\*"):
        fitted("w", model, {**saved(model), **saved(model, "ema.")})


def test_names_that_do_not_fit_are_shown_on_both_sides() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    stored = {f"module.{name.replace('2.', '7.')}": t for name, t in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        fitted("w.pt", model, {**stored, "module.8.weight": torch.ones(2), "module.8.bias": torch.ones(2)})
    assert str(caught.value) == (
        "w.pt does not fit the model: it lacks 2.weight, 2.bias and has module.7.weight, module.7.bias, module.8.weight"
        " and 1 more, which the model lacks; give a checkpoint of this model"
    )


def test_a_shape_that_differs_names_the_tensor_and_both_shapes() -> None:
    stored = {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}
    with pytest.raises(UsageError, match=r"weight has the shape \(3, 2\) instead of \(2, 2\)"):
        fitted("w", nn.Linear(2, 2), stored)


def test_of_several_layers_the_one_with_the_model_s_shapes_is_taken() -> None:
    """A part of a larger network: the prefix that fits by shape, too."""
    whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 5))
    found = fitted("w", nn.Linear(2, 3), whole.state_dict())
    assert torch.equal(found.state["weight"], whole.get_parameter("1.weight")) and "prefix 1. stripped" in found.notes


def test_whole_numbers_are_no_weights() -> None:
    stored = {name: tensor.to(torch.int8) for name, tensor in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(UsageError, match="weight holds int8; give the weights before quantization"):
        fitted("w", nn.Linear(2, 2), stored)


def test_a_model_without_parameters_needs_no_weights() -> None:
    with pytest.raises(UsageError, match="has no parameters"):
        fitted("w", nn.ReLU(), {"weight": torch.ones(1)})
