"""CUDA graphs for both step kinds: a captured step is one launch, a compiled one a launch per kernel.

Workflow, for each variant (the FULL or the FORECAST graph) and each set of input shapes:

1. The first call runs as compiled: libraries load, kernels are tuned. So does the first in another thread that would capture,
   since cuBLAS and cuDNN make a handle for each thread, which no capture may hold.
2. A later call with static inputs (weights and derivative buffers) at addresses that were not captured yet copies the other
   inputs into staging memory, captures the variant over both, and replays the capture. A capture executes nothing, so a full
   step writes its buffers once, whether capturing succeeds or fails.
3. Every other call checks the addresses of its static inputs, copies the other inputs, replays, and copies the outputs.
4. A variant that cannot be captured (known when it was compiled, or found when it was tried) runs as compiled for those shapes;
   the operator and the reason are reported once.

Static inputs. AOTAutograd reports which inputs are weights, and the buffers are ours. Both are read and written in place; all
else is copied: latents, embeddings, timesteps, and our coefficients, so that interval, gaps and orders stay data. Integer
inputs are part of the key, for their values are baked in.

When a capture may be replayed. It holds addresses, no tensors, so it keeps nothing alive. It is replayed only if every static
input of the call is at the address that it had, and shapes, strides, dtypes and integers are those of the capture; the sizes
that the buffers' shapes depend on are part of the key too. Then it does what the compiled variant would do with these inputs,
whatever was freed, moved or allocated anew in between: a buffer of a later generation that happens to lie where an earlier one
lay is right to be used. Weights moved or loaded anew (LoRA, offload, ``.to()``) lead to another capture. All addresses are
compared in every call; the logger ``taylorseer_fx`` at DEBUG (``TORCH_LOGS="+taylorseer_fx"``) reports besides which input moved,
and checks at every replay shapes, strides and dtypes of the static inputs and that staging memory is where it was.

Snapshots take turns: a full step writes over the oldest. A forecast reads the buffers in fixed places, and the coefficients take
turns in their stead, so one capture serves all forecasts of a stream. It adds in another order after each turn, with and without
CUDA graphs alike; a generation begins in the places of the one before, so the same step of each rounds the same. A full step
writes to another place each time, and needs ``order + 1`` captures, unless the newest snapshot were copied about. Captures
cost the time to make them; their memory is that of the largest, since each allocates from what the one before left in the
pool.

Why not Inductor's CUDA graph trees (``torch/_inductor/cudagraph_trees.py``), which come with ``mode="reduce-overhead"``? They
guard outputs instead of copying them: a model output that a multistep scheduler keeps is invalid at the next step (an error,
pytorch #152887, #160281). They decide for each path through the tree of graphs what may be written in place, and ours alternates
between two graphs in an order that the schedule decides. A static input at another address is taken for unexpected: it records
anew under every path, and past a limit gives up for that function, while for us turns of the buffers are the rule. Here two
flat tables do, since both graphs take and leave everything in memory that we own.

Costs. The outputs twice, in bytes and in one small kernel more; the staging memory; and until ``reset()``, a VAE that
runs after the model cannot use the working memory of a step, which is the pool's, nor the buffers of the last run, which are
kept for the next one (``runtime/state.py``).

Limits. It captures no variant with an input on the CPU, on several devices, or with an operator whose output's
shape depends on data. It does not capture while the caller captures (the variant then runs into the caller's graph). Nothing is
captured across devices or shared between backends. Captures are made one at a time.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.runtime.boxed import BoxedCallable
from taylorseer_fx.runtime.capture_errors import describe_failure
from taylorseer_fx.runtime.captures import Capture, ShapeEntry, ShapeKey, form
from taylorseer_fx.runtime.graph_api import GraphApi
from taylorseer_fx.runtime.staging import Staging

log = logging.getLogger(__name__)

MIN_LIMIT = 32  # captures that a backend keeps, however few streams it has
MAX_WASTED = 8  # captures of a variant thrown away unused, in a row, before it is no longer captured

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class CapturePlan:
    """The facts about capturing a variant, found when it was compiled: its inputs that stay in place (weights and buffers) and
    those that do not, its device, and the obstacle, if any.
    """

    static: tuple[int, ...]
    others: tuple[int, ...]
    device: torch.device | None
    obstacle: str = ""


class CudaGraphs:
    """The captures of one backend.

    Args:
        api: how to capture.
        notify: issues a warning, once per topic.
        num_states: returns the most streams' states that were alive at once, each of which needs ``captures_a_state`` captures.
    """

    def __init__(
        self, api: GraphApi, notify: Callable[[str, str], None], captures_a_state: int, num_states: Callable[[], int]
    ) -> None:
        self.api, self.notify = api, notify
        self.lock = threading.RLock()
        self.num_captures = self.num_replays = 0
        self._captures_a_state, self._num_states = captures_a_state, num_states
        self._variants: list[CapturedVariant] = []
        self._uses = itertools.count()

    def wrap(self, name: str, run: BoxedCallable, plan: CapturePlan) -> "CapturedVariant | None":
        """Wrap a variant so that it runs by captures. Returns None if it runs uncaptured, with a warning unless it is simply on
        another kind of device.
        """
        if plan.device is None or plan.device.type != self.api.device_type:
            return None
        variant = CapturedVariant(self, name, run, plan, plan.device)
        self._variants.append(variant)
        if plan.obstacle:
            variant.say_not_captured(plan.obstacle)
            return None
        return variant

    def clear(self) -> None:
        """Give back all captures, their staging memory and their pool."""
        with self.lock:
            for variant in self._variants:
                variant.clear()

    def release(self, addresses: Collection[int]) -> None:
        """Give back the captures over buffers that were at these addresses, which are freed on purpose."""
        with self.lock:
            for variant in self._variants:
                variant.release(frozenset(addresses))

    @property
    def limit(self) -> int:
        """The number of captures to hold: twice those of all streams, whose buffers may lie elsewhere in the next generation."""
        return max(MIN_LIMIT, 2 * (self._captures_a_state * self._num_states() + len(self._variants)))

    @property
    def num_held(self) -> int:
        return sum(len(variant.captures()) for variant in self._variants)

    def describe(self) -> tuple[str, ...]:
        """One line per variant, for people."""
        return tuple(variant.describe() for variant in self._variants)

    def note_capture(self, capture: Capture) -> None:
        """Record a new capture, and drop the least recently used ones above the limit."""
        capture.last_used = next(self._uses)
        self.num_captures += 1
        kept = [(variant, *entry) for variant in self._variants for entry in variant.captures()]
        kept.sort(key=lambda entry: entry[1].last_used)
        for variant, _, key, anchor in kept[: max(len(kept) - self.limit, 0)]:
            variant.discard(key, anchor)

    def note_replay(self, capture: Capture) -> None:
        capture.last_used = next(self._uses)
        capture.num_replays += 1
        self.num_replays += 1


class CapturedVariant:
    """One variant, run by captures."""

    def __init__(self, graphs: CudaGraphs, name: str, run: BoxedCallable, plan: CapturePlan, device: torch.device) -> None:
        self._graphs, self._api, self._name, self._run, self._device = graphs, graphs.api, name, run, device
        self._static, self._others, self._obstacle = list(plan.static), plan.others, plan.obstacle
        self.shapes: dict[ShapeKey, ShapeEntry] = {}

    def __call__(self, inputs: list[Any], sizes: Sizes = ()) -> Sequence[Any]:
        """Run the variant, in torch's boxed convention; ``sizes`` are those that its buffers depend on."""
        if self._api.is_capturing(self._device):
            return self._run(inputs)
        with self._graphs.lock:
            key = (sizes, *[form(inputs[i]) for i in self._others])
            shape = self.shapes.get(key)
            if shape is None:
                shape = self.shapes[key] = ShapeEntry()
            capture = self._find(shape, inputs)
            if capture is None and threading.get_ident() not in shape.threads:
                return self._warm_up(shape, inputs)
            capture = capture or self._capture(shape, inputs)
            if capture is not None:
                return self._replay(capture, inputs)
        return self._run(inputs)

    def clear(self) -> None:
        self._api.finish(self._device)
        self.shapes.clear()

    def release(self, addresses: frozenset[int]) -> None:
        """Drop the captures whose buffers were at these addresses, and staging memory that no capture is left for."""
        if not any(anchor in addresses for _, _, anchor in self.captures()):
            return
        self._api.finish(self._device)
        for shape in self.shapes.values():
            shape.captures = {anchor: capture for anchor, capture in shape.captures.items() if anchor not in addresses}
            shape.staging = shape.staging if shape.captures else None

    def captures(self) -> list[tuple[Capture, ShapeKey, int]]:
        return [(capture, key, anchor) for key, shape in self.shapes.items() for anchor, capture in shape.captures.items()]

    def discard(self, key: ShapeKey, anchor: int) -> None:
        """Drop a capture that was not used for long; the last one of its shapes takes the staging memory with it."""
        shape = self.shapes[key]
        self._drop(shape, anchor)
        if not shape.captures:
            shape.staging = None

    def describe(self) -> str:
        """Describe for people how many captures there are, or why there are none."""
        obstacles = dict.fromkeys(filter(None, (self._obstacle, *(shape.obstacle for shape in self.shapes.values()))))
        count = len(self.captures())
        made = [f"{count} capture{'' if count == 1 else 's'}"] if count or not obstacles else []
        return f"{self._name}: " + "; ".join([*made, *(f"as compiled, since {obstacle}" for obstacle in obstacles)])

    def say_not_captured(self, obstacle: str) -> None:
        self._graphs.notify(f"CUDA graph of {self._name}: {obstacle}", _NOT_CAPTURED.format(name=self._name, obstacle=obstacle))

    def _anchor(self, inputs: list[Any]) -> int:
        """The key of one stream's captures: the address of the last static input, a buffer if there are any."""
        return int(inputs[self._static[-1]].data_ptr()) if self._static else 0

    def _find(self, shape: ShapeEntry, inputs: list[Any]) -> Capture | None:
        """The capture over these very static inputs, with the others in its staging memory."""
        capture = shape.captures.get(anchor := self._anchor(inputs))
        if capture is None:
            return None
        if not capture.is_for(inputs):
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s: static inputs %s moved since the capture", self._name, capture.moved(inputs))
            self._drop(shape, anchor)
            return None
        self._api.follow(self._device)
        capture.staging.fill(inputs)
        return capture

    def _warm_up(self, shape: ShapeEntry, inputs: list[Any]) -> Sequence[Any]:
        outputs = self._run(inputs)
        shape.threads.add(threading.get_ident())
        return outputs

    def _capture(self, shape: ShapeEntry, inputs: list[Any]) -> Capture | None:
        """Make a capture over ``inputs``, with the others in its staging memory. Returns None if it cannot be made."""
        if shape.obstacle:
            return None
        try:
            staging = shape.staging or Staging.of(inputs, [i for i in self._others if isinstance(inputs[i], Tensor)])
            self._api.follow(self._device)
            staging.fill(inputs)
            given = staging.placed(inputs)
            graph, values = self._api.capture(self._device, lambda: self._run(given), not shape.captures)
            capture = Capture.of(graph, values, staging, self._static, inputs)
        except Exception as error:  # whatever the operators raise: the variant still runs as it is
            self._give_up(shape, describe_failure(error))
            return None
        shape.staging, shape.captures[self._anchor(inputs)] = staging, capture
        self._graphs.note_capture(capture)
        log.debug("captured %s: %d captures made, %d held", self._name, self._graphs.num_captures, self._graphs.num_held)
        return capture

    def _replay(self, capture: Capture, inputs: list[Any]) -> list[Any]:
        if log.isEnabledFor(logging.DEBUG):
            capture.check(inputs)
        capture.graph.replay()
        self._graphs.note_replay(capture)
        inputs.clear()
        return capture.outputs.copied()

    def _drop(self, shape: ShapeEntry, anchor: int) -> None:
        capture = shape.captures.pop(anchor, None)
        if capture is None:
            return
        self._api.finish(self._device)
        shape.num_wasted = shape.num_wasted + 1 if capture.num_replays <= 1 else 0  # the first is what it was made for
        if shape.num_wasted >= MAX_WASTED:
            self._give_up(shape, _CHURN.format(count=MAX_WASTED))

    def _give_up(self, shape: ShapeEntry, obstacle: str) -> None:
        self._api.finish(self._device)
        shape.obstacle, shape.staging = obstacle, None
        shape.captures.clear()
        self.say_not_captured(obstacle)


_NOT_CAPTURED = (
    "{name} runs as compiled, without a CUDA graph (one launch per kernel), because {obstacle}. Pass cuda_graphs=False to do "
    "without CUDA graphs and this warning."
)

_CHURN = (
    "its weights or buffers were at other addresses at almost every call, as with offloading: {count} captures in a row were "
    "thrown away unused"
)
