"""Bytes counted by hand: what a graph moves with every pointwise chain fused, and the fewest that it could."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from taylorseer_fx.passes.clean_up import clean_up
from taylorseer_fx.passes.narrow import narrow
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.traffic import Traffic, count_traffic
from tests.graphs import hand_made, trace, two_layers

aten, prims = torch.ops.aten, torch.ops.prims

FLOAT = 4  # bytes
X, W, GATE = 3 * 5 * FLOAT, 5 * 5 * FLOAT, 5 * FLOAT


def counted(build: Callable[..., list[fx.Node]], *shapes: tuple[int, ...]) -> Traffic:
    return count_traffic(hand_made(build, *shapes).graph)


def rows(emit: Callable[..., fx.Node], x: fx.Node, start: int, end: int, dim: int = 0) -> fx.Node:
    return emit(aten.slice.Tensor, x, dim, start, end)


class TestByHand:
    def test_gated_residual_of_a_linear(self):
        """mm reads x and w and writes its product; the chain reads that, x once more, and the gate, and writes the sum."""

        def build(emit, x, weight, gate):
            product = emit(aten.mm.default, x, emit(aten.permute.default, weight, [1, 0]))
            return [emit(aten.add.Tensor, x, emit(aten.mul.Tensor, gate, product))]

        assert counted(build, (3, 5), (5, 5), (5,)) == Traffic(
            read=(X + W) + (X + X + GATE), written=X + X, floor=X + W + GATE + X
        )

    def test_a_chain_reads_its_inputs_once(self):
        """However many operators in it read them."""

        def build(emit, x, y):
            total = emit(aten.add.Tensor, emit(aten.sin.default, x), emit(aten.cos.default, x))
            return [emit(aten.mul.Tensor, emit(aten.mul.Tensor, total, y), emit(aten.exp.default, y))]

        assert counted(build, (3, 5), (3, 5)) == Traffic(read=2 * X, written=X, floor=3 * X)

    def test_bits_are_read_as_what_they_are(self):
        """A view of a weight as another dtype moves nothing: the product reads the bytes of the weight, and nothing is written
        but the product.
        """

        def build(emit, x, weight):
            return [emit(aten.mm.default, x, emit(aten.view.dtype, weight, torch.int32))]

        def of_integers(emit, x, weight):
            return build(emit, emit(aten.view.dtype, x, torch.int32), weight)

        assert counted(of_integers, (3, 5), (5, 5)) == Traffic(read=X + W, written=X, floor=X + W + X)

    def test_each_product_reads_for_itself(self):
        """Three projections of one tensor read it three times; a product with itself once."""

        def build(emit, x, *weights):
            return [emit(aten.mm.default, x, weight) for weight in weights]

        assert counted(build, (3, 5), (5, 5), (5, 5)) == Traffic(read=2 * X + 2 * W, written=2 * X, floor=X + 2 * W + 2 * X)
        square = counted(lambda emit, x: [emit(aten.mm.default, x, x)], (5, 5))
        assert square == Traffic(read=W, written=W, floor=2 * W)

    def test_a_reduction_is_no_part_of_a_chain(self):
        """It reads what was written before it; the chain behind it reads its result, and x again."""

        def build(emit, x):
            return [emit(aten.sub.Tensor, x, emit(aten.mean.dim, x, [1], True))]

        mean = 3 * FLOAT
        assert counted(build, (3, 5)) == Traffic(read=X + X + mean, written=mean + X, floor=X + X)

    def test_what_a_product_reads_is_written_before(self):
        """A pointwise result that a product needs goes through memory, in its own dtype."""

        def build(emit, x, weight):
            half = emit(prims.convert_element_type.default, emit(aten.exp.default, x), torch.float16)
            return [emit(aten.mm.default, half, emit(prims.convert_element_type.default, weight, torch.float16))]

        half_x, half_w = X // 2, W // 2
        assert counted(build, (3, 5), (5, 5)) == Traffic(
            read=X + W + half_x + half_w, written=half_x + half_w + half_x, floor=X + W + half_x
        )

    def test_views_move_nothing(self):
        """A product of a view reads what it is a view of."""

        def build(emit, x, weight):
            view = emit(aten.view.default, emit(aten.unsqueeze.default, x, 0), [3, 5])
            return [emit(aten.view.default, emit(aten.mm.default, view, weight), [15])]

        assert counted(build, (3, 5), (5, 5)) == Traffic(read=X + W, written=X, floor=X + W + X)

    def test_outputs_that_are_inputs(self):
        """Nothing is read or written to return what came in; yet it is there to be read."""
        assert counted(lambda emit, x: [x], (3, 5)) == Traffic(read=0, written=0, floor=2 * X)

    def test_several_values_of_one_operator(self):
        """A variance and a mean are both written, once."""

        def build(emit, x):
            both = emit(aten.var_mean.correction, x, [1], correction=0, keepdim=True)
            return [emit(operator.getitem, both, 0), emit(operator.getitem, both, 1)]

        values = 2 * 3 * FLOAT
        assert counted(build, (3, 5)) == Traffic(read=X, written=values, floor=X + values)

    def test_a_table_is_read_as_far_as_it_is_looked_up(self):
        """Two rows of a thousand."""

        def build(emit, table, x):
            index = emit(prims.convert_element_type.default, x, torch.int64)
            return [emit(aten.embedding.default, table, index)]

        found, index = 2 * 5 * FLOAT, 2 * FLOAT
        assert counted(build, (1000, 5), (2,)).floor == found + index + found


class TestStores:
    def test_written_and_not_read(self):
        """A snapshot is written over what nobody reads."""

        def build(emit, x, buffer):
            emit(aten.copy_.default, buffer, emit(aten.exp.default, x))
            return [emit(aten.sin.default, x)]

        assert counted(build, (3, 5), (3, 5)) == Traffic(read=X, written=X + X, floor=X + X + X)

    def test_of_a_product(self):
        """The product is written for its reader, and once more where it is kept."""

        def build(emit, x, weight, buffer):
            product = emit(aten.mm.default, x, weight)
            emit(aten.copy_.default, buffer, product)
            return [emit(aten.add.Tensor, x, product)]

        assert counted(build, (3, 5), (5, 5), (3, 5)) == Traffic(read=(X + W) + (X + X), written=X + X + X, floor=X + W + X + X)


class TestParts:
    def test_of_an_input_only_what_is_read(self):
        """The second half of a bias, a third of a weight."""

        def build(emit, x, weight, bias):
            product = emit(aten.addmm.default, bias, x, emit(aten.permute.default, weight, [1, 0]))
            return [rows(emit, product, 4, 6, dim=1)]

        graph = narrow(hand_made(build, (3, 5), (6, 5), (6,))).graph
        weight, bias, out = 2 * 5 * FLOAT, 2 * FLOAT, 3 * 2 * FLOAT
        assert count_traffic(graph) == Traffic(read=X + weight + bias, written=out, floor=X + weight + bias + out)

    def test_the_floor_is_the_same_before_narrowing(self):
        """It counts what is read of the outputs, however the graph goes about it."""

        def build(emit, x, y):
            both = emit(aten.cat.default, [x, y])
            return [rows(emit, emit(aten.exp.default, both), 3, 6)]

        gm = hand_made(build, (3, 5), (3, 5))
        assert count_traffic(gm.graph).floor == count_traffic(clean_up(narrow(gm)).gm.graph).floor == X + X


class TestSteps:
    """Both steps of two gated layers of three tokens, width four, order one."""

    @pytest.mark.parametrize("kind", StepKind)
    def test_floor(self, kind):
        """Full: weights, input and gate are read, output and new snapshots written. Forecast: four snapshots, two weights of the
        polynomial, input and gate are read, the output is written.
        """
        model, args = two_layers()
        traced = trace(model, *args)
        variant = run_passes(traced.gm, traced.static_inputs, Storage(1)).variants[kind]
        tokens, weight, gate = 3 * 4 * FLOAT, 4 * 4 * FLOAT, 4 * FLOAT
        floors = {
            StepKind.FULL: tokens + gate + 2 * weight + tokens + 2 * tokens,
            StepKind.FORECAST: tokens + gate + 4 * tokens + 2 * FLOAT + tokens,
        }
        assert count_traffic(variant.gm.graph).floor == floors[kind]

    @pytest.mark.parametrize(
        ("dtype", "kind"),
        [
            (torch.float32, StepKind.FULL),
            (torch.float32, StepKind.FORECAST),
            (torch.bfloat16, StepKind.FULL),
            (torch.bfloat16, StepKind.FORECAST),
        ],
    )
    def test_no_less_than_the_floor_is_moved(self, dtype, kind):
        """Snapshots in bfloat16 are cast before they are summed, and are read all the same."""
        model, args = two_layers(dtype)
        traced = trace(model, *args)
        traffic = count_traffic(run_passes(traced.gm, traced.static_inputs, Storage(1)).variants[kind].gm.graph)
        assert traffic.read + traffic.written >= traffic.floor
