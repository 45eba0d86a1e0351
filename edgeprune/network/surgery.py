"""Networks: survey their groups, cut them, prove the cut, save and load it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.utils import _pytree as pytree

from edgeprune.errors import CutError, UsageError
from edgeprune.graph import groups as graph
from edgeprune.network.attention import Attention, opened
from edgeprune.records import Block, Group, Groups, Layer, Preprocess, Recipe

NOTHING = 1e-15  # as good as zero, and a weight norm may still divide by it
TRIALS = (0.5, 0.25, 0.375)  # shares of their units that groups keep in a trial, in turns
TOLERANCE = 1e-4  # of the largest output, between the cut network and the masked original (fp32 rounding is near 1e-6)


def survey(model: nn.Module, inputs: tuple[Tensor, ...], lock: Sequence[str] = ()) -> Groups:
    """The channel groups of `model` that can really be cut, and the blocks that can be removed: each one proved on a trial cut
    before it is offered.

    `inputs` are example inputs of fixed shape; `lock` holds patterns of parameter names to keep whole. A group whose
    trial fails (the module's Python hard-codes a size, say) comes back locked, with the reason. The trial runs on a copy
    with random parameters, so that zeros in the trained weights cannot hide a wrong cut (a polynomial that vanishes at a
    random point vanishes everywhere: Schwartz-Zippel). Raises `UsageError` where the model cannot be traced.
    """
    model = opened(model)
    groups = graph.trace(model, inputs, lock)
    generic = _scaled(randomised(model), inputs)
    # Alone: two cuts of one dimension, or of one attention, may hide what each of them breaks.
    for name in dict.fromkeys([*graph.factors(groups), *_attending(model, groups)]):
        reason = _trial(generic, groups, inputs, [name])
        if reason is not None:
            groups = graph.lock(groups, name, reason)
    if _trial(generic, groups, inputs, [group.name for group in groups.free]) is not None:
        passed: list[str] = []
        for group in groups.free:
            reason = _trial(generic, groups, inputs, [*passed, group.name])
            if reason is None:
                passed.append(group.name)
            else:
                groups = graph.lock(groups, group.name, reason)
    probe = _probe(generic, inputs)
    with torch.no_grad():
        whole = tensors(generic(*probe))
    for group in groups.free:
        if not _visible(generic, groups, group, probe, whole):
            groups = graph.lock(groups, group.name, "no output tells whether it is there, so that no cut can be proved")
    blocks = _blocks(generic, groups, inputs)
    inside = {parameter: block.groups[0] for block in blocks for parameter in block.parameters}
    layers = tuple(replace(layer, within=inside.get(layer.weight)) for layer in groups.layers)
    return replace(groups, layers=layers, blocks=blocks)


def _blocks(model: nn.Module, groups: Groups, inputs: tuple[Tensor, ...]) -> tuple[Block, ...]:
    """The innermost modules that hand their input through once all their parameters are zero, each proved on its removal."""
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, *call, path=path: calls.setdefault(path, []).append(call), with_kwargs=True
        )
        for path, module in model.named_modules()
        if path and any(module.children()) and any(True for _ in module.parameters())
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    found: list[Block] = []
    for path in sorted(calls, key=lambda path: -path.count(".")):
        if any(block.name.startswith(f"{path}.") for block in found) or len(calls[path]) > 1:
            continue
        block = _block(model, groups, path)
        if block is not None and _hands_through(model.get_submodule(path), *calls[path][0]):
            try:
                cut(model, graph.recipe(replace(groups, blocks=(block,)), dict.fromkeys(block.groups, ())), inputs)
            except CutError:
                continue
            found.append(block)
    order = list(calls)
    return tuple(sorted(found, key=lambda block: order.index(block.name)))


def _block(model: nn.Module, groups: Groups, path: str) -> Block | None:
    """A module as a block, where every layer in it stays as it is or has a side of channels that nothing outside knows."""
    inside: set[str] = set()
    outside: set[str] = set()
    for name, first in graph.canonical_names(model).items():
        (inside if name.startswith(f"{path}.") else outside).add(first)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in inside}
    inner = [group.name for group in groups.free if {slot.parameter for slot in group.slots} <= inside]

    def known_inside(layer: Layer) -> bool:
        spans = (layer.inputs, layer.outputs)
        return not any(s.terms for s in spans) or any(s.terms and not s.fixed and s.groups <= set(inner) for s in spans)

    layers = [layer for layer in groups.layers if layer.weight in parameters]
    scalars = any(parameter.ndim == 0 for parameter in parameters.values())
    if not inner or inside & outside or scalars or not all(map(known_inside, layers)):
        return None
    return Block(path, tuple(inner), tuple(parameters))


def _hands_through(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> bool:
    match args, output:
        case (Tensor() as x, *others), Tensor() if x.shape == output.shape:
            silent = copy.deepcopy(module)
            with torch.no_grad():
                for parameter in silent.parameters():
                    parameter.zero_()
                # At any size: a clamp hands through what is small.
                return all(torch.allclose(silent(y.clone(), *others, **named), y) for y in (x, 1e3 * x))
    return False


class Through(nn.Identity):
    """What is left of a removed block: hands its first argument through, whatever else it is given."""

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:  # noqa: A002 - its name in nn.Identity
        return input


def _scaled(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`model` with the statistics of its batch-norms as large as what reaches them: in a deep network the signal would vanish
    beside the biases, and every error with it."""

    def adapt(module: nn.Module, given: tuple[Any, ...]) -> None:
        scale = given[0].square().mean().clamp(min=1e-12)
        module.running_var.mul_(scale / module.running_var.mean())  # type: ignore[operator]
        module.running_mean.mul_(scale.sqrt())  # type: ignore[operator]

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    hooks = [norm.register_forward_pre_hook(adapt) for norm in norms]
    with torch.no_grad():
        model(*_probe(model, inputs))
    for hook in hooks:
        hook.remove()
    return model


def _attending(model: nn.Module, groups: Groups) -> list[str]:
    """The free groups of modules that know the width of a head, which a cut may change by mistake."""
    paths = [f"{path}." for path, module in model.named_modules() if any(hasattr(module, name) for name in WIDTHS)]
    return [g.name for g in groups.free if any(s.parameter.startswith(path) for s in g.slots for path in paths)]


def _visible(
    model: nn.Module, groups: Groups, group: Group, probe: tuple[Tensor, ...], whole: Sequence[Tensor]
) -> bool:
    """Whether masking one half of a group or the other, since units may be silent here, moves the outputs by more than a cut
    may; `whole` are those of the unmasked model."""
    for first in (0, 1):
        masked = _masked(model, graph.recipe(groups, {group.name: range(first, group.width, 2)}))
        with torch.no_grad():
            pairs = zip(whole, tensors(masked(*probe)), strict=True)
        if any(
            (a.double() - b.double()).abs().max() > 2 * TOLERANCE * a.double().abs().max()
            for a, b in pairs
            if a.is_floating_point() and a.numel()
        ):
            return True
    return False


def _probe(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The example inputs made random where they are real numbers, since those may be all alike; as they are where the model
    answers that with NaN or infinity."""
    random = torch.Generator().manual_seed(0)
    noisy = tuple(x + torch.randn(x.shape, generator=random).to(x) if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        finite = all(bool(torch.isfinite(out).all()) for out in tensors(model(*noisy)) if out.is_floating_point())
    return noisy if finite else inputs


def _trial(model: nn.Module, groups: Groups, inputs: tuple[Tensor, ...], names: list[str]) -> str | None:
    """Cut these groups, each to a share of its own, since what only fits at one share does not fit; None when the cut proves
    itself, else why it does not."""
    shares = {name: TRIALS[place % len(TRIALS)] for place, name in enumerate(names)}
    keep = {
        g.name: tuple(range(0, g.width, 2))[: max(1, round(shares[g.name] * g.width))]
        for g in groups.groups
        if g.name in shares and g.width > 1
    }
    try:
        cut(model, graph.recipe(groups, keep), inputs)
    except CutError as error:
        return f"a trial cut fails: {error}"
    return None


def randomised(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode with random parameters and buffers of a sane scale, the same on every call.

    Buffers that are in no state dict stay: they are the code's own constants, such as a filterbank that has to be positive.
    """
    random = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).eval()
    stored = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or name not in stored:
                continue
            noise = torch.rand(tensor.shape, generator=random)
            if tensor.ndim < 2:  # scales and variances: positive, near one
                tensor.copy_(0.1 * noise if name.endswith(("bias", "mean")) else 0.5 + noise)
            else:
                fan_in = tensor[0].numel()
                tensor.copy_(
                    (noise - 0.5) * (24 / fan_in) ** 0.5
                )  # variance 2/fan_in: a ReLU takes half (He et al. 2015)
    return model


def cut(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of `model` with only the indices of `recipe` kept, proved against the masked original on `inputs`.

    Cutting channels must equal zeroing them (methods: DepGraph's consistency, checked numerically): outputs agree to
    1e-4 of the largest output, or `CutError` says what differs.
    """
    small = sliced(model, recipe)
    prove(model, small, recipe, inputs)
    return small


def sliced(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of `model` with only the indices of `recipe` kept, not proved: enough to measure latency with.

    A module of whose parameters none keeps anything hands its input through.
    """
    model = opened(model)
    small = copy.deepcopy(model)
    names = graph.canonical_names(model)
    for path in _emptied(model, recipe, names):
        small.set_submodule(path, Through())
    done: dict[str, nn.Parameter] = {}  # parameters shared by several modules stay shared
    for path, module in small.named_modules():
        touched = False
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            canonical = names.get(_joined(path, name), "")  # a buffer may not be persistent
            dims = recipe.get(canonical)
            if not dims:
                continue
            if isinstance(tensor, nn.Parameter):
                if canonical not in done:
                    done[canonical] = nn.Parameter(_slice(tensor.detach(), dims), requires_grad=tensor.requires_grad)
                setattr(module, name, done[canonical])
            else:
                setattr(module, name, _slice(tensor, dims))
            touched = True
        if touched:
            _refresh(module, model.get_submodule(path))
    for path, module in small.named_modules():
        _refresh_heads(module, *_projected(model.get_submodule(path), path, names, recipe))
    return small


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _projected(module: nn.Module, path: str, names: Mapping[str, str], recipe: Recipe) -> tuple[Sequence[int], int]:
    """The outputs that a module's first linear layer keeps, and how many there were."""
    if isinstance(module, Attention):
        weight, dim = ("q" if module.in_proj_weight is None else "in") + "_proj_weight", 0
        size: int = module.get_parameter(weight).shape[0]
    else:
        children = ((n, m) for n, m in module.named_children() if isinstance(m, nn.Linear) or _is_transposed(m))
        name, child = next(children, ("", None))
        if child is None:
            return (), 0
        weight = f"{name}.weight"
        dim, size = (1, child.nf) if _is_transposed(child) else (0, child.out_features)  # type: ignore[assignment]
    canonical = names.get(_joined(path, weight), "")  # a computed weight has another name
    return recipe.get(canonical, {}).get(dim, range(size)), size


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D`, a linear layer whose weight is (inputs, outputs), as GPT-2 has it."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor) and weight.ndim == 2
    )


# Names that attention modules have for the width of a head, for their number of heads, and for both together.
WIDTHS = ("head_dim", "head_size", "head_width", "attention_head_size", "dim_head", "dim_per_head", "d_head")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "nhead")
BOTH = ("all_head_size", "inner_dim", "split_size")


def _refresh_heads(module: nn.Module, projected: Sequence[int], size: int) -> None:
    """Make what an attention module knows of its heads follow the outputs that its first linear layer keeps, of `size`.

    Those may be queries, or keys and values with them in any order: every number of heads shrinks as they do. A guess by
    names, which the proof of the cut judges.
    """
    name = next((name for name in WIDTHS if isinstance(getattr(module, name, None), int)), None)
    if name is None:
        return
    width = getattr(module, name)
    places = Counter(index // width for index in projected)
    if size % width or len(set(places.values())) != 1:
        return
    setattr(module, name, next(iter(places.values())))
    shares = dict.fromkeys(HEADS, (len(places), size // width)) | dict.fromkeys(BOTH, (len(projected), size))
    for attribute, (kept, whole) in shares.items():
        before = getattr(module, attribute, None)
        if isinstance(before, int):
            setattr(module, attribute, before * kept // whole)


def _emptied(model: nn.Module, recipe: Recipe, names: Mapping[str, str]) -> list[str]:
    """The outermost modules of whose parameters nothing is kept."""
    found: list[str] = []
    for path, module in model.named_modules():
        own = [names[f"{path}.{name}"] for name, _ in module.named_parameters()] if path else []
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if own and not inside and all(() in recipe.get(name, {}).values() for name in own):
            found.append(path)
    return found


def _slice(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    for dim, indices in dims.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.long))
    return tensor.clone()


def _refresh(module: nn.Module, before: nn.Module) -> None:
    """Make a module's size attributes follow the shapes of its sliced parameters."""
    attributes: Any = module
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        attributes.out_channels = module.weight.shape[0]
        if module.groups > 1:
            attributes.groups = module.groups * module.weight.shape[0] // before.weight.shape[0]  # type: ignore[index]
        attributes.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        attributes.in_channels = module.weight.shape[0]
        if module.groups > 1:
            attributes.groups = module.groups * module.weight.shape[0] // before.weight.shape[0]  # type: ignore[index]
        attributes.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        attributes.out_features, attributes.in_features = module.weight.shape
    elif _is_transposed(module):
        attributes.nx, attributes.nf = module.get_parameter("weight").shape
    elif isinstance(module, nn.Embedding):
        attributes.num_embeddings, attributes.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        weights = dict(module.named_parameters())
        attributes.hidden_size = weights["weight_hh_l0"].shape[1]
        attributes.input_size = weights["weight_ih_l0"].shape[1]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        size = next(t for t in (module.weight, module.running_mean) if t is not None).shape[0]
        attributes.num_features = size
    elif isinstance(module, nn.GroupNorm):
        channels = module.weight.shape[0]
        attributes.num_groups = module.num_groups * channels // module.num_channels
        attributes.num_channels = channels
    elif isinstance(module, nn.PReLU):
        attributes.num_parameters = module.weight.shape[0]


def prove(model: nn.Module, small: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> None:
    """Compare `small` with `model` whose removed channels are zeroed; `CutError` unless all outputs agree, and where they
    could not differ."""
    masked = _masked(model, recipe).eval()
    inputs = _probe(masked, inputs)
    with torch.no_grad():
        expected = masked(*inputs)
        try:
            got = small.eval()(*inputs)
        except (
            Exception
        ) as error:  # whatever the user's forward raises on the new sizes is the reason to refuse the cut
            raise CutError(f"the cut network's forward raises {type(error).__name__}: {first_line(error)}") from error
    outputs, answers = tensors(expected), tensors(got)
    if len(outputs) != len(answers):
        raise CutError(f"the cut network has {len(answers)} outputs, not {len(outputs)}")
    if not any(_tells(out) for out in outputs):
        raise CutError("the outputs are whole numbers or all alike, which proves nothing; return the logits")
    for i, (wanted, value) in enumerate(zip(outputs, answers, strict=True)):
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


def _tells(output: Tensor) -> bool:
    """Whether an output could differ: real numbers that are not all alike."""
    return output.is_floating_point() and bool(output.numel() == 1 or (output.numel() and output.max() > output.min()))


def _masked(model: nn.Module, recipe: Recipe) -> nn.Module:
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in masked.named_parameters():
            for dim, kept in (recipe.get(name) or {}).items():
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                gone[list(kept)] = False
                tensor.index_fill_(dim, gone.nonzero().flatten(), NOTHING)
    return masked


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors in what a model returned, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`model`, with the channels of its images last in memory where it takes that: most convolutions are quicker so.

    Their weights say how activations are laid out. What takes those apart with `view` raises then, whether in training, in
    evaluation or backwards, and what hands images out would hand these to the user's code: both stay as they were.
    """
    trial = convert_conv2d_weight_memory_format(copy.deepcopy(model), torch.channels_last)
    try:
        outputs = tensors(trial.train()(*inputs))
        sum(output.sum() for output in outputs if output.requires_grad).backward()  # type: ignore[union-attr]
        with torch.no_grad():
            outputs += tensors(trial.eval()(*inputs))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
        return model  # what is wrong otherwise shows in training
    if not all(output.is_contiguous() for output in outputs):
        return model
    return convert_conv2d_weight_memory_format(model, torch.channels_last)


def channels_first(model: nn.Module) -> nn.Module:
    """`model`, laid out as everybody expects."""
    return convert_conv2d_weight_memory_format(model, torch.contiguous_format)


def first_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""


def parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------- preprocessing


def preprocessed(model: nn.Module, preprocess: Preprocess) -> nn.Module:
    """`model`, changed so that its first input is scaled and normalised inside it; parameters keep their names.

    A hook and two buffers that are in no state dict: export, copies and cuts take them along.
    """
    model.register_buffer("preprocess_factor", torch.tensor(preprocess.factor), persistent=False)
    model.register_buffer("preprocess_shift", torch.tensor(preprocess.shift), persistent=False)
    model.register_forward_pre_hook(_Normalise(preprocess))
    return model


@dataclass(frozen=True)
class _Normalise:
    """The hook; remembers what it was made from."""

    preprocess: Preprocess

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, *others = inputs
        factor, shift = module.get_buffer("preprocess_factor"), module.get_buffer("preprocess_shift")
        shape = (-1, *(1,) * (first.ndim - 2))
        return (first.float() * factor.view(shape) + shift.view(shape), *others)


def _preprocess(model: nn.Module) -> Preprocess | None:
    """What `preprocessed` made of this model, or None."""
    hooks = (hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Normalise))
    return next((hook.preprocess for hook in hooks), None)


# ------------------------------------------------------------------------------------------------ save and load


def save(path: Path, model: nn.Module, recipe: Recipe) -> None:
    """Write a cut network: its tensors as safetensors, the kept indices and its preprocessing in the file's metadata.

    Shared tensors are written once. `load` brings the file back.
    """
    shared = _shared_names(model)
    own = {name: t.contiguous() for name, t in model.state_dict().items() if name not in shared}
    text = json.dumps({name: {str(dim): list(kept) for dim, kept in dims.items()} for name, dims in recipe.items()})
    metadata = {"edgeprune": "1", "recipe": text}
    preprocess = _preprocess(model)
    if preprocess is not None:
        metadata["preprocess"] = json.dumps(asdict(preprocess))
    save_file(own, path, metadata=metadata)


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Bring a cut network back: `model` is a fresh unpruned one, `path` a file that `save` wrote.

    Returns a cut copy with the saved weights and the preprocessing, if there is one, in eval mode. Raises `UsageError` when
    the file is no such file or does not belong to this model.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as safetensors: {first_line(error)}") from error
    if metadata.get("edgeprune") != "1":
        raise UsageError(f"{path}: holds no kept indices; give a file that edgeprune wrote (pruned.safetensors)")
    try:
        kept = {
            name: {int(dim): tuple(indices) for dim, indices in dims.items()}
            for name, dims in json.loads(metadata["recipe"]).items()
        }
        small = sliced(model, kept)
        if "preprocess" in metadata and _preprocess(small) is None:
            known = json.loads(metadata["preprocess"])
            preprocessed(small, Preprocess(tuple(known["mean"]), tuple(known["std"]), known["scale"]))
        missing, unexpected = small.load_state_dict(stored, strict=False)
    except (RuntimeError, IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: does not belong to this model: {first_line(error)}") from error
    aliases = {name for name in missing if name in _shared_names(small)}
    if unexpected or set(missing) - aliases:
        first = [*unexpected, *(set(missing) - aliases)][0]
        raise UsageError(f"{path}: does not belong to this model: tensor {first!r} is not in both")
    return small.eval()


def _shared_names(model: nn.Module) -> set[str]:
    """Names of tensors that another name already stands for."""
    seen: set[int] = set()
    shared = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        (shared.add(name) if id(tensor) in seen else seen.add(id(tensor)))
    return shared
