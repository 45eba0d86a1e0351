"""Which tensor of a checkpoint belongs to which name of a model. Checkpoints are written in many ways.

One rule covers wrappers, keys of a checkpoint and parts of a larger network. One prefix of the checkpoint's names is replaced
by one prefix of the model's names, such that every parameter has its tensor. If several prefixes do, it is ambiguous.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError

NAMES_SHOWN = 3  # in a message, of each side
# Modules of torch that wrap one module, by the name that they give it. They may stand anywhere in a name.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

Stored = Mapping[str, Tensor]  # the tensors of a checkpoint by their names there


@dataclass(frozen=True)
class Place:
    """Where a model's tensors are in a checkpoint: the prefix `strip` of names there stands for the prefix `add` here."""

    strip: str
    add: str

    def key(self, name: str) -> str:
        """The name in the checkpoint of a model's tensor. A name without the prefix `add` is nowhere: an empty name."""
        return self.strip + name.removeprefix(self.add) if name.startswith(self.add) else ""

    def __str__(self) -> str:
        return f"{self.strip}* as {self.add}*" if self.add else f"{self.strip}*"


class Slots:
    """The tensors that a model's state dict has."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._computed = {name for name, _ in model.named_buffers()} - set(self.own)
        self._doubles = any(tensor.dtype == torch.float64 for tensor in self.own.values())
        tied: dict[object, list[str]] = {}
        for name, tensor in self.own.items():
            tied.setdefault(_memory(tensor) if tensor.numel() else name, []).append(name)
        self.required = [names for names in tied.values() if not self._is_counter(names[0])]

    def _is_counter(self, name: str) -> bool:
        """Whether a tensor need not be stored: a buffer of whole numbers. The model knows its first value."""
        return name not in self._parameters and not _is_real(self.own[name])

    def is_bookkeeping(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor that the model lacks can be ignored, since it is no parameter.

        It is a buffer that the model computes, or holds whole numbers, or one number in double precision.
        """
        double = tensor.dtype == torch.float64 and tensor.numel() == 1 and not self._doubles
        return name in self._computed or not _is_real(tensor) or double


@dataclass(frozen=True)
class Fitted:
    """A state dict for a model, and how the checkpoint was adapted: short notes."""

    state: dict[str, Tensor]
    notes: tuple[str, ...]


def fitted(where: str, model: nn.Module, stored: Stored) -> Fitted:
    """A checkpoint as a state dict of a model.

    Args:
        where: names the checkpoint in messages.
        model: is not changed, except if its own hooks rename tensors; it is then loaded.
        stored: the tensors of the checkpoint.

    Raises:
        UsageError: the checkpoint belongs to another model, or is ambiguous.
    """
    slots = Slots(model)
    if not slots.required:
        raise UsageError(f"{where}: the model has no parameters; remove the key, or return the model that was trained")
    bare = {_bare(name): tensor for name, tensor in stored.items()}
    for named in (stored, bare) if len(bare) == len(stored) else (stored,):
        complete = [place for place in _places(slots, named) if _is_complete(slots, named, place)]
        if complete:
            found = _adapted(where, slots, named, _chosen(where, slots, named, complete))
            return found if named is stored else replace(found, notes=("names of wrappers removed", *found.notes))
    return _by_hooks(where, model, slots, stored)


# ---------------------------------------------------------------------------------------------------------- places


def _places(slots: Slots, stored: Stored) -> list[Place]:
    """The places where the parameter with the rarest last name may be."""
    keys: dict[str, list[str]] = {}
    for key in stored:
        keys.setdefault(_last(key), []).append(key)
    rarest = min(slots.required, key=lambda names: sum(len(keys.get(_last(name), ())) for name in names))
    return list(dict.fromkeys(_place(name, key) for name in rarest for key in keys.get(_last(name), ())))


def _place(name: str, key: str) -> Place:
    """What remains of both names if their longest common end is removed."""
    own, there = name.split("."), key.split(".")
    common = next((n for n, (a, b) in enumerate(zip(own[::-1], there[::-1], strict=False)) if a != b), None)
    count = min(len(own), len(there)) if common is None else common
    return Place(*("".join(f"{part}." for part in parts[: len(parts) - count]) for parts in (there, own)))


def _is_complete(slots: Slots, stored: Stored, place: Place) -> bool:
    return all(any(place.key(name) in stored for name in names) for names in slots.required)


def _chosen(where: str, slots: Slots, stored: Stored, places: Sequence[Place]) -> Place:
    """The only place whose tensors have the model's shapes. Places with equal tensors count as one."""
    wrong = {place: list(_misshapen(slots, stored, place)) for place in places}
    fitting = [place for place in places if not wrong[place]]
    if not fitting:
        closest = min(places, key=lambda place: len(wrong[place]))
        shapes = [
            f"{name} has the shape {tuple(stored[closest.key(name)].shape)} instead of {tuple(slots.own[name].shape)}"
            for name in wrong[closest]
        ]
        raise UsageError(f"{where}: {_some(shapes)}; give a checkpoint of this model")
    first = max(fitting, key=lambda place: sum(place.key(name) in stored for name in slots.own))
    different = [place for place in fitting if place != first and not _same(slots, stored, first, place)]
    if different:
        shown = _some([str(place) for place in (first, *different)])
        raise UsageError(
            f"{where} is ambiguous: the model's tensors are there as {shown}; save only those that you mean:"
            " safetensors.torch.save_file(tensors, FILE)"
        )
    return first


def _misshapen(slots: Slots, stored: Stored, place: Place) -> Iterator[str]:
    for name, tensor in slots.own.items():
        there = stored.get(place.key(name))
        if there is not None and there.shape != tensor.shape:
            yield name


def _same(slots: Slots, stored: Stored, a: Place, b: Place) -> bool:
    """Whether both places give the model the same parameters."""
    for names in slots.required:
        x, y = (next(stored[place.key(name)] for name in names if place.key(name) in stored) for place in (a, b))
        if x.dtype != y.dtype or not torch.equal(*(t.double() if t.is_floating_point() else t for t in (x, y))):
            return False
    return True


# ------------------------------------------------------------------------------------------------------ state dicts


def _adapted(where: str, slots: Slots, stored: Stored, place: Place) -> Fitted:
    state = {name: stored[place.key(name)] for name in slots.own if place.key(name) in stored}
    for name, tensor in state.items():
        if _is_real(slots.own[name]) and not _is_real(tensor):
            raise UsageError(f"{where}: tensor {name} holds {_dtype(tensor)}; give the weights before quantization")
    used = {place.key(name) for name in state}
    inside = {key: place.add + key.removeprefix(place.strip) for key in stored if key.startswith(place.strip)}
    extra = [key for key in inside if key not in used]
    strange = [key for key in extra if not slots.is_bookkeeping(inside[key], stored[key])]
    if strange:
        raise UsageError(f"{where} {_differs([], strange)}")
    outside = [key for key in stored if key not in inside and _is_real(stored[key])]
    tied = {name: state[other] for names in slots.required for other in names if other in state for name in names}
    filled = [name for name in tied if name not in state]
    kept = [name for name in slots.own if name not in state and name not in tied]
    kinds = {_dtype(t) for name, t in state.items() if _is_real(t) and t.dtype != slots.own[name].dtype}
    notes = (
        (place.strip, f"prefix {place.strip} stripped"),
        (place.add, f"prefix {place.add} added"),
        (filled, f"{_count(filled, 'tied tensor')} filled"),
        (kept, f"{_count(kept, 'counter')} not in the file"),
        (extra, f"{_count(extra, 'bookkeeping tensor')} ignored"),
        (outside, f"{_count(outside, 'other tensor')} ignored: {_some(outside)}"),
        (kinds, f"{', '.join(sorted(kinds))} converted"),
    )
    state = {**slots.own, **{name: tied[name] for name in filled}, **state}
    return Fitted(state, tuple(note for happened, note in notes if happened))


def _by_hooks(where: str, model: nn.Module, slots: Slots, stored: Stored) -> Fitted:
    """The state of a model whose own hooks rename tensors while it loads them, as torch's weight norm does."""
    place = _closest(slots, stored)
    renamed = {place.add + k.removeprefix(place.strip): t for k, t in stored.items() if k.startswith(place.strip)}
    try:
        lacks, has = model.load_state_dict(renamed, strict=False)
    except RuntimeError:  # a shape: names that do not fit are reported first
        lacks, has = [n for n in slots.own if n not in renamed], [n for n in renamed if n not in slots.own]
    missing = [names[0] for names in slots.required if all(name in lacks for name in names)]
    strange = [name for name in has if name not in renamed or not slots.is_bookkeeping(name, renamed[name])]
    if missing or strange or not renamed:
        raise UsageError(f"{where} {_differs(missing, [place.key(name) for name in strange])}")
    stripped = (f"prefix {place.strip} stripped",) if place.strip else ()
    return Fitted(dict(model.state_dict()), (*stripped, "names changed by the model's own hooks"))


def _closest(slots: Slots, stored: Stored) -> Place:
    """The place where most of the model's names are, for a checkpoint that does not have them all."""
    own = [name for names in slots.required for name in names][:100]
    found = Counter(_place(name, key) for name in own for key in stored if _last(name) == _last(key))
    return max(found, key=lambda place: sum(place.key(name) in stored for name in slots.own), default=Place("", ""))


def _differs(missing: Sequence[str], strange: Sequence[str]) -> str:
    lacks = f"lacks {_some(missing)}" if missing else ""
    has = f"has {_some(strange)}, which the model lacks" if strange else ""
    return f"does not fit the model: it {' and '.join(filter(None, (lacks, has)))}; give a checkpoint of this model"


# ------------------------------------------------------------------------------------------------------------ words


def _bare(name: str) -> str:
    """A name without the parts that torch's wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _memory(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
