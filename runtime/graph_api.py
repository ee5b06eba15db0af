"""The interface that the runtime needs for CUDA graphs, and its ``torch.cuda`` implementation. It is a protocol, so that all
above it is tested without a GPU.

A capture runs Python and enqueues nothing: kernels are noted with the addresses they would have been launched with. Only a
replay executes them. Every capture of a backend on one device allocates from one pool, so replays must not overlap in time; on
one CUDA stream they do not, and ``follow`` makes another CUDA stream wait for the one before it.

Captures are made on a CUDA stream that nothing else runs on. Libraries keep scratch memory for each pair of a handle and a CUDA
stream (cuBLAS up to 32 MiB), and a capture notes the address of what is there. Torch frees it when a graph captured on that CUDA
stream goes, or whenever a function compiled with ``mode="reduce-overhead"`` records. Scratch memory of the caller's CUDA stream
would then be given to somebody else's tensors while captures still write into it. On a CUDA stream of captures alone, scratch
memory is made inside a capture, from their pool, which stays mapped as long as any of them lives; and as replays do not overlap,
several may have it. Hence a new pool has a new CUDA stream, for which nothing was made in an earlier pool.
"""

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, cuda

from taylorseer_fx.compat import current_cuda_stream, new_cuda_stream, release_pool

T = TypeVar("T")


def cuda_stream_reader(device: torch.device) -> Callable[[], int]:
    """Make a function that identifies the current CUDA stream of ``device``; cheap, and 0 where there are none."""
    if device.type != "cuda":
        return lambda: 0
    index = device.index
    return lambda: current_cuda_stream(cuda.current_device() if index is None else index)


def keep_until_done(tensors: list[Tensor]) -> None:
    """Keep the memory of ``tensors``, once freed, from reuse until the current CUDA stream has done its work up to then."""
    for tensor in tensors:
        tensor.record_stream(cuda.current_stream(tensor.device))


def is_capturing(device: torch.device) -> bool:
    """Is the caller capturing a CUDA graph on the current CUDA stream of ``device``, which need not be the current device?"""
    if device.type != "cuda":
        return False
    with cuda.device(device):
        return bool(cuda.is_current_stream_capturing())


class Graph(Protocol):
    """A capture that can be executed."""

    def replay(self) -> None:
        """Enqueue it on the current CUDA stream."""
        ...


class GraphApi(Protocol):
    """A way to capture and replay what a function does on a device of type ``device_type``."""

    device_type: str

    def is_capturing(self, device: torch.device) -> bool:
        """Is the caller capturing a graph of its own on the current CUDA stream of ``device``?"""
        ...

    def capture(self, device: torch.device, run: Callable[[], T], make_room: bool) -> tuple[Graph, T]:
        """Capture ``run``. Returns the graph and the result of ``run``: tensors in the pool, empty before a replay.

        Whatever ``run`` raises is raised, with the capture ended and the current CUDA stream as it was.

        ``make_room``: hand unused memory back first, for the pool may grow.
        """
        ...

    def follow(self, device: torch.device) -> None:
        """Make the current CUDA stream wait for what other CUDA streams did with the pool so far."""
        ...

    def finish(self, device: torch.device) -> None:
        """Wait for all replays so far, on whichever CUDA stream: called before their memory is freed."""
        ...


@dataclass
class _Place:
    """The CUDA stream of captures on one device, their pool, and who replayed last."""

    side: Any = None
    pool: Any = None
    last: Any = None
    alive: "WeakSet[Any]" = field(default_factory=WeakSet)  # graphs in the pool


class CudaGraphApi:
    """The real one, over ``torch.cuda.CUDAGraph``."""

    device_type = "cuda"
    cuda: Any = cuda

    def __init__(self) -> None:
        self._places: defaultdict[torch.device, _Place] = defaultdict(_Place)
        self._broken: list[Any] = []

    def is_capturing(self, device: torch.device) -> bool:
        return is_capturing(device)

    def capture(self, device: torch.device, run: Callable[[], T], make_room: bool) -> tuple[Graph, T]:
        with self.cuda.device(device):
            if make_room:
                self.cuda.synchronize()
                self.cuda.empty_cache()
            try:
                return self._capture(device, run)
            except BaseException:
                # Torch before 2.13 leaves the default generator capturing, so that its next use fails, until some capture ends.
                with suppress(RuntimeError):
                    self._capture(device, lambda: torch.zeros(1, device=device))
                raise

    def follow(self, device: torch.device) -> None:
        place, current = self._places[device], self.cuda.current_stream(device)
        if place.last is not None and place.last != current:
            current.wait_stream(place.last)
        place.last = current

    def finish(self, device: torch.device) -> None:
        last = self._places[device].last
        if last is not None:
            last.synchronize()  # it came after all others

    def _capture(self, device: torch.device, run: Callable[[], T]) -> tuple[Graph, T]:
        """Capture without ``torch.cuda.graph``, after which the capturing CUDA stream stays current if ending a capture fails."""
        place, current = self._places[device], self.cuda.current_stream()
        if not place.alive:  # of a pool without graphs torch gives the memory back and forgets the handle
            place.side, place.pool = self._new_stream(device), self.cuda.graph_pool_handle()
        place.side.wait_stream(current)
        graph: Any = self.cuda.CUDAGraph()
        with self.cuda.stream(place.side), _no_garbage_collection():
            try:
                # Other threads may allocate meanwhile, which the default mode would take for an error.
                graph.capture_begin(pool=place.pool, capture_error_mode="thread_local")
                result = run()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, place, device)
                raise
        current.wait_stream(place.side)
        place.alive.add(graph)
        return graph, result

    def _abandon(self, graph: Any, place: _Place, device: torch.device) -> None:
        """End a capture that failed. Where CUDA takes it for invalid, torch stops half-way: the allocator still allocates from
        the pool, which is kept for the graph. So does the allocator of pinned memory, by a function that refers to the graph and
        that nobody can take back: hence what is left of the graph is kept.
        """
        try:
            graph.capture_end()
        except RuntimeError:
            self._broken.append(graph)
            with suppress(RuntimeError):
                self._release_pool(device, place.pool)
            graph.reset()

    def _new_stream(self, device: torch.device) -> Any:
        return new_cuda_stream(device)

    def _release_pool(self, device: torch.device, pool: Any) -> None:
        release_pool(device, pool)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off: it may free a graph, an event or pinned memory, by CUDA calls that spoil the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
