"""What the ranks of a test run; each function returns plain data."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import taylorseer_fx
from taylorseer_fx import RanksDisagreeError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.bench.sharing import one_device_per_rank, share
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests import zoo
from tests.distributed import small_dit
from tests.models import qwen, wan

NUM_STEPS = 10
SETTINGS: dict[str, Any] = {"order": 2, "interval": 3, "warmup": 2}


@dataclass(frozen=True)
class Shared:
    """A model that ranks share: ``build()`` has the same weights in every process, ``inputs(step)`` the same values."""

    build: Callable[[], nn.Module]
    inputs: Callable[[float], dict[str, Any]]


def _zoo(make: Callable[[], zoo.ZooModel]) -> Shared:
    return Shared(lambda: make().model, make().inputs)


MODELS = {
    "flux": _zoo(zoo.flux),
    "qwen_image": Shared(qwen.qwen_image, lambda step: qwen.qwen_image_inputs(step, 0)),
    "wan": Shared(lambda: wan.build(wan.WanTransformer3DModel), lambda step: wan.inputs(step, 0)),
    "wan_ti2v": Shared(lambda: wan.build(wan.WanTransformer3DModel), lambda step: wan.ti2v_inputs(step, 0)),
}


@dataclass(frozen=True)
class Cell:
    """A model, how it is shared ("alone": not), and the backend's settings that matter."""

    model: str
    way: str
    granularity: str = "module"
    compiler: str = "eager"

    def __str__(self) -> str:
        return "-".join((self.model, self.way, self.granularity, self.compiler))


@dataclass(frozen=True)
class Ran:
    """Two generations; ``kinds`` has a letter for each step, F or T; ``collectives`` are (operator, count, bytes) by kind."""

    generations: tuple[Tensor, Tensor]
    kinds: str
    collectives: dict[str, list[tuple[str, int, int]]]
    num_graphs: int
    num_regions: int
    rejected: list[str]
    buffer_bytes: int
    replicated_bytes: int
    report: str


def run_cell(cell: Cell) -> Ran:
    """Run a model as it is shared by this process and the others, if there are any."""
    torch._dynamo.reset()
    shared = MODELS[cell.model]
    with zoo.attention_backend_kept():
        model = shared.build()
        if cell.way != "alone":
            share(model, cell.way)
            if cell.way in ("ulysses", "ring"):  # in the first call, diffusers' hooks do what Dynamo cannot trace
                model(**shared.inputs(0))
        backend = taylorseer_backend(**SETTINGS, granularity=cell.granularity, compiler=cell.compiler)
        compiled = torch.compile(model, backend=backend)
        return _run(compiled, backend, shared.inputs)


def _run(compiled: Callable[..., Any], backend: TaylorSeerBackend, inputs: Callable[[float], dict[str, Any]]) -> Ran:
    generations, kinds = [], ""
    for _ in range(2):
        outputs = []
        for step in range(NUM_STEPS):
            before = backend.stats().full_calls
            outputs.append(compiled(**inputs(step))[0].clone())
            kinds += "F" if backend.stats().full_calls > before else "T"
        generations.append(torch.stack(outputs))
    report = backend.explain()
    return Ran(
        generations=(generations[0], generations[1]),
        kinds=kinds,
        collectives={kind: [(e.op, e.count, e.num_bytes) for e in entries] for kind, entries in report.collectives.items()},
        num_graphs=backend.stats().graphs,
        num_regions=len(report.regions),
        rejected=[str(entry) for entry in report.rejected],
        buffer_bytes=report.buffer_bytes,
        replicated_bytes=report.replicated_bytes,
        report=str(report),
    )


@dataclass(frozen=True)
class Mishap:
    """What happens to one rank before the call of ``step`` (a reset) or in it (an exception). ``is_told``: steps are given."""

    rank: int
    step: int
    event: str
    is_told: bool


@dataclass(frozen=True)
class Outcome:
    """What a rank saw: the error that ranks disagree, and in which call (counted from 0 over two generations); the calls whose
    results were not as usual; and whether all was as usual again afterwards.
    """

    error: str | None
    failed_at: int | None
    wrong_calls: list[int]
    recovers: bool


@dataclass
class _Loop:
    """A model that ranks share, called step by step."""

    compiled: Callable[..., Any]
    backend: TaylorSeerBackend
    inputs: Callable[[float], dict[str, Any]]
    is_told: bool = False

    def call(self, step: int) -> Tensor:
        with self.backend.stream("told", step=step) if self.is_told else nullcontext():
            return self.compiled(**self.inputs(step))[0].clone()

    def generation(self) -> list[Tensor]:
        return [self.call(step) for step in range(NUM_STEPS)]


def _loop(cell: Cell) -> _Loop:
    shared = MODELS[cell.model]
    model = shared.build()
    share(model, cell.way)
    backend = taylorseer_backend(**SETTINGS, granularity=cell.granularity, compiler=cell.compiler)
    return _Loop(torch.compile(model, backend=backend, fullgraph=True), backend, shared.inputs)


def run_mishaps(cell: Cell, cases: list[Mishap]) -> list[Outcome]:
    """One after another, each followed by a generation without any."""
    loop = _loop(cell)
    usual = loop.generation()
    outcomes = []
    for case in cases:
        dist.barrier()
        loop.backend.reset()
        loop.is_told = case.is_told
        outcomes.append(_run_mishap(loop, case, usual))
    return outcomes


def _run_mishap(loop: _Loop, case: Mishap, usual: list[Tensor]) -> Outcome:
    error, failed_at, wrong = None, None, []
    for call in range(2 * NUM_STEPS):
        is_hit = call == case.step and dist.get_rank() == case.rank
        if is_hit and case.event == "reset":
            loop.backend.reset()
        try:
            with _failing() if is_hit and case.event == "exception" else nullcontext():
                output = loop.call(call % NUM_STEPS)
        except RanksDisagreeError as disagreement:
            error, failed_at = str(disagreement), call
            break
        except MemoryError:
            continue
        if not torch.equal(output, usual[call % NUM_STEPS]):
            wrong.append(call)
    dist.barrier()
    again = loop.generation()
    return Outcome(error, failed_at, wrong, all(map(torch.equal, again, usual)))


@contextmanager
def _failing() -> Iterator[None]:
    """The call inside fails for want of memory, before it communicates."""
    original = Dispatcher._state

    def fail(*_: Any) -> Any:
        raise MemoryError

    Dispatcher._state = fail
    try:
        yield
    finally:
        Dispatcher._state = original


def run_until_one_ends(cell: Cell) -> str:
    """Rank 1 ends in the middle of a generation."""
    loop = _loop(cell)
    for step in range(NUM_STEPS):
        if step == NUM_STEPS // 2 and dist.get_rank() == 1:
            return "ended"
        try:
            loop.call(step)
        except RanksDisagreeError as error:
            return str(error)
    return "nothing noticed"


run_until_one_ends.ends_alone = True


def run_small_dit(compiler: str) -> tuple[Ran, Counter[str]]:
    """Tensor parallel with torch's own styles, with the counts of AOTAutograd's cache."""
    model = small_dit.small_dit()
    small_dit.share_branches(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    backend = taylorseer_backend(**SETTINGS, compiler=compiler)
    compiled = torch.compile(model, backend=backend)
    ran = _run(lambda **step: (compiled(**step),), backend, small_dit.inputs)
    return ran, Counter(counters["aot_autograd"])


def run_guided(granularity: str, compiler: str) -> Ran:
    """Guidance of FLUX, a rank for each half, or both halves as streams of this process where there is no other."""
    torch._dynamo.reset()
    zoo_model = zoo.flux()
    backend = taylorseer_backend(**SETTINGS, granularity=granularity, compiler=compiler)
    compiled = torch.compile(zoo_model.model, backend=backend)

    def half(number: int, step: float) -> Tensor:
        return compiled(**zoo_model.inputs(step) | {"pooled_projections": zoo.noise((2, 16), number, torch.float32)})[0]

    def guided(step: float) -> tuple[Tensor]:
        if dist.is_initialized():
            halves = [torch.empty(2, 16, 4) for _ in range(2)]
            dist.all_gather(halves, half(dist.get_rank(), step).contiguous())
        else:
            halves = []
            for number in range(2):
                with backend.stream(str(number)):
                    halves.append(half(number, step).clone())
        return (halves[1] + 3.0 * (halves[0] - halves[1]),)

    return _run(guided, backend, lambda step: {"step": step})


def run_example(num_steps: int, folder: str) -> tuple[int, int]:
    """The example of the docs on a tiny pipeline: its calls by kind; the first rank leaves a picture in ``folder``."""
    from examples import over_several_gpus
    from tests.test_examples import SMALL, flux

    taylorseer_fx.accelerate = partial(taylorseer_fx.accelerate, compiler="eager")
    torch.manual_seed(0)  # of the weights that the pipeline's other models begin with
    with one_device_per_rank():
        handle = over_several_gpus.main(flux(), f"{folder}/picture.png", num_steps, **SMALL)
    return handle.stats().full_calls, handle.stats().forecast_calls


def run_fully_sharded(granularity: str) -> tuple[Ran, list[str]]:
    """FLUX under FSDP2, block by block, with the warnings of the backend."""
    model = zoo.flux().model
    for block in (*model.transformer_blocks, *model.single_transformer_blocks, model):
        fully_shard(block)
    backend = taylorseer_backend(**SETTINGS, granularity=granularity, compiler="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TaylorSeerWarning)
        ran = _run(torch.compile(model, backend=backend), backend, MODELS["flux"].inputs)
    return ran, [str(each.message) for each in caught if each.category is TaylorSeerWarning]


def run_cells(cells: list[Cell]) -> dict[Cell, Ran]:
    """Run several, one after another: starting a process takes longer than most of them."""
    return {cell: run_cell(cell) for cell in cells}
