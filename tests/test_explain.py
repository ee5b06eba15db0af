"""``backend.explain()``: the report as data, and as people read it."""

import re
from functools import cache

import pytest
import torch
from diffusers import DiTTransformer2DModel
from expecttest import TestCase
from torch import Tensor, fx, nn

from taylorseer_fx import ConfigError, Report, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from tests.graphs import op_counts


def tiny_dit() -> tuple[DiTTransformer2DModel, dict[str, object]]:
    """Two blocks of width 32 on 16 tokens, with a guidance batch of two."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 3]),
        "class_labels": torch.tensor([1, 2]),
        "return_dict": False,
    }
    return model, inputs


@cache
def explained(**settings: object) -> tuple[TaylorSeerBackend, Report]:
    """The report on the tiny DiT, after one call; the same one for all tests that ask for the same settings."""
    torch._dynamo.reset()
    model, inputs = tiny_dit()
    backend = taylorseer_backend(compiler="eager", **settings)
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs)
    return backend, backend.explain()


def section(report: Report, first: str) -> str:
    """The part of the printed report that begins with ``first``."""
    return next(part for part in str(report).split("\n\n") if part.startswith(first))


def explain(model: nn.Module, *args: Tensor, **settings: object) -> Report:
    """The report on ``model``, after one call that says its step."""
    torch._dynamo.reset()
    backend = taylorseer_backend(compiler="eager", **settings)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad(), backend.stream("a", step=0):
        compiled(*args)
    return backend.explain()


class Joined(nn.Module):
    """A layer for two streams of tokens, then one for both as one stream, whose text tokens are dropped at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.single = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        both = torch.cat([text, image])
        mixed = self.joint(both.softmax(0) @ both.T @ both)
        both = torch.cat([text + mixed[:2], image + mixed[2:]])
        return (both + self.single(both.tanh()))[2:]


class TestText(TestCase):
    maxDiff = None

    def test_regions(self):
        """A line a region: path, kind, feature, bytes of its buffers over both orders."""
        _, report = explained()
        self.assertExpectedInline(
            section(report, "region"),
            """\
region                       kind       feature             stored   buffers
---------------------------  ---------  ------------------  ------  --------
transformer_blocks.0.attn1   attention  float32[2, 16, 32]  all     8.00 KiB
transformer_blocks.0.ff.net  mlp        float32[2, 16, 32]  all     8.00 KiB
transformer_blocks.1.attn1   attention  float32[2, 16, 32]  all     8.00 KiB
transformer_blocks.1.ff.net  mlp        float32[2, 16, 32]  all     8.00 KiB""",
        )

    def test_summary(self):
        """What is found, what each kind of step does, the schedule, the buffers, the time. Ops and bytes vary with torch."""
        _, report = explained(order=2, interval=6)
        text = re.sub(r"\d+ ops", "N ops", section(report, "granularity"))
        text = re.sub(r"[\d.]+ [KM]iB(?! per stream)", "N bytes", text)
        self.assertExpectedInline(
            text,
            """\
granularity:   module
4 regions (2 attention, 2 mlp), 4 features, 0 rejected
full step:     N ops, 1.901 MFLOPs, reads N bytes, writes N bytes
forecast step: N ops, 163.840 kFLOPs, reads N bytes, writes N bytes
left:          8.62% of the FLOPs in a forecast step; the fewest bytes it could move are N bytes
schedule:      FFFTTTTTFTTTTTFTTTTTFTTTTTFTTTTTFTTTTTFTTTTTFTTTTT  (10 of 50 steps full, ceiling 5.00x)
buffers:       48.00 KiB per stream (order 2: 3 per feature)
time inputs:   arg4_1 int64[2], read at embeddings.py:63 emb = timesteps[:, None].float() * emb[None, :]
CUDA graphs:   off: the model is on no CUDA device""",
        )

    def test_stack(self):
        """One region and one feature, named after all that lies between its first and its last operator."""
        _, report = explained(granularity="stack")
        self.assertExpectedInline(
            section(report, "region") + "\n\n" + "\n".join(section(report, "granularity").splitlines()[:2]),
            """\
region              kind   feature             stored   buffers
------------------  -----  ------------------  ------  --------
transformer_blocks  stack  float32[2, 16, 32]  all     8.00 KiB

granularity:   stack
1 regions (1 stack), 1 features, 0 rejected""",
        )

    def test_kept(self):
        """The text stream ends unread, and of the joint stream only the image is read: what is kept of each says so."""
        report = explain(Joined(), torch.randn(3, 4), torch.randn(2, 4))
        self.assertExpectedInline(
            section(report, "region"),
            """\
region  kind       feature        stored  buffers
------  ---------  -------------  ------  -------
joint   attention  float32[2, 4]  unread      0 B
                   float32[3, 4]  all        96 B
single  mlp        float32[5, 4]  [2:5]      96 B""",
        )

    def test_passes(self):
        """A line a pass; op counts and times vary, names and order do not."""
        _, report = explained()
        lines = section(report, "pass").splitlines()[2:]
        assert [line.split()[0] for line in lines] == [stage.name for stage in report.stages]
        assert all(re.fullmatch(r"\w+ +\d+ +\d+\.\d", line) for line in lines)


class TestData:
    def test_regions(self):
        _, report = explained()
        assert [region.kind for region in report.regions] == ["attention", "mlp"] * 2
        assert [region.path for region in report.regions] == [
            "transformer_blocks.0.attn1",
            "transformer_blocks.0.ff.net",
            "transformer_blocks.1.attn1",
            "transformer_blocks.1.ff.net",
        ]
        for region in report.regions:
            (feature,) = region.features
            assert (feature.shape, feature.dtype) == ((2, 16, 32), torch.float32)
            assert region.num_ops > 0

    @pytest.mark.parametrize("order", [0, 1, 4])
    def test_buffer_bytes(self, order):
        """(order + 1) x 4 features x 2 x 16 x 32 floats, as announced and as allocated."""
        backend, report = explained(order=order)
        assert report.buffer_bytes == (order + 1) * 4 * 2 * 16 * 32 * 4
        assert sum(feature.buffer_bytes for region in report.regions for feature in region.features) == report.buffer_bytes
        assert backend.stats().buffer_bytes == report.buffer_bytes

    def test_buffer_bytes_in_another_dtype(self):
        _, wide = explained(order=1)
        backend, narrow = explained(order=1, buffer_dtype=torch.bfloat16)
        assert 2 * narrow.buffer_bytes == wide.buffer_bytes
        assert backend.stats().buffer_bytes == narrow.buffer_bytes

    def test_buffer_bytes_of_eight_bit_differences(self):
        """Order 0 keeps the feature's four bytes; each order above it takes one."""
        _, wide = explained(order=2)
        backend, narrow = explained(order=2, buffer_dtype=torch.float8_e5m2)
        assert narrow.buffer_bytes == wide.buffer_bytes // 12 * (4 + 1 + 1)
        assert backend.stats().buffer_bytes == narrow.buffer_bytes

    def test_granularity(self):
        """What was asked for, or what the budget left."""
        _, modules = explained(memory_budget=4 * 8 << 10)
        assert (modules.granularity, len(modules.regions)) == ("module", 4)
        with pytest.warns(
            TaylorSeerWarning, match=r"would take 32.00 KiB .* memory_budget=32.00 KiB: granularity .stack. instead"
        ):
            _, stack = explained(memory_budget=(4 * 8 << 10) - 1)
        assert (stack.granularity, len(stack.regions)) == ("stack", 1)
        assert stack.buffer_bytes == modules.buffer_bytes // 4

    def test_kept_bytes(self):
        """Nothing is allocated for what is unread, and only the image's three tokens for the rest."""
        features = [f for region in explain(Joined(), torch.randn(3, 4), torch.randn(2, 4)).regions for f in region.features]
        assert [(f.shape, f.stored, f.buffer_bytes) for f in features] == [
            ((2, 4), "unread", 0),
            ((3, 4), "", 96),
            ((5, 4), "[2:5]", 96),
        ]

    def test_traffic(self):
        """A forecast step moves less than a full one, and no less than its floor; with the stack that is lower still."""
        _, report = explained()
        full, forecast = report.traffic["full"], report.traffic["forecast"]
        assert forecast.floor <= forecast.read + forecast.written < full.read + full.written
        assert forecast.floor < full.floor
        assert explained(granularity="stack")[1].traffic["forecast"].floor < forecast.floor
        assert report.buffer_bytes < forecast.floor

    def test_schedule(self):
        assert explained(interval=5, warmup=3)[1].schedule == "FFF" + "TTTTF" * 9 + "TT"
        assert explained(full_steps=(0, 2))[1].schedule == "FT" * 25

    def test_time_inputs(self):
        report = explained()[1]
        (time_input,), (source,) = report.time_inputs, report.time_sources
        assert time_input.endswith(" int64[2]")
        assert f"time inputs:   {time_input}, read at {source}\n" in str(report)
        assert "embeddings.py" in source

    def test_flops_and_ops(self):
        """A forecast step computes next to nothing, and its graph is the shorter one."""
        _, report = explained()
        assert 0 < report.flops["forecast"] < report.flops["full"] / 4
        assert report.num_ops["forecast"] < report.num_ops["full"]

    def test_nothing_rejected(self):
        assert explained()[1].rejected == ()


class TestGraphs:
    def test_by_name(self):
        """Each name gives the graph it says."""
        _, report = explained()
        counts = {name: op_counts(report.graph(name)) for name in ("canonical", "guarded", "full", "forecast")}
        attention = "_scaled_dot_product_flash_attention_for_cpu"
        assert [counts[name][attention] for name in counts] == [2, 0, 2, 0]
        assert [counts[name]["cond"] for name in counts] == [0, 4, 0, 0]
        assert [counts[name]["copy_"] for name in counts] == [0, 0, 4, 0]
        assert all(isinstance(report.graph(name), fx.GraphModule) for name in counts)

    def test_readable(self):
        _, report = explained()
        assert "feature0_b0" in report.graph("forecast").print_readable(print_output=False)

    def test_unknown_name(self):
        _, report = explained()
        with pytest.raises(ConfigError) as raised:
            report.graph("nope")
        assert str(raised.value) == "name must be 'canonical' or 'guarded' or 'full' or 'forecast', got 'nope'"


class TestWhen:
    def test_before_any_compile(self):
        with pytest.raises(RuntimeError, match="call the compiled model once first"):
            taylorseer_backend().explain()

    def test_several_graphs(self):
        """Two shapes are two graphs; the newest is shown unless asked otherwise."""
        torch._dynamo.reset()
        backend = taylorseer_backend(compiler="eager")

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.linear(x)

        model = torch.compile(Layer(), backend=backend, dynamic=False)
        with torch.no_grad():
            for name, count in (("a", 3), ("b", 5)):
                with backend.stream(name):
                    model(torch.randn(count, 4))
        assert backend.explain().regions[0].features[0].shape == (5, 4)
        assert backend.explain(graph=0).regions[0].features[0].shape == (3, 4)
        assert [entry.num_features for entry in backend.explain().graphs] == [1, 1]
        assert "this is 1 of 2; explain(graph=i) shows another" in str(backend.explain())

    def test_a_rejected_branch_is_printed_with_its_reason(self):
        """Nothing is left out silently."""
        torch._dynamo.reset()
        backend = taylorseer_backend(compiler="eager")

        class Partly(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                hidden = self.first(x)
                x = x + hidden.relu()
                return x + self.second(x), hidden

        compiled = torch.compile(Partly(), backend=backend)
        with torch.no_grad(), backend.stream("a"), pytest.warns(TaylorSeerWarning, match="executed in every step") as said:
            compiled(torch.randn(3, 4))
        assert len(said) == 1
        report = backend.explain()
        assert len(report.regions) == len(report.rejected) == 1
        text = section(report, "executed in every step:")
        assert "also feed something that is not forecast" in text
        assert "1 rejected" in str(report)
        assert "time inputs:   none found: give the step by backend.stream" in str(report)
