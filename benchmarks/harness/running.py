"""A method made ready on a workload, and everything that is seen of its calls."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.bench.workloads import PipelineWorkload

Number = TypeVar("Number", int, float)


class NotInstalledError(Exception):
    """A peer's package is not there; says how to install it."""


@dataclass(frozen=True)
class Case:
    """The task of every method: the workload, a pipeline with its weights, and the steps that should be executed.

    ``tuned``: what methods found out about the workload in runs of their own, so that their other forms need not.
    """

    workload: PipelineWorkload
    original: DiffusionPipeline
    full_steps: tuple[int, ...]
    tuned: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def num_steps(self) -> int:
        return self.workload.num_steps

    def pipeline(self) -> DiffusionPipeline:
        """Another pipeline of the same weights: what is done to its modules is not done to the original's.

        Its class is a new one as well, since one of the peers changes the class.
        """
        cls = type(self.original)
        components = {name: _sharing_copy(component) for name, component in self.original.components.items()}
        pipe = type(cls.__name__, (cls,), {"__module__": cls.__module__})(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _sharing_copy(component: Any) -> Any:
    """Modules anew, their tensors shared."""
    if not isinstance(component, nn.Module):
        return copy.deepcopy(component)
    return copy.deepcopy(component, {id(tensor): tensor for tensor in (*component.parameters(), *component.buffers())})


@dataclass
class Runner:
    """Generates with one method. ``begin`` is called before each run, ``context`` is entered around it."""

    case: Case
    pipe: DiffusionPipeline
    num_steps: int
    backend: TaylorSeerBackend | None = None
    begin: Callable[[], None] = lambda: None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiler: "CountingInductor | None" = None

    def run(self, seed: int = 0, num_steps: int | None = None) -> Tensor:
        """The result of a whole call of the pipeline."""
        self.begin()
        kwargs = self.case.workload.kwargs(num_steps or self.num_steps, seed)
        with torch.no_grad(), self.context():
            result: Tensor = self.pipe(**kwargs)[0]
        return result

    @contextmanager
    def watched(self, before: Callable[[Tensor], object], after: Callable[[], object]) -> Iterator[None]:
        """Inside, ``before(latents)`` and ``after()`` are called around each call of the transformer, compiled or not."""
        transformer = self.pipe.transformer
        handles = [
            transformer.register_forward_pre_hook(
                lambda _module, args, kwargs: _nothing(before(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
            ),
            transformer.register_forward_hook(lambda *_: _nothing(after())),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _nothing(_: object) -> None:
    """A hook that returns something would replace the arguments or the output."""


class Method(Protocol):
    """A way of running a workload. ``prepare`` gets it ready; the first run then compiles what there is to compile.

    ``counted_as``: the method whose eager run shows which steps execute how much, since inside compiled code nothing can be
    counted; None where the backend counts itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str:
        """Methods of one family are one curve in a plot."""

    @property
    def compiled(self) -> bool: ...

    @property
    def caches(self) -> bool:
        """Whether it means to leave work out; it is then checked that it does."""

    @property
    def counted_as(self) -> "Method | None": ...

    @property
    def note(self) -> str: ...

    def prepare(self, case: Case) -> Runner:
        """Raises whatever goes wrong; the row then says it."""


@dataclass
class CountingInductor:
    """``torch.compile``'s own backend; counts the calls of compiled graphs."""

    num_calls: int = 0
    __name__ = "inductor"
    graphs: list[int] = field(default_factory=list)

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        run: Any = compile_fx(gm, example_inputs)
        self.graphs.append(len(gm.graph.nodes))

        def counted(*args: Any) -> Any:
            self.num_calls += 1
            return run(*args)

        return counted


def compile_transformer(runner: Runner) -> Runner:
    """Plain ``torch.compile`` of whatever the pipeline's transformer has become."""
    runner.compiler = CountingInductor()
    runner.pipe.transformer = torch.compile(runner.pipe.transformer, backend=runner.compiler)
    return runner


@dataclass
class Clocked:
    """Seconds of a run: of the whole call, and of each step's calls of the transformer together."""

    seconds: float
    step_seconds: tuple[float, ...]


def clocked_run(runner: Runner, seed: int = 0, num_steps: int | None = None) -> Clocked:
    """One run, timed."""
    calls: list[float] = []
    started = [0.0]

    def before(_latents: Tensor) -> None:
        started[0] = time.perf_counter()

    def after() -> None:
        calls.append(time.perf_counter() - started[0])

    begun = time.perf_counter()
    with runner.watched(before, after):
        runner.run(seed, num_steps)
    return Clocked(time.perf_counter() - begun, by_step(calls, runner.case.workload.calls_a_step))


def by_step(calls: Sequence[Number], calls_a_step: int) -> tuple[Number, ...]:
    """Sums over the calls of each step."""
    return tuple(sum(calls[i : i + calls_a_step]) for i in range(0, len(calls), calls_a_step))
