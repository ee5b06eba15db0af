"""Granularity "stack": one minimal module for each way in which streams run from their entries to their exits."""

from functools import cache

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, fx, nn

from taylorseer_fx.passes.find_stored import find_stored
from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.regions import Feature
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from taylorseer_fx.passes.windows import window_text
from tests.graphs import Found, Traced, find_stacks, is_heavy_op, op_name, render, stacks_in, trace, two_layers
from tests.passes.test_find_stored import Flux, attention, norm
from tests.passes.test_guard_regions import call, random_state

D, TEXT, IMAGE = 4, 2, 3


class Mlp(nn.Module):
    def __init__(self, out: int = D) -> None:
        super().__init__()
        self.linear = nn.Linear(D, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(norm(x))


class Blocks(nn.Module):
    """A few blocks, for models to wire."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(D, D), nn.Linear(D, D)
        self.blocks = nn.ModuleList(Mlp() for _ in range(count))
        self.weights = nn.ParameterList(torch.randn(D, D) for _ in range(count))


class Single(Blocks):
    """One stream, gated blocks, a head."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + gate * block(x)
        return self.head(norm(x))


class TwoStreams(Blocks):
    """Text and image, joined by attention; both are returned."""

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        for block, weight in zip(self.blocks, self.weights, strict=True):
            mixed = attention(torch.cat([text, image]), weight)
            text, image = text + mixed[:TEXT], image + mixed[TEXT:]
            text, image = text + block(text), image + block(image)
        return text, image


class TextUnread(TwoStreams):
    """The text ends unread, as in SD3."""

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return super().forward(text, image)[1]


class Independent(Blocks):
    """Two streams that never meet."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks[:2]:
            x = x + block(x)
        for block in self.blocks[2:]:
            y = y + block(y)
        return x * y


class TimeStream(Blocks):
    """The embedding of the time is a residual stream of its own, which the blocks of the other only read."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for block in self.blocks[:2]:
            time = time + block(time)
        for block in self.blocks[2:]:
            x = x + time * block(x)
        return x * time


class Skip(Blocks):
    """A residual add around the whole model."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return x + self.head(h)


class Reshaped(Blocks):
    """Halfway, tokens are merged by a linear layer: the stream after it starts from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[:2]:
            x = x + block(x)
        x = self.merge(x.view(-1, 2 * D))
        for block in self.blocks[2:]:
            x = x + block(x)
        return x


class Masked(Blocks):
    """Padding is masked after every block."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = (x + block(x)) * mask
        return x


class Cast(Blocks):
    """Sums in float32 of a stream in bfloat16, as Wan has it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        for block in self.blocks:
            x = (x.float() + gate * block(x).float()).to(x.dtype)
        return x


class Folded(Blocks):
    """Blocks see tokens, the add is of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x.reshape(-1, D)).reshape(x.shape)
        return x


class Plain(Blocks):
    """Layers with no add around them."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Whole(nn.Module):
    """A stream of whole numbers."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x + x @ weight
        return x + x @ weight


class Watched(Blocks):
    """What a block computes is returned too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.embed(x)
        return x + seen, seen


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape or (IMAGE, D), dtype=dtype)


CASES = {
    "single": lambda: (Single(), (tokens(), tokens(D))),
    "two-streams": lambda: (TwoStreams(2), (tokens(TEXT, D), tokens())),
    "text-unread": lambda: (TextUnread(2), (tokens(TEXT, D), tokens())),
    "joined-halfway": lambda: (Flux(), (tokens(TEXT, D), tokens(), tokens(D))),
    "independent": lambda: (Independent(), (tokens(), tokens(IMAGE, D) + 1)),
    "time-stream": lambda: (TimeStream(), (tokens(), tokens(IMAGE, D) / 2)),
    "skip": lambda: (Skip(), (tokens(),)),
    "reshaped": lambda: (Reshaped(), (tokens(4, D),)),
    "masked": lambda: (Masked(), (tokens(), torch.tensor([[True], [True], [False]]))),
    "cast": lambda: (Cast().bfloat16(), (tokens(dtype=torch.bfloat16), tokens(D))),
    "folded": lambda: (Folded(), (tokens(2, 3, D),)),
}


@cache
def traced_case(case: str) -> Traced:
    """One of ``CASES``, traced once for all tests."""
    torch.manual_seed(0)
    model, args = CASES[case]()
    return trace(model.eval(), *args)


def found_in(case: str) -> Found:
    return stacks_in(traced_case(case))


def guarded(found: Found, order: int = 1) -> GuardedGraph:
    return guard_regions(found.gm, find_stored(found.gm.graph, found.regions), Storage(order))


def summary(found: Found) -> list[list[str]]:
    """Of the features of each region: the exit with its shape, what is taken off, and what is kept."""
    return [list(map(feature_text, region.features)) for region in find_stored(found.gm.graph, found.regions).regions]


def feature_text(feature: Feature) -> str:
    kept = window_text(feature.window)
    text = f"{op_name(feature.node)}{list(feature.node.meta['val'].shape)} less {base_text(feature.base)}"
    return f"{text}, kept {kept}" if kept else text


def base_text(base: fx.Node | None) -> str:
    return "nothing" if base is None else "an input" if base.op == "placeholder" else op_name(base)


class TestFound:
    @pytest.mark.parametrize(
        ("case", "expected"),
        [
            ("single", [["add[3, 4] less addmm"]]),
            ("two-streams", [["add[2, 4] less an input", "add[3, 4] less an input"]]),
            ("text-unread", [["add[3, 4] less an input"]]),
            ("joined-halfway", [["add[5, 4] less an input, kept [2:5]"]]),
            ("independent", [["add[3, 4] less an input"], ["add[3, 4] less an input"]]),
            ("time-stream", [["add[3, 4] less an input"], ["add[3, 4] less an input"]]),
            ("skip", [["add[3, 4] less an input"]]),
            ("reshaped", [["add[2, 4] less nothing"]]),
            ("masked", [["add[3, 4] less mul"]]),
            ("cast", [["add[3, 4] less convert_element_type"]]),
            ("folded", [["add[2, 3, 4] less an input"]]),
        ],
    )
    def test_exits_and_entries(self, case, expected):
        """The regions, the exits of each, what is taken off them before they are kept, and the part that is."""
        found = found_in(case)
        assert summary(found) == expected
        assert set(found.kinds) == {"stack"}
        assert found.reasons == []

    @pytest.mark.parametrize("case", CASES)
    def test_all_the_work_is_in_the_regions(self, case):
        """Heavy operators are in a region, or on no stream: the embedding before the first block, the head behind the last."""
        found = found_in(case)
        covered = {node for region in found.regions.regions for node in region.nodes}
        outside = [node for node in found.gm.graph.nodes if is_heavy_op(node) and node not in covered]
        assert len(outside) == (2 if case == "single" else 0)
        assert sum(map(is_heavy_op, covered)) == found.regions.num_heavy - len(outside) > 0

    def test_regions_are_disjoint(self):
        one, other = found_in("time-stream").regions.regions
        assert set(one.nodes).isdisjoint(other.nodes)

    def test_a_stream_reads_the_exit_of_another(self):
        """The blocks read the time's stream at its end: the first region's feature is a live-in of the second."""
        time, main = found_in("time-stream").regions.regions
        assert time.features[0].node in main.live_ins
        assert main.features[0].node not in time.live_ins

    def test_the_exit_is_the_last_add(self):
        """However many come before, and whatever dress it leaves in."""
        for case in ("single", "masked", "cast", "reshaped"):
            found = found_in(case)
            (feature,) = found.regions.features
            assert feature.node is found.gm.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)[-1]
            assert found.regions.num_residual_adds == 4


class TestEntries:
    def test_masks_are_applied_to_the_entry(self):
        """As often as to the stream, for the exit is of a stream that was masked."""
        model, (x, mask) = CASES["masked"]()
        found = find_stacks(model, x, mask)
        base, count = found.regions.features[0].base, 0
        while base is not found.node(x):
            assert op_name(base) == "mul"
            base, count = base.args[0], count + 1
        assert count == 3

    def test_in_the_dtype_of_the_exit(self):
        """Of a sum in float32, the entry in float32, rounded in between as the stream is."""
        (feature,) = found_in("cast").regions.features
        assert feature.base.meta["val"].dtype == feature.node.meta["val"].dtype == torch.float32

    def test_shared_by_two_exits(self):
        """Of what was split from one tensor, each its part."""

        class Split(Blocks):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                for block in self.blocks:
                    x = x + block(x)
                left, right = x.split([2, 3])
                return left + self.embed(left), right + self.head(right)

        x = tokens(5, D)
        found = find_stacks(Split(1), x)
        assert sorted(base_text(f.base) for f in found.regions.features) == ["getitem", "getitem"]
        assert {f.base.args[0].args[0] for f in found.regions.features} == {found.node(x)}

    def test_where_the_entry_needs_an_add(self):
        """The stream after a merge begins with the sum of the one before; nothing is taken off, and nothing is left in the
        graph that needs it in a forecast step.
        """
        found = found_in("reshaped")
        assert found.regions.features[0].base is None
        forecast = specialize(guarded(found), StepKind.FORECAST)
        assert not [node for node in forecast.graph.nodes if is_heavy_op(node)]


class TestRejected:
    def test_no_residual_add(self):
        found = find_stacks(Plain(), tokens())
        assert (found.regions.regions, found.regions.rejected, found.regions.num_residual_adds) == ((), (), 0)
        assert found.regions.num_heavy == 4

    def test_whole_numbers(self):
        found = find_stacks(Whole(), *(torch.ones(shape, dtype=torch.int64) for shape in ((3, D), (D, D))))
        assert found.regions.regions == ()
        assert found.reasons == ["NOT_FLOATING"]
        assert "torch.int64" in str(found.regions.rejected[0])

    def test_work_that_is_returned(self):
        """All of it feeds an output, so a forecast step would save nothing."""
        found = find_stacks(Watched(), tokens())
        assert found.regions.regions == ()
        assert found.reasons == ["NEEDED_ELSEWHERE"]


class TestGuarded:
    @pytest.mark.parametrize("case", CASES)
    def test_full_side_is_the_model(self, case):
        found = found_in(case)
        graph = guarded(found)
        assert nodes_without_value(graph.gm) == []
        results, _ = call(graph, found.traced.real_inputs, True, *random_state(graph))
        with torch.no_grad():
            expected = found.traced.gm(*found.traced.real_inputs)
        for result, value in zip(results, expected, strict=True):
            assert torch.equal(result, value)

    @pytest.mark.parametrize("case", CASES)
    def test_kept_is_what_the_blocks_added(self, case):
        """The newest snapshot, added to what was taken off, is the exit again."""
        found = found_in(case)
        graph = guarded(found)
        real = found.traced.real_inputs
        results, new = call(graph, real, True, *random_state(graph))
        forecast, _ = call(graph, real, False, torch.tensor([1.0, 0.0]), *new)
        for result, value in zip(forecast, results, strict=True):
            torch.testing.assert_close(result, value)


class TestSnapshots(TestCase):
    maxDiff = None

    def test_two_layers(self):
        """One branch for both layers; gates and adds are within it. What is kept is the sum less the input."""
        model, args = two_layers()
        gm = guarded(find_stacks(model, *args)).gm
        self.assertExpectedInline(
            render(gm),
            """\
%arg0_1 : float32[4, 4]
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%arg3_1 : float32[4, 4]
%is_full : bool[]
%coefficients : float32[2]
%feature0_b0 : float32[3, 4]
%feature0_b1 : float32[3, 4]
%region0_full = attribute region0_full
%region0_forecast = attribute region0_forecast
%cond = cond(%is_full, %region0_full, %region0_forecast, (%arg0_1, %arg1_1, %arg2_1, %arg3_1, %feature0_b0, %feature0_b1, %coefficients)) : tuple
%getitem = getitem(%cond, 0) : float32[3, 4]
%getitem1 = getitem(%cond, 1) : float32[3, 4]
%getitem2 = getitem(%cond, 2) : float32[3, 4]
return (%getitem, %getitem1, %getitem2)

region0_full:
%arg0_1_ : float32[4, 4]
%arg1_1_ : float32[3, 4]
%arg2_1_ : float32[4]
%arg3_1_ : float32[4, 4]
%feature0_b0_ : float32[3, 4]
%feature0_b1_ : float32[3, 4]
%coefficients_ : float32[2]
%permute = permute(%arg0_1_, [1, 0]) : float32[4, 4]
%mm = mm(%arg1_1_, %permute) : float32[3, 4]
%mul = mul(%arg2_1_, %mm) : float32[3, 4]
%add = add(%arg1_1_, %mul) : float32[3, 4]
%permute1 = permute(%arg3_1_, [1, 0]) : float32[4, 4]
%mm1 = mm(%add, %permute1) : float32[3, 4]
%mul1 = mul(%arg2_1_, %mm1) : float32[3, 4]
%add1 = add(%add, %mul1) : float32[3, 4]
%sub = sub(%add1, %arg1_1_) : float32[3, 4]
return (%add1, %sub, %feature0_b0_)

region0_forecast:
%arg0_1_ : float32[4, 4]
%arg1_1_ : float32[3, 4]
%arg2_1_ : float32[4]
%arg3_1_ : float32[4, 4]
%feature0_b0_ : float32[3, 4]
%feature0_b1_ : float32[3, 4]
%coefficients_ : float32[2]
%select = select(%coefficients_, 0, 0) : float32[]
%mul = mul(%feature0_b0_, %select) : float32[3, 4]
%select1 = select(%coefficients_, 0, 1) : float32[]
%mul1 = mul(%feature0_b1_, %select1) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
%add1 = add(%add, %arg1_1_) : float32[3, 4]
return (%add1, %feature0_b0_, %feature0_b1_)""",  # noqa: E501
        )
