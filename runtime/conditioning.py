"""Read the conditioning of a call without waiting for a device: the identity of its tensors, and small values on the host.

A pipeline gives the same prompt to every step, so tensors that recur identify the calls that belong together:

    step 0:  model(x0, t0, cond)   model(x0, t0, uncond)        two streams
    step 1:  model(x1, t1, cond)   model(x1, t1, uncond)        each identified by its recurring tensor

A tensor recurs if its storage, its offset there and its version are the same. Conditioning that is made anew on a device for
every call identifies nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from taylorseer_fx.passes.call_inputs import CallInputs

# Tensors of up to this many elements are compared by value where they lie on the host: class labels, or a guidance scale.
FEW_INTEGERS = 256
FEW_FLOATS = 4


@dataclass(frozen=True)
class Value:
    """A small tensor on the host, by value."""

    shape: tuple[int, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Held:
    """A tensor by its identity. The reference is weak, and keeps another storage from taking the same address."""

    storage: StorageWeakRef
    offset: int
    shape: tuple[int, ...]
    version: int


Content = Value | Held
Key = tuple[int, int]  # a graph's number, and the position of one of its inputs
Conditioning = Mapping[Key, Content]


def content_of(tensor: Tensor, is_part: bool = False) -> Content | None:
    """The content of ``tensor``; None if it has no storage to identify it by. Within a model (``is_part``) floating-point numbers
    are intermediate results, new in every step.
    """
    few = FEW_INTEGERS if not tensor.is_floating_point() else 0 if is_part else FEW_FLOATS
    if tensor.device.type == "cpu" and tensor.numel() <= few:
        values = tensor.detach().reshape(-1).tolist()
        return Value(tuple(tensor.shape), tuple(None if value != value else value for value in values))
    return identity_of(tensor)


def identity_of(tensor: Tensor) -> Held | None:
    """The identity of ``tensor`` as an object, whatever its values."""
    try:
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # sparse tensors, some subclasses
        return None
    version = 0 if tensor.is_inference() else tensor._version
    return Held(storage, int(tensor.storage_offset()), tuple(tensor.shape), version)


def read_conditioning(number: int, args: Sequence[Any], inputs: CallInputs) -> dict[Key, Content]:
    """The contents of the inputs of graph ``number``; for samples, which change with every step, only the part of a larger
    tensor that each is (a window of the latents).
    """
    found: dict[Key, Content] = {}
    for position in inputs.conditioning:
        content = content_of(args[position], inputs.is_part)
        if content is not None:
            found[number, position] = content
    for position in inputs.samples:
        found[number, position] = Value((), (args[position].storage_offset(),))
    return found


@dataclass(frozen=True)
class Sample:
    """A sample of a call: its shape, and its identity, None if it may have been changed in place since."""

    shape: tuple[int, ...]
    identity: Held | None


def is_same_sample(before: Sequence[Sample], now: Sequence[Sample]) -> bool:
    """Is the very same sample passed again, so that it is the same step?"""
    return bool(now) and all(sample.identity is not None for sample in now) and before == now


def read_samples(args: Sequence[Any], samples: Sequence[int]) -> tuple[Sample, ...]:
    """The samples among the inputs of a call. Under inference mode changes in place leave no mark."""
    tensors = [args[position] for position in samples]
    return tuple(Sample(tuple(x.shape), None if x.is_inference() else identity_of(x)) for x in tensors)


def still_fits(known: Conditioning, now: Conditioning) -> bool:
    """Is a call given ``now`` given all of ``known``? Where a graph was compiled anew, its inputs have other keys."""
    there = set(now.values())
    return all(now[key] == content if key in now else content in there for key, content in known.items())


def in_common(known: Conditioning, now: Conditioning) -> dict[Key, Content]:
    """The part of ``now`` that it shares with ``known``, under the keys of ``now``."""
    there = set(known.values())
    return {key: content for key, content in now.items() if (known[key] == content if key in known else content in there)}
