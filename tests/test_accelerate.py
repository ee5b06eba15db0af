"""``accelerate``: the same as compile and attach by hand, bit for bit, for every pipeline; gone without a trace by ``undo``."""

import copy
import gc
import pickle
import re
import weakref
from collections.abc import Iterator
from typing import Any

import diffusers.models
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    ModelMixin,
    WanPipeline,
)
from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22CoreDenoiseStep
from torch import Tensor, nn

import taylorseer_fx.acceleration
from taylorseer_fx import (
    ConfigError,
    NothingCompiledError,
    TaylorSeerBackend,
    TaylorSeerError,
    accelerate,
    calibrate,
    taylorseer_backend,
)
from taylorseer_fx.bench.pipelines import (
    TEXT_WIDTH,
    both_prompts,
    flux_kwargs,
    flux_pipeline,
    noise,
    randomize,
    tiny_vae,
    wan_kwargs,
    wan_scheduler,
)
from taylorseer_fx.bench.workloads import tiny_flux_transformer, tiny_wan_transformer
from taylorseer_fx.compat import ISOLATED
from taylorseer_fx.denoisers import denoisers_of
from taylorseer_fx.plan_file import GraphSignature, PlanFile
from tests.pipelines import CASES
from tests.test_attach import TinyPipeline, cached
from tests.test_attach_modular import cfg, pipeline
from tests.turns import in_turns
from tests.zoo import dit, tiny, tiny_inputs

pytestmark = [
    # What Inductor says of rotary embeddings as complex numbers (Qwen-Image, Z-Image), whoever compiles them.
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not compile to one graph"),  # Lumina 2, as in tests/test_pipelines.py
]

SETTINGS: dict[str, Any] = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}
NUM_STEPS = 6
FULL, FORECAST = 3, 3  # steps 0, 1, 4 are full


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def traces(pipe: Any) -> dict[Any, Any]:
    """Every attribute of the pipeline and of the modules in it, by the identity of its value."""
    modules = [part for model in pipe.components.values() if isinstance(model, nn.Module) for part in model.modules()]
    return {(id(owner), name): id(value) for owner in [pipe, *modules] for name, value in vars(owner).items()}


def flux() -> FluxPipeline:
    return flux_pipeline(tiny_flux_transformer())


def small() -> TinyPipeline:
    """Quick to compile, with all that a pipeline of diffusers has."""
    return TinyPipeline(cached(), FlowMatchEulerDiscreteScheduler())


def small_run(pipe: TinyPipeline) -> Tensor:
    return torch.stack(pipe(num_steps=NUM_STEPS))


def flux_run(pipe: FluxPipeline, seed: int = 0, num_steps: int = NUM_STEPS) -> Tensor:
    return pipe(**flux_kwargs(num_steps, seed, size=32))[0]


def wan22(boundary_ratio: float = 0.9) -> WanPipeline:
    """Two transformers: one for the first, noisy steps, and one for the rest."""
    pipe = WanPipeline(
        transformer=tiny_wan_transformer(),
        transformer_2=randomize(tiny_wan_transformer(), seed=1),
        boundary_ratio=boundary_ratio,
        vae=None,
        scheduler=wan_scheduler(),
        tokenizer=None,
        text_encoder=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_hand(pipe: DiffusionPipeline, names: tuple[str, ...] = ("transformer",), **settings: Any) -> list[TaylorSeerBackend]:
    """What the README says to write."""
    backends = []
    for name in names:
        backend = taylorseer_backend(**SETTINGS | settings)
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend=backend))
        backend.attach(pipe)
        backends.append(backend)
    return backends


@pytest.mark.parametrize("name", in_turns(CASES, weeks=5))
def test_same_as_by_hand(name):
    """Bit for bit and with the same counters, in every pipeline of the suite; undone, it runs as it ran before."""
    case = CASES[name]
    expected, pipe = case.build(), case.build()
    expected(**case.kwargs(NUM_STEPS, 0))  # Z-Image makes its rotary tables in the first call ever, and breaks the graph for it
    plain, before = pipe(**case.kwargs(NUM_STEPS, 0))[0], traces(pipe).keys()
    (backend,) = by_hand(expected)
    with accelerate(pipe, **SETTINGS) as handle:
        assert list(handle.backends) == ["transformer"]
        assert torch.equal(pipe(**case.kwargs(NUM_STEPS, 0))[0], expected(**case.kwargs(NUM_STEPS, 0))[0])
        assert handle.stats() == backend.stats()
        assert handle.stats().forecast_calls > 0
    assert traces(pipe).keys() == before
    assert torch.equal(pipe(**case.kwargs(NUM_STEPS, 0))[0], plain)


@pytest.mark.parametrize("name", CASES)
def test_found_and_undone(name):
    """One denoiser in each pipeline, beside a VAE and an image encoder here and there; not an attribute is left."""
    pipe = CASES[name].build()
    before = traces(pipe)
    handle = accelerate(pipe, **SETTINGS)
    assert traces(pipe) != before
    assert list(handle.backends) == ["transformer"]
    handle.undo()
    assert traces(pipe) == before


class TestWhatIsCompiled:
    def test_two_transformers(self):
        """Wan 2.2: each has a backend of its own; the steps are shared out between them as by hand, bit for bit."""
        expected, pipe = wan22(), wan22()
        backends = by_hand(expected, ("transformer", "transformer_2"), warmup=1)
        handle = accelerate(pipe, **SETTINGS | {"warmup": 1})
        kwargs = {"guidance_scale_2": 2.0}
        assert torch.equal(pipe(**wan_kwargs(NUM_STEPS, 0), **kwargs)[0], expected(**wan_kwargs(NUM_STEPS, 0), **kwargs)[0])
        assert list(handle.backends) == ["transformer", "transformer_2"]
        assert [backend.stats() for backend in handle.backends.values()] == [backend.stats() for backend in backends]
        assert all(backend.stats().forecast_calls for backend in backends)
        assert handle.stats().buffer_bytes == 0
        assert handle.stats().full_calls == sum(backend.stats().full_calls for backend in backends)
        assert list(handle.explain().reports) == ["transformer", "transformer_2"]

    def test_one_of_two_was_not_called(self):
        """A short run never comes to the second transformer: the report says so, and is about the first."""
        pipe = wan22(boundary_ratio=0.01)
        handle = accelerate(pipe, **SETTINGS | {"warmup": 1})
        with pytest.raises(NothingCompiledError):
            handle.explain()
        pipe(**wan_kwargs(2, 0))
        assert handle.explain().waiting == ("transformer_2",)
        assert "transformer_2: not called yet" in str(handle.explain())
        assert re.search(r"transformer_2 .*; not called yet", str(handle))

    def test_a_controlnet_is_left_alone(self):
        """It takes the time, too, but what it returns is scaled and added within the transformer."""
        controlnet = randomize(
            FluxControlNetModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=TEXT_WIDTH,
                pooled_projection_dim=TEXT_WIDTH,
                axes_dims_rope=[2, 2, 4],
            )
        )
        parts = flux_pipeline(tiny_flux_transformer(), tiny_vae()).components
        pipe = FluxControlNetPipeline(**{**parts, "controlnet": controlnet} | {"image_encoder": None, "feature_extractor": None})
        before = {name: set(vars(model)) for name, model in pipe.components.items() if isinstance(model, nn.Module)}
        with accelerate(pipe, **SETTINGS) as handle:
            assert list(handle.backends) == ["transformer"]
            changed = [name for name, names in before.items() if set(vars(pipe.components[name])) != names]
            assert changed == ["transformer"]

    def test_control_that_is_built_in(self):
        """A model that scales its control itself, with none beside it, is the denoiser."""

        class Controlled(nn.Module):
            def forward(self, sample: Tensor, timestep: Tensor, conditioning_scale: float = 1.0) -> Tensor:
                return sample

        assert list(denoisers_of(Components(unet=Controlled(), vae=nn.Linear(1, 1)))) == ["unet"]

    def test_of_every_model_of_diffusers(self):
        """By their signatures alone: transformers and UNets are, ControlNets, adapters and VAEs are not."""
        all_names = {name: getattr(diffusers.models, name) for name in dir(diffusers.models)}
        kinds = {name: kind for name, kind in all_names.items() if isinstance(kind, type) and issubclass(kind, ModelMixin)}
        found = {name for name, kind in kinds.items() if is_denoiser(kind)}
        assert len(kinds) > 60
        helpers = {name for name in kinds if re.search("ControlNet|VAE|Autoencoder|Adapter|VQ", name)}
        assert found & helpers == set()
        assert {name for name in kinds if re.search("Transformer[23]DModel|DiT.*Model$|^UNet", name)} - helpers <= found

    def test_a_model_in_two_places_is_one(self):
        model = tiny()
        assert list(denoisers_of(Components(transformer=model, prior=model))) == ["transformer"]

    def test_named(self):
        pipe = wan22()
        handle = accelerate(pipe, denoisers=["transformer_2"], **SETTINGS)
        assert list(handle.backends) == ["transformer_2"]

    def test_modular(self):
        """A pipeline of blocks, with a guider that names the streams."""
        parts = {"scheduler": wan_scheduler(), "guider": cfg(), "guider_2": cfg()}
        models = {"transformer": tiny_wan_transformer(), "transformer_2": randomize(tiny_wan_transformer(), seed=1)}
        pipe = pipeline(Wan22CoreDenoiseStep(), **parts, **models)
        before = traces(pipe)
        latents = {"height": 64, "width": 64, "num_frames": 5, "latents": noise((1, 4, 2, 8, 8), 0, torch.float32)}
        with accelerate(pipe, **SETTINGS | {"warmup": 1}) as handle:
            pipe(output="latents", num_inference_steps=NUM_STEPS, **latents, **both_prompts(0))
            assert list(handle.backends) == ["transformer", "transformer_2"]
            assert handle.stats().forecast_calls > 0
        assert traces(pipe).keys() == before.keys()

    def test_a_bare_model(self):
        """In place: the same object, faster until it is undone."""
        model, expected = tiny(), torch.compile(tiny(), backend=taylorseer_backend(**SETTINGS))
        before = dict(vars(model))
        handle = accelerate(model, **SETTINGS)
        outputs = [model(**tiny_inputs(step)) for step in range(NUM_STEPS)]
        assert all(torch.equal(ours, expected(**tiny_inputs(step))) for step, ours in enumerate(outputs))
        assert (handle.stats().full_calls, handle.stats().forecast_calls) == (FULL, FORECAST)
        handle.undo()
        assert dict(vars(model)) == before
        assert torch.equal(model(**tiny_inputs(0)), tiny()(**tiny_inputs(0)))


def is_denoiser(kind: type[nn.Module]) -> bool:
    """Is it taken for the denoiser, beside a model that certainly is one?"""
    like_it = type(kind.__name__, (nn.Module,), {"forward": kind.forward})()
    return "it" in denoisers_of(Components(it=like_it, transformer=tiny()))


class Components:
    """As much of a pipeline as tells its models."""

    def __init__(self, **components: nn.Module) -> None:
        self.components = components

    def progress_bar(self, total: int) -> Any:
        raise NotImplementedError


class TestWays:
    def test_blocks(self):
        """The same as diffusers' regional compilation by hand, bit for bit."""
        expected, pipe = flux(), flux()
        backend = taylorseer_backend(**SETTINGS)
        expected.transformer.compile_repeated_blocks(backend=backend)
        backend.attach(expected)
        wanted = flux_run(expected)
        torch._dynamo.reset()  # it remembers which sizes vary from one block to another, and would compile less often
        before = traces(pipe)
        handle = accelerate(pipe, compile="blocks", **SETTINGS)
        assert "compiled by its 4 repeated blocks (as asked for)" in str(handle)
        assert torch.equal(flux_run(pipe), wanted)
        assert handle.stats() == backend.stats()
        handle.undo()
        assert not any(name == "_compiled_call_impl" for _, name in traces(pipe).keys() - before.keys())

    def test_auto_takes_blocks_where_there_are_many(self, monkeypatch):
        assert "compiled whole (4 repeated blocks)" in str(accelerate(flux(), **SETTINGS))
        monkeypatch.setattr(taylorseer_fx.acceleration, "WHOLE_UP_TO", 3)
        assert "compiled by its 4 repeated blocks (more than 3)" in str(accelerate(flux(), **SETTINGS))

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"granularity": "stack"}, "a stack spans all blocks"),
            ({"memory_budget": 10**9}, "memory_budget is that of all blocks"),
        ],
    )
    def test_auto_keeps_whole_what_blocks_cannot_do(self, monkeypatch, settings, why):
        monkeypatch.setattr(taylorseer_fx.acceleration, "WHOLE_UP_TO", 0)
        assert f"compiled whole ({why})" in str(accelerate(flux(), **SETTINGS, **settings))

    def test_auto_keeps_whole_where_blocks_would_not_know_the_step(self, monkeypatch):
        """A bare model, and a pipeline without a scheduler to count for: by blocks every step would be executed."""
        monkeypatch.setattr(taylorseer_fx.acceleration, "WHOLE_UP_TO", 0)
        why = "compiled whole (only the timestep gives the step"
        assert why in str(accelerate(tiny_flux_transformer(), **SETTINGS))
        pipe = flux()
        pipe.scheduler = None
        assert why in str(accelerate(pipe, **SETTINGS))

    @pytest.mark.parametrize(
        ("limit", "num_regions", "way"),
        [
            (0, 8, "whole (as in the plan)"),
            (0, 3, "by its 4 repeated blocks (as in the plan)"),
            (9, 3, "by its 4 repeated blocks (as in the plan)"),
            (9, 8, "whole (4 repeated blocks)"),
        ],
    )
    def test_auto_compiles_as_the_plan_was_made(self, monkeypatch, limit, num_regions, way):
        """A graph of the whole has a region or more per block; those of its blocks, which are alike, have fewer than blocks."""
        monkeypatch.setattr(taylorseer_fx.acceleration, "WHOLE_UP_TO", limit)
        graph = GraphSignature((("attention", num_regions),), (f"{num_regions} float32[*, 4, 4]",))
        plan = PlanFile(num_steps=6, order=1, granularity="module", full_steps=((0, 2, 4),), graphs=(graph,))
        assert f"compiled {way}" in str(accelerate(flux(), plan=plan, compiler="eager"))

    @pytest.mark.parametrize("way", ["whole", "blocks"])
    def test_a_plan_of_one_way_suits_auto(self, monkeypatch, way):
        """Calibrated whole, and used where "auto" would compile by blocks; and the other way round."""
        pipe = flux()
        handle = accelerate(pipe, compile=way, order=1, interval=3, warmup=2, compiler="eager")
        (backend,) = handle.backends.values()
        found = calibrate(lambda: flux_run(pipe), backend, NUM_STEPS, full_steps=(3,), moves=0)
        handle.undo()
        monkeypatch.setattr(taylorseer_fx.acceleration, "WHOLE_UP_TO", 9 if way == "blocks" else 0)
        handle = accelerate(pipe, plan=found.plan(), compiler="eager")
        flux_run(pipe)
        assert handle.stats().full_calls > 0
        assert handle.stats().forecast_calls > 0
        other = {"whole": "blocks", "blocks": "whole"}[way]
        handle.undo()
        accelerate(pipe, plan=found.plan(), compile=other, compiler="eager")
        with pytest.raises(ConfigError, match=r'accelerate takes compile="whole" or "blocks"'):
            flux_run(pipe)

    def test_blocks_of_a_model_that_lists_none(self):
        with pytest.raises(
            ConfigError, match=r"compile must be 'auto' or 'whole' for this model, got 'blocks'. DiTTransformer2D"
        ):
            accelerate(dit().model, compile="blocks")
        assert "it lists no repeated blocks" in str(accelerate(dit().model, **SETTINGS))


class TestHandle:
    def test_its_text(self):
        pipe = small()
        handle = accelerate(pipe, speedup=2, compiler="eager")
        assert str(handle) == (
            "TinyPipeline, accelerated: speedup=2, compiler='eager'\n"
            "  transformer  compiled whole (it lists no repeated blocks); not called yet"
        )
        small_run(pipe)
        assert str(handle).endswith("compiled whole (it lists no repeated blocks); 3 full calls, 3 forecast")
        assert repr(handle) == f"<{handle}>"
        handle.undo()
        assert str(handle) == "TinyPipeline, no longer accelerated"

    def test_text_without_settings(self):
        assert "accelerated: order=1, interval=5, warmup=3" in str(accelerate(tiny()))

    def test_explain_names_the_denoiser(self):
        pipe = small()
        handle = accelerate(pipe, **SETTINGS)
        small_run(pipe)
        assert str(handle.explain()).startswith("transformer\n===========\npass")
        assert len(handle.explain().reports["transformer"].regions) == 2

    def test_reset_frees_the_buffers(self):
        model = tiny()
        handle = accelerate(model, **SETTINGS)
        model(**tiny_inputs(0))
        assert handle.stats().buffer_bytes > 0
        handle.reset()
        assert handle.stats().buffer_bytes == 0

    def test_streams(self):
        """Two requests that interleave on one model are told apart."""
        model = tiny()
        handle = accelerate(model, **SETTINGS)
        alone = [model(**tiny_inputs(step, seed=1)) for step in range(NUM_STEPS)]
        handle.reset()
        for step in range(NUM_STEPS):
            with handle.stream("one", step=step):
                assert torch.equal(model(**tiny_inputs(step, seed=1)), alone[step])
            with handle.stream("two", step=step):
                model(**tiny_inputs(step, seed=2))
        with pytest.raises(ConfigError, match="name must be a string"):
            handle.stream(3)  # type: ignore[arg-type]

    def test_another_pipeline_of_the_same_models_joins(self):
        pipe = flux_pipeline(tiny_flux_transformer(), tiny_vae())
        other = FluxImg2ImgPipeline.from_pipe(pipe)
        handle = accelerate(pipe, **SETTINGS)
        handle.attach(other)
        assert "progress_bar" in vars(other)
        handle.undo()
        assert "progress_bar" not in vars(other)

    def test_it_need_not_be_kept(self):
        """The pipeline stays accelerated when the handle is gone, and goes itself when it is no longer used."""
        pipe = small()
        accelerate(pipe, **SETTINGS)
        gc.collect()
        assert not torch.equal(small_run(pipe), small_run(small()))
        gone = weakref.ref(pipe.transformer)
        del pipe
        torch._dynamo.reset()
        gc.collect()
        assert gone() is None

    def test_a_copy_is_plain(self):
        pipe = small()
        plain = small_run(pipe)
        accelerate(pipe, **SETTINGS)
        assert torch.equal(small_run(copy.deepcopy(pipe)), plain)


class TestUndoing:
    def test_frees_and_may_be_done_twice(self):
        model = tiny()
        handle = accelerate(model, **SETTINGS)
        model(**tiny_inputs(0))
        handle.undo()
        handle.undo()
        assert handle.stats().buffer_bytes == 0

    def test_after_an_error_inside(self):
        pipe = small()
        before = traces(pipe)
        with pytest.raises(KeyboardInterrupt), accelerate(pipe, **SETTINGS):
            raise KeyboardInterrupt
        assert traces(pipe) == before

    def test_again_with_other_settings(self):
        """As one tries settings one after another: each time as a fresh model with them."""
        model = tiny()
        for order in (0, 2, 0):
            with accelerate(model, **SETTINGS | {"order": order}):
                outputs = [model(**tiny_inputs(step)) for step in range(NUM_STEPS)]
            expected = torch.compile(tiny(), backend=taylorseer_backend(**SETTINGS | {"order": order}))
            assert all(torch.equal(ours, expected(**tiny_inputs(step))) for step, ours in enumerate(outputs))

    @pytest.mark.skipif(not ISOLATED, reason="before torch 2.13 all compilations of a class count against one limit")
    def test_more_often_than_dynamo_compiles_a_function(self):
        """Without a word, and forecasting to the last."""
        model = tiny()
        for _ in range(torch._dynamo.config.recompile_limit + 2):
            with accelerate(model, **SETTINGS) as handle:
                for step in range(3):
                    model(**tiny_inputs(step))
            assert handle.stats().forecast_calls == 1

    def test_only_its_own(self):
        """Compiled otherwise since, that stays."""
        model = tiny()
        handle = accelerate(model, **SETTINGS)
        model.compile(backend="eager")
        handle.undo()
        assert vars(model)["_compiled_call_impl"] is not None


class TestErrors:
    @pytest.mark.parametrize("way", ["whole", "blocks"])
    def test_twice(self, way):
        pipe = flux()
        handle = accelerate(pipe, compile=way, **SETTINGS)
        with pytest.raises(ConfigError, match=r"got 'FluxPipeline, whose transformer is'. If it was accelerated, call undo\(\)"):
            accelerate(pipe, **SETTINGS)
        with pytest.raises(ConfigError, match="neither accelerated nor compiled yet"):
            accelerate(pipe.transformer)
        handle.undo()
        accelerate(pipe, **SETTINGS)

    def test_compiled_by_hand(self):
        pipe = flux()
        by_hand(pipe)
        with pytest.raises(ConfigError, match="if it was compiled by hand, leave that to accelerate"):
            accelerate(pipe)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"compile": "fast"}, r"compile must be 'auto' or 'whole' or 'blocks', got 'fast'"),
            ({"oder": 2}, r"setting must be one of compile, denoisers, order, .*, got 'oder'. Did you mean 'order'\?"),
            ({"denoiser": ["transformer"]}, r"Did you mean 'denoisers'\?"),
            ({"epilogue_fusion": True}, r"Options of Inductor go into one of these: compiler_options={'epilogue_fusion': ...}\."),
            ({"unknown_setting": 1}, r"got 'unknown_setting'$"),
            ({"order": 9}, r"order must be an int of 0 to 4, got 9"),
            ({"speedup": 2, "interval": 3}, r"interval must be left out when speedup is given"),
            ({"denoisers": ["unet"]}, r"denoisers must be a list of components that are models: 'transformer', got \['unet'\]"),
            ({"denoisers": "transformer"}, r"denoisers must be a list of components"),
            ({"denoisers": []}, r"denoisers must be a list of components"),
        ],
    )
    def test_wrong_arguments(self, settings, text):
        """Nothing is touched before all is checked."""
        pipe = flux()
        before = traces(pipe)
        with pytest.raises(ConfigError, match=text):
            accelerate(pipe, **settings)
        assert traces(pipe) == before

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
    def test_a_copy_of_the_handle(self, duplicate):
        with accelerate(tiny(), compiler="eager") as handle, pytest.raises(TaylorSeerError, match="neither pickled nor copied"):
            duplicate(handle)

    def test_denoisers_of_a_model(self):
        with pytest.raises(ConfigError, match="denoisers must be left out for a model"):
            accelerate(tiny(), denoisers=["transformer"])

    def test_neither_pipeline_nor_model(self):
        with pytest.raises(ConfigError, match=r"pipe_or_model must be a diffusers pipeline or a torch\.nn\.Module, got 'int'"):
            accelerate(3)

    def test_nothing_that_denoises(self):
        with pytest.raises(ConfigError, match=r"with a model that is called with the time, got 'Components'.*: 'vae'"):
            accelerate(Components(vae=tiny_vae()))

    def test_one_of_two_fails(self, monkeypatch):
        """What was done for the first is undone."""
        pipe = wan22()
        before = traces(pipe)
        monkeypatch.setattr(pipe.transformer_2, "compile", None)
        with pytest.raises(TypeError):
            accelerate(pipe, **SETTINGS)
        monkeypatch.undo()
        assert traces(pipe) == before
