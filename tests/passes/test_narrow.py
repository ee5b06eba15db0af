"""Slices go up through the graph: what nobody reads is not computed, and what is read comes out as before."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from expecttest import TestCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from taylorseer_fx.passes.clean_up import clean_up
from taylorseer_fx.passes.demands import demanded
from taylorseer_fx.passes.narrow import narrow
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import Traced, assert_ops_changed, hand_made, left_as_it_is, op_counts, op_name, render, trace
from tests.passes.windows import intervals

aten = torch.ops.aten


def rows(emit: Callable[..., fx.Node], x: fx.Node, start: int, end: int, dim: int = 0) -> fx.Node:
    return emit(aten.slice.Tensor, x, dim, start, end)


def assert_same(
    before: fx.GraphModule, after: fx.GraphModule, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Both graphs give the same on random inputs; matrix products of other sizes may round otherwise."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    for expected, got in zip(before(*inputs), after(*inputs), strict=True):
        torch.testing.assert_close(got, expected)


def last_block(emit: Any, t: fx.Node, w: fx.Node, b: fx.Node, text: fx.Node, image: fx.Node, forecast: fx.Node) -> list[fx.Node]:
    """The example of the pass: an adaLN of shift, scale and gate, and text tokens that are dropped at the end."""
    ada = emit(aten.addmm.default, b, t, emit(aten.permute.default, w, [1, 0]))
    gate = emit(aten.unsqueeze.default, rows(emit, ada, 8, 12, dim=1), 1)
    joint = emit(aten.cat.default, [text, image], 1)
    y = emit(aten.add.Tensor, joint, emit(aten.mul.Tensor, gate, forecast))
    return [rows(emit, y, 2, 5, dim=1)]


LAST_BLOCK = ((1, 6), (12, 6), (12,), (1, 2, 4), (1, 3, 4), (1, 5, 4))


class TestSnapshots(TestCase):
    maxDiff = None

    def test_last_block(self):
        """The gate slices the weight of its linear and its bias; the text is not read, and of the forecast only the image."""
        gm = hand_made(last_block, *LAST_BLOCK)
        narrowed = narrow(gm)
        self.assertExpectedInline(
            render(narrowed),
            """\
%x0 : float32[1, 6]
%x1 : float32[12, 6]
%x2 : float32[12]
%x3 : float32[1, 2, 4]
%x4 : float32[1, 3, 4]
%x5 : float32[1, 5, 4]
%slice = slice(%x1, 0, 8, 12) : float32[4, 6]
%permute = permute(%slice, [1, 0]) : float32[6, 4]
%slice1 = slice(%x2, 0, 8, 12) : float32[4]
%addmm = addmm(%slice1, %x0, %permute) : float32[1, 4]
%unsqueeze = unsqueeze(%addmm, 1) : float32[1, 1, 4]
%slice2 = slice(%x5, 1, 2, 5) : float32[1, 3, 4]
%mul = mul(%unsqueeze, %slice2) : float32[1, 3, 4]
%add = add(%x4, %mul) : float32[1, 3, 4]
return (%add)""",
        )
        assert_same(gm, narrowed, *LAST_BLOCK)
        assert clean_up(narrowed).input_positions == (0, 1, 2, 4, 5)

    def test_far_apart(self):
        """Two windows with a good deal between them are computed one by one."""

        def build(emit, x):
            y = emit(aten.exp.default, x)
            return [rows(emit, y, 0, 2), rows(emit, y, 20, 21)]

        self.assertExpectedInline(
            render(narrow(hand_made(build, (30, 4)))),
            """\
%x0 : float32[30, 4]
%slice = slice(%x0, 0, 0, 2) : float32[2, 4]
%exp = exp(%slice) : float32[2, 4]
%slice1 = slice(%x0, 0, 20, 21) : float32[1, 4]
%exp1 = exp(%slice1) : float32[1, 4]
return (%exp, %exp1)""",
        )


class TestApplied:
    @pytest.mark.parametrize("intervals", [[(0, 3), (2, 5)], [(0, 2), (2, 5)], [(0, 5), (1, 3)], [(1, 4), (1, 4)]])
    def test_overlapping_and_adjacent_windows_are_computed_once(self, intervals):
        """One operator for both, each slice then cut out of what it gives."""

        def build(emit, x):
            y = emit(aten.exp.default, x)
            return [emit(aten.sin.default, rows(emit, y, start, end)) for start, end in intervals]

        gm = hand_made(build, (30, 4))
        narrowed = narrow(gm)
        assert op_counts(narrowed)["exp"] == 1
        (exp,) = narrowed.graph.find_nodes(op="call_function", target=aten.exp.default)
        assert exp.meta["val"].shape == (max(end for _, end in intervals) - min(start for start, _ in intervals), 4)
        assert_same(gm, narrowed, (30, 4))

    def test_what_is_read_in_part_and_whole_is_whole(self):
        def build(emit, x):
            y = emit(aten.exp.default, x)
            return [rows(emit, y, 1, 3), y]

        gm = hand_made(build, (5, 4))
        assert_ops_changed(gm, narrow(gm))

    @pytest.mark.parametrize("starts", [[0], [0, 6]])
    def test_operators_without_a_rule_are_whole(self, starts):
        """A softmax over the rows needs all of them; the slice stays behind it. However many are read, it is computed once."""

        def build(emit, x):
            y = emit(aten._softmax.default, emit(aten.exp.default, x), 0, False)
            return [emit(aten.sin.default, rows(emit, y, start, start + 2)) for start in starts]

        gm = hand_made(build, (8, 4))
        narrowed = narrow(gm)
        shapes = [(op_name(node), tuple(node.meta["val"].shape)) for node in narrowed.graph.nodes if node.op == "call_function"]
        assert shapes[:2] == [("exp", (8, 4)), ("_softmax", (8, 4))]
        assert sorted(shapes[2:]) == sorted([("slice", (2, 4)), ("sin", (2, 4))] * len(starts))
        assert_same(gm, narrowed, (8, 4))

    def test_placeholders_keep_number_and_order(self):
        """Unread ones too: the runtime counts positions."""

        def build(emit, a, b, c):
            return [rows(emit, emit(aten.cat.default, [a, b, c]), 4, 5)]

        gm = hand_made(build, (2, 4), (2, 4), (2, 4))
        narrowed = narrow(gm)
        names = [[node.name for node in graph.find_nodes(op="placeholder")] for graph in (gm.graph, narrowed.graph)]
        assert names[0] == names[1]
        assert clean_up(narrowed).input_positions == (2,)

    def test_writes_are_kept(self):
        """A buffer that is written is written whole, by what nobody else may read."""

        def build(emit, x, buffer):
            emit(aten.copy_.default, buffer, emit(aten.exp.default, x))
            return [rows(emit, emit(aten.sin.default, x), 0, 1)]

        gm = hand_made(build, (5, 4), (5, 4))
        narrowed = narrow(gm)
        (write,) = narrowed.graph.find_nodes(op="call_function", target=aten.copy_.default)
        assert write.args[1].meta["val"].shape == (5, 4)
        x, buffer = torch.randn(5, 4), torch.zeros(5, 4)
        (result,) = narrowed(x, buffer)
        assert torch.equal(buffer, x.exp())
        assert torch.equal(result, x[:1].sin())

    def test_dead_code_goes(self):
        gm = hand_made(lambda emit, x: [emit(aten.exp.default, x), emit(aten.sin.default, x)][:1], (3,))
        assert_ops_changed(gm, narrow(gm), removed={"sin": 1})

    def test_left_as_it_is_where_all_is_read(self):
        """Nothing changes, and what is known of the nodes (where they were written) is kept."""
        gm = hand_made(lambda emit, x: [emit(aten.sin.default, emit(aten.exp.default, x))], (3,))
        for node in gm.graph.nodes:
            node.meta["nn_module_stack"] = node.name
        narrowed = narrow(gm)
        assert render(narrowed) == render(gm)
        assert [node.meta["nn_module_stack"] for node in narrowed.graph.nodes] == [node.name for node in gm.graph.nodes]

    def test_where_a_part_was_written_is_kept(self):
        gm = hand_made(last_block, *LAST_BLOCK)
        (addmm,) = gm.graph.find_nodes(op="call_function", target=aten.addmm.default)
        addmm.meta["nn_module_stack"] = "here"
        (addmm,) = narrow(gm).graph.find_nodes(op="call_function", target=aten.addmm.default)
        assert addmm.meta["nn_module_stack"] == "here"
        assert addmm.meta["val"].shape == (1, 4)

    def test_input_graph_is_left_as_it_is(self):
        gm = hand_made(last_block, *LAST_BLOCK)
        with left_as_it_is(gm):
            narrow(gm)

    def test_idempotent_and_every_node_has_its_value(self):
        once = narrow(hand_made(last_block, *LAST_BLOCK))
        assert nodes_without_value(once) == []
        assert render(narrow(once)) == render(once)

    @pytest.mark.parametrize("windows", [((0, 4), (2, 6)), ((0, 4), (0, 8))])
    def test_outputs_of_one_operator_in_different_windows(self, windows):
        """The variance is read in other rows than the mean."""

        def build(emit, x):
            both = emit(aten.var_mean.correction, emit(aten.exp.default, x), [1], correction=0, keepdim=True)
            return [rows(emit, emit(operator.getitem, both, i), *window) for i, window in enumerate(windows)]

        gm = hand_made(build, (8, 3))
        assert_same(gm, narrow(gm), (8, 3))

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(lambda emit, x: emit(aten.cat.default, [x, x]), id="cat"),
            pytest.param(lambda emit, x: emit(aten.view.default, x, [6, -1]), id="view"),
            pytest.param(lambda emit, x: emit(aten.unsqueeze.default, x, 0), id="unsqueeze"),
        ],
    )
    def test_a_part_of_no_rows(self, build):
        """``x[:0]``: text tokens in a call without text."""
        gm = hand_made(lambda emit, x: [rows(emit, build(emit, emit(aten.exp.default, x)), 0, 0)], (6, 4))
        assert_same(gm, narrow(gm), (6, 4))


class TestLayout:
    """Views need their input to lie in memory as it did, also where an operator that copied it is gone."""

    @pytest.mark.parametrize(
        "copied",
        [
            pytest.param(lambda emit, x: emit(aten.cat.default, [rows(emit, x, 0, 2), x]), id="cat"),
            pytest.param(lambda emit, x: emit(aten.constant_pad_nd.default, x, [0, 0, 0, 0, 2, 0]), id="pad"),
        ],
    )
    def test_of_heads_that_were_transposed(self, copied):
        """Tokens of two heads each, joined by a view behind something that laid them out token by token."""

        def build(emit, x):
            tokens = copied(emit, emit(aten.permute.default, x, [1, 0, 2]))
            return [rows(emit, emit(aten.view.default, tokens, [5, 8]), 2, 5)]

        gm = hand_made(build, (2, 3, 4))
        assert_same(gm, narrow(gm), (2, 3, 4))


class TestDemanded:
    def test_cut_nodes_ask_for_nothing(self):
        """What is handed over ready-made needs no inputs; nodes that only it needs are not asked for."""

        def build(emit, x):
            feature = emit(aten.sin.default, emit(aten.exp.default, x))
            return [rows(emit, feature, 1, 3), feature][:1]

        graph = hand_made(build, (5, 4)).graph
        x, exp, feature, *_ = graph.nodes
        demands = demanded(graph, ready=[feature])
        assert demands[feature] == (((1, 3), None),)
        assert x not in demands
        assert exp not in demands

    def test_writes_of_what_is_gone_do_not_count(self):
        def build(emit, x, buffer):
            emit(aten.copy_.default, buffer, x)
            return [emit(aten.exp.default, x)]

        graph = hand_made(build, (5,), (5,)).graph
        (write,) = graph.find_nodes(op="call_function", target=aten.copy_.default)
        assert write in demanded(graph)
        assert write not in demanded(graph, not_run=[write])


class SharedEmbedder(nn.Module):
    """Every block embeds the time by the same module before its own gate, as models with one embedder for all blocks do."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embedder = nn.Linear(6, 6)
        self.gates = nn.ModuleList(nn.Linear(6, 12) for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for gate, mlp in zip(self.gates, self.mlps, strict=True):
            shift, scale, factor = gate(F.silu(self.embedder(time))).chunk(3, -1)
            x = x + factor[:, None] * mlp(x * (1 + scale[:, None]) + shift[:, None])
        return x


class TestForecastStep:
    """In the pass pipeline, where the branches are gone and only gates, adds and forecasts are left."""

    def test_a_shared_embedder_is_computed_once(self):
        """However many blocks use it; and of each gate's linear only the gate's third is."""
        traced = trace(SharedEmbedder(), torch.randn(7, 5, 4), torch.randn(7, 6))
        gm = run_passes(traced.gm, traced.static_inputs, Storage(1)).variants[StepKind.FORECAST].gm
        linears = sorted(tuple(node.meta["val"].shape) for node in gm.graph.nodes if op_name(node) in ("addmm", "mm"))
        assert linears == [(7, 4), (7, 4), (7, 4), (7, 6)]


class Tokens(nn.Module):
    """A few learned tokens go in front of the image's and are dropped at the end, for one reader and then for another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.learned = nn.Linear(6, 12), nn.Parameter(torch.randn(3, 4))

    def forward(self, image: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        _, gate, _ = self.linear(time).chunk(3, -1)
        both = torch.cat([self.learned, image]) * (1 + gate)
        return both[3:].exp(), both[5:].sin()


class TestSymbolicSizes:
    def narrowed(self) -> tuple[Traced, fx.GraphModule]:
        return (traced := trace(Tokens(), torch.randn(7, 4), torch.randn(1, 6), dynamic=True)), narrow(traced.gm)

    def test_same_at_other_sizes(self):
        """Traced at one number of tokens, run at others."""
        traced, narrowed = self.narrowed()
        (learned,) = [real for real in traced.real_inputs if isinstance(real, Tensor) and real.shape == (3, 4)]
        assert not traced.node(narrowed, learned).users
        for length in (5, 7, 11):
            image = torch.randn(length, 4)
            inputs = [length if isinstance(real, int) else image if real.shape == (7, 4) else real for real in traced.real_inputs]
            for expected, got in zip(traced.gm(*inputs), narrowed(*inputs), strict=True):
                torch.testing.assert_close(got, expected)

    def test_adds_no_guards(self):
        """Narrowing finds nothing out about the sizes that the model did not: the compiled code serves as many calls."""
        traced = trace(Tokens(), torch.randn(7, 4), torch.randn(1, 6), dynamic=True)
        (environment,) = {value.node.shape_env for value in traced.fake_inputs if isinstance(value, torch.SymInt)}
        before = list(environment.guards)
        narrow(traced.gm)
        assert environment.guards == before


@st.composite
def graphs(draw: st.DrawFn) -> Callable[..., list[fx.Node]]:
    """A random graph of operators with rules, of which random parts are returned."""
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=8))
    choices = draw(st.lists(st.integers(0, 5), min_size=2 * len(steps), max_size=2 * len(steps)))
    ends = draw(st.lists(st.tuples(st.integers(0, 5), intervals(HEIGHT, False), intervals(WIDTH, False)), min_size=1, max_size=4))

    def build(emit: Callable[..., fx.Node], *inputs: fx.Node) -> list[fx.Node]:
        values = list(inputs)
        for step, left, right in zip(steps, choices[::2], choices[1::2], strict=True):
            values.append(STEPS[step](emit, values[-1 - left % len(values)], values[-1 - right % len(values)]))
        return [_cut(emit, values[-1 - which % len(values)], *parts) for which, *parts in ends]

    return build


HEIGHT, WIDTH = 6, 4


def _cut(emit: Callable[..., fx.Node], value: fx.Node, *parts: tuple[int, int] | None) -> fx.Node:
    for dim, part in enumerate(parts):
        if part is not None:
            value = rows(emit, value, *part, dim=dim)
    return value


def _through_heads(emit: Callable[..., fx.Node], x: fx.Node, _: fx.Node) -> fx.Node:
    heads = emit(aten.permute.default, emit(aten.view.default, x, [3, 2, WIDTH]), [1, 0, 2])
    back = emit(aten.permute.default, emit(aten.tanh.default, heads), [1, 0, 2])
    contiguous = emit(aten.clone.default, back, memory_format=torch.contiguous_format)
    return emit(aten.view.default, contiguous, [HEIGHT, WIDTH])


def _modulated(emit: Callable[..., fx.Node], x: fx.Node, y: fx.Node) -> fx.Node:
    scale, gate = (
        emit(operator.getitem, emit(aten.split.Tensor, emit(aten.cat.default, [x, y], 1), WIDTH, 1), i) for i in (1, 0)
    )
    scaled = emit(aten.mul.Tensor, gate, emit(aten.select.int, emit(aten.unsqueeze.default, scale, 1), 1, 0))
    return emit(aten.tanh.default, scaled)


def _product(emit: Callable[..., fx.Node], x: fx.Node, y: fx.Node) -> fx.Node:
    return emit(aten.tanh.default, emit(aten.mm.default, x, rows(emit, y, 1, 1 + WIDTH)))


def _product_and_bias(emit: Callable[..., fx.Node], x: fx.Node, y: fx.Node) -> fx.Node:
    bias = emit(aten.select.int, x, 0, 2)
    return emit(aten.tanh.default, emit(aten.addmm.default, bias, y, rows(emit, x, 2, 2 + WIDTH)))


class Packed(nn.Module):
    """A linear layer whose weight lies in bytes, a scale of two before every four numbers; the second half of it is read."""

    def __init__(self) -> None:
        super().__init__()
        scales = torch.tensor([0.5, 2.0], dtype=torch.float16).repeat(4)[:, None]
        numbers = torch.arange(-16, 16, dtype=torch.int8).reshape(8, 4)
        self.register_buffer("blocks", torch.cat([scales.view(torch.uint8), numbers.view(torch.uint8)], 1))

    def forward(self, x: Tensor) -> Tensor:
        scales, numbers = self.blocks.split([2, 4], 1)
        weight = scales.view(torch.float16).to(x.dtype) * numbers.view(torch.int8)
        return F.linear(x, weight)[:, 4:]


class TestBits(TestCase):
    def test_packed_weights(self):
        """What is read of a tensor goes up to where its bits are taken for another dtype, and no further."""
        traced = trace(Packed(), torch.randn(3, 4))
        narrowed = narrow(traced.gm)
        self.assertExpectedInline(
            render(narrowed),
            """\
%arg0_1 : uint8[8, 6]
%arg1_1 : float32[3, 4]
%slice = slice(%arg0_1, 1, 0, 2) : uint8[8, 2]
%slice1 = slice(%arg0_1, 1, 2, 6) : uint8[8, 4]
%view = view(%slice, float16) : float16[8, 1]
%slice2 = slice(%view, 0, 4, 8) : float16[4, 1]
%convert_element_type = convert_element_type(%slice2, float32) : float32[4, 1]
%view1 = view(%slice1, int8) : int8[8, 4]
%slice3 = slice(%view1, 0, 4, 8) : int8[4, 4]
%mul = mul(%convert_element_type, %slice3) : float32[4, 4]
%permute = permute(%mul, [1, 0]) : float32[4, 4]
%mm = mm(%arg1_1, %permute) : float32[3, 4]
return (%mm)""",
        )
        (expected,), (got,) = traced.gm(*traced.real_inputs), narrowed(*traced.real_inputs)
        torch.testing.assert_close(got, expected)


# Each takes two tensors of 6 x 4 and gives one. A tanh follows whatever multiplies: a chain of them must neither overflow, for
# then both graphs give nan, nor make a large error of a rounding.
STEPS: dict[str, Callable[..., fx.Node]] = {
    "add": lambda emit, x, y: emit(aten.add.Tensor, x, y),
    "sin": lambda emit, x, _: emit(aten.sin.default, x),
    "mean": lambda emit, x, y: emit(aten.sub.Tensor, x, emit(aten.mean.dim, y, [1], True)),
    "mm": _product,
    "addmm": _product_and_bias,
    "shift": lambda emit, x, y: emit(aten.cat.default, [rows(emit, x, 2, HEIGHT), rows(emit, y, 0, 2)]),
    "pad": lambda emit, x, _: emit(aten.constant_pad_nd.default, rows(emit, x, 0, 4), [0, 0, 1, 1], 0.5),
    "softmax": lambda emit, x, _: emit(aten._softmax.default, x, -1, False),
    "expand": lambda emit, x, _: emit(aten.expand.default, rows(emit, x, 3, 4), [HEIGHT, -1]),
    "heads": _through_heads,
    "modulated": _modulated,
}


@settings(max_examples=60)
@given(graphs())
def test_same_results_of_any_graph(build):
    """Whatever parts of whatever values are returned; nothing in it is computed that was not, and no element twice."""
    shapes = [(HEIGHT, WIDTH)] * 2
    gm = hand_made(build, *shapes, dtype=torch.float64)
    narrowed = narrow(gm)
    assert_same(gm, narrowed, *shapes, dtype=torch.float64)
    assert nodes_without_value(narrowed) == []
    before = computed(gm)
    assert all(count <= before[op] for op, count in computed(narrowed).items())


COMPUTING = {"add", "sin", "sub", "mul", "tanh", "mean", "mm", "addmm", "_softmax"}


def computed(gm: fx.GraphModule) -> dict[str, int]:
    """The elements that each operator that computes something makes, in all."""
    counts: dict[str, int] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and op_name(node) in COMPUTING:
            counts[op_name(node)] = counts.get(op_name(node), 0) + node.meta["val"].numel()
    return counts
