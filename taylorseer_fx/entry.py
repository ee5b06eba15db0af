"""The two ways to a backend: ``taylorseer_backend`` makes one, and "taylorseer" is the name that it is registered under."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.messages import mode_in_options
from taylorseer_fx.plan_file import PlanFile


def taylorseer_backend(
    order: int = 1,
    interval: int = 5,
    warmup: int = 3,
    *,
    full_steps: Iterable[int] | None = None,
    speedup: float | None = None,
    num_steps: int | None = None,
    plan: str | Path | PlanFile | None = None,
    plan_mismatch: str = "error",
    forecaster: str = "taylor",
    history: int | None = None,
    granularity: str = "module",
    buffer_dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    cuda_graphs: bool | None = None,
    compiler: str = "inductor",
    compiler_options: Mapping[str, Any] | None = None,
    on_no_regions: str = "error",
    disabled_passes: Iterable[str] = (),
    max_streams: int | None = None,
    total_memory_budget: int | None = None,
    stream_policy: str = "error",
    stream_ttl: float | None = None,
) -> TaylorSeerBackend:
    """Make a backend for ``torch.compile`` that executes some denoising steps and forecasts the others.

    Args:
        order: highest derivative of the Taylor polynomial, 0 (plain reuse) to 4. Uses ``order + 1`` buffers per feature.
        interval: every ``interval``-th step after the warm-up is executed, at least 1.
        warmup: number of steps executed at the start, at least 1.
        full_steps: the executed steps as an increasing list of indices from 0, in place of ``interval`` and ``warmup``.
        speedup: steps over full steps, at least 1, in place of ``interval``, ``warmup`` and ``full_steps``: in a run of
            ``num_steps`` steps, ``ceil(num_steps / speedup)`` are executed, in growing gaps (``runtime/placement.py``).
        num_steps: length of a run, for ``speedup`` where no attached pipeline reports it; a pipeline takes precedence.
        plan: a file that ``calibrate`` made: its path, a repository of the Hugging Face hub that holds one, or its content. It
            has order, granularity and a list of full steps for each ``speedup`` that was asked for.
        plan_mismatch: what to do where model or run are not as the plan was made for: "error", or "warn" and use it.
        forecaster: "taylor", the paper's recursion; or for comparison "hermite" (HiCache), "newton" (exact on uneven gaps) or
            "chebyshev" (Spectrum), see ``runtime/forecasters.py``.
        history: full steps whose features are stored, ``order + 1`` (the default) to 12. Only "chebyshev" makes use of more
            than ``order + 1``.
        granularity: "module": a feature per attention and MLP output, before its gate, as in the paper. "stack": one for all that
            the blocks add to the residual stream; a forecast step then costs next to nothing, and so do the buffers, but the
            gates of the current step are not used.
        buffer_dtype: dtype of the derivative buffers; None keeps each feature's own. An eight-bit dtype (torch.float8_e5m2 or
            torch.float8_e4m3fn) is that of the differences of order 1 and up; order 0 keeps the feature's own.
        memory_budget: maximum size of a stream's derivative buffers, in bytes. If a feature per module would exceed it, there is
            one for the stack; ``explain()`` and a warning report it.
        cuda_graphs: None: each step kind runs as a CUDA graph where the model is on a CUDA device; what cannot be captured runs
            as compiled, and a warning explains why. False: none. True: as None, and a model elsewhere is an error. They keep the
            working memory of a step, and the buffers of the last run of an attached pipeline, reserved until ``reset()``.
        compiler: "inductor", or "eager" to run the specialised graphs uncompiled, for tests and debugging.
        compiler_options: options of Inductor, as ``torch.compile(options=...)`` takes them.
        on_no_regions: what to do with a graph without attention or MLP: "error", or "warn" and compile it plainly.
        disabled_passes: names of optional passes to leave out, for tests and debugging: "find_stored", "find_cut_branches",
            "narrow"; on a CPU "sum_few_rows", "fold_repeats"; on a GPU "join_slices", "store_early", "patches_as_products",
            "sum_small_weights". Results stay right; ``explain()`` lists what was left out.
        max_streams: named streams that are held at once, each with all that is nested in it; None for any number.
        total_memory_budget: bytes that the derivative buffers of all streams together may take; None for any number. It chooses
            nothing, other than ``memory_budget``, which is a stream's and chooses its granularity when it is compiled.
        stream_policy: what to do beyond either: "error", or "evict": the stream that was not used for longest, of those none of
            whose blocks is open, is given up, and begins again with full steps if it is called again. A warning reports it once.
        stream_ttl: seconds after which a stream is given up that no block was open of. Checked when a stream is entered; None
            for never.

    Returns:
        A callable ``(gm, example_inputs)`` for ``torch.compile(model, backend=...)``. Use one per model: it holds the
        model's streams.

    Raises:
        ConfigError: an argument is wrong; it names the argument, what it may be and what it got.

    The compiled model's first call raises ``NoRegionsError`` where there is nothing to forecast; all errors of this package are
    ``TaylorSeerError`` and arrive unwrapped, not as ``torch._dynamo.exc.BackendCompilerFailed``.
    """
    planned: Any = plan
    steps: Any = full_steps
    disabled: Any = disabled_passes
    return TaylorSeerBackend(
        BackendConfig(
            order=order,
            interval=interval,
            warmup=warmup,
            full_steps=steps,
            speedup=speedup,
            num_steps=num_steps,
            plan=planned,
            plan_mismatch=plan_mismatch,
            forecaster=forecaster,
            history=history,
            granularity=granularity,
            buffer_dtype=buffer_dtype,
            memory_budget=memory_budget,
            cuda_graphs=cuda_graphs,
            compiler=compiler,
            compiler_options=compiler_options if compiler_options is not None else {},
            on_no_regions=on_no_regions,
            disabled_passes=disabled,
            max_streams=max_streams,
            total_memory_budget=total_memory_budget,
            stream_policy=stream_policy,
            stream_ttl=stream_ttl,
        )
    )


class _Registered:
    """The registered name: ``torch.compile(model, backend="taylorseer", options={"order": 2})``.

    Each compiled graph gets a backend of its own. To hold it (``explain``, ``stream``, ``reset``), make it with
    ``taylorseer_backend`` and pass it to ``torch.compile``.

    An object, since Dynamo takes compiled code for whoever has an equal backend: a function is itself when copied, and a copied
    model would share its original's streams.
    """

    __name__ = "taylorseer"

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        options: Mapping[str, Any] | None = None,
        mode: str | None = None,
    ) -> Callable[..., Any]:
        """Compile one Dynamo graph, for ``torch.compile``.

        Raises:
            ConfigError: an option is unknown or wrong, or ``mode`` is given.
        """
        if mode is not None:
            hint = f"{mode_in_options(mode)} Pass Inductor's as options={{'compiler_options': {{...}}}}."
            raise ConfigError("mode", "left out", mode, hint)
        return TaylorSeerBackend(BackendConfig.from_options(options or {}))(gm, example_inputs)


taylorseer = _Registered()
