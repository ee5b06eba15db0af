"""Warm starts: store compiled graphs in AOTAutograd's on-disk cache, so that a second process need not trace.

    first process:   Dynamo -> key: none found -> AOTAutograd -> our passes -> Inductor, twice -> StepCode, stored
    second process:  Dynamo -> key: found -> StepCode, loaded

AOTAutograd makes the key of all that it and Inductor read (the graph, its inputs, the settings, the versions); we add a tag for
what we read: our own sources and settings, the operators that users registered, the names that ``explain()`` and warnings show;
and for the vector instructions that code for a CPU is made for, which torch leaves out. It stores any ``OutputCode``, so ours,
and puts its own wrappers (aliased outputs, mutated inputs, tensor subclasses) around it as it does after tracing. What cannot be
stored is traced and compiled in every process; Inductor's own cache of each variant still serves.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

import taylorseer_fx.passes
import taylorseer_fx.runtime
from taylorseer_fx.artifacts import CompiledSteps
from taylorseer_fx.compat import (
    CAN_STORE,
    BundledCompiledForward,
    BypassAOTAutogradCache,
    CompiledFxGraph,
    OutputCode,
    dynamo_config,
    functorch_config,
    meshes_stored_without_hash,
    pick_vec_isa,
)
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.fingerprint import fingerprint
from taylorseer_fx.passes.module_path import module_path, source_line
from taylorseer_fx.passes.residual_ops import REGISTERED
from taylorseer_fx.remade import StoredPasses
from taylorseer_fx.runtime.boxed import BoxedCallable

log = logging.getLogger(__name__)
compiler_config: Any = torch.compiler.config  # a module that knows no ``patch`` until it is imported

_IS_SUPPORTED = CAN_STORE


def _hash_sources() -> str:
    """Hash every file of ours that has a part in compiling a graph: a change in any is another cache entry."""
    digest = hashlib.sha256()
    for package in (taylorseer_fx, taylorseer_fx.passes, taylorseer_fx.runtime):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(f"{package.__name__}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


try:
    SOURCES = _hash_sources()  # now, not at the first compile: the files are what was imported
except OSError:
    _IS_SUPPORTED = False


class StepCode(OutputCode):
    """The object that AOTAutograd takes for the compiled graph, calls, stores and loads.

    ``run`` is set by the backend once compiling is over, since only then is it certain which of several will be called.
    """

    def __init__(self, tag: str | None, steps: CompiledSteps) -> None:
        super().__init__()
        self._boxed_call = True  # the instance's, since AOTAutograd's wrappers copy its __dict__
        self.tag, self.steps = tag, steps
        self.run: BoxedCallable | None = None
        _announce(self)

    def __call__(self, inputs: Any) -> Any:
        assert self.run is not None
        return self.run(inputs)

    def prepare_for_serialization(self) -> None:
        """Called on a shallow copy that is to be stored."""
        if not isinstance(self.steps.passes, StoredPasses):
            raise BypassAOTAutogradCache("taylorseer_fx: the graph cannot be stored")
        variants = {kind: replace(code, run=_storable(code.run)) for kind, code in self.steps.variants.items()}
        self.steps = replace(self.steps, variants=variants)
        self.run = None

    def post_compile(self, example_inputs: Sequence[Any], _constants: Any, graph_kwargs: Any) -> None:
        """Called when loaded from the cache: load the code of the variants, too."""

        def load(code: Any) -> BoxedCallable:
            stored = BundledCompiledForward(code)
            loaded: BoxedCallable = stored.post_compile(stored.load(example_inputs), graph_kwargs)
            return loaded

        variants = {kind: replace(code, run=load(code.run)) for kind, code in self.steps.variants.items()}
        self.steps = replace(self.steps, variants=variants)
        _announce(self)

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        """Each variant has its own."""


def _storable(run: BoxedCallable) -> CompiledFxGraph:
    if not isinstance(run, CompiledFxGraph) or run.cudagraph_info is not None:
        raise BypassAOTAutogradCache("taylorseer_fx: a variant cannot be stored")
    stored = copy.copy(run)
    stored.prepare_for_serialization()
    return stored


@dataclass(frozen=True)
class _Arrivals:
    tag: str | None
    codes: list[StepCode] = field(default_factory=list)


_arrivals: ContextVar[_Arrivals | None] = ContextVar("_arrivals", default=None)


def _announce(code: StepCode) -> None:
    arrivals = _arrivals.get()
    if arrivals is None or arrivals.tag != code.tag:
        raise RuntimeError("taylorseer_fx: code for another backend")  # torch takes it as: not in the cache
    arrivals.codes.append(code)


@contextmanager
def arriving(tag: str | None) -> Iterator[list[StepCode]]:
    """Collect the code compiled or loaded inside; the last counts, should loading have failed at the last moment."""
    arrivals = _Arrivals(tag)
    token = _arrivals.set(arrivals)
    try:
        yield arrivals.codes
    finally:
        _arrivals.reset(token)


@contextmanager
def caching(tag: str | None) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """AOTAutograd's cache on under our ``tag``, or off for None; yields a context in which all is as it was outside.

    Off, since the cache under torch's own key holds what plain ``torch.compile`` made of the same graph.
    """
    settings = {"enable_autograd_cache": False, "bundled_autograd_cache": False}
    if tag is None:
        with functorch_config.patch(settings):
            yield nullcontext
        return
    outer = compiler_config.cache_key_tag

    @contextmanager
    def outside() -> Iterator[None]:
        with functorch_config.patch(settings), compiler_config.patch(cache_key_tag=outer):
            yield

    with (
        meshes_stored_without_hash(),
        functorch_config.patch(bundled_autograd_cache=True, strict_autograd_cache=False),
        compiler_config.patch(cache_key_tag=f"{outer}|{tag}"),
    ):
        yield outside


def keyed_by_instructions(inputs: Sequence[Any]) -> AbstractContextManager[None]:
    """Find in Inductor's own cache only what was made for the processor at hand."""
    found = _vector_instructions(inputs)
    if not found or not _IS_SUPPORTED:
        return nullcontext()
    patched: AbstractContextManager[None] = compiler_config.patch(cache_key_tag=f"{compiler_config.cache_key_tag}|{found}")
    return patched


def _vector_instructions(inputs: Sequence[Any]) -> str:
    """The instructions that Inductor vectorises for, where ``inputs`` are on a CPU; else empty.

    Kernels are kept as C++ in which the size of a vector is a number, and compiled where they are loaded: those made for AVX-512
    give NaN on a processor that has AVX2. Torch 2.13 has this in none of its keys, so plain ``torch.compile`` does that.
    """
    return str(pick_vec_isa()) if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in inputs) else ""


def cache_tag(gm: fx.GraphModule, inputs: Sequence[Any], config: BackendConfig, *origin: object) -> str | None:
    """The part of the key that torch's own lacks; None where nothing is to be stored.

    Names are part of it: two models may compute the same, but ``explain()`` must describe the one at hand.
    """
    if not _IS_SUPPORTED or config.compiler != "inductor" or _is_being_exported() or _holds_tensors(gm):
        return None
    settings = [_vector_instructions(inputs), *config.key, *map(str, origin)]
    names = [(module_path(node), source_line(node)) for node in gm.graph.nodes if node.op != "placeholder"]
    registered = sorted((str(op), fingerprint(decomposition) or "") for op, decomposition in REGISTERED.items())
    if any(not digest for _, digest in registered):
        log.info("not cached, since a registered decomposition reads what cannot be compared across processes")
        return None
    return f"taylorseer_fx:{hashlib.sha256(json.dumps([SOURCES, settings, names, registered]).encode()).hexdigest()}"


def _holds_tensors(gm: fx.GraphModule) -> bool:
    """Hash the values of constant tensors, which torch's cache key ignores."""
    return any(isinstance(value, torch.Tensor) for module in gm.modules() for value in _attributes(module))


def _attributes(module: torch.nn.Module) -> Iterator[Any]:
    yield from vars(module).values()
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _is_being_exported() -> bool:
    """Is somebody storing what backends return, to call it later without them? It would lack the backend that runs it."""
    outer = ("bundled_autograd_cache", "force_autograd_cache", "bypass_autograd_cache_key")
    return getattr(dynamo_config, "caching_precompile", False) or any(getattr(functorch_config, name, False) for name in outer)
