"""Static input memory for a capture, and copies of its outputs that outlive the next replay.

Tensors of one type are copied by one operator (``_foreach_copy_``), since a call has some ten of them and each launch is host
time.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.compat import foreach_copy_


@dataclass(frozen=True)
class Staging:
    """Static memory for the tensor inputs at some positions, shared by every capture of a variant for one set of shapes.

    An expanded dimension is copied as the one element that it is.
    """

    tensors: dict[int, Tensor]
    groups: tuple[tuple[list[Tensor], Callable[[Sequence[Any]], list[Tensor]]], ...]

    @classmethod
    def of(cls, inputs: Sequence[Any], positions: Sequence[int]) -> "Staging":
        tensors, groups = dict[int, Tensor](), defaultdict[torch.dtype, list[int]](list)
        with torch.inference_mode(False):
            for position in positions:
                value = inputs[position]
                tensors[position] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
                groups[value.dtype].append(position)
        return cls(tensors, tuple(_group(tensors, members) for members in groups.values()))

    def fill(self, inputs: Sequence[Any]) -> None:
        for targets, sources_of in self.groups:
            foreach_copy_(targets, sources_of(inputs))

    @property
    def addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors.values()]

    def placed(self, inputs: Sequence[Any]) -> list[Any]:
        """The ``inputs`` with the staged ones replaced."""
        return [self.tensors.get(i, value) for i, value in enumerate(inputs)]


def _group(tensors: dict[int, Tensor], members: Sequence[int]) -> tuple[list[Tensor], Callable[[Sequence[Any]], list[Tensor]]]:
    targets = [_without_expansion(tensors[i]) for i in members]
    if all(target is tensors[i] for target, i in zip(targets, members, strict=True)):
        return targets, lambda inputs: [inputs[i] for i in members]
    return targets, lambda inputs: [_without_expansion(inputs[i]) for i in members]


def _without_expansion(value: Tensor) -> Tensor:
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    return value


class Outputs:
    """The outputs of a capture. A replay writes over them, so the caller is given copies; other values are given as they are.

    One storage is copied once, with all outputs that are views of it: their aliasing is kept, and so is each one's layout.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._sources: list[Tensor] = []
        self._recipes: list[Callable[[Sequence[Tensor]], Any]] = []
        numbers: dict[int, int] = {}
        storages = [value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)]
        for value in values:
            if not isinstance(value, Tensor):
                self._recipes.append(_constant(value))
                continue
            storage = value.untyped_storage()._cdata
            number = numbers.get(storage)
            whole = storages.count(storage) == 1 and _fills_its_storage(value)
            if number is None:
                number = numbers[storage] = len(self._sources)
                self._sources.append(value if whole else _all_bytes(value))
            self._recipes.append(_itself(number) if whole else _view(number, value))

    def copied(self) -> list[Any]:
        copies = [source.clone() for source in self._sources]
        return [recipe(copies) for recipe in self._recipes]


def _fills_its_storage(value: Tensor) -> bool:
    dense = torch.empty_like(value, device="meta").stride() == value.stride()
    return dense and value.nbytes == value.untyped_storage().nbytes()


def _all_bytes(value: Tensor) -> Tensor:
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _constant(value: Any) -> Callable[[Sequence[Tensor]], Any]:
    return lambda _: value


def _itself(number: int) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda copies: copies[number]


def _view(number: int, value: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
    offset, shape, stride = value.storage_offset(), tuple(value.shape), value.stride()
    empty = torch.empty(0, dtype=value.dtype, device=value.device)
    return lambda copies: empty.new_empty(0).set_(copies[number].untyped_storage(), offset, shape, stride)
