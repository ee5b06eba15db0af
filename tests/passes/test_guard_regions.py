"""Every region becomes a guarded branch, and the guarded graph runs as it is: it is the reference for the later passes."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, nn

from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.storage import FLOAT8, Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import Layer, Traced, assert_ops_changed, left_as_it_is, pass_inputs, render, trace, two_layers


def guard(model: nn.Module, *args: Tensor, order: int = 1, dtype: torch.dtype | None = None) -> GuardedGraph:
    return guard_regions(*pass_inputs(trace(model, *args)), Storage(order, dtype))


class TestSnapshots(TestCase):
    maxDiff = None

    def test_graph_around_the_branches(self):
        """Two regions: two branches, the new buffers as outputs, gates and residual adds untouched."""
        model, args = two_layers()
        self.assertExpectedInline(
            render(guard(model, *args).gm, bodies=False),
            """\
%arg0_1 : float32[4, 4]
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%arg3_1 : float32[4, 4]
%is_full : bool[]
%coefficients : float32[2]
%feature0_b0 : float32[3, 4]
%feature1_b0 : float32[3, 4]
%feature0_b1 : float32[3, 4]
%feature1_b1 : float32[3, 4]
%region0_full = attribute region0_full
%region0_forecast = attribute region0_forecast
%cond = cond(%is_full, %region0_full, %region0_forecast, (%arg0_1, %arg1_1, %feature0_b0, %feature0_b1, %coefficients)) : tuple
%getitem = getitem(%cond, 0) : float32[3, 4]
%getitem1 = getitem(%cond, 1) : float32[3, 4]
%getitem2 = getitem(%cond, 2) : float32[3, 4]
%mul = mul(%arg2_1, %getitem) : float32[3, 4]
%add = add(%arg1_1, %mul) : float32[3, 4]
%region1_full = attribute region1_full
%region1_forecast = attribute region1_forecast
%cond1 = cond(%is_full, %region1_full, %region1_forecast, (%arg3_1, %add, %feature1_b0, %feature1_b1, %coefficients)) : tuple
%getitem3 = getitem(%cond1, 0) : float32[3, 4]
%getitem4 = getitem(%cond1, 1) : float32[3, 4]
%getitem5 = getitem(%cond1, 2) : float32[3, 4]
%mul1 = mul(%arg2_1, %getitem3) : float32[3, 4]
%add1 = add(%add, %mul1) : float32[3, 4]
return (%add1, %getitem1, %getitem4, %getitem2, %getitem5)""",
        )

    def test_full_side(self):
        """The region as it was; its feature is the newest snapshot, and the one before moves up."""
        model, args = two_layers()
        self.assertExpectedInline(
            render(guard(model, *args).gm.region0_full),
            """\
%arg0_1_ : float32[4, 4]
%arg1_1_ : float32[3, 4]
%feature0_b0_ : float32[3, 4]
%feature0_b1_ : float32[3, 4]
%coefficients_ : float32[2]
%permute = permute(%arg0_1_, [1, 0]) : float32[4, 4]
%mm = mm(%arg1_1_, %permute) : float32[3, 4]
return (%mm, %mm, %feature0_b0_)""",
        )

    def test_forecast_side(self):
        """The polynomial; the buffers pass through."""
        model, args = two_layers()
        self.assertExpectedInline(
            render(guard(model, *args).gm.region0_forecast),
            """\
%arg0_1_ : float32[4, 4]
%arg1_1_ : float32[3, 4]
%feature0_b0_ : float32[3, 4]
%feature0_b1_ : float32[3, 4]
%coefficients_ : float32[2]
%select = select(%coefficients_, 0, 0) : float32[]
%mul = mul(%feature0_b0_, %select) : float32[3, 4]
%select1 = select(%coefficients_, 0, 1) : float32[]
%mul1 = mul(%feature0_b1_, %select1) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
return (%add, %feature0_b0_, %feature0_b1_)""",
        )

    def test_full_side_of_differences(self):
        """Eight-bit buffers: the recursion itself, clamped to what the dtype can hold; order 0 keeps the feature's dtype."""
        model, args = two_layers()
        self.assertExpectedInline(
            render(guard(model, *args, dtype=torch.float8_e5m2).gm.region0_full),
            """\
%arg0_1_ : float32[4, 4]
%arg1_1_ : float32[3, 4]
%feature0_b0_ : float32[3, 4]
%feature0_b1_ : float8_e5m2[3, 4]
%coefficients_ : float32[2]
%reciprocal_gaps_ : float32[1]
%permute = permute(%arg0_1_, [1, 0]) : float32[4, 4]
%mm = mm(%arg1_1_, %permute) : float32[3, 4]
%select = select(%reciprocal_gaps_, 0, 0) : float32[]
%sub = sub(%mm, %feature0_b0_) : float32[3, 4]
%mul = mul(%sub, %select) : float32[3, 4]
%clamp_min = clamp_min(%mul, -57344.0) : float32[3, 4]
%clamp_max = clamp_max(%clamp_min, 57344.0) : float32[3, 4]
%convert_element_type = convert_element_type(%clamp_max, float8_e5m2) : float8_e5m2[3, 4]
return (%mm, %mm, %convert_element_type)""",
        )

    def test_narrow_buffers_are_widened_for_the_arithmetic(self):
        """A bfloat16 feature: the polynomial in float32, the result back in bfloat16; a snapshot is kept as it is."""
        model, args = two_layers(torch.bfloat16)
        gm = guard(model, *args).gm
        self.assertExpectedInline(
            render(gm.region0_full) + "\n\n" + render(gm.region0_forecast),
            """\
%arg0_1_ : bfloat16[4, 4]
%arg1_1_ : bfloat16[3, 4]
%feature0_b0_ : bfloat16[3, 4]
%feature0_b1_ : bfloat16[3, 4]
%coefficients_ : float32[2]
%permute = permute(%arg0_1_, [1, 0]) : bfloat16[4, 4]
%mm = mm(%arg1_1_, %permute) : bfloat16[3, 4]
return (%mm, %mm, %feature0_b0_)

%arg0_1_ : bfloat16[4, 4]
%arg1_1_ : bfloat16[3, 4]
%feature0_b0_ : bfloat16[3, 4]
%feature0_b1_ : bfloat16[3, 4]
%coefficients_ : float32[2]
%select = select(%coefficients_, 0, 0) : float32[]
%convert_element_type = convert_element_type(%feature0_b0_, float32) : float32[3, 4]
%mul = mul(%convert_element_type, %select) : float32[3, 4]
%select1 = select(%coefficients_, 0, 1) : float32[]
%convert_element_type1 = convert_element_type(%feature0_b1_, float32) : float32[3, 4]
%mul1 = mul(%convert_element_type1, %select1) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
%convert_element_type2 = convert_element_type(%add, bfloat16) : bfloat16[3, 4]
return (%convert_element_type2, %feature0_b0_, %feature0_b1_)""",
        )


class TestApplied:
    def test_what_the_pass_removes_and_adds(self):
        """Each region's product goes into its branch; a call and its results come in."""
        model, args = two_layers()
        gm, found = pass_inputs(trace(model, *args))
        guarded = guard_regions(gm, found, Storage(1))
        assert_ops_changed(gm, guarded.gm, removed={"mm": 2, "permute": 2}, added={"cond": 2, "getitem": 6})

    def test_input_graph_is_left_as_it_is(self):
        model, args = two_layers()
        gm, found = pass_inputs(trace(model, *args))
        with left_as_it_is(gm):
            guard_regions(gm, found, Storage(2, torch.float64))

    @pytest.mark.parametrize("order", range(5))
    def test_extra_inputs(self, order):
        """is_full, ``order + 1`` weights, then ``order + 1`` buffers a feature, order by order."""
        model, args = two_layers()
        guarded = guard(model, *args, order=order)
        assert guarded.num_inputs == 4
        assert guarded.num_outputs == 1
        assert guarded.is_full.meta["val"].dtype == torch.bool
        assert guarded.is_full.meta["val"].shape == ()
        assert [(node.name, tuple(node.meta["val"].shape)) for node in guarded.coefficients] == [("coefficients", (order + 1,))]
        assert [node.name for node in guarded.buffers] == [f"feature{f}_b{i}" for i in range(order + 1) for f in range(2)]
        assert {tuple(node.meta["val"].shape) for node in guarded.buffers} == {(3, 4)}
        results = guarded.gm.graph.output_node().args[0]
        assert len(results) == 1 + len(guarded.buffers)
        assert [r.meta["val"].shape for r in results[1:]] == [b.meta["val"].shape for b in guarded.buffers]

    @pytest.mark.parametrize("order", [0, 2])
    @pytest.mark.parametrize("dtype", FLOAT8)
    def test_extra_inputs_of_differences(self, order, dtype):
        """The reciprocal gaps come in; all buffers but those of order 0 are of eight bits."""
        model, args = two_layers(torch.bfloat16)
        guarded = guard(model, *args, order=order, dtype=dtype)
        names = [(node.name, tuple(node.meta["val"].shape)) for node in guarded.coefficients]
        assert names == [("coefficients", (order + 1,)), ("reciprocal_gaps", (order,))]
        assert [node.name for node in guarded.buffers] == [f"feature{f}_b{i}" for i in range(order + 1) for f in range(2)]
        assert [node.meta["val"].dtype for node in guarded.buffers] == [torch.bfloat16] * 2 + [dtype] * 2 * order

    @pytest.mark.parametrize(
        ("model_dtype", "buffer_dtype", "stored", "coefficients"),
        [
            (torch.float32, None, torch.float32, torch.float32),
            (torch.bfloat16, None, torch.bfloat16, torch.float32),
            (torch.float16, None, torch.float16, torch.float32),
            (torch.float64, None, torch.float64, torch.float64),
            (torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
            (torch.bfloat16, torch.float32, torch.float32, torch.float32),
            (torch.bfloat16, torch.float64, torch.float64, torch.float32),
        ],
    )
    def test_dtypes(self, model_dtype, buffer_dtype, stored, coefficients):
        """Buffers take the feature's dtype unless told otherwise; coefficients are float32 or wider; outputs do not change."""
        model, args = two_layers(model_dtype)
        guarded = guard(model, *args, dtype=buffer_dtype)
        results = guarded.gm.graph.output_node().args[0]
        assert {node.meta["val"].dtype for node in guarded.buffers} == {stored}
        assert {node.meta["val"].dtype for node in results[1:]} == {stored}
        assert results[0].meta["val"].dtype == model_dtype
        assert guarded.coefficient_dtype == coefficients
        assert {node.meta["val"].dtype for node in guarded.coefficients} == {coefficients}

    @pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
    def test_every_node_has_its_value(self, dtype):
        model, args = two_layers(torch.bfloat16)
        guarded = guard(model, *args, order=3, dtype=dtype)
        assert nodes_without_value(guarded.gm) == []


class Constant(nn.Module):
    """Scales inside the branch with a constant that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x * torch.tensor([1.0, 2.0, 3.0, 4.0]))


class Joint(nn.Module):
    """Two streams through one product: a region with two features, of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        joint = torch.cat([text, x])
        mixed = self.linear(torch.softmax(joint @ joint.T, -1) @ joint)
        return x + mixed[text.shape[0] :], text + mixed[: text.shape[0]]


class ReadTwice(nn.Module):
    """The feature has a second reader, behind the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(4, 4, bias=False), Layer()

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.linear(x)
        return self.layer(x + gate * feature, gate), feature


def call(guarded: GuardedGraph, inputs: tuple[Tensor, ...], is_full: bool, *rest: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Run the guarded graph as it is; returns the model's outputs and the new buffers."""
    with torch.no_grad():
        results = list(guarded.gm(*inputs, torch.tensor(is_full), *rest))
    return results[: guarded.num_outputs], results[guarded.num_outputs :]


def random_state(guarded: GuardedGraph) -> list[Tensor]:
    """Coefficients and buffers with something in them."""
    torch.manual_seed(1)
    like = [node.meta["val"] for node in (*guarded.coefficients, *guarded.buffers)]
    return [torch.randn(value.shape).to(value.dtype) for value in like]


def split_state(guarded: GuardedGraph, state: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The coefficients, and the buffers of each feature."""
    num_coefficients, num_features = len(guarded.coefficients), len(guarded.buffers) // (guarded.storage.order + 1)
    coefficients, buffers = state[:num_coefficients], state[num_coefficients:]
    return coefficients, [buffers[f::num_features] for f in range(num_features)]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Bit for bit, eight-bit floats too."""
    return all(torch.equal(a.float(), b.float()) and a.dtype == b.dtype for a, b in zip(left, right, strict=True))


CASES = {
    "chained": lambda: two_layers(),
    "constant": lambda: (Constant(), (torch.randn(3, 4),)),
    "joint": lambda: (Joint(), (torch.randn(3, 4), torch.randn(2, 4))),
    "several-users": lambda: (ReadTwice(), (torch.randn(3, 4), torch.randn(4))),
}


@cache
def traced_case(case: str) -> Traced:
    """One of ``CASES``, traced once for all tests: passes leave it as it is."""
    torch.manual_seed(0)
    model, args = CASES[case]()
    return trace(model, *args)


def guarded_case(case: str, storage: Storage) -> tuple[Traced, GuardedGraph]:
    traced = traced_case(case)
    return traced, guard_regions(*pass_inputs(traced), storage)


STORAGES = [Storage(2), Storage(2, torch.bfloat16), Storage(2, torch.float8_e5m2)]


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: str(storage.dtype))
@pytest.mark.parametrize("case", CASES)
class TestNumerics:
    """The guarded graph, run as it is."""

    def test_full_side_is_the_model(self, case, storage):
        traced, guarded = guarded_case(case, storage)
        results, _ = call(guarded, traced.real_inputs, True, *random_state(guarded))
        with torch.no_grad():
            expected = traced.gm(*traced.real_inputs)
        assert same(results, expected)

    def test_full_side_updates_the_buffers(self, case, storage):
        """Snapshots: B0' = F, B(i+1)' = Bi. Differences: B0' = F, B1' = (F - B0) * r0, B2' = (B1' - B1) * r1."""
        traced, guarded = guarded_case(case, storage)
        state = random_state(guarded)
        (_, *gaps), old = split_state(guarded, state)
        _, new = call(guarded, traced.real_inputs, True, *state)
        _, new = split_state(guarded, [*state[: len(guarded.coefficients)], *new])
        for (f0, f1, f2), (b0, b1, _) in zip(new, old, strict=True):
            if storage.keeps_differences:
                ((r0, r1),) = gaps
                first = (f0 - b0) * r0
                assert same([f1, f2], [first.to(f1.dtype), ((first - b1.float()) * r1).to(f2.dtype)])
            else:
                assert same([f1, f2], [b0, b1])

    def test_forecast_side_keeps_the_buffers(self, case, storage):
        traced, guarded = guarded_case(case, storage)
        state = random_state(guarded)
        _, new = call(guarded, traced.real_inputs, False, *state)
        assert same(new, state[len(guarded.coefficients) :])


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: str(storage.dtype))
class TestForecast:
    def test_is_the_polynomial(self, storage):
        """Both layers take sum_i w_i * B_i for their product; gates and adds stay the model's."""
        model, (x, gate) = two_layers()
        traced = trace(model, x, gate)
        guarded = guard_regions(*pass_inputs(traced), storage)
        state = random_state(guarded)
        (result,), _ = call(guarded, traced.real_inputs, False, *state)
        (weights, *_), buffers = split_state(guarded, state)
        first, second = (sum(w * b.float() for w, b in zip(weights, row, strict=True)) for row in buffers)
        torch.testing.assert_close(result, x + gate * first + gate * second)

    def test_second_reader_gets_the_forecast(self, storage):
        traced, guarded = guarded_case("several-users", Storage(0, storage.dtype))
        _, *state = random_state(guarded)
        buffers = state[-len(guarded.buffers) :]
        (_, feature), _ = call(guarded, traced.real_inputs, False, torch.ones(1), *state)
        torch.testing.assert_close(feature, buffers[0].float())


class TestRange:
    def test_a_difference_beyond_the_range_is_the_largest(self):
        """Not infinity, and not no number, which the next forecast would spread everywhere."""
        model, (x, gate) = two_layers()
        traced = trace(model, x, gate)
        for dtype in FLOAT8:
            guarded = guard_regions(*pass_inputs(traced), Storage(1, dtype))
            coefficients, buffers = [torch.zeros(2), torch.tensor([1e30])], random_state(guarded)[2:]
            _, new = call(guarded, traced.real_inputs, True, *coefficients, *buffers)
            assert {value.abs().item() for value in new[2].float().flatten()} == {torch.finfo(dtype).max}


class TestBranches:
    def test_constant_inside_a_region_survives(self):
        """It becomes an attribute of the branch that uses it, and is the very tensor."""
        guarded = guard(Constant(), torch.randn(3, 4))
        constants = dict(guarded.gm.region0_full.named_buffers())
        assert [value.tolist() for value in constants.values()] == [[1.0, 2.0, 3.0, 4.0]]

    def test_joint_region_is_one_branch(self):
        guarded = guard(Joint(), torch.randn(3, 4), torch.randn(2, 4), order=0)
        assert sum(node.name.startswith("cond") for node in guarded.gm.graph.nodes) == 1
        assert sorted(tuple(node.meta["val"].shape) for node in guarded.buffers) == [(2, 4), (3, 4)]

    @pytest.mark.parametrize("case", CASES)
    def test_both_sides_take_and_return_the_same(self, case):
        """Operands and results of the two sides agree in number, shape and dtype."""
        _, guarded = guarded_case(case, Storage(1))
        gm = guarded.gm
        full, forecast = gm.region0_full.graph, gm.region0_forecast.graph

        def types(nodes):
            return [(tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in nodes]

        assert types(full.find_nodes(op="placeholder")) == types(forecast.find_nodes(op="placeholder"))
        assert types(full.output_node().args[0]) == types(forecast.output_node().args[0])
