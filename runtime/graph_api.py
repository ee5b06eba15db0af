"""What the runtime asks of CUDA graphs, and what torch.cuda gives. Behind a protocol, so that all above it is tested without a
GPU.

A capture runs Python and enqueues nothing: kernels are noted with the addresses they would have been launched with. Only a
replay executes them. Every capture of a backend on one device allocates from one pool, so replays must not overlap in time; on
one CUDA stream they do not, and ``follow`` makes another CUDA stream wait for the one before it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import cuda

from taylorseer_fx.compat import current_cuda_stream, end_allocation_to_pool

T = TypeVar("T")


def cuda_stream_reader(device: torch.device) -> Callable[[], int]:
    """Tells one current CUDA stream of ``device`` from another; cheap, and 0 where there are none."""
    if device.type != "cuda":
        return lambda: 0
    index = device.index
    return lambda: current_cuda_stream(cuda.current_device() if index is None else index)


def is_capturing(device: torch.device) -> bool:
    """Is the caller capturing a CUDA graph on the current CUDA stream?"""
    return device.type == "cuda" and bool(cuda.is_current_stream_capturing())


class Graph(Protocol):
    """A capture that can be executed."""

    def replay(self) -> None:
        """Enqueue it on the current CUDA stream."""
        ...


class GraphApi(Protocol):
    """A way to capture and replay what a function does on a device of type ``device_type``."""

    device_type: str

    def is_capturing(self) -> bool:
        """Is the caller capturing a graph of its own on the current CUDA stream?"""
        ...

    def warm_up(self, device: torch.device, run: Callable[[], T]) -> T:
        """Execute ``run`` as it will be captured: on the CUDA stream of captures, in order with the current one."""
        ...

    def capture(self, device: torch.device, run: Callable[[], T], make_room: bool) -> tuple[Graph, T]:
        """What ``run`` does as a graph, and what it returned: tensors in the pool, with nothing in them before a replay.

        Whatever ``run`` raises is raised, with the capture ended and the current CUDA stream as it was.

        ``make_room``: hand unused memory back first, for the pool may grow.
        """
        ...

    def follow(self, device: torch.device) -> None:
        """What the current CUDA stream does from now on comes after what other CUDA streams did with the pool."""
        ...


@dataclass
class _Place:
    """The CUDA stream of captures on one device, their pool, and who used it last."""

    side: Any
    pool: Any
    last: Any = None
    alive: "WeakSet[Any]" = field(default_factory=WeakSet)  # graphs in the pool
    broken: list[Any] = field(default_factory=list)


class CudaGraphApi:
    """The real one, over ``torch.cuda.CUDAGraph``."""

    device_type = "cuda"

    def __init__(self) -> None:
        self._places: dict[torch.device, _Place] = {}

    def is_capturing(self) -> bool:
        return bool(cuda.is_current_stream_capturing())

    def warm_up(self, device: torch.device, run: Callable[[], T]) -> T:
        with cuda.device(device):
            place, current = self._place(device), cuda.current_stream()
            place.side.wait_stream(current)
            try:
                with cuda.stream(place.side):
                    return run()
            finally:
                current.wait_stream(place.side)

    def capture(self, device: torch.device, run: Callable[[], T], make_room: bool) -> tuple[Graph, T]:
        """Not by ``torch.cuda.graph``: where ending a capture fails, that leaves the capturing CUDA stream the current one."""
        with cuda.device(device):
            if make_room:
                cuda.synchronize()
                cuda.empty_cache()
            place, current = self._place(device), cuda.current_stream()
            if not place.alive:  # of a pool without graphs torch gives the memory back and forgets the handle
                place.pool = cuda.graph_pool_handle()
            place.side.wait_stream(current)
            graph: Any = cuda.CUDAGraph()
            with cuda.stream(place.side):
                try:
                    # Other threads may allocate meanwhile, which the default mode would take for an error.
                    graph.capture_begin(pool=place.pool, capture_error_mode="thread_local")
                    result = run()
                    graph.capture_end()
                except BaseException:
                    _abandon(graph, place, device)
                    raise
            current.wait_stream(place.side)
            place.alive.add(graph)
            return graph, result

    def follow(self, device: torch.device) -> None:
        place, current = self._place(device), cuda.current_stream(device)
        if place.last is not None and place.last != current:
            current.wait_stream(place.last)
        place.last = current

    def _place(self, device: torch.device) -> _Place:
        place = self._places.get(device)
        if place is None:
            place = self._places[device] = _Place(_new_cuda_stream(device), cuda.graph_pool_handle())
        return place


def _new_cuda_stream(device: torch.device) -> Any:
    make: Callable[..., Any] = cuda.Stream
    return make(device)


def _abandon(graph: Any, place: _Place, device: torch.device) -> None:
    """End a capture that failed. Where CUDA takes it for invalid, torch stops half-way: the allocator is still told to allocate
    from the pool, by a function that refers to the graph. So the graph is kept, and later captures get another pool.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        place.broken.append(graph)
        with suppress(RuntimeError):
            end_allocation_to_pool(cuda.current_device() if device.index is None else device.index, place.pool)
        place.pool = cuda.graph_pool_handle()
