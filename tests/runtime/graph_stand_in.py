"""CUDA graphs without CUDA: as much of ``torch.cuda`` as ``CudaGraphApi`` uses, over the memory of the CPU.

Faithful where it matters. A capture notes the operators of a function and where in memory they worked. It executes nothing: what
it wrote into tensors that were there before is undone, and what it made holds garbage until a replay. A replay reads and writes
the memory of the capture, wherever the caller's tensors are by then. The memory of all graphs is one pool: a replay leaves
garbage in what the others made, and so does a graph that goes in what it made. The host cannot wait for the device.

What torch does to captures, too. A library has a handle for each thread, made outside of captures only, and scratch memory for
each handle and CUDA stream, which is freed when a graph captured there goes. A capture that is invalid leaves the allocator
allocating from its pool, and the default generator capturing (torch 2.11), so that nobody else may use it.
"""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from taylorseer_fx.runtime.graph_api import CudaGraphApi

WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu")


def _bytes(value: Tensor) -> Tensor:
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def storage_address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def tensors_in(values: Any) -> list[Tensor]:
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
class Scratch:
    """Memory of a library; ``pool`` is that of the capture that it was allocated in, None of the ordinary one."""

    pool: int | None
    is_dropped: bool = False


class FakeStream:
    """A CUDA stream: what it waits for is noted."""

    def __init__(self, cuda: "FakeCuda", name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"wait for {self.name}")


class RecordedGraph:
    """The operators of a capture. It keeps alive what it made, and nothing that it was given."""

    cuda: "FakeCuda"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, list[Tensor]]] = []
        self.made: list[Tensor] = []
        self.scratch: list[Scratch] = []
        self.is_invalid = False
        self.pool: int | None = None
        self.recorder: _Recorder | None = None

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.pool = pool
        self.cuda.begin(self)
        self.recorder = _Recorder(self)
        self.recorder.__enter__()

    def capture_end(self) -> None:
        if self.recorder is None:
            raise RuntimeError("CUDA error: the stream was not capturing")
        self.recorder.__exit__(None, None, None)
        self.recorder.undo()
        self.recorder = None
        self.cuda.end(self)

    def reset(self) -> None:
        self.calls.clear()

    @torch.inference_mode()
    def replay(self) -> None:
        self.cuda.is_replaying = True
        if self.cuda.replayed is not self.made:
            _spoil(self.cuda.replayed)
            self.cuda.replayed = self.made
        self.cuda.log.append("replay")
        assert not any(map(self.cuda.is_freed, self.scratch)), "a replay writes into memory that was freed"
        for function, arguments, results in self.calls:
            leaves, spec = arguments
            args, kwargs = tree_unflatten([leaf.tensor() if isinstance(leaf, _Address) else leaf for leaf in leaves], spec)
            new = function(*args, **kwargs)
            for result, value in zip(results, tensors_in(new) if results else (), strict=True):
                result.copy_(value)
        self.cuda.is_replaying = False


def _spoil(made: list[Tensor]) -> None:
    for value in made:
        _bytes(value).fill_(0xFF)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph
        self.own: set[int] = set()
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, cuda = kwargs or {}, self.graph.cuda
        if function._schema.name in WAITS or function._schema.name == cuda.refuses:
            cuda.invalidate("operation not permitted when stream is capturing\nmore of it")
        if function._schema.name in PRODUCTS:
            cuda.use_scratch()
        given = {storage_address(value) for value in tensors_in((args, kwargs))}
        for spec, value in zip(function._schema.arguments, args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write and storage_address(value) not in self.own:
                self.before.append((_bytes(value), _bytes(value).clone()))
        result = function(*args, **kwargs)
        fresh = [value for value in tensors_in(result) if storage_address(value) not in given]
        self.own |= {storage_address(value) for value in fresh}
        self.graph.made += fresh
        writes = any(spec.alias_info is not None and spec.alias_info.is_write for spec in function._schema.arguments)
        if fresh or writes:  # a view has nothing to execute
            leaves, spec = tree_flatten((args, kwargs))
            given_as = [_Address.of(x) if isinstance(x, Tensor) and storage_address(x) not in self.own else x for x in leaves]
            self.graph.calls.append((function, (given_as, spec), fresh))
        return result

    def undo(self) -> None:
        for memory, content in reversed(self.before):
            memory.copy_(content)
        _spoil(self.graph.made)


class FakeCuda:
    """In place of ``torch.cuda``. ``refuses`` names an operator that no capture may hold."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refuses = ""
        self.main = self.current = FakeStream(self, "main")
        self.num_streams = self.num_pools = 0
        self.alive: WeakSet[RecordedGraph] = WeakSet()
        self.users: dict[int, int] = {}  # of each pool
        self.allocating: list[int] = []  # the pools that the allocator was told to allocate from
        self.is_replaying = False  # what is done by now is done on the device
        self.capturing: RecordedGraph | None = None
        self.replayed: list[Tensor] = []  # what the last replay made; all else in the pool is spoiled already
        self.generator_is_capturing = False
        self.handles: set[int] = set()  # by thread
        self.scratch: dict[tuple[int, FakeStream], Scratch] = {}
        self.drops_scratch = True  # when a graph goes, since torch 2.12
        self.CUDAGraph = type("Graph", (RecordedGraph,), {"cuda": self})

    # What is called of torch.cuda

    def Stream(self, device: Any) -> FakeStream:  # noqa: N802
        self.num_streams += 1
        return FakeStream(self, f"side {self.num_streams}")

    def graph_pool_handle(self) -> int:
        self.num_pools += 1
        return self.num_pools

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def current_stream(self, device: Any = None) -> FakeStream:
        return self.current

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def empty_cache(self) -> None:
        self.log.append("empty cache")

    # Captures

    def begin(self, graph: RecordedGraph) -> None:
        pool = graph.pool
        assert pool is not None
        assert self.capturing is None
        assert pool not in self.allocating, "already recording to this pool"
        assert self.users.get(pool) != 0, "this pool was forgotten"
        self.log.append(f"begin in pool {pool} on {self.current.name}")
        self.capturing, self.generator_is_capturing = graph, True
        self.users[pool] = self.users.get(pool, 0) + 1
        self.allocating.append(pool)

    def end(self, graph: RecordedGraph) -> None:
        self.log.append("end")
        self.capturing = None
        if graph.is_invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.generator_is_capturing = False
        self.allocating.remove(graph.pool)
        self.alive.add(graph)
        weakref.finalize(graph, self.destroyed, graph.pool, self.current, graph.made)

    def invalidate(self, message: str) -> None:
        assert self.capturing is not None
        self.capturing.is_invalid = True
        raise RuntimeError(f"CUDA error: {message}")

    def release(self, pool: int) -> None:
        """Ends allocating from a pool, and lets go of it."""
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)
        self.users[pool] -= 1

    def destroyed(self, pool: int, stream: FakeStream, made: list[Tensor]) -> None:
        self.log.append("destroyed")
        self.users[pool] -= 1
        _spoil(made)
        for key in [key for key in self.scratch if key[1] is stream and self.drops_scratch]:
            self.scratch.pop(key).is_dropped = True

    # Libraries and the default generator

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """By a library, as a kernel that a function calls."""
        if get_ident() not in self.handles:
            if self.capturing is not None:
                self.invalidate("CUBLAS_STATUS_NOT_INITIALIZED")
            self.handles.add(get_ident())
        self.use_scratch()
        return x * y

    def use_scratch(self) -> None:
        pool = self.capturing.pool if self.capturing is not None else None
        scratch = self.scratch.setdefault((get_ident(), self.current), Scratch(pool))
        if self.capturing is not None:
            self.capturing.scratch.append(scratch)

    def clear_scratch(self) -> None:
        """As a function compiled with mode="reduce-overhead" does when it records, of the whole process."""
        for scratch in self.scratch.values():
            scratch.is_dropped = True
        self.scratch.clear()

    def is_freed(self, scratch: Scratch) -> bool:
        """Given to somebody else, who may be anybody; of a pool, another capture at most, as long as there is one."""
        return scratch.is_dropped if scratch.pool is None else self.users[scratch.pool] == 0

    def draw(self) -> None:
        """A random number of the default generator, as in torch 2.11."""
        if self.generator_is_capturing and self.capturing is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")


class StandIn(CudaGraphApi):
    """``CudaGraphApi`` itself, over ``FakeCuda`` and for the CPU."""

    device_type = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.cuda = FakeCuda()
        self.user_is_capturing = False

    def is_capturing(self, device: torch.device) -> bool:
        return self.user_is_capturing

    @property
    def steps(self) -> list[str]:
        """What was done, less the waits and where."""
        return [entry.partition(" in ")[0] for entry in self.cuda.log if "wait" not in entry]

    def _new_stream(self, device: torch.device) -> FakeStream:
        return self.cuda.Stream(device)

    def _release_pool(self, device: torch.device, pool: int) -> None:
        self.cuda.release(pool)
