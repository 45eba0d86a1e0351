"""The prune stage: cut the network to the confirmed plan, prove the cut, and refit the remaining weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgeprune.limits import LIMITS
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Confirmed, Groups, Plan, Pruned, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.frontends.data import Split
    from edgeprune.frontends.model import Network
    from edgeprune.network.observe import Reference

PARTS = 3  # of pruning: the cut and its proof, observing the original network, the refits


@dataclass(frozen=True)
class Reads:
    """The network, its groups, the confirmed plan, and the training data that weights are refitted on."""

    network: Network
    survey: Groups
    confirm: Confirmed
    train: Split
    finetune_seed: int


@dataclass(frozen=True)
class Networks:
    """A pruned network with two sets of weights: `untrained` is best without training, and training starts from `start`."""

    untrained: nn.Module
    start: nn.Module
    recipe: Recipe
    refitted: bool


def run(reads: Reads, output: Output) -> Pruned:
    """Cut and refit the network, and save it in two files. Raises `CutError` as `prune` does."""
    from edgeprune.network import weights
    from edgeprune.network.cut import formed

    original = formed(reads.network.module, reads.survey, reads.network.inputs)
    with reads.train.repeatable(reads.finetune_seed):
        watch = output.watch.step
        found = prune(original, reads.survey, reads.confirm.plan, reads.network.inputs, _observer(reads), watch)
    untrained, start = output.path("pruned.safetensors"), output.path("start.safetensors")
    weights.save(untrained, found.untrained, found.recipe)
    weights.save(start, found.start, found.recipe)
    counts = weights.count_parameters(found.untrained), weights.count_parameters(original)
    return Pruned(untrained, start, counts, found.refitted)


_KNOWN: WeakKeyDictionary[Split, tuple[object, Reference]] = WeakKeyDictionary()


def _observer(reads: Reads) -> Callable[[nn.Module], Reference]:
    """Observes the original network on the training data. Runs of a sweep share the split, and so what was observed."""
    from edgeprune.network.observe import observe

    network = reads.survey.network, reads.finetune_seed

    def observed(model: nn.Module) -> Reference:
        known = _KNOWN.get(reads.train)
        if known is not None and known[0] == network:
            return known[1]
        found = observe(model, reads.train)
        if found.nbytes <= LIMITS.observed_bytes:
            _KNOWN[reads.train] = network, found
        return found

    return observed


def describe(pruned: Pruned, reads: Reads) -> str:
    """How many parameters remain."""
    remaining, before = pruned.parameters
    return f"{remaining:,} of {before:,} parameters kept, proved" + ("; weights refitted" if pruned.refitted else "")


STAGE = Stage("prune", Reads, run, Pruned, describe, joint=True)


def prune(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    observe: Callable[[nn.Module], Reference],
    step: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Networks:
    """Cut a network to a plan, prove the cut, and refit the remaining weights (see `edgeprune.network.refit`).

    The cut is proved with random parameters if the network's own outputs are all alike, as those of an untrained head.

    Args:
        model: the original network; it stays unchanged.
        groups: its channel groups.
        plan: the channels to keep.
        inputs: example inputs, (batch, ...) each, that the cut is proved on.
        observe: observes a network on the training data that weights are refitted on; see `network.observe.observe`.
        step: is called as the work proceeds, with (done, total, note).

    Raises:
        CutError: the outputs of the cut network differ from those of the masked original.
    """
    from edgeprune.graph.groups import make_recipe
    from edgeprune.network.cut import cut, provable, sliced
    from edgeprune.network.layout import channels_first, channels_last
    from edgeprune.network.prove import is_provable, prove
    from edgeprune.network.survey import generic

    recipe = make_recipe(groups, plan.keep)
    pruned = sliced(model, recipe)
    original = provable(model, groups, inputs)
    if is_provable(original, recipe, inputs):
        prove(original, pruned, recipe, inputs)
    else:
        cut(generic(model, inputs), recipe, inputs)
    if not recipe:
        return Networks(pruned, pruned, recipe, False)
    step(1, PARTS, "")
    model, pruned = (channels_last(copy.deepcopy(one), inputs) for one in (model, pruned))
    reference = observe(model)
    step(2, PARTS, "")
    found = refitted(model, pruned, recipe, reference)
    for network in (found.untrained, found.start):
        channels_first(network)
    return found


def refitted(model: nn.Module, pruned: nn.Module, recipe: Recipe, reference: Reference) -> Networks:
    """Refit a pruned network to the original layers' outputs, in both ways of `edgeprune.network.refit`.

    Args:
        model: the original network.
        pruned: the network that `recipe` cuts from it.
        recipe: the indices that are kept.
        reference: observations of the original network.
    """
    from edgeprune.network.refit import refit_separately, refit_sequentially

    untrained = refit_sequentially(model, pruned, recipe, reference)
    start = refit_separately(model, pruned, recipe, reference)
    return Networks(untrained, start, recipe, untrained is not pruned)
