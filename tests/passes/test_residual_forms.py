"""Residual sums in every form: a trunk that is scaled, gated, subtracted from or mixed, and a branch that is broadcast.

Each form is a function ``(x, y, gate)`` of the stream, of what a heavy operator made of it, and of a vector that is none of the
stream's (``tests/forms.py``). Which tensor is the feature is known: ``y``.
"""

from collections.abc import Callable
from functools import cache
from string import ascii_uppercase

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from expecttest import TestCase
from torch import Tensor, fx, nn

from taylorseer_fx.passes.dataflow import ancestors
from taylorseer_fx.passes.find_cut_branches import find_arriving_branches
from taylorseer_fx.passes.ops import undress
from taylorseer_fx.passes.regions import Feature, Reason, RegionSet
from tests.forms import FORMS
from tests.graphs import Found, find, find_stacks, hand_made, is_heavy_op, op_name, pass_inputs, render, stacks_in, trace
from tests.torch_version import since_2_12

aten = torch.ops.aten

T, D = 3, 4


class Formed(nn.Module):
    """Of every form a model of two layers, side by side, each with an input of its own: tracing one takes as long as all."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(D, D) for _ in range(2))

    def forward(self, gate: Tensor, **streams: Tensor) -> list[Tensor]:
        for weight in self.weights:
            streams = {name: FORMS[name.replace("_", "-")](x, x.tanh() @ weight, gate) for name, x in streams.items()}
        return [x.sin() for x in streams.values()]


@cache
def formed() -> tuple[Found, Found, dict[str, fx.Node]]:
    """What is found at either granularity, and the input of each form in the graph of the modules and of the stacks."""
    torch.manual_seed(0)
    streams = {form.replace("-", "_"): torch.randn(1, T, D) for form in FORMS}
    traced = trace(Formed(), torch.randn(D), **streams)
    modules, stacks = Found(traced, *pass_inputs(traced)), stacks_in(traced)
    starts = {form: found.node(x) for found in (modules, stacks) for form, x in zip(FORMS, streams.values(), strict=True)}
    return modules, stacks, starts


def features_of(regions: RegionSet, start: fx.Node) -> list[Feature]:
    return [feature for feature in regions.features if any(node.name == start.name for node in ancestors([feature.node]))]


def products_on(start: fx.Node, found: Found) -> list[fx.Node]:
    heavy = [node for node in found.gm.graph.nodes if is_heavy_op(node)]
    return [node for node in heavy if any(source.name == start.name for source in ancestors([node]))]


def product_of(feature: Feature) -> fx.Node:
    """The product that a feature is, in whatever shape, or the mean of."""
    node = undress(feature.node)
    return undress(node.all_input_nodes[0]) if op_name(node) == "mean" else node


@pytest.mark.parametrize("form", FORMS)
def test_found(form):
    """Both branches, each a region with its product for a feature; and one stack, with an entry scaled as its stream is."""
    modules, stacks, starts = formed()
    features = features_of(modules.regions, starts[form])
    assert list(map(product_of, features)) == products_on(starts[form], modules)
    assert len(features) == 2
    (exit_,) = features_of(stacks.regions, starts[form])
    assert (exit_.base is None) == (form == "normed")


def test_nothing_else_is_found():
    modules, stacks, _ = formed()
    assert len(modules.regions.regions) == 2 * len(FORMS)
    assert len(stacks.regions.regions) == len(FORMS)
    assert modules.regions.rejected == stacks.regions.rejected == ()
    assert all(sum(map(is_heavy_op, region.nodes)) == 2 for region in stacks.regions.regions)


class Wired(nn.Module):
    """Weights and a function that uses them: ``wire(weights, x, time)``."""

    def __init__(self, wire: Callable[..., Tensor]) -> None:
        super().__init__()
        self.wire = wire
        self.weights = nn.ParameterList(torch.randn(D, D) for _ in range(6))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.wire(self.weights, x, time).sin()


def find_in(wire: Callable[..., Tensor], time: Tensor | None = None) -> Found:
    torch.manual_seed(0)
    return find(Wired(wire).eval(), torch.randn(T, D), torch.randn(D) if time is None else time)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,))


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


def attend(w: nn.ParameterList, x: Tensor, angle: Tensor) -> Tensor:
    q, k = rotate(x @ w[0], angle), rotate(x @ w[1], angle)
    return (q @ k.T).softmax(-1) @ (x @ w[2]) @ w[3]


def mixture(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
    weights = (x @ w[0][:, :2]).softmax(-1)
    return weights[:, :1] * x + weights[:, 1:] * (x @ w[1])


class TestNoTrunk:
    @pytest.mark.parametrize(
        "wire",
        [
            pytest.param(lambda w, x, t: F.silu(x @ w[0]) * (x @ w[1]) + x @ w[2], id="gated-linear-unit"),
            pytest.param(lambda w, x, t: 0.7 * (x @ w[0]) + 0.3 * (x @ w[1]), id="two-projections"),
            pytest.param(lambda w, x, t: x @ w[0] - t * (x @ w[1]), id="difference-of-projections"),
            pytest.param(mixture, id="mixture-by-the-stream"),
            pytest.param(lambda w, x, t: x * (x @ w[0]).sigmoid() + x.tanh() @ w[1], id="gated-by-the-stream"),
            pytest.param(lambda w, x, t: norm(x) * (1 + t) + t @ w[0], id="modulation"),
            pytest.param(lambda w, x, t: norm(x @ w[0]) * w[1][0] + w[2][0], id="affine-norm"),
            pytest.param(lambda w, x, t: 0.7 * (x @ w[0]) + w[1][:T], id="positional-embedding"),
            pytest.param(lambda w, x, t: 0.7 * x + 0.3 * x.tanh(), id="nothing-heavy"),
            pytest.param(lambda w, x, t: x.mean(0, keepdim=True) + x @ w[0], id="trunk-broadcast"),
            pytest.param(lambda w, x, t: t / x + x @ w[0], id="trunk-a-denominator"),
            pytest.param(lambda w, x, t: x.div(2, rounding_mode="floor") + x @ w[0], id="trunk-rounded"),
            pytest.param(lambda w, x, t: x * x + x @ w[0], id="trunk-squared"),
            pytest.param(lambda w, x, t: torch.cat([x, x @ w[0]]).sum(0), id="sum-over-tokens"),
        ],
    )
    def test_no_residual_add(self, wire):
        found = find_in(wire)
        assert found.regions.num_residual_adds == 0
        assert (found.kinds, found.reasons) == ([], [])

    def test_rotary_embedding(self):
        """Every layer multiplies with the same cosines, on which the stream therefore depends: they are no trunk."""

        def wire(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
            angle = time * torch.arange(T)[:, None]
            for _ in range(3):
                x = 0.7 * x + attend(w, norm(x), angle)
            return x

        found = find_in(wire)
        assert found.kinds == ["attention"] * 3
        assert found.regions.num_residual_adds == 3

    def test_modulation_of_every_token(self):
        """Shift and gate have the shape of the stream, and all that a branch computes depends on them: the stream is the other
        factor, in the first layer, too, where it is not known yet to be one.
        """

        def wire(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
            shift, gate = (time @ torch.cat([w[0], w[1]], 1)).chunk(2, -1)
            x = gate * x + (norm(x) + shift) @ w[2]
            return gate * x + (norm(x) + shift) @ w[3]

        found = find_in(wire, torch.randn(T, D))
        assert [op_name(f.node) for f in found.regions.features] == ["mm", "mm"]
        assert {f.residual.root for f in found.regions.features} == {found.gm.graph.find_nodes(op="placeholder")[3]}

    def test_preconditioning_around_a_model(self):
        """``c_skip * x + c_out * model(x)`` is no block: the model's output is not forecast, only what the blocks add."""

        def wire(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
            h = x @ w[0]
            for weight in (w[1], w[2], w[3]):
                h = h + norm(h) @ weight
            return time.cos() * x + time.sin() * (h @ w[4])

        found = find_in(wire)
        assert found.regions.num_residual_adds == 3
        assert [found.region_of("mm", i) for i in range(5)] == [None, 0, 1, 2, None]

    @since_2_12
    def test_skip_around_a_level(self):
        """An hourglass: the skip is mixed with what comes up from below by a learned weight; the blocks below are forecast."""

        def wire(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
            x = x + norm(x) @ w[0]
            h = x @ w[1]
            for weight in (w[2], w[3]):
                h = h + norm(h) @ weight
            x = torch.lerp(x, h @ w[4], time.sigmoid())
            return x + norm(x) @ w[5]

        found = find_in(wire)
        assert [found.region_of("mm", i) for i in range(6)] == [0, None, 1, 2, None, 3]

    def test_decaying_recurrence_in_a_branch(self):
        """The state of a gated delta rule is scaled by what the tokens say: it is part of the attention."""

        def wire(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
            n = norm(x)
            keys, values, decay = n @ w[0], n @ w[1], (n @ w[2]).sigmoid()
            state, read = torch.zeros(D, D), []
            for t in range(T):
                key = keys[t : t + 1]
                state = state * decay[t][:, None] + key.T @ (values[t : t + 1] - key @ state)
                read.append(n[t : t + 1] @ state)
            return x + torch.cat(read) @ w[3]

        found = find_in(wire)
        assert found.region_of("mm", 9) == 0
        assert len(found.regions.features) == 1
        assert found.regions.num_residual_adds == 3  # and two of values less what is read: within the branch, like the state


def scaled(emit, x, y, g):
    return [emit(aten.div.Tensor, emit(aten.add.Tensor, emit(aten.mul.Tensor, x, 0.7), emit(aten.mul.Tensor, g, y)), 0.8)]


def negated(emit, x, y, g):
    return [emit(aten.neg.default, emit(aten.sub.Tensor, emit(aten.mul.Tensor, y, g), emit(aten.mul.Tensor, x, g)))]


def read_on(emit, x, y, g):
    return [emit(aten.sin.default, emit(aten.sub.Tensor, x, y))]


class TestBeyondABreak:
    """The work was in another graph: both summands are inputs of this one."""

    @pytest.mark.parametrize("build", [scaled, negated])
    def test_is_reported(self, build):
        gm = hand_made(build, (T, D), (T, D), (D,))
        (rejected,) = find_arriving_branches(gm.graph, [], RegionSet((), (), 0, 0))
        assert rejected.reason is Reason.BEYOND_BREAK

    @pytest.mark.parametrize("build", [read_on, lambda emit, x, y, g: [emit(aten.sub.Tensor, x, g)]])
    def test_is_none(self, build):
        """The sum is no state of a stream: nothing is added to it, and it is not returned; or one of both is no branch."""
        gm = hand_made(build, (T, D), (T, D), (D,))
        assert find_arriving_branches(gm.graph, [], RegionSet((), (), 0, 0)) == ()


def magnitude_preserving(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
    for weight in (w[0], w[1]):
        x = (0.8 * x + 0.6 * time * (x.tanh() @ weight)) / 0.9
    return x


def differences(w: nn.ParameterList, x: Tensor, time: Tensor) -> Tensor:
    x = (1 + time) * x - x.tanh() @ w[0]
    return x + time * (x.tanh() @ w[1] - x)


class TestSnapshots(TestCase):
    """In a picture every operator stands behind the letter of the region that it belongs to, if any; a star marks a feature."""

    maxDiff = None

    def picture(self, found: Found) -> str:
        region = {node: ascii_uppercase[i] for i, r in enumerate(found.regions.regions) for node in r.nodes}
        features = {feature.node for feature in found.regions.features}
        lines = zip(found.gm.graph.nodes, render(found.gm).splitlines(), strict=True)
        return "\n".join(f"{region.get(node, ' ')}{'*' if node in features else ' '} {line}" for node, line in lines)

    def stack(self, wire: Callable[..., Tensor]) -> Found:
        torch.manual_seed(0)
        return find_stacks(Wired(wire).eval(), torch.randn(T, D), torch.randn(D))

    def test_magnitude_preserving_sum(self):
        """What scales the stream and the branch is computed in every step."""
        self.assertExpectedInline(
            self.picture(find_in(magnitude_preserving)),
            """\
   %arg0_1 : float32[4, 4]
   %arg1_1 : float32[4, 4]
   %arg2_1 : float32[3, 4]
   %arg3_1 : float32[4]
   %mul = mul(%arg2_1, 0.8) : float32[3, 4]
   %mul1 = mul(%arg3_1, 0.6) : float32[4]
A  %tanh = tanh(%arg2_1) : float32[3, 4]
A* %mm = mm(%tanh, %arg0_1) : float32[3, 4]
   %mul2 = mul(%mul1, %mm) : float32[3, 4]
   %add = add(%mul, %mul2) : float32[3, 4]
   %div = div(%add, 0.9) : float32[3, 4]
   %mul3 = mul(%div, 0.8) : float32[3, 4]
B  %tanh1 = tanh(%div) : float32[3, 4]
B* %mm1 = mm(%tanh1, %arg1_1) : float32[3, 4]
   %mul4 = mul(%mul1, %mm1) : float32[3, 4]
   %add1 = add(%mul3, %mul4) : float32[3, 4]
   %div1 = div(%add1, 0.9) : float32[3, 4]
   %sin = sin(%div1) : float32[3, 4]
   return (%sin)""",
        )

    def test_differences(self):
        """The second branch holds the trunk, too, which is computed in every step."""
        self.assertExpectedInline(
            self.picture(find_in(differences)),
            """\
   %arg0_1 : float32[4]
   %arg1_1 : float32[3, 4]
   %arg2_1 : float32[4, 4]
   %arg3_1 : float32[4, 4]
   %add = add(%arg0_1, 1) : float32[4]
   %mul = mul(%add, %arg1_1) : float32[3, 4]
A  %tanh = tanh(%arg1_1) : float32[3, 4]
A* %mm = mm(%tanh, %arg2_1) : float32[3, 4]
   %sub = sub(%mul, %mm) : float32[3, 4]
B  %tanh1 = tanh(%sub) : float32[3, 4]
B* %mm1 = mm(%tanh1, %arg3_1) : float32[3, 4]
   %sub1 = sub(%mm1, %sub) : float32[3, 4]
   %mul1 = mul(%arg0_1, %sub1) : float32[3, 4]
   %add1 = add(%sub, %mul1) : float32[3, 4]
   %sin = sin(%add1) : float32[3, 4]
   return (%sin)""",
        )

    def test_magnitude_preserving_stack(self):
        """The entry is scaled as the stream is: by 0.8, over 0.9, by 0.8."""
        found = self.stack(magnitude_preserving)
        self.assertExpectedInline(
            self.picture(found),
            """\
   %arg0_1 : float32[4, 4]
   %arg1_1 : float32[4, 4]
   %arg2_1 : float32[3, 4]
   %arg3_1 : float32[4]
   %mul = mul(%arg2_1, 0.8) : float32[3, 4]
A  %mul1 = mul(%arg3_1, 0.6) : float32[4]
A  %tanh = tanh(%arg2_1) : float32[3, 4]
A  %mm = mm(%tanh, %arg0_1) : float32[3, 4]
A  %mul2 = mul(%mul1, %mm) : float32[3, 4]
A  %add = add(%mul, %mul2) : float32[3, 4]
A  %div = div(%add, 0.9) : float32[3, 4]
A  %mul3 = mul(%div, 0.8) : float32[3, 4]
A  %tanh1 = tanh(%div) : float32[3, 4]
A  %mm1 = mm(%tanh1, %arg1_1) : float32[3, 4]
A  %mul4 = mul(%mul1, %mm1) : float32[3, 4]
   %div1 = div(%mul, 0.9) : float32[3, 4]
   %mul5 = mul(%div1, 0.8) : float32[3, 4]
A* %add1 = add(%mul3, %mul4) : float32[3, 4]
   %div2 = div(%add1, 0.9) : float32[3, 4]
   %sin = sin(%div2) : float32[3, 4]
   return (%sin)""",
        )
        (feature,) = found.regions.features
        assert op_name(feature.base) == "mul"
