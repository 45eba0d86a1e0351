"""Survey a network: find the channel groups that can be cut and the blocks that can be removed, each proved by a trial."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import CutError, UsageError
from edgeprune.graph.editable import TOLERANCE, GraphNetwork, as_graph, noisy, trace_graph
from edgeprune.graph.groups import factors, lock, make_recipe
from edgeprune.graph.trace import canonical_names, trace
from edgeprune.network.adapter import has_samples_first
from edgeprune.network.attention import opened
from edgeprune.network.cut import cut_as_is
from edgeprune.network.folding import sound
from edgeprune.network.prove import answered, outputs_of, probe, zeroed
from edgeprune.network.sizes import HEAD_WIDTHS
from edgeprune.records import Block, Group, Groups, Recipe

log = logging.getLogger("edgeprune")
FIXED = ("output of the model", "a single unit")  # ends of reasons that hold in every form of a model
TRIAL = "a trial cut fails: "  # begins the reason of a group that the model's code cannot lose
SMALLER = 0.95  # the graph is cut instead of the model if at least 5 % less remains of its multiply-accumulates
DRAWS = 4  # inputs on which a group may be visible
TRIAL_SHARES = (0.5, 0.25, 0.375)  # shares of their units that the groups of a trial keep, assigned round-robin


def survey(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    patterns: Sequence[str] = (),
    step: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Groups:
    """Find the channel groups that can be cut and the blocks that can be removed.

    Every group and block is proved on a trial cut before it is offered. A group whose trial fails comes back locked, with
    the reason: the model's Python code may fix a size, for example.

    Trials run on a copy with random parameters. Zeros among trained weights could hide a wrong cut. A polynomial that
    vanishes at a random point vanishes everywhere (Schwartz-Zippel).

    Args:
        model: The network. It stays unchanged.
        inputs: Example inputs of fixed shape.
        patterns: Shell patterns of parameter or layer names to lock.
        step: Is called as the trials proceed, with (done, total, note).

    Returns:
        All groups, layers and blocks.

    Raises:
        UsageError: The model cannot be exported.

    Example:
        >>> groups = survey(torchvision.models.resnet18(), (torch.zeros(1, 3, 224, 224),))
        >>> [group.name for group in groups.free]
    """
    model = opened(model)
    traced = trace(model, inputs, patterns)  # it also says why a model fails
    random = generic(model, inputs)
    graph = _graph(random, inputs) if any(group.normalised for group in traced.free) else None
    subject = _Subject(model, random, random, graph or random, inputs)
    groups = _proved(subject, _comparable(traced, graph), step)
    may_be_finer = any(group.locked is not None and not group.locked.endswith(FIXED) for group in groups.groups)
    if may_be_finer and has_samples_first(model):  # only the first dimension of a graph may have another size
        subject, groups = _finer(subject, groups, graph, patterns, step)
    return _with_blocks(subject, groups)


@dataclass(frozen=True)
class _Subject:
    """What trials cut.

    Attributes:
        own: the user's model.
        model: the same with random parameters.
        form: what is cut: the model or its graph.
        original: what the result is compared with: the same, or the graph of a model that normalises over channels.
        inputs: example inputs.
    """

    own: nn.Module
    model: nn.Module
    form: nn.Module
    original: nn.Module
    inputs: tuple[Tensor, ...]

    def cut(self, recipe: Recipe) -> None:
        """Raises `CutError` if this cut fails."""
        cut_as_is(self.form, recipe, self.inputs, self.original)


def _finer(
    subject: _Subject,
    groups: Groups,
    graph: GraphNetwork | None,
    patterns: Sequence[str],
    step: Callable[[int, int, str], None],
) -> tuple[_Subject, Groups]:
    """The graph as the subject of trials and its groups if more of it can be cut. If not, both as given."""
    random, inputs = subject.model, subject.inputs
    try:
        graph = graph if graph and graph.takes_any_batch else as_graph(random, inputs)
        of_graph, found = replace(subject, form=graph, original=graph), trace_graph(graph, patterns)
        if _is_finer(found, groups):
            found = _proved(of_graph, found, step)
    except (CutError, UsageError) as error:
        return subject, _explained(groups, error)
    return (of_graph, found) if _is_finer(found, groups) else (subject, groups)


def _graph(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphNetwork | None:
    """The graph of a model for any batch size, else for that of the example inputs, else None."""
    for free_batch in (True, False):
        try:
            return as_graph(model, inputs, free_batch)
        except (CutError, UsageError) as error:
            log.debug("%s", error)
    return None


def _comparable(groups: Groups, graph: GraphNetwork | None) -> Groups:
    """Lock the groups that a mean or a normalisation is taken over if there is no graph to compare their cuts with."""
    for group in groups.free if graph is None else ():
        if group.normalised:
            groups = lock(
                groups, group.name, "a normalisation is taken over it, and the model has no graph to prove a cut with"
            )
    return groups


def _explained(groups: Groups, error: Exception) -> Groups:
    """The groups of a model without a graph. Where its code fixes a size, the reason says why no graph is cut instead."""
    explained = (
        replace(group, locked=f"{group.locked}; {error}") if (group.locked or "").startswith(TRIAL) else group
        for group in groups.groups
    )
    return replace(groups, groups=tuple(explained))


def _is_finer(graph: Groups, module: Groups) -> bool:
    """Whether clearly less remains of the graph than of the module if all groups keep one unit."""
    ours, theirs = (found.macs(found.least()) for found in (graph, module))
    return ours < SMALLER * theirs


def _proved(subject: _Subject, groups: Groups, step: Callable[[int, int, str], None]) -> Groups:
    """Lock the groups that cannot be cut."""
    trials = 2 * len(groups.free)  # each group is cut, and then masked
    groups = _lock_failing(subject, groups, lambda done: step(done, trials, ""))
    return _lock_invisible(subject, groups, lambda left: step(trials - left, trials, ""))


def _with_blocks(subject: _Subject, groups: Groups) -> Groups:
    """The groups with the blocks and the folds."""
    blocks = _blocks(subject, groups)
    inside = {parameter: block.groups[0] for block in blocks for parameter in block.parameters}
    layers = tuple(replace(layer, within=inside.get(layer.weight)) for layer in groups.layers)
    return replace(groups, layers=layers, blocks=blocks, folds=sound(subject.form, groups.folds, subject.inputs))


def whole(model: nn.Module, inputs: tuple[Tensor, ...]) -> Groups:
    """The layers of a network that is not pruned, and its folds. All its groups are locked, so no cut is tried."""
    model = opened(model)
    groups = trace(model, inputs, ("*",))
    return replace(groups, folds=sound(generic(model, inputs), groups.folds, inputs))


# ----------------------------------------------------------------------------------------------- random copies


def generic(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy with random parameters, in which a signal passes through all layers."""
    return _with_scaled_statistics(randomised(model), inputs)


def randomised(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode with random parameters and buffers, the same on every call.

    Buffers that are in no state dict keep their values. They are constants of the code, such as a positive filterbank.
    """
    random = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).eval()
    stored = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or not tensor.numel() or name not in stored:
                continue
            noise = torch.rand(tensor.shape, generator=random)
            if tensor.ndim < 2:  # scales and variances: positive, near one
                tensor.copy_(0.1 * noise if name.endswith(("bias", "mean")) else 0.5 + noise)
            else:  # variance 2/fan_in, since a ReLU halves the second moment (He et al., ICCV 2015)
                fan_in = tensor[0].numel()
                tensor.copy_((noise - 0.5) * (24 / fan_in) ** 0.5)
    return model


def _with_scaled_statistics(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Scale the statistics of each batch-norm to its input, in place.

    Otherwise the signal of a deep network would vanish beside the biases, and every error with it.
    """

    def adapt(module: nn.Module, given: tuple[Any, ...]) -> None:
        scale = given[0].square().mean().clamp(min=1e-12)
        module.running_var.mul_(scale / module.running_var.mean())  # type: ignore[operator]
        module.running_mean.mul_(scale.sqrt())  # type: ignore[operator]

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    hooks = [norm.register_forward_pre_hook(adapt) for norm in norms]
    with torch.no_grad():
        model(*probe(model, inputs))
    for hook in hooks:
        hook.remove()
    return model


# ------------------------------------------------------------------------------------------------------ trials


def _lock_failing(subject: _Subject, groups: Groups, on_trial: Callable[[int], None]) -> Groups:
    """Lock the groups whose trial cut fails."""
    for names in _apart(subject.form, groups):
        if _trial(subject, groups, names) is None:
            continue
        for name in names:
            reason = _trial(subject, groups, [name])
            if reason is not None:
                groups = lock(groups, name, reason)
    if _trial(subject, groups, [group.name for group in groups.free]) is None:
        return groups
    passed: list[str] = []
    for number, group in enumerate(groups.free):
        on_trial(number)
        reason = _trial(subject, groups, [*passed, group.name])
        if reason is None:
            passed.append(group.name)
        else:
            groups = lock(groups, group.name, reason)
    return groups


def _apart(model: nn.Module, groups: Groups) -> list[list[str]]:
    """Sets of groups that a trial cuts together before it cuts all.

    Two cuts of one dimension, or of one attention, may hide each other's errors. So no set has two such groups. An attention
    is a module that stores the width of a head, which a cut may set wrongly.
    """
    attentions = [f"{p}." for p, module in model.named_modules() if any(hasattr(module, name) for name in HEAD_WIDTHS)]
    products, found = factors(groups), list[tuple[list[str], set[str]]]()
    for group in groups.free:
        names = [slot.parameter for slot in group.slots]
        owners = {next((path for path in attentions if name.startswith(path)), name) for name in names}
        if group.name not in products and owners.isdisjoint(attentions):
            continue
        members, taken = next((one for one in found if one[1].isdisjoint(owners)), ([], set()))
        if not members:
            found.append((members, taken))
        members.append(group.name)
        taken |= owners
    return [members for members, _ in found]


def _trial(subject: _Subject, groups: Groups, names: list[str]) -> str | None:
    """Cut these groups, and return the reason if the proof fails.

    The groups keep different shares of their units. A cut that holds only if all shares are equal does not hold.
    """
    shares = {name: TRIAL_SHARES[place % len(TRIAL_SHARES)] for place, name in enumerate(names)}
    keep = {
        g.name: tuple(range(0, g.width, 2))[: max(1, round(shares[g.name] * g.width))]
        for g in groups.groups
        if g.name in shares and g.width > 1
    }
    try:
        subject.cut(make_recipe(groups, keep))
    except CutError as error:
        return f"{TRIAL}{error}"
    return None


def _lock_invisible(subject: _Subject, groups: Groups, on_left: Callable[[int], None]) -> Groups:
    """Lock the groups that no output depends on.

    On one input, a router may choose few of several experts. With random parameters, a signal may vanish: the code may scale
    it down, or sample an image outside of it. A group that is visible elsewhere only is proved there.
    """
    model, hidden = copy.deepcopy(subject.form), list[Group]()
    found = answered(model, subject.inputs)
    for number, group in enumerate(groups.free):
        on_left(len(groups.free) - number)
        if not _visible(model, groups, group, *found):
            hidden.append(group)
    tries = _other_tries(subject)
    while hidden and (other := next(tries, None)) is not None:
        if other.form is not subject.form:
            model = other.form
        found = answered(model, other.inputs)
        seen = [group.name for group in hidden if _visible(model, groups, group, *found)]
        proved = [name for name in seen if _trial(other, groups, [name]) is None]
        hidden = [group for group in hidden if group.name not in proved]
    for group in hidden:
        groups = lock(groups, group.name, "no output depends on it, so no cut can be proved")
    return groups


def _other_tries(subject: _Subject) -> Iterator[_Subject]:
    """The same on other inputs, then with parameters near the user's own."""
    for draw in range(1, DRAWS):
        yield replace(subject, inputs=noisy(subject.inputs, draw))
    near = _near(subject.own)
    is_graph = isinstance(subject.form, GraphNetwork)
    graph = _graph(near, subject.inputs) if is_graph or subject.original is not subject.form else None
    if graph is not None or not is_graph:
        form = graph if is_graph and graph is not None else near
        yield replace(subject, form=form, original=graph or near)


def _near(model: nn.Module) -> nn.Module:
    """A copy with the model's own parameters and noise, so that few of them are zero."""
    random = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                scale = parameter.square().mean().sqrt().item() or 1.0
                parameter.add_(0.1 * scale * torch.randn(parameter.shape, generator=random))
    return model


def _visible(
    model: nn.Module, groups: Groups, group: Group, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor]
) -> bool:
    """Whether masking half of a group changes the `outputs` by more than the tolerance of a cut.

    Both halves are tried, since the units of one half may be silent on these inputs.
    """
    for first in (0, 1):
        half = make_recipe(groups, {group.name: range(first, group.width, 2)})
        with zeroed(model, half):
            pairs = zip(outputs, outputs_of(model, inputs), strict=True)
        if any(
            (a.double() - b.double()).abs().max() > 2 * TOLERANCE * a.double().abs().max()
            for a, b in pairs
            if a.is_floating_point() and a.numel()
        ):
            return True
    return False


# ------------------------------------------------------------------------------------------------------ blocks


def _blocks(subject: _Subject, groups: Groups) -> tuple[Block, ...]:
    """The innermost modules that return their input if their parameters are zero, each proved by its removal."""
    model = subject.model
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, *call, path=path: calls.setdefault(path, []).append(call), with_kwargs=True
        )
        for path, module in model.named_modules()
        if path and any(module.children()) and any(True for _ in module.parameters())
    ]
    with torch.no_grad():
        model(*(x.clone() for x in subject.inputs))
    for hook in hooks:
        hook.remove()
    found: list[Block] = []
    for path in sorted(calls, key=lambda path: -path.count(".")):
        if any(block.name.startswith(f"{path}.") for block in found) or len(calls[path]) > 1:
            continue
        block = _block(model, groups, path)
        if block is not None and _passes_through(model.get_submodule(path), *calls[path][0]):
            try:
                subject.cut(make_recipe(replace(groups, blocks=(block,)), dict.fromkeys(block.groups, ())))
            except CutError:
                continue
            found.append(block)
    order = list(calls)
    return tuple(sorted(found, key=lambda block: order.index(block.name)))


def _block(model: nn.Module, groups: Groups, path: str) -> Block | None:
    """A module as a block, or None if it is none.

    It needs free groups that lie inside it, and no parameter that outer modules share.
    """
    inside: set[str] = set()
    outside: set[str] = set()
    for name, first in canonical_names(model).items():
        (inside if name.startswith(f"{path}.") else outside).add(first)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in inside}
    inner = [group.name for group in groups.free if {slot.parameter for slot in group.slots} <= inside]

    scalars = any(parameter.ndim == 0 for parameter in parameters.values())
    if not inner or inside & outside or scalars:
        return None
    return Block(path, tuple(inner), tuple(parameters))


def _passes_through(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> bool:
    """Whether a module returns its first argument if all its parameters are zero."""
    match args, output:
        case (Tensor() as x, *others), Tensor() if x.shape == output.shape:
            zeroed = copy.deepcopy(module)
            with torch.no_grad():
                for parameter in zeroed.parameters():
                    parameter.zero_()
                # At two scales, since a clamp passes small values through.
                return all(torch.allclose(zeroed(y.clone(), *others, **named), y) for y in (x, 1e3 * x))
    return False
