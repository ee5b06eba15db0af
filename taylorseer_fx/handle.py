"""The handle that ``accelerate`` returns: explains, counts and undoes, over the backends of all denoisers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import reduce
from operator import add
from types import TracebackType
from typing import Any, NoReturn

from taylorseer_fx.backend import Stats, TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import NothingCompiledError, TaylorSeerError
from taylorseer_fx.explain import Report

NO_COPY = (
    "what accelerate() returns can be neither pickled nor copied, since the pipeline was compiled in place, in this process. "
    "Call accelerate() in the process that runs the pipeline: with taylorseer_fx.ray, inside of build()."
)


@dataclass(frozen=True)
class Explanation:
    """The reports of all backends, by the name of the denoiser; ``print`` it. One that was not called yet has no report."""

    reports: Mapping[str, Report]
    waiting: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{name}\n{'=' * len(name)}\n{report}" for name, report in self.reports.items()]
        return "\n\n".join([*parts, *(f"{name}: not called yet, so nothing is compiled" for name in self.waiting)])


@dataclass(eq=False, repr=False)
class Acceleration:
    """A pipeline or a model that ``accelerate`` made faster. As a context manager it is undone at the end.

    ``backends``: the backend of each denoiser, by the name of its component; that of a bare model is "model". ``compiled``: how
    each was compiled, in words.
    """

    target: str
    settings: BackendConfig
    backends: Mapping[str, TaylorSeerBackend]
    compiled: Mapping[str, str]
    _undoing: ExitStack = field(default_factory=ExitStack)
    is_undone: bool = False

    def attach(self, pipe: Any) -> None:
        """Attach another pipeline that calls the same denoisers, such as one made by ``from_pipe``.

        Raises:
            ConfigError: it is neither pipeline nor model.
        """
        for backend in self.backends.values():
            backend.attach(pipe)

    def explain(self) -> Explanation:
        """Explain what was found and done in each denoiser.

        Raises:
            NothingCompiledError: none was called yet.
        """
        reports: dict[str, Report] = {}
        errors: dict[str, NothingCompiledError] = {}
        for name, backend in self.backends.items():
            try:
                reports[name] = backend.explain()
            except NothingCompiledError as error:
                errors[name] = error
        if not reports:
            raise next(iter(errors.values()))
        return Explanation(reports, tuple(errors))

    def stats(self) -> Stats:
        """Add up the counters of all denoisers, peaks too, and list their streams; ``backends[name].stats()`` is of one."""
        each = [backend.stats() for backend in self.backends.values()]
        return Stats(**{entry.name: reduce(add, (getattr(stats, entry.name) for stats in each)) for entry in fields(Stats)})

    def reset(self) -> None:
        """Forget all streams and free their buffers; see ``TaylorSeerBackend.reset``."""
        for backend in self.backends.values():
            backend.reset()

    def stream(self, name: str, *, step: int | None = None) -> AbstractContextManager[Any]:
        """Run the calls inside as the stream ``name``; see ``TaylorSeerBackend.stream``.

        Raises:
            ConfigError: as there.
        """
        return _entering([backend.stream(name, step=step) for backend in self.backends.values()])

    def undo(self) -> None:
        """Leave pipeline and models as they were, neither compiled nor attached, and free all buffers. Twice is once."""
        self._undoing.close()
        self.is_undone = True

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.undo()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: what was done in place to one pipeline was not done to another.

        Raises:
            TaylorSeerError: always.
        """
        raise TaylorSeerError(NO_COPY)

    def __str__(self) -> str:
        if self.is_undone:
            return f"{self.target}, no longer accelerated"
        width = max(map(len, self.backends))
        lines = [f"  {name:{width}}  {self.compiled[name]}; {self._calls(name)}" for name in self.backends]
        return "\n".join([f"{self.target}, accelerated: {_changed(self.settings)}", *lines])

    def __repr__(self) -> str:
        return f"<{self}>"

    def _calls(self, name: str) -> str:
        stats = self.backends[name].stats()
        if not stats.compiles:
            return "not called yet"
        return f"{stats.full_calls} full calls, {stats.forecast_calls} forecast"


@contextmanager
def _entering(contexts: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _changed(config: BackendConfig) -> str:
    """The settings that are not those of a backend without any."""
    default = BackendConfig()
    given = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    texts = [f"{name}={value!r}" for name, value in given.items() if name != "plan" and value != getattr(default, name)]
    plan = [f"plan for {config.plan.num_steps} steps"] if config.plan is not None else []
    return ", ".join(plan + texts) or f"order={config.order}, interval={config.interval}, warmup={config.warmup}"
