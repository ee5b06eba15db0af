"""Operators that are a residual add are written out: those of torch, and those that users registered."""

import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, nn

from taylorseer_fx import register_residual_op
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.find_hidden_adds import find_hidden_adds
from taylorseer_fx.passes.find_regions import find_regions
from taylorseer_fx.passes.regions import Reason
from taylorseer_fx.passes.verify import nodes_without_value
from tests.custom_ops import as_add, gated_add, gated_add_, nothing_registered
from tests.graphs import assert_ops_changed, find, hand_made, left_as_it_is, op_counts, render, trace
from tests.torch_version import since_2_12

aten, OPS = torch.ops.aten, torch.ops.taylorseer_tests
SHAPES = ((2, 3), (3, 3), (3,))


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with nothing_registered():
        yield


def gated(emit, x, w, gate):
    """The smallest branch, behind an operator that is nobody's own."""
    return [emit(OPS.gated_add.default, x, emit(aten.mm.default, x, w), gate)]


def twice(emit, x, w, gate):
    for _ in range(2):
        (x,) = gated(emit, x, w, gate)
    return [x]


class TestSnapshots(TestCase):
    maxDiff = None

    def test_addcmul(self):
        def build(emit, x, g, f):
            return [emit(aten.addcmul.default, x, g, f), emit(aten.addcmul.default, x, g, f, value=2)]

        self.assertExpectedInline(
            render(canonicalize(hand_made(build, (2, 3), (3,), (2, 3)))),
            """\
%x0 : float32[2, 3]
%x1 : float32[3]
%x2 : float32[2, 3]
%mul = mul(%x1, %x2) : float32[2, 3]
%add = add(%x0, %mul) : float32[2, 3]
%mul1 = mul(%mul, 2) : float32[2, 3]
%add1 = add(%x0, %mul1) : float32[2, 3]
return (%add, %add1)""",
        )

    def test_addcdiv(self):
        def build(emit, x, f, d):
            return [emit(aten.addcdiv.default, x, f, d)]

        self.assertExpectedInline(
            render(canonicalize(hand_made(build, (2, 3), (2, 3), (3,)))),
            """\
%x0 : float32[2, 3]
%x1 : float32[2, 3]
%x2 : float32[3]
%div = div(%x1, %x2) : float32[2, 3]
%add = add(%x0, %div) : float32[2, 3]
return (%add)""",
        )

    def test_products_added_to_a_stream_and_to_a_bias(self):
        def build(emit, x, h, w, b):
            scaled = emit(aten.addmm.default, x, h, w, beta=0.5, alpha=2)
            return [emit(aten.addmm.default, x, h, w), scaled, emit(aten.addmm.default, b, h, w)]

        self.assertExpectedInline(
            render(canonicalize(hand_made(build, (2, 3), (2, 4), (4, 3), (3,)))),
            """\
%x0 : float32[2, 3]
%x1 : float32[2, 4]
%x2 : float32[4, 3]
%x3 : float32[3]
%mul = mul(%x0, 0.5) : float32[2, 3]
%mm = mm(%x1, %x2) : float32[2, 3]
%mul1 = mul(%mm, 2) : float32[2, 3]
%add = add(%mul, %mul1) : float32[2, 3]
%add1 = add(%x0, %mm) : float32[2, 3]
%addmm = addmm(%x3, %x1, %x2) : float32[2, 3]
return (%add1, %add, %addmm)""",
        )

    @since_2_12
    def test_registered(self):
        """Written with an operator of the table, which is written out in turn."""
        register_residual_op(gated_add, lambda x, f, gate: torch.addcmul(x, f, gate))
        self.assertExpectedInline(
            render(canonicalize(hand_made(gated, *SHAPES))),
            """\
%x0 : float32[2, 3]
%x1 : float32[3, 3]
%x2 : float32[3]
%mm = mm(%x0, %x1) : float32[2, 3]
%mul = mul(%mm, %x2) : float32[2, 3]
%add = add(%x0, %mul) : float32[2, 3]
return (%add)""",
        )

    def test_several_results(self):
        """Each takes the place of its own; what nobody reads goes."""

        def build(emit, x, w):
            total, _ = (emit(operator.getitem, emit(OPS.add_and_norm.default, x, emit(aten.mm.default, x, w)), i) for i in (0, 1))
            return [total]

        register_residual_op(OPS.add_and_norm, lambda x, f: (x + f, (x + f).sigmoid()))
        self.assertExpectedInline(
            render(canonicalize(hand_made(build, (2, 3), (3, 3)))),
            """\
%x0 : float32[2, 3]
%x1 : float32[3, 3]
%mm = mm(%x0, %x1) : float32[2, 3]
%add = add(%x0, %mm) : float32[2, 3]
return (%add)""",
        )


class TestApplied:
    @pytest.mark.parametrize("op", [aten.addcmul.default, aten.addcdiv.default], ids=str)
    @pytest.mark.parametrize("value", [1, 0.5])
    def test_numerics(self, op, value):
        gm = hand_made(lambda emit, x, g, f: [emit(op, x, g, f, value=value)], (2, 3), (3,), (2, 3))
        inputs = [torch.randn(shape) for shape in ((2, 3), (3,), (2, 3))]
        torch.testing.assert_close(canonicalize(gm)(*inputs), gm(*inputs))

    def test_batched_product(self):
        """It is left alone: what attention adds its scores to is a mask or a bias, shared by the layers, and no stream."""
        gm = hand_made(lambda emit, x, h, w: [emit(aten.baddbmm.default, x, h, w)], (2, 3, 5), (2, 3, 4), (2, 4, 5))
        assert op_counts(canonicalize(gm))["baddbmm"] == 1

    def test_a_product_that_is_added_to_nothing(self):
        """With ``beta=0`` the first operand may be anything, even NaN: memory that nobody wrote to."""
        gm = hand_made(lambda emit, x, h, w: [emit(aten.addmm.default, x, h, w, beta=0)], (3, 5), (3, 4), (4, 5))
        unwritten, h, w = torch.full((3, 5), float("nan")), torch.randn(3, 4), torch.randn(4, 5)
        torch.testing.assert_close(canonicalize(gm)(unwritten, h, w)[0], h @ w)

    def test_product_added_to_the_stream_is_a_region(self):
        """As ``torch.addmm(x, h, w)`` writes it."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return torch.addmm(x, self.up(x).relu(), self.down.weight.t())

        assert find(Model(), torch.randn(3, 4)).kinds == ["mlp"]

    def test_counts(self):
        register_residual_op(gated_add, as_add)
        gm = hand_made(gated, *SHAPES)
        assert_ops_changed(gm, canonicalize(gm), removed={"gated_add": 1}, added={"mul": 1, "add": 1})

    def test_input_graph_is_left_as_it_is(self):
        register_residual_op(gated_add, as_add)
        gm = hand_made(gated, *SHAPES)
        with left_as_it_is(gm):
            canonicalize(gm)

    def test_idempotent_and_every_node_has_its_value(self):
        register_residual_op(gated_add, as_add)
        once = canonicalize(hand_made(twice, *SHAPES))
        assert nodes_without_value(once) == []
        assert render(canonicalize(once)) == render(once)

    def test_alike_operators_are_traced_once(self):
        """What a trace costs, it costs once for all blocks."""
        calls = []

        def counted(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
            calls.append(x.shape)
            return as_add(x, f, gate)

        register_residual_op(gated_add, counted)
        after = canonicalize(hand_made(twice, *SHAPES))
        assert (len(calls), op_counts(after)["add"]) == (1, 2)
        inputs = [torch.randn(shape) for shape in SHAPES]
        torch.testing.assert_close(after(*inputs), hand_made(twice, *SHAPES)(*inputs))

    def test_layout_is_that_of_the_operator(self):
        """Views behind it were traced for its strides."""

        def build(emit, x, w, gate):
            return [emit(aten.view.default, gated(emit, x, w, gate)[0], (6,))]

        register_residual_op(gated_add, lambda x, f, gate: (x.t().contiguous() + (f * gate).t().contiguous()).t())
        gm, inputs = hand_made(build, *SHAPES), [torch.randn(shape) for shape in SHAPES]
        torch.testing.assert_close(canonicalize(gm)(*inputs), gm(*inputs))

    def test_autocast_around_the_compilation_has_no_part(self):
        register_residual_op(gated_add, lambda x, f, gate: x + f @ f.t() @ (f * gate))
        gm = hand_made(gated, *SHAPES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            after = canonicalize(gm)
        assert {node.meta["val"].dtype for node in after.graph.nodes if node.op == "call_function"} == {torch.float32}

    def test_where_in_the_model_is_kept(self):
        register_residual_op(gated_add, as_add)
        assert find(Gated(), torch.randn(2, 3, 4)).paths == ["linears.0", "linears.1"]

    def test_sizes_unknown_when_compiled(self):
        """They are those that the graph takes, and are read off no tensor."""
        register_residual_op(gated_add, lambda x, f, gate: (x.flatten(0, 1) + (f * gate).flatten(0, 1)).view(x.shape))
        found = find(Gated(), torch.randn(2, 3, 4), dynamic=True)
        assert found.kinds == ["mlp", "mlp"]
        assert op_counts(found.gm)["sym_size"] == 0


class Gated(nn.Module):
    """Two layers, each added by an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.gate = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears:
            x = gated_add(x, linear(x), self.gate)
        return x


class TestLeftAlone:
    def test_not_registered(self):
        gm = hand_made(gated, *SHAPES)
        assert render(canonicalize(gm)) == render(gm)

    def test_not_registered_when_it_was_compiled(self):
        """Passes that run later, to explain, do as they did then."""
        register_residual_op(gated_add, as_add)
        gm = hand_made(gated, *SHAPES)
        assert render(canonicalize(gm, registered=())) == render(gm)
        assert render(canonicalize(gm, registered=["taylorseer_tests.gated_add.default"])) == render(canonicalize(gm))

    @pytest.mark.parametrize(
        ("decomposition", "text"),
        [
            pytest.param(
                lambda x, f, gate: x.sum(), r"returns float32\[2, 3\] on cpu here.*got 'float32\[\] on cpu'", id="shape"
            ),
            pytest.param(lambda x, f, gate: (x + f * gate).half(), r"float16\[2, 3\] on cpu", id="dtype"),
            pytest.param(lambda x, f, gate: (x, f), r"got 'float32\[2, 3\] on cpu, float32\[2, 3\] on cpu'", id="two results"),
            pytest.param(lambda x, f, gate: None, "got 'None'", id="nothing"),
            pytest.param(gated_add, "calls neither taylorseer_tests.gated_add.default", id="itself"),
            pytest.param(lambda x, f, gate: x + f * gate * torch.tensor(1.0), "makes or holds other tensors", id="constant"),
            pytest.param(lambda x, f: x + f, "got 'TypeError: .*3 were given'", id="arguments"),
        ],
    )
    def test_decomposition_of_something_else(self, decomposition, text):
        register_residual_op(gated_add, decomposition)
        with pytest.raises(ConfigError, match=r"the decomposition of taylorseer_tests\.gated_add\.default") as raised:
            canonicalize(hand_made(gated, *SHAPES))
        assert raised.match(text)


class TestNamed:
    """Where an opaque operator may hide a residual add, it is named."""

    @staticmethod
    def entries(gm: Any, is_part: bool = False) -> list[Any]:
        graph = canonicalize(gm).graph
        weights = graph.find_nodes(op="placeholder")[1:]
        return list(find_hidden_adds(graph, weights, find_regions(graph, weights), is_part))

    def test_nothing_else_found(self):
        (entry,) = self.entries(hand_made(twice, *SHAPES))
        assert entry.reason is Reason.OPAQUE
        assert str(entry) == (
            "gated_add_default: an operator that cannot be seen into takes and returns a tensor of one shape; if this adds a "
            "residual, register it with taylorseer_fx.register_residual_op (taylorseer_tests.gated_add.default, "
            "at gated_add_default and 1 more)"
        )

    def test_registered_is_not_named(self):
        register_residual_op(gated_add, as_add)
        assert self.entries(hand_made(twice, *SHAPES)) == []

    def test_among_regions(self):
        """There only where it joins the stream and what was made of the stream."""

        def build(emit, x, w, gate):
            (x,) = gated(emit, x, w, gate)
            return [emit(aten.add.Tensor, x, emit(aten.mm.default, x, w))]

        assert [entry.reason for entry in self.entries(hand_made(build, *SHAPES))] == [Reason.OPAQUE]

    def test_operators_that_do_other_work_are_not_named_among_regions(self):
        """One in a branch, and one that changes the whole stream."""

        def build(emit, x, w, gate):
            x = emit(OPS.gated_add.default, x, x, gate)
            branch = emit(OPS.gated_add.default, emit(aten.mm.default, x, w), emit(aten.mm.default, x, w), gate)
            return [emit(aten.add.Tensor, x, branch)]

        assert self.entries(hand_made(build, *SHAPES)) == []

    def test_part_of_a_model(self):
        """In which it is no wonder that nothing is found."""

        def build(emit, x, w, gate):
            return [emit(OPS.gated_add.default, x, x, gate)]

        assert self.entries(hand_made(build, *SHAPES), is_part=True) == []
        assert len(self.entries(hand_made(build, *SHAPES))) == 1

    def test_other_shapes_are_not_named(self):
        """A vector is no stream, and what depends on weights alone is none."""

        def build(emit, x, w, gate):
            return [emit(OPS.gated_add.default, gate, gate, gate), emit(OPS.gated_add.default, w, w, gate)]

        assert self.entries(hand_made(build, *SHAPES)) == []

    def test_in_place(self):
        """It cannot be registered as it is; torch wraps it."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = x * 2
                gated_add_(x, self.linear(x), x)
                return x

        (entry,) = self.entries(trace(Model(), torch.randn(3, 4)).gm)
        assert "gated_add_.default, which writes to an argument: use and register one that returns its result" in entry.detail
