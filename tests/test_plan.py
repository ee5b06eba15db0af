"""``plan``: FLOPs, buffers and schedule of a run, from shapes alone; the published figures of full-size models."""

import math
import re
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from torch import fx, nn

from taylorseer_fx import ConfigError, NoRegionsError, plan, planning
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.numbers import GraphNumbers, count


def dit(**overrides: object) -> DiTTransformer2DModel:
    """A tiny DiT, or DiT-XL/2 with its settings."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }
    return DiTTransformer2DModel(**{**settings, **overrides}).eval()


def dit_inputs(size: int = 8) -> dict[str, object]:
    """A guidance batch of two."""
    return {
        "hidden_states": torch.empty(2, 4, size, size),
        "timestep": torch.empty(2, dtype=torch.long),
        "class_labels": torch.empty(2, dtype=torch.long),
        "return_dict": False,
    }


@pytest.fixture
def tiny():
    """Model and inputs on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return dit(), dit_inputs()


class TestTiny:
    def test_on_meta(self, tiny):
        """Two blocks: two attention and two MLP regions, a feature each, of 16 tokens and width 32."""
        p = plan(*tiny)
        assert [region.kind for region in p.regions] == ["attention", "mlp"] * 2
        assert [feature.shape for feature in p.features] == [(2, 16, 32)] * 4
        assert p.full_steps == (0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47)
        assert 0 < p.flops_forecast < p.flops_full / 4

    @pytest.mark.turn(0, 2)
    def test_meta_and_cpu_agree(self, tiny):
        """The figures are of the model, not of where it lies."""
        torch.manual_seed(0)
        inputs = {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor([3, 3]),
            "class_labels": torch.tensor([1, 2]),
            "return_dict": False,
        }
        on_cpu, on_meta = plan(dit(), inputs), plan(*tiny)
        assert (on_cpu.flops_full, on_cpu.flops_forecast) == (on_meta.flops_full, on_meta.flops_forecast)
        assert on_cpu.features == on_meta.features

    @pytest.mark.parametrize("order", [0, 1, 4])
    def test_buffer_bytes(self, tiny, order):
        """(order + 1) x 4 features x 2 x 16 x 32 floats."""
        assert plan(*tiny, order=order).buffer_bytes == (order + 1) * 4 * 2 * 16 * 32 * 4

    @pytest.mark.parametrize("order", [0, 2])
    def test_buffer_bytes_of_float8(self, tiny, order):
        """Differences of a byte; the feature itself in float32."""
        p = plan(*tiny, order=order, buffer_dtype=torch.float8_e5m2)
        assert p.buffer_bytes == (4 + order) * 4 * 2 * 16 * 32

    @pytest.mark.turn(1, 2)
    def test_stack(self, tiny):
        """One feature for the four, and fewer FLOPs in a forecast step."""
        modules, stack = plan(*tiny), plan(*tiny, granularity="stack")
        assert [region.kind for region in stack.regions] == ["stack"]
        assert 4 * stack.buffer_bytes == modules.buffer_bytes
        assert stack.flops_full == modules.flops_full
        assert stack.flops_forecast < modules.flops_forecast

    def test_schedule_and_ceiling(self, tiny):
        """The ceiling is FLOPs without over FLOPs with forecasting."""
        p = plan(*tiny, num_steps=20, interval=4, warmup=2)
        assert p.full_steps == (0, 1, 5, 9, 13, 17)
        assert p.flops_total == 6 * p.flops_full + 14 * p.flops_forecast
        assert p.speedup_ceiling == pytest.approx(20 * p.flops_full / p.flops_total)

    @pytest.mark.turn(1, 2)
    def test_full_steps(self, tiny):
        """The list in place of interval and warm-up, by its last gap to the end of a longer run, which is noted."""
        p = plan(*tiny, num_steps=10, full_steps=[0, 1, 4])
        assert p.full_steps == (0, 1, 4, 7)
        assert p.flops_total == 4 * p.flops_full + 6 * p.flops_forecast
        assert [note.split(":")[0] for note in p.notes] == ["the run came to step 9, but full_steps ends at 4"]
        assert plan(*tiny, num_steps=7, full_steps=[0, 1, 4]).notes == ()

    @pytest.mark.turn(0, 2)
    def test_memory_budget(self, tiny):
        """As the backend decides: modules where they fit, else the stack."""
        modules = plan(*tiny)
        fits, tight = (plan(*tiny, memory_budget=modules.buffer_bytes - less) for less in (0, 1))
        assert (fits.granularity, fits.buffer_bytes, fits.notes) == ("module", modules.buffer_bytes, ())
        assert (tight.granularity, tight.buffer_bytes) == ("stack", modules.buffer_bytes // 4)
        assert "note:          modules are over the budget of 32.00 KiB" in str(tight)

    def test_a_run_that_forecasts_nothing_is_noted(self, tiny):
        assert "a run of 3 steps forecasts nothing: the warm-up takes 3" in str(plan(*tiny, num_steps=3))

    def test_every_step_full_is_no_speedup(self, tiny):
        assert plan(*tiny, num_steps=7, interval=1).speedup_ceiling == 1.0

    def test_model_is_not_changed(self, tiny):
        model, inputs = tiny
        before = list(model.state_dict())
        plan(model, inputs)
        assert list(model.state_dict()) == before
        assert all(parameter.is_meta for parameter in model.parameters())

    @pytest.mark.turn(0, 2)
    def test_positional_inputs(self, tiny):
        model, inputs = tiny
        by_position = (inputs["hidden_states"], inputs["timestep"], inputs["class_labels"], None, False)
        assert plan(model, by_position).flops_full == plan(model, inputs).flops_full

    def test_text(self, tiny):
        """Prints schedule, costs and buffers as people read them."""
        text = str(plan(*tiny, num_steps=8))
        assert "4 of 8: 0, 1, 2, 7" in text
        assert "32.00 KiB per stream, 4 features, order 1" in text

    @pytest.mark.turn(1, 2)
    def test_inside_a_device_context(self):
        """A model made and planned under ``with torch.device("meta")`` has the figures of one planned outside of it."""
        with torch.device("meta"):
            model = FluxTransformer2DModel(
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                in_channels=4,
            ).eval()
            inputs = {
                "hidden_states": torch.empty(1, 64, 4),
                "encoder_hidden_states": torch.empty(1, 16, 32),
                "pooled_projections": torch.empty(1, 32),
                "timestep": torch.empty(1),
                "img_ids": torch.empty(64, 3),
                "txt_ids": torch.empty(16, 3),
                "return_dict": False,
            }
            inside = plan(model, inputs)
        torch._dynamo.reset()
        outside = plan(model, inputs)
        assert (inside.flops_full, len(inside.features)) == (outside.flops_full, len(outside.features))
        assert len(outside.features) == 5

    def test_joint_attention(self):
        """SD3: an attention region feeds both streams, so it has two features; the last block has one."""
        with torch.device("meta"):
            model = SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pooled_projection_dim=24,
                out_channels=4,
                pos_embed_max_size=8,
            ).eval()
            inputs = {
                "hidden_states": torch.empty(1, 4, 8, 8),
                "encoder_hidden_states": torch.empty(1, 5, 32),
                "pooled_projections": torch.empty(1, 24),
                "timestep": torch.empty(1),
                "return_dict": False,
            }
        p = plan(model, inputs)
        assert sorted(len(region.features) for region in p.regions if region.kind == "attention") == [1, 2]


class TestBadArguments:
    @pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, "50", None])
    def test_num_steps(self, tiny, num_steps):
        with pytest.raises(ConfigError) as raised:
            plan(*tiny, num_steps=num_steps)
        assert str(raised.value) == f"num_steps must be an int of at least 1, got {num_steps!r}"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("order", 5), ("interval", 0), ("warmup", 0), ("granularity", "block"), ("full_steps", [1, 2]), ("memory_budget", 0)],
    )
    def test_settings(self, tiny, name, value):
        with pytest.raises(ConfigError, match=f"{name} must be .*, got {re.escape(repr(value))}"):
            plan(*tiny, **{name: value})

    def test_nothing_to_forecast(self):
        with torch.device("meta"), pytest.raises(NoRegionsError, match="nothing to forecast in Linear"):
            plan(nn.Linear(4, 4), [torch.empty(3, 4)])


def flux(num_layers: int, num_single_layers: int) -> tuple[nn.Module, dict[str, object]]:
    """FLUX.1-dev at 1024 x 1024 and full width, with so many double and single blocks."""
    dtype = torch.bfloat16
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True, num_layers=num_layers, num_single_layers=num_single_layers)
        return model.to(dtype).eval(), {
            "hidden_states": torch.empty(1, 4096, 64, dtype=dtype),
            "encoder_hidden_states": torch.empty(1, 512, 4096, dtype=dtype),
            "pooled_projections": torch.empty(1, 768, dtype=dtype),
            "timestep": torch.empty(1, dtype=dtype),
            "img_ids": torch.empty(4096, 3, dtype=dtype),
            "txt_ids": torch.empty(512, 3, dtype=dtype),
            "guidance": torch.empty(1),
            "return_dict": False,
        }


class TestPublishedFigures:
    """Models of full width on the meta device, against what is published of them.

    Every figure is a constant and so much a block, so that a few blocks tell those of all; whole models are in the benchmarks.
    """

    def test_dit_xl(self):
        """DiT-XL/2 with a guidance batch: 23.73 TFLOPs for 50 full steps; 56 features, 0.123 GiB an order."""

        def figures(num_layers: int) -> tuple[int, int, int]:
            with torch.device("meta"):
                model = dit(
                    num_attention_heads=16, attention_head_dim=72, num_layers=num_layers, sample_size=32, num_embeds_ada_norm=1000
                )
                p = plan(model, dit_inputs(32), order=0)
            return p.flops_full, len(p.features), p.buffer_bytes

        one, two = figures(1), figures(2)
        flops, features, num_bytes = (a + 27 * (b - a) for a, b in zip(one, two, strict=True))
        assert flops / 1e12 == pytest.approx(0.47467, abs=2e-5)
        assert 50 * flops / 1e12 == pytest.approx(23.73, abs=0.005)
        assert features == 56
        assert num_bytes / 2**30 == pytest.approx(0.123, abs=5e-4)

    @pytest.mark.turn(2, 6)
    def test_flux_dev(self, monkeypatch):
        """FLUX.1-dev at 1024 x 1024: 74.385 TFLOPs a full step and 114 features. Of order 2 they would be 6.01 GiB; without what
        no forecast step reads, the text stream above all, they are 5.34 GiB, with differences in float8 less, the stack next to
        nothing.
        """
        record = RecordPasses(planning.run_passes)
        monkeypatch.setattr(planning, "run_passes", record)

        def figures(num_layers: int, num_single_layers: int) -> tuple[int, ...]:
            p = plan(*flux(num_layers, num_single_layers), order=2)
            float8, stack = record.again(order=2, buffer_dtype=torch.float8_e5m2), record.again(order=2, granularity="stack")
            assert stack.flops["full"] == p.flops_full
            assert stack.flops["forecast"] < p.flops_forecast
            whole = 3 * sum(math.prod(feature.shape) * feature.dtype.itemsize for feature in p.features)
            buffers = (whole, p.buffer_bytes, float8.buffer_bytes, stack.buffer_bytes)
            return p.flops_full, p.flops_forecast, len(p.features), *buffers

        base, double, single = figures(1, 1), figures(2, 1), figures(1, 2)
        full, forecast, features, *buffers = (
            a + 18 * (b - a) + 37 * (c - a) for a, b, c in zip(base, double, single, strict=True)
        )
        assert full / 1e12 == pytest.approx(74.385, abs=5e-4)
        assert forecast / 1e9 == pytest.approx(4.758, abs=5e-4)
        assert 50 * full / 1e12 == pytest.approx(3719.2, abs=0.06)
        assert (10 * full + 40 * forecast) / 1e12 == pytest.approx(744.04, abs=0.06)
        assert features == 114
        assert [gib(num_bytes) for num_bytes in buffers] == pytest.approx([6.01, 5.34, 3.56, 0.07], abs=0.005)


def gib(num_bytes: int) -> float:
    return num_bytes / 2**30


class RecordPasses:
    """Stands before ``run_passes`` and runs it again, with other settings, on what it was called with: tracing takes long."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.traced: fx.GraphModule
        self.arguments: dict[str, Any] = {}

    def __call__(self, traced: fx.GraphModule, **arguments: Any) -> Any:
        self.traced, self.arguments = traced, arguments
        return self.original(traced, **arguments)

    def again(self, **settings: Any) -> GraphNumbers:
        config = BackendConfig(**settings)
        other = {"storage": config.storage, "selection": config.selection}
        return count(self.original(self.traced, **self.arguments | other), config.storage)
