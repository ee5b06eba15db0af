"""``backend.attach`` to modular pipelines of diffusers: a run is a generation, and the batches of a guider are its streams."""

import copy
import gc
import pickle
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from diffusers import (
    AutoGuidance,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FluxTransformer2DModel,
    LayerSkipConfig,
    SkipLayerGuidance,
)
from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep
from diffusers.modular_pipelines.ltx.modular_blocks_ltx import LTXCoreDenoiseStep
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22CoreDenoiseStep
from torch import Tensor, nn

from taylorseer_fx import ConfigError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.attach_guiders import GuidedCalls
from taylorseer_fx.bench.pipelines import both_prompts, noise, pooled, randomize, shifted_flow, text, wan_scheduler
from taylorseer_fx.bench.workloads import tiny_wan_transformer
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.pipelines import CASES
from tests.pipelines.zoo import text_mask

NUM_STEPS = 9
SCHEDULE = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}
FULL, FORECAST = 4, 5  # of 9 steps: 0, 1, 4, 7
COND, UNCOND, SKIP = "pred_cond", "pred_uncond", "pred_cond_skip"


def cfg(**window: float) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(guidance_scale=3.0, **window)


def skip_layer(**window: float) -> SkipLayerGuidance:
    """The second of two layers is left out of a third call: where its own window says, after step 0 at the earliest."""
    return SkipLayerGuidance(3.0, skip_layer_config=LayerSkipConfig([1]), **window)


def pipeline(blocks: ModularPipelineBlocks, **components: Any) -> ModularPipeline:
    """Without text encoder and decoder."""
    pipe = blocks.init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(**components)
    return pipe


def wan(guider: Any) -> ModularPipeline:
    """Text to video."""
    return pipeline(WanCoreDenoiseStep(), transformer=tiny_wan_transformer(), scheduler=wan_scheduler(), guider=guider)


def wan_run(pipe: ModularPipeline, seed: int = 0, num_steps: int = NUM_STEPS) -> Tensor:
    latents = noise((1, 4, 2, 8, 8), seed, torch.float32)
    video = {"height": 64, "width": 64, "num_frames": 5, "latents": latents}
    return pipe(output="latents", num_inference_steps=num_steps, **video, **both_prompts(seed))


def flux_pipe() -> ModularPipeline:
    """Guidance is a number that the model takes; one call a step."""
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[2, 2, 4],
        guidance_embeds=True,
    )
    return pipeline(FluxCoreDenoiseStep(), transformer=randomize(transformer), scheduler=shifted_flow())


def flux_run(pipe: ModularPipeline, seed: int = 0) -> Tensor:
    prompt = {"prompt_embeds": text(seed), "pooled_prompt_embeds": pooled(seed)}
    latents = noise((1, 16, 4), seed, torch.float32)
    return pipe(output="latents", num_inference_steps=NUM_STEPS, height=64, width=64, latents=latents, **prompt)


def compiled(pipe: ModularPipeline) -> TaylorSeerBackend:
    """The backend that its transformer is compiled with; not attached."""
    backend = taylorseer_backend(**SCHEDULE)
    pipe.transformer.compile(backend=backend)  # in place: some of these pipelines ask whether `torch.compile`'s wrapper is true
    return backend


@contextmanager
def listening(backend: TaylorSeerBackend, model: nn.Module, act: Callable[[int], Any] = lambda _: None) -> Iterator[list[Any]]:
    """The name and the step that hold at each call of ``model``. ``act`` is given the number of the call, from 0."""
    heard: list[Any] = []

    def hear(*_: Any) -> None:
        scope = backend._runtime.scopes.get()
        heard.append((scope.name, scope.step) if scope is not None else None)
        act(len(heard) - 1)

    handle = model.register_forward_pre_hook(hear)
    try:
        yield heard
    finally:
        handle.remove()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How many calls of each stream were executed, and how many forecast."""
    counted: Counter[tuple[str, str]] = Counter()
    for kind in ("_execute", "_forecast"):
        monkeypatch.setattr(Dispatcher, kind, _counting(getattr(Dispatcher, kind), kind.removeprefix("_"), counted))
    return counted


def _counting(original: Callable[..., Any], kind: str, counted: Counter[tuple[str, str]]) -> Callable[..., Any]:
    def call(self: Dispatcher, *args: Any) -> Any:
        scope = self._runtime.scopes.get()
        counted[scope.name.rpartition("/")[2] if scope is not None else "", kind] += 1
        return original(self, *args)

    return call


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def every(first: int = 0, end: int = NUM_STEPS) -> range:
    return range(first, end)


# A guider, and the steps at which it makes which batches.
GUIDERS: dict[str, tuple[Callable[[], Any], dict[str, range]]] = {
    "always": (cfg, {COND: every(), UNCOND: every()}),
    "disabled": (lambda: ClassifierFreeGuidance(enabled=False), {COND: every()}),
    "late": (lambda: cfg(start=0.12), {COND: every(), UNCOND: every(1)}),
    "cut off": (lambda: cfg(stop=0.5), {COND: every(), UNCOND: every(0, 4)}),
    "skip layer": (
        lambda: skip_layer(skip_layer_guidance_stop=0.8),
        {COND: every(), UNCOND: every(), SKIP: every(1, 7)},
    ),
    "auto guidance": (lambda: AutoGuidance(3.0, auto_guidance_config=LayerSkipConfig([1])), {COND: every(), UNCOND: every()}),
}


def in_order(windows: dict[str, range]) -> list[tuple[str, int]]:
    """The calls of a run: stream and step."""
    return [(name, step) for step in every() for name, steps in windows.items() if step in steps]


def named(prefix: str, windows: dict[str, range]) -> list[tuple[str, int]]:
    return [(f"{prefix}/{name}", step) for name, step in in_order(windows)]


class GuidedPipeline(DiffusionPipeline):
    """The loop of a pipeline with a progress bar and a guider."""

    def __init__(self, transformer: nn.Module, guider: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, guider=guider)
        self.set_progress_bar_config(disable=True)

    def __call__(self) -> None:
        inputs = {"hidden_states": noise((1, 4, 2, 8, 8), 0, torch.float32), "encoder_hidden_states": text(0)}
        with self.progress_bar(total=NUM_STEPS):
            for i in every():
                time = torch.tensor([1000 - i])
                self.guider.set_state(step=i, num_inference_steps=NUM_STEPS, timestep=time)
                for _ in self.guider.prepare_inputs({}):
                    self.guider.prepare_models(self.transformer)
                    self.transformer(timestep=time, **inputs)
                    self.guider.cleanup_models(self.transformer)


ALWAYS = GUIDERS["always"][1]
CHANGING = {"skip layer": SKIP, "auto guidance": UNCOND}  # the batches for which they change the model


def warning_of(guider: str) -> AbstractContextManager[Any]:
    if guider in CHANGING:
        return pytest.warns(TaylorSeerWarning, match=f"for its batch '{CHANGING[guider]}' the guider changes modules")
    return nullcontext()


class TestNames:
    """What is said of each call; no model is compiled."""

    @pytest.mark.parametrize("guider", GUIDERS)
    def test_a_stream_for_each_batch(self, guider):
        build, windows = GUIDERS[guider]
        backend, pipe = taylorseer_backend(), wan(build())
        backend.attach(pipe)
        for run in range(2):
            with warning_of(guider if run == 0 else ""), listening(backend, pipe.transformer) as heard:
                wan_run(pipe)
            assert heard == named("pipeline 1", windows)
        assert backend._runtime.scopes.get() is None

    def test_inside_a_named_stream(self):
        backend, pipe = taylorseer_backend(), wan(cfg())
        backend.attach(pipe)
        with listening(backend, pipe.transformer) as heard, backend.stream("request-7"):
            wan_run(pipe)
        assert heard == named("request-7/pipeline 1", ALWAYS)

    def test_without_a_guider(self):
        """One stream, the run's; the scheduler's index is compared with the timesteps."""
        backend, pipe = taylorseer_backend(), flux_pipe()
        backend.attach(pipe)
        with listening(backend, pipe.transformer) as heard:
            flux_run(pipe)
        assert heard == [("pipeline 1", None)] * NUM_STEPS

    def test_with_a_context_of_the_model(self):
        """A loop that names its calls itself as well: names join."""
        transformer = CASES["ltx"].build().transformer
        backend, pipe = taylorseer_backend(), pipeline(LTXCoreDenoiseStep(), transformer=transformer, guider=cfg(start=0.12))
        pipe.update_components(scheduler=shifted_flow())
        backend.attach(pipe)
        masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask(padding=3)}
        video = {"height": 64, "width": 64, "num_frames": 9, "generator": torch.Generator().manual_seed(0)}
        with listening(backend, transformer) as heard:
            pipe(num_inference_steps=NUM_STEPS, **video, **masks, **both_prompts(0))
        assert heard == [(f"pipeline 1/{name}/{name}", step) for name, step in in_order(GUIDERS["late"][1])]

    def test_two_models_with_a_guider_each(self):
        """One for high noise, one for low: one generation of the streams."""
        models = {"transformer": tiny_wan_transformer(), "transformer_2": tiny_wan_transformer()}
        backend, pipe = taylorseer_backend(), pipeline(Wan22CoreDenoiseStep(), guider=cfg(), guider_2=cfg(stop=0.5), **models)
        pipe.update_components(scheduler=wan_scheduler())
        backend.attach(pipe)
        with listening(backend, models["transformer"]) as first, listening(backend, models["transformer_2"]) as second:
            wan_run(pipe)
        assert first + second == named("pipeline 1", GUIDERS["cut off"][1])
        assert first
        assert second

    def test_a_guider_in_a_pipeline_without_blocks(self):
        """Some of those have one too: what their progress bar begins is listened to as well."""
        backend, pipe = taylorseer_backend(), GuidedPipeline(tiny_wan_transformer(), skip_layer(skip_layer_guidance_stop=0.8))
        backend.attach(pipe)
        before = names_in(pipe, pipe.guider)
        for run in range(2):
            with warning_of("skip layer" if run == 0 else ""), listening(backend, pipe.transformer) as heard:
                pipe()
            assert heard == named("pipeline 1", GUIDERS["skip layer"][1])
            assert names_in(pipe, pipe.guider) == before

    def test_a_run_inside_a_run(self):
        """A preview in mid-step, by another pipeline with the same model and a guider of its own."""
        backend, pipe, preview = taylorseer_backend(), wan(cfg()), wan(cfg(stop=0.5))
        preview.update_components(transformer=pipe.transformer)
        backend.attach(pipe)
        backend.attach(preview)
        inner: list[Any] = []

        def run_preview(call: int) -> None:
            if call == 3 and not inner:
                with listening(backend, pipe.transformer) as heard:
                    inner.append(heard)
                    wan_run(preview)

        with listening(backend, pipe.transformer, run_preview) as heard:
            wan_run(pipe)
        assert inner[0] == named("pipeline 1/pred_uncond/pipeline 2", GUIDERS["cut off"][1])
        assert [call for call in heard if call not in inner[0]] == named("pipeline 1", ALWAYS)

    @pytest.mark.parametrize("stop_at", [0, 1, 5])
    def test_an_interrupted_run(self, stop_at):
        """In a guided call, before the guider cleans up: what it said is taken back, and the next run is heard as ever."""
        backend, pipe = taylorseer_backend(), wan(cfg())
        backend.attach(pipe)
        before = names_in(pipe.guider, *parts(pipe._blocks))

        def interrupt(call: int) -> None:
            if call == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), listening(backend, pipe.transformer, interrupt):
            wan_run(pipe)
        assert backend._runtime.scopes.get() is None
        assert names_in(pipe.guider, *parts(pipe._blocks)) == before
        with listening(backend, pipe.transformer) as heard:
            wan_run(pipe)
        assert heard == named("pipeline 1", ALWAYS)

    def test_batches_of_two_guiders(self):
        """As for video and audio: one call serves both, and each may want batches that the other does not."""
        backend = taylorseer_backend()
        said, runtime = GuidedCalls(backend._runtime), backend._runtime
        video, audio = (said.methods(guider) for guider in (cfg(stop=0.5), cfg()))
        for step in (0, 7):
            for guider in (video, audio):
                guider["set_state"](step=step, num_inference_steps=NUM_STEPS, timestep=None)
                guider["prepare_inputs"]({})
            for name in (COND, UNCOND):
                video["prepare_models"](None)
                scope = runtime.scopes.get()
                assert scope is not None
                assert (scope.name, scope.step) == (name, step)
                video["cleanup_models"](None)
                assert runtime.scopes.get() is None

    def test_a_call_that_was_not_prepared(self):
        """More calls than batches: which stream these are of is not known, so they are in none."""
        backend = taylorseer_backend()
        guider = GuidedCalls(backend._runtime).methods(cfg(stop=0.5))
        guider["set_state"](8, NUM_STEPS, None)
        guider["prepare_inputs"]({})
        guider["prepare_models"](None)
        guider["prepare_models"](None)
        assert backend._runtime.scopes.get() is None


def parts(block: Any) -> list[Any]:
    """``block`` and all within."""
    return [block, *(part for inner in block.sub_blocks.values() for part in parts(inner))]


def names_in(*owners: Any) -> list[set[str]]:
    return [set(vars(owner)) for owner in owners]


class TestAttachingAndUndoing:
    def test_detach(self):
        """Not an attribute is left on anything."""
        backend, pipe = taylorseer_backend(), wan(cfg())
        wan_run(pipe)
        blocks = pipe._blocks
        touched = [pipe, pipe.guider, pipe.transformer, *parts(blocks)]
        before = names_in(*touched)
        backend.attach(pipe)
        backend.attach(pipe)  # which is attaching once
        with listening(backend, pipe.transformer) as heard:
            wan_run(pipe)
            backend.detach()
            wan_run(pipe)
        assert heard == named("pipeline 1", ALWAYS) + [None] * len(in_order(ALWAYS))
        assert names_in(*touched) == before
        assert pipe._blocks is blocks

    def test_detach_in_mid_run(self):
        backend, pipe = taylorseer_backend(), wan(cfg())
        backend.attach(pipe)
        with listening(backend, pipe.transformer, lambda call: backend.detach() if call == 4 else None) as heard:
            wan_run(pipe)
        assert heard == named("pipeline 1", ALWAYS)[:5] + [None] * (len(in_order(ALWAYS)) - 5)

    def test_two_backends(self):
        """Each hears its own; what the first undoes too early to take off, it ignores."""
        one, other, pipe = taylorseer_backend(), taylorseer_backend(), wan(cfg())
        one.attach(pipe)
        other.attach(pipe)
        one.detach()
        with listening(one, pipe.transformer) as nothing, listening(other, pipe.transformer) as heard:
            wan_run(pipe)
        assert heard == named("pipeline 1", ALWAYS)
        assert nothing == [None] * len(heard)

    def test_the_blocks_look_as_ever(self):
        backend, pipe = taylorseer_backend(), wan(cfg())
        text = repr(pipe._blocks)
        backend.attach(pipe)
        assert isinstance(pipe._blocks, WanCoreDenoiseStep)
        assert type(pipe.blocks) is WanCoreDenoiseStep
        assert repr(pipe._blocks) == text
        assert type(pickle.loads(pickle.dumps(pipe._blocks))) is WanCoreDenoiseStep

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
    def test_copies_are_not_attached(self, make):
        backend, pipe = taylorseer_backend(), wan(cfg())
        backend.attach(pipe)
        copied = make(pipe)
        with listening(backend, copied.transformer) as heard:
            wan_run(copied)
        assert heard == [None] * len(in_order(ALWAYS))
        with listening(backend, pipe.transformer) as heard:
            wan_run(pipe)
        assert heard == named("pipeline 1", ALWAYS)

    def test_components_of_later(self):
        """Loaded or exchanged after ``attach``: found when the next run begins, and what went is not kept alive."""
        backend, pipe = taylorseer_backend(), wan(cfg())
        backend.attach(pipe)
        wan_run(pipe)
        gone = weakref.ref(pipe.guider), weakref.ref(pipe.transformer)
        pipe.update_components(guider=cfg(start=0.12), transformer=tiny_wan_transformer())
        gc.collect()
        assert [reference() for reference in gone] == [None, None]
        with listening(backend, pipe.transformer) as heard:
            wan_run(pipe)
        assert heard == named("pipeline 1", GUIDERS["late"][1])
        assert "cache_context" in vars(pipe.transformer)

    def test_blocks_kept_elsewhere(self):
        class Other:
            blocks, components = None, {}

            def __call__(self) -> None: ...

        with pytest.raises(ConfigError, match="a pipeline that keeps the blocks it calls as '_blocks', got 'Other'"):
            taylorseer_backend().attach(Other())


def run_by_hand(backend: TaylorSeerBackend, pipe: ModularPipeline, windows: dict[str, range]) -> Tensor:
    """A run of a pipeline that is not attached, in which the calls are named one after another, or kept from the compiler."""
    names, call = iter(in_order(windows)), pipe.transformer._compiled_call_impl

    def named_call(*args: Any, **kwargs: Any) -> Any:
        name, step = next(names)
        as_it_is = torch.compiler.set_stance("force_eager") if name == SKIP else nullcontext()
        with backend.stream(name, step=step), as_it_is:
            return call(*args, **kwargs)

    pipe.transformer._compiled_call_impl = named_call
    try:
        return wan_run(pipe)
    finally:
        pipe.transformer._compiled_call_impl = call
        backend.reset()


def num_full(steps: range) -> int:
    """Of a stream's steps, counted from where it begins: 0, 1, 4, 7."""
    return len([step for step in range(len(steps)) if step == 0 or step % 3 == 1])


def expected_calls(windows: dict[str, range], num_graph_calls: int = 1) -> dict[tuple[str, str], int]:
    return {
        (name, kind): num_graph_calls * (num_full(steps) if kind == "execute" else len(steps) - num_full(steps))
        for name, steps in windows.items()
        for kind in ("execute", "forecast")
    }


class TestForecasts:
    def test_as_named_by_hand(self, calls):
        """Bit by bit, without names and in a second run too; each stream has a warm-up of its own, when it begins."""
        build, windows = GUIDERS["late"]
        pipe = wan(build())
        del pipe.transformer.blocks[1:]
        backend = compiled(pipe)
        expected = run_by_hand(backend, pipe, windows)
        assert torch.equal(wan_run(pipe), expected)  # told apart by their conditioning
        backend.reset()
        backend.attach(pipe)
        for _ in range(2):
            calls.clear()
            assert torch.equal(wan_run(pipe), expected)
            assert calls == expected_calls(windows)
            assert backend.stats().buffer_bytes == 0

    def test_one_stream(self, calls, monkeypatch):
        """Freed when the loop is over, before a decoder needs the memory; the bar of a run that is over ends nothing."""
        pipe = flux_pipe()
        backend = compiled(pipe)
        by_timesteps = flux_run(pipe)
        backend.reset()
        backend.attach(pipe)
        calls.clear()
        loop, after = (pipe._blocks.sub_blocks[name] for name in ("denoise", "unpack_latents"))
        kept, left, call = [], [], type(after).__call__
        monkeypatch.setattr(type(after), "__call__", lambda *args: (left.append(backend.stats().buffer_bytes), call(*args))[1])
        with listening(backend, pipe.transformer, lambda _: kept.append(loop.progress_bar(total=1))):
            assert torch.equal(flux_run(pipe), by_timesteps)
        with listening(backend, pipe.transformer, lambda call: kept.clear() if call == 5 else None):
            assert torch.equal(flux_run(pipe), by_timesteps)
        assert calls == {("pipeline 1", "execute"): 2 * FULL, ("pipeline 1", "forecast"): 2 * FORECAST}
        assert left == [0, 0]

    @pytest.mark.filterwarnings("ignore:torch.compile with fullgraph=True found no compiled frames")  # torch 2.12
    def test_regional_compilation(self, calls):
        """No compiled graph takes the timestep; the guider tells the step. What it leaves a layer out for is not compiled."""
        build, windows = GUIDERS["skip layer"]
        pipe = wan(build())
        backend = taylorseer_backend(**SCHEDULE)
        pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
        pipe.transformer._compiled_call_impl = pipe.transformer._call_impl  # to be named by hand
        expected = run_by_hand(backend, pipe, windows)
        backend.attach(pipe)
        for run in range(2):
            calls.clear()
            with warning_of("skip layer" if run == 0 else ""):
                assert torch.equal(wan_run(pipe), expected)
            assert calls == expected_calls({COND: windows[COND], UNCOND: windows[UNCOND]}, num_graph_calls=2)
        assert backend.stats().compiles <= 2 * len(StepKind)
