"""Prove a cut: the pruned network must compute what the original computes with the removed channels at zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgeprune.errors import CutError, first_line
from edgeprune.graph import places
from edgeprune.graph.editable import TOLERANCE, GraphNetwork, answer, noisy
from edgeprune.graph.statistics import take_over_remaining
from edgeprune.network.outputs import tensors
from edgeprune.records import Recipe

# Numerically zero, but a weight norm can still divide by it. It is far below the 1e-12 that `F.normalize` adds to a norm.
ZERO = 1e-19


def prove(model: nn.Module, pruned: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> None:
    """Compare a pruned network with the masked original, in eval mode.

    Args:
        model: The original network. It is a graph if the cut removes channels that a mean or a normalisation is taken over.
        pruned: The network that `recipe` cuts from it.
        recipe: The indices kept of each parameter.
        inputs: Example inputs. Real-valued ones get noise added.

    Raises:
        CutError: An output differs in number, shape or value. Or no output can show a difference.
    """
    with _masked(model, recipe) as original:
        inputs, expected = answered(original, inputs)
    try:
        got = outputs_of(pruned.eval(), inputs)
    except Exception as error:  # any error of the user's forward on the new sizes refutes the cut
        place = places.of_error(error)
        raise CutError(
            f"{place + ', ' if place else ''}the pruned network's forward raises {type(error).__name__}: "
            f"{first_line(error)}; take this size from a tensor's shape"
        ) from error
    if len(expected) != len(got):
        raise CutError(f"the pruned network has {len(got)} outputs, not {len(expected)}")
    if not any(map(_informative, expected)):
        raise CutError("all outputs are integers or constant, which proves nothing; return the logits")
    _compare(expected, got)


def is_provable(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an output of a network and of its masked copy varies enough to show a wrong cut.

    The outputs of an untrained head may all be zero, and those of a saturated network all one.
    """
    inputs, full = answered(model.eval(), inputs)
    with _masked(model, recipe) as original:
        pairs = zip(full, outputs_of(original, inputs), strict=True)
        return any(_informative(a) and _range(b) > TOLERANCE * float(a.abs().max()) for a, b in pairs)


def _range(output: Tensor) -> float:
    return float(output.max() - output.min() if output.numel() > 1 else output.abs())


def _compare(expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
    for i, (wanted, value) in enumerate(zip(expected, got, strict=True)):
        if wanted.shape != value.shape:
            raise CutError(f"output {i} has shape {tuple(value.shape)}, not {tuple(wanted.shape)}")
        if not wanted.numel():
            continue
        difference = (wanted.double() - value.double()).abs().max().item()
        scale = wanted.double().abs().max().item()
        if not difference <= TOLERANCE * scale:
            raise CutError(
                f"output {i} differs from the masked original by {difference:.3g} (largest value {scale:.3g})"
            )


def _informative(output: Tensor) -> bool:
    """Whether an output could show a difference: it is real-valued and not constant."""
    return output.is_floating_point() and bool(output.numel() == 1 or (output.numel() and output.max() > output.min()))


def masked(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of `model` with all indices that the recipe removes set to zero.

    In a graph, means and normalisations over channels leave out the removed ones.
    """
    model = copy.deepcopy(model)
    if isinstance(model, GraphNetwork):
        take_over_remaining(model, recipe)
    _zero(model, recipe)
    return model


@contextmanager
def _masked(model: nn.Module, recipe: Recipe) -> Iterator[nn.Module]:
    """The same in eval mode, for a short time.

    A graph keeps no state, and copying it takes longer than a proof. So it is masked itself, unless its statistics change.
    """
    if not isinstance(model, GraphNetwork) or any(model.exported_from.traced.remaining(recipe)):
        yield masked(model, recipe).eval()
        return
    training = model.training
    try:
        with zeroed(model.eval(), recipe):
            yield model
    finally:
        model.train(training)


@contextmanager
def zeroed(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Set all indices that the recipe removes to zero, in place. On exit the parameters are restored."""
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if name in recipe}
    try:
        _zero(model, recipe)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                model.get_parameter(name).copy_(tensor)


def _zero(model: nn.Module, recipe: Recipe) -> None:
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            for dim, kept in (recipe.get(name) or {}).items():
                removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
                removed[list(kept)] = False
                tensor.index_fill_(dim, removed.nonzero().flatten(), ZERO)


def probe(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add noise to the real-valued example inputs, which may all be equal.

    Returns `inputs` unchanged if the model then answers with NaN or infinity.
    """
    return answered(model, inputs)[0]


def answered(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Inputs as `probe` gives them, and the model's outputs for them."""
    tried = noisy(inputs)
    found = outputs_of(model, tried)
    if all(bool(torch.isfinite(out).all()) for out in found if out.is_floating_point()):
        return tried, found
    return inputs, outputs_of(model, inputs)


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All tensors that a model returns, with the same random numbers at every call. One may be a parameter."""
    return [output.clone() for output in tensors(answer(model, inputs))]
