"""What belongs to the blocks of a model and what is only a residual sum around them: one minimal module for each case."""

from collections.abc import Callable

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, nn

from taylorseer_fx.passes.find_stored import find_stored
from taylorseer_fx.passes.guard_regions import guard_regions
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from tests.graphs import Found, pass_inputs, render, stacks_in, trace
from tests.passes.test_find_regions import Attention, B, D, Mlp, T, norm, tokens, vector

C = 3  # channels of the sample, of which the stream has D


class Model(nn.Module):
    """Two blocks, embedder and head, and what else a rim is made of; ``wire(model, *inputs)`` puts them together."""

    def __init__(self, wire: Callable[..., Tensor]) -> None:
        super().__init__()
        self.wire, self.embed, self.head, self.head2 = wire, nn.Linear(C, D), nn.Linear(D, C), nn.Linear(2 * D, D)
        self.attentions, self.mlps = nn.ModuleList(Attention() for _ in "12"), nn.ModuleList(Mlp() for _ in "12")
        self.control, self.bring_in, self.hidden = Attention(), nn.Linear(D, D), Mlp()
        self.time, self.modulate = nn.Linear(D, D), nn.Linear(D, D)
        self.first, self.last, self.between = nn.Conv1d(C, C, 1), nn.Conv1d(C, C, 1), nn.Conv1d(C, C, 1)
        self.positions = nn.Sequential(
            nn.Conv1d(D, D, 3, padding=1, groups=2), nn.Mish(), nn.Conv1d(D, D, 3, padding=1, groups=2)
        )
        self.wide = nn.Sequential(nn.Conv1d(D, 2 * D, 1), nn.GELU(), nn.Conv1d(2 * D, D, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.wire(self, *inputs)

    def blocks(self, x: Tensor, gate: Tensor | float = 1.0) -> Tensor:
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = x + gate * attention(norm(x))
            x = x + gate * mlp(norm(x))
        return x

    def waves(self, number: Tensor) -> Tensor:
        phase = number[..., None] * torch.arange(1, 1 + D // 2)
        return self.time(torch.cat([phase.sin(), phase.cos()], -1))


def over_time(convolution: nn.Module, x: Tensor) -> Tensor:
    return convolution(x.transpose(1, 2)).transpose(1, 2)


def sample() -> Tensor:
    return torch.randn(B, T, C)


def both(wire: Callable[..., Tensor], *inputs: Tensor) -> tuple[Found, Found]:
    """The regions of a model at both granularities, from one trace."""
    torch.manual_seed(0)
    traced = trace(Model(wire).eval(), *inputs)
    return Found(traced, *pass_inputs(traced)), stacks_in(traced)


BLOCKS = ["attention", "mlp"] * 2


def assert_only_blocks(found: tuple[Found, Found], reasons: list[str], kinds: list[str] = BLOCKS) -> None:
    """Forecast are the blocks, or their last sum as a stack; the rest is named with its reasons at either granularity."""
    modules, stack = found
    assert (modules.kinds, modules.reasons) == (kinds, reasons)
    assert (stack.kinds, stack.reasons) == (["stack"], reasons)
    (exit_,) = stack.regions.features
    last = modules.regions.features[-1].residual.add
    names = [node.name for node in modules.gm.graph.nodes]
    assert exit_.node.name == last.name, f"{exit_.node.name} in {names}"
    assert exit_.base is not None


def modulated(m: Model, x: Tensor, v: Tensor) -> Tensor:
    """The network of ``v`` makes the gates of the blocks and the shift of the head."""
    for _ in range(2):
        v = v + m.hidden(norm(v))
    return m.head(m.blocks(m.embed(x), m.modulate(v)) + v)


class TestConditioning:
    """A residual network of the time alone makes gates and shifts: it is no stream of tokens."""

    @pytest.mark.parametrize(
        ("wire", "inputs"),
        [
            pytest.param(lambda m, x, t: modulated(m, x, m.waves(t)[:, None]), [torch.rand(B)], id="time"),
            pytest.param(lambda m, x, t: modulated(m, x, m.waves(t)), [torch.rand(B, T)], id="time-per-token"),
            pytest.param(
                lambda m, x, t, scale: modulated(m, x, (m.waves(t) + m.waves(scale))[:, None]),
                [torch.rand(B), torch.rand(B)],
                id="time-and-scale",
            ),
            pytest.param(
                lambda m, x, t, pooled: modulated(m, x, (m.waves(t) + m.bring_in(pooled))[:, None]),
                [torch.rand(B), vector()],
                id="time-and-pooled-text",
            ),
        ],
    )
    def test_network_of_the_time(self, wire, inputs):
        found = both(wire, sample(), *inputs)
        assert_only_blocks(found, ["CONDITIONING"] * 2)
        time = found[0].node(inputs[0])
        assert f"it reads {time.name}" in str(found[0].regions.rejected[0])

    def test_text_that_is_refined_under_the_time(self):
        """Text tokens attend, as in the refiners of Lumina and HunyuanVideo: they are a stream though the sample is not in it."""

        def wire(m: Model, x: Tensor, text: Tensor, t: Tensor) -> Tensor:
            text = text + m.waves(t)[:, None] * m.control(norm(text))
            text = text + m.hidden(norm(text))
            x = m.embed(x)
            return m.head(x + m.attentions[0](norm(x), text))

        modules, stack = both(wire, sample(), tokens(3), torch.rand(B))
        assert (modules.kinds, modules.reasons) == (["attention", "mlp", "attention"], [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])

    def test_text_without_the_time(self):
        """Nothing in it changes from step to step: forecasting it is exact, and saves it."""

        def wire(m: Model, x: Tensor, text: Tensor) -> Tensor:
            return modulated(m, x, text)

        modules, _ = both(wire, sample(), vector()[:, None])
        assert (modules.kinds, modules.reasons) == (["mlp"] * 2 + BLOCKS, [])

    @pytest.mark.parametrize("waves", [False, True])
    def test_a_sample_without_tokens(self, waves):
        """MLPs on vectors, or on a number behind waves, are the model where there is no other."""

        def wire(m: Model, x: Tensor, t: Tensor) -> Tensor:
            x = (m.waves(x) if waves else m.embed(x)) + m.waves(t)
            for mlp in m.mlps:
                x = x + mlp(norm(x))
            return m.head(x)

        modules, stack = both(wire, torch.randn(B) if waves else torch.randn(B, C), torch.rand(B))
        assert (modules.kinds, modules.reasons) == (["mlp"] * 2, [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])


class TestRim:
    """A lone convolution or product before or behind the blocks is neither an attention nor an MLP of theirs."""

    def test_convolutions_on_sample_and_output(self):
        """As in Stable Audio: the output itself would be forecast."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = x + over_time(m.first, x)
            x = m.head(m.blocks(m.embed(x)))
            return x + over_time(m.last, x)

        modules, stack = both(wire, sample())
        assert_only_blocks((modules, stack), ["RIM"] * 2)
        for found in (modules, stack):
            assert [entry.path for entry in found.regions.rejected] == ["first", "last"]
            assert [entry.detail for entry in found.regions.rejected] == ["before the blocks", "behind the blocks"]

    def test_positional_convolution_after_the_embedding(self):
        """As in F5-TTS: two convolutions on the stream itself; the stack begins behind them."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = m.embed(x)
            return m.head(m.blocks(x + over_time(m.positions, x)))

        modules, stack = both(wire, sample())
        assert_only_blocks((modules, stack), ["RIM"])
        assert [found.regions.rejected[0].path for found in (modules, stack)] == ["positions"] * 2
        assert stack.regions.features[0].base.name == modules.regions.features[0].residual.trunk.name

    def test_blocks_of_the_text_before_it(self):
        """They are MLPs, of convolutions with a hidden layer, and the stream does not begin with them."""

        def wire(m: Model, x: Tensor, text: Tensor) -> Tensor:
            text = text + over_time(m.wide, norm(text))
            x = m.head2(torch.cat([m.embed(x), text], -1))
            return m.head(m.blocks(x + over_time(m.positions, x)))

        modules, _ = both(wire, sample(), tokens())
        assert (modules.kinds, modules.reasons) == (["mlp", *BLOCKS], ["RIM"])

    def test_skip_around_the_model(self):
        """What is added to the input is the head's output, which is computed from the forecast blocks."""
        found = both(lambda m, x: x + m.head(norm(m.blocks(m.embed(x)))), sample())
        assert_only_blocks(found, ["RIM"])

    def test_convolution_of_every_block(self):
        """One that comes again is part of the blocks, also before the first attention."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = m.embed(x)
            for attention in m.attentions:
                x = x + over_time(m.positions, x)
                x = x + attention(norm(x))
            return m.head(x)

        modules, stack = both(wire, sample())
        assert (modules.kinds, modules.reasons) == (["mlp", "attention"] * 2, [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])

    def test_mlp_of_convolutions(self):
        """The last block of Sana ends with convolutions that have a hidden layer: an MLP."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = m.embed(x)
            x = x + m.attentions[0](norm(x))
            return m.head(x + over_time(m.wide, norm(x)))

        modules, stack = both(wire, sample())
        assert (modules.kinds, modules.reasons) == (["attention", "mlp"], [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])

    def test_layer_on_the_tokens(self):
        """One product that is added to the tokens as they leave the blocks is the MLP of the last block."""

        def wire(m: Model, x: Tensor, text: Tensor) -> Tensor:
            x = torch.cat([text, m.blocks(m.embed(x))], 1)
            return m.head(x + m.modulate(x))

        modules, stack = both(wire, sample(), tokens(2))
        assert (modules.kinds, modules.reasons) == ([*BLOCKS, "mlp"], [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])

    def test_model_of_convolutions(self):
        """Where there is nothing else, they are the blocks."""

        def wire(m: Model, x: Tensor) -> Tensor:
            for convolution in (m.first, m.between, m.last):
                x = x + over_time(convolution, x)
            return x

        modules, stack = both(wire, sample())
        assert (modules.kinds, modules.reasons) == (["mlp"] * 3, [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])

    def test_stages_of_convolutions_around_the_attention(self):
        """Several of them on a side are no rim: a U-Net's blocks, whose widths differ."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = x + over_time(m.first, x)
            x = m.embed(x + over_time(m.between, x))
            x = x + over_time(m.positions, x)
            return x + m.attentions[0](norm(x))

        modules, _ = both(wire, sample())
        assert (modules.kinds, modules.reasons) == (["mlp"] * 3 + ["attention"], [])

    def test_mlp_on_the_output_is_no_stack(self):
        """It is an MLP; but the stack is the stream of the blocks, not a lone sum made from its end."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = m.bring_in(norm(m.blocks(m.embed(x))))
            return x + m.hidden(norm(x))

        modules, stack = both(wire, sample())
        assert (modules.kinds, modules.reasons) == ([*BLOCKS, "mlp"], [])
        assert (stack.kinds, stack.reasons) == (["stack"], ["RIM"])
        assert stack.regions.features[0].node.name == modules.regions.features[-2].residual.add.name

    def test_mlp_on_tokens_joined_again(self):
        """The last MLP of a model that joins its tokens anew in every block is part of the stack."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = m.blocks(m.embed(x))
            x = torch.cat([x[:, 1:], m.bring_in(norm(x[:, :1]))], 1)
            return x + m.hidden(norm(x))

        modules, stack = both(wire, sample())
        assert (modules.kinds, modules.reasons) == ([*BLOCKS, "mlp"], [])
        assert (stack.kinds, stack.reasons) == (["stack"], [])
        assert stack.regions.features[-1].node.name == modules.regions.features[-1].residual.add.name


class TestBroughtIn:
    def test_projection_of_a_control_stream(self):
        """The attention of the control stream is a feature, and what brings its state in is computed from it."""

        def wire(m: Model, x: Tensor, hint: Tensor) -> Tensor:
            x = m.embed(x)
            control = m.bring_in(hint) + x
            control = control + m.control(norm(control))
            x = x + m.attentions[0](norm(x))
            x = x + m.modulate(control)
            return m.head(x + m.mlps[0](norm(x)))

        modules, stack = both(wire, sample(), tokens())
        assert (modules.kinds, modules.reasons) == (["attention", "attention", "mlp"], ["BROUGHT_IN"])
        assert modules.regions.rejected[0].path == "modulate"
        assert (stack.kinds, stack.reasons, len(stack.regions.features)) == (["stack"], [], 1), "the stack holds all of it"


class TestSnapshots(TestCase):
    maxDiff = None

    def test_forecast_step(self):
        """Both convolutions are executed around the forecast of the MLP."""

        def wire(m: Model, x: Tensor) -> Tensor:
            x = x + m.first(x)
            x = (x.transpose(1, 2) @ m.embed.weight.T).relu()
            x = x + m.hidden(x)
            return x + m.positions[0](x.transpose(1, 2)).transpose(1, 2)

        modules, _ = both(wire, torch.randn(B, C, T))
        gm = guard_regions(modules.gm, find_stored(modules.gm.graph, modules.regions), Storage(0))
        self.assertExpectedInline(
            render(specialize(gm, StepKind.FORECAST)),
            """\
%arg0_1 : float32[3, 3, 1]
%arg1_1 : float32[3]
%arg2_1 : float32[2, 3, 5]
%arg3_1 : float32[8, 3]
%arg4_1 : float32[24, 8]
%arg5_1 : float32[24]
%arg6_1 : float32[8, 24]
%arg7_1 : float32[8]
%arg8_1 : float32[8, 4, 3]
%arg9_1 : float32[8]
%coefficients : float32[1]
%feature0_b0 : float32[2, 5, 8]
%convolution = convolution(%arg2_1, %arg0_1, %arg1_1, [1], [0], [1], False, [0], 1) : float32[2, 3, 5]
%add = add(%arg2_1, %convolution) : float32[2, 3, 5]
%permute = permute(%add, [0, 2, 1]) : float32[2, 5, 3]
%permute1 = permute(%arg3_1, [1, 0]) : float32[3, 8]
%clone = clone(%permute, memory_format=contiguous_format) : float32[2, 5, 3]
%view = view(%clone, [10, 3]) : float32[10, 3]
%mm = mm(%view, %permute1) : float32[10, 8]
%view1 = view(%mm, [2, 5, 8]) : float32[2, 5, 8]
%relu = relu(%view1) : float32[2, 5, 8]
%select = select(%coefficients, 0, 0) : float32[]
%mul = mul(%feature0_b0, %select) : float32[2, 5, 8]
%add1 = add(%relu, %mul) : float32[2, 5, 8]
%permute2 = permute(%add1, [0, 2, 1]) : float32[2, 8, 5]
%convolution1 = convolution(%permute2, %arg8_1, %arg9_1, [1], [1], [1], False, [0], 2) : float32[2, 8, 5]
%permute3 = permute(%convolution1, [0, 2, 1]) : float32[2, 5, 8]
%add2 = add(%add1, %permute3) : float32[2, 5, 8]
return (%add2)""",
        )
