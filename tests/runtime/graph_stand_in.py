"""A CUDA graph without CUDA: it notes the operators of a function and where in memory they worked, and runs them there again.

Faithful where it matters. A capture executes nothing: what it wrote into tensors that were there before is undone, and what it
made holds garbage until a replay. A replay reads and writes the memory of the capture, wherever the caller's tensors are by then.
The memory of all graphs is one pool: a replay leaves garbage in what the others made. The host cannot wait for the device.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

T = TypeVar("T")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")


def _bytes(value: Tensor) -> Tensor:
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@dataclass(frozen=True)
class _Address:
    """A tensor that a capture was given, as a kernel has it: a place in memory, whatever is there when it runs."""

    start: int
    nbytes: int
    dtype: torch.dtype
    place: tuple[int, tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, value: Tensor) -> "_Address":
        storage = value.untyped_storage()
        place = value.storage_offset(), tuple(value.shape), value.stride()
        return cls(storage.data_ptr(), storage.nbytes(), value.dtype, place)

    def tensor(self) -> Tensor:
        memory = (ctypes.c_char * self.nbytes).from_address(self.start)
        return torch.empty(0, dtype=self.dtype).set_(torch.frombuffer(memory, dtype=torch.uint8).untyped_storage(), *self.place)


@dataclass(eq=False)
class RecordedGraph:
    """The operators of a capture. It keeps alive what it made, and nothing that it was given."""

    api: "StandIn"
    calls: list[tuple[Any, Any, list[Tensor]]] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)

    @torch.inference_mode()
    def replay(self) -> None:
        for other in self.api.alive:
            if other is not self:
                other.spoil()
        self.api.log.append("replay")
        for function, arguments, results in self.calls:
            args, kwargs = tree_map_only(_Address, _Address.tensor, arguments)
            new = function(*args, **kwargs)
            for result, value in zip(results, _tensors(new) if results else (), strict=True):
                result.copy_(value)

    def spoil(self) -> None:
        for value in self.made:
            _bytes(value).fill_(0xFF)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph
        self.own: set[int] = set()
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.name in WAITS or function._schema.name == self.graph.api.refuses:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
        given = {_storage(value) for value in _tensors((args, kwargs))}
        for spec, value in zip(function._schema.arguments, args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write and _storage(value) not in self.own:
                self.before.append((_bytes(value), _bytes(value).clone()))
        result = function(*args, **kwargs)
        fresh = [value for value in _tensors(result) if _storage(value) not in given]
        self.own |= {_storage(value) for value in fresh}
        self.graph.made += fresh
        writes = any(spec.alias_info is not None and spec.alias_info.is_write for spec in function._schema.arguments)
        if fresh or writes:  # a view has nothing to execute
            arguments = tree_map_only(
                Tensor, lambda value: value if _storage(value) in self.own else _Address.of(value), (args, kwargs)
            )
            self.graph.calls.append((function, arguments, fresh))
        return result

    def undo(self) -> None:
        for memory, content in reversed(self.before):
            memory.copy_(content)
        self.graph.spoil()


class StandIn:
    """In place of ``CudaGraphApi``, on the CPU. ``refuses`` names an operator that no capture may hold."""

    device_type = "cpu"

    def __init__(self) -> None:
        self.alive: WeakSet[RecordedGraph] = WeakSet()
        self.log: list[str] = []
        self.refuses = ""
        self.user_is_capturing = False

    def is_capturing(self) -> bool:
        return self.user_is_capturing

    def warm_up(self, device: torch.device, run: Callable[[], T]) -> T:
        self.log.append("warm up")
        return run()

    def capture(self, device: torch.device, run: Callable[[], T], make_room: bool) -> tuple[RecordedGraph, T]:
        self.log.append("capture, with room made" if make_room else "capture")
        graph = RecordedGraph(self)
        recorder = _Recorder(graph)
        try:
            with recorder:
                values = run()
        finally:
            recorder.undo()
        self.alive.add(graph)
        return graph, values

    def follow(self, device: torch.device) -> None:
        self.log.append("follow")
