"""The rule of every operator: it gives the very part of the result that was asked for, from the parts of its inputs it names."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from taylorseer_fx.passes.emit import emitter, graph_fake_mode, placeholder
from taylorseer_fx.passes.window_rules import Needs, rule_of
from taylorseer_fx.passes.windows import Window, normalized, sizes_of
from tests.graphs import hand_made, trace
from tests.passes.windows import windows_of

aten, prims = torch.ops.aten, torch.ops.prims

Build = Callable[..., fx.Node]


@dataclass(frozen=True)
class Case:
    """An operator on inputs of ``shapes``; ``build(emit, *inputs)`` returns its node."""

    build: Build
    shapes: tuple[tuple[int, ...], ...]

    def graph(self) -> tuple[fx.GraphModule, fx.Node]:
        gm = hand_made(lambda emit, *inputs: [self.build(emit, *inputs)], *self.shapes)
        return gm, gm.graph.output_node().args[0][0]


def op(target: Any, *shapes: tuple[int, ...], args: tuple[Any, ...] = (), **kwargs: Any) -> Case:
    """``target`` on all inputs, then ``args``."""
    return Case(lambda emit, *inputs: emit(target, *inputs, *args, **kwargs), shapes)


def part_of(target: Any, shape: tuple[int, ...], args: tuple[Any, ...], index: int) -> Case:
    """One output of an operator with several."""
    return Case(lambda emit, x: emit(operator.getitem, emit(target, x, *args), index), (shape,))


def of_list(target: Any, *shapes: tuple[int, ...], dim: int) -> Case:
    return Case(lambda emit, *inputs: emit(target, list(inputs), dim), shapes)


X, Y = (4, 6, 5), (4, 6, 1)

ALWAYS = {
    "slice": op(aten.slice.Tensor, X, args=(1, 1, 5)),
    "slice-negative": op(aten.slice.Tensor, X, args=(-1, -4, -1)),
    "slice-beyond": op(aten.slice.Tensor, X, args=(0, 1, 100)),
    "slice-nothing-given": op(aten.slice.Tensor, X),
    "slice-no-start": op(aten.slice.Tensor, X, args=(1, None, 4)),
    "select": op(aten.select.int, X, args=(1, 2)),
    "select-first-dim": op(aten.select.int, X, args=(0, 3)),
    "select-negative": op(aten.select.int, X, args=(-1, -2)),
    "split": part_of(aten.split.Tensor, X, (2, 1), 1),
    "split-sizes": part_of(aten.split.sizes, X, ([1, 3], 0), 1),
    "split-short-rest": part_of(aten.split.Tensor, X, (2, -1), 2),
    "split-first-dim": part_of(aten.split.Tensor, X, (3,), 0),
    "split-with-sizes": part_of(aten.split_with_sizes.default, X, ([1, 3, 2], -2), 1),
    "unbind": part_of(aten.unbind.int, X, (), 2),
    "unbind-dim": part_of(aten.unbind.int, X, (-2,), 4),
    "permute": op(aten.permute.default, X, args=([2, 0, 1],)),
    "permute-negative": op(aten.permute.default, X, args=([-1, 0, -2],)),
    "transpose": op(aten.transpose.int, X, args=(0, -1)),
    "transpose-rank-0": op(aten.transpose.int, (), args=(0, -1)),
    "t-rank-0": op(aten.t.default, ()),
    "t": op(aten.t.default, (4, 6)),
    "t-vector": op(aten.t.default, (6,)),
    "unsqueeze": op(aten.unsqueeze.default, X, args=(1,)),
    "unsqueeze-first": op(aten.unsqueeze.default, X, args=(0,)),
    "unsqueeze-last": op(aten.unsqueeze.default, X, args=(-1,)),
    "squeeze": op(aten.squeeze.default, (1, 4, 1, 6)),
    "squeeze-dim": op(aten.squeeze.dim, (4, 1, 6), args=(1,)),
    "squeeze-dims": op(aten.squeeze.dims, (1, 4, 1, 6), args=([0, -2],)),
    "squeeze-rank-0": op(aten.squeeze.dim, (), args=(-1,)),
    "squeeze-nothing": op(aten.squeeze.dim, (4, 6), args=(1,)),
    "alias": op(aten.alias.default, X),
    "detach": op(aten.detach.default, X),
    "clone": op(aten.clone.default, X, memory_format=torch.contiguous_format),
    "lift": op(aten.lift_fresh_copy.default, X),
    "expand": op(aten.expand.default, Y, args=([4, 6, 3],)),
    "expand-as-it-is": op(aten.expand.default, Y, args=([-1, -1, 3],)),
    "expand-in-front": op(aten.expand.default, (1, 5), args=([3, 4, -1],)),
    "cat": of_list(aten.cat.default, (2, 5), (1, 5), (3, 5), dim=0),
    "cat-last": of_list(aten.cat.default, (2, 4), (2, 3), dim=-1),
    "cat-one": of_list(aten.cat.default, (2, 4), dim=1),
    "cat-with-itself": Case(lambda emit, x: emit(aten.cat.default, [x, x], 1), ((2, 4),)),
    "mm": op(aten.mm.default, (4, 3), (3, 6)),
    "mm-with-itself": Case(lambda emit, x: emit(aten.mm.default, x, x), ((4, 4),)),
    "addmm": op(aten.addmm.default, (6,), (4, 3), (3, 6)),
    "addmm-matrix": op(aten.addmm.default, (4, 6), (4, 3), (3, 6)),
    "addmm-row": op(aten.addmm.default, (1, 6), (4, 3), (3, 6)),
    "addmm-scalars": op(aten.addmm.default, (6,), (4, 3), (3, 6), beta=2.0, alpha=0.5),
    "bmm": op(aten.bmm.default, (2, 4, 3), (2, 3, 6)),
    "baddbmm": op(aten.baddbmm.default, (2, 4, 6), (2, 4, 3), (2, 3, 6)),
    "baddbmm-broadcast": op(aten.baddbmm.default, (1, 6), (2, 4, 3), (2, 3, 6), beta=0.5),
    "pointwise": op(aten.gelu.default, X, approximate="tanh"),
    "cast": op(prims.convert_element_type.default, X, args=(torch.bfloat16,)),
    "to-copy": op(aten._to_copy.default, X, dtype=torch.bfloat16),
    "add": op(aten.add.Tensor, X, X, alpha=2),
    "add-twice": Case(lambda emit, x: emit(aten.add.Tensor, x, x), (X,)),
    "scalar": op(aten.mul.Tensor, X, args=(3.0,)),
    "broadcast": op(aten.mul.Tensor, X, Y),
    "broadcast-rank": op(aten.sub.Tensor, (5,), X),
    "broadcast-both": op(aten.add.Tensor, (4, 1), (1, 5)),
    "broadcast-0-dim": op(aten.add.Tensor, X, ()),
    "ternary": op(aten.addcmul.default, X, (6, 1), (1,)),
    "where": Case(lambda emit, x, y: emit(aten.where.self, emit(aten.gt.Scalar, x, 0.0), x, y), (X, Y)),
    "mean": op(aten.mean.dim, X, args=([-1], True)),
    "mean-several": op(aten.mean.dim, X, args=([0, 2], True)),
    "sum": op(aten.sum.dim_IntList, X, args=([1], True)),
    "amax": op(aten.amax.default, X, args=([-2], True)),
    "amax-rank-0": op(aten.amax.default, (), args=([-1], True)),
    "amin": op(aten.amin.default, X, args=([0], True)),
    "var-mean": op(aten.var_mean.correction, X, args=([2],), correction=0, keepdim=True),
    "pad-by-nothing": op(aten.constant_pad_nd.default, X, args=([0, 0, 0, 0],)),
}

WHERE_IT_IS_A_WINDOW = {
    "view-split": op(aten.view.default, (6, 4), args=([2, 3, 4],)),
    "view-join": op(aten.view.default, (2, 3, 4), args=([6, 4],)),
    "view-join-last": op(aten.view.default, (2, 3, 4), args=([2, -1],)),
    "view-regroup": op(aten.view.default, (2, 6, 4), args=([4, 3, 4],)),
    "view-two-groups": op(aten.view.default, (2, 3, 4, 5), args=([6, 20],)),
    "view-units": op(aten.view.default, (1, 6, 1, 4), args=([6, 1, 2, 2, 1],)),
    "unsafe-view": op(aten._unsafe_view.default, (2, 3, 4), args=([6, 4],)),
    "reshape": op(aten.reshape.default, (6, 4), args=([3, 2, 4],)),
    "pad": op(aten.constant_pad_nd.default, X, args=([2, 1, 0, 3], 7.0)),
    "pad-before": op(aten.constant_pad_nd.default, X, args=([2, 0],)),
    "pad-cuts": op(aten.constant_pad_nd.default, X, args=([-2, 1],)),
}


def applied(node: fx.Node, window: Window) -> Needs | None:
    rule = rule_of(node)
    assert rule is not None
    return rule.needs(node, window)


def rebuilt(gm: fx.GraphModule, node: fx.Node, window: Window, needs: Needs) -> tuple[fx.GraphModule, fx.Node]:
    """A graph of what the rule makes of ``node``, whose inputs are the parts that it asks for."""
    graph, mode = fx.Graph(), graph_fake_mode(gm.graph)
    with mode:
        inputs = [placeholder(graph, f"part{i}", cut(source.meta["val"], part)) for i, (source, part) in enumerate(needs)]
    result = rule_of(node).build(emitter(graph, mode), node, window, inputs)
    graph.output((result,))
    return fx.GraphModule({}, graph), result


def cut(value: Tensor, window: Window) -> Tensor:
    return value[tuple(slice(*part or (None,)) for part in window)]


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def check(case: Case, draw: Callable[[st.SearchStrategy[Window]], Window], *, always: bool) -> None:
    gm, node = case.graph()
    sizes = sizes_of(node)
    window = normalized(draw(windows_of(sizes, empty=False)), sizes)
    needs = applied(node, window)
    if needs is None and not always:
        return
    assert needs is not None
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    (whole_value,), values = interpreter.run(*random_inputs(case)), interpreter.env
    assert all(normalized(part, sizes_of(source)) == part for source, part in needs), "windows have one form"
    part_gm, result = rebuilt(gm, node, window, needs)
    (part_value,) = part_gm(*(cut(values[source], part) for source, part in needs))
    for whole, part, fake in zip(*map(as_tuple, (whole_value, part_value, result.meta["val"])), strict=True):
        torch.testing.assert_close(part, cut(whole, window))
        assert (tuple(fake.shape), fake.dtype) == (tuple(part.shape), part.dtype)


def random_inputs(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in case.shapes]


class TestSameAsSlicingTheWhole:
    @pytest.mark.parametrize("name", ALWAYS)
    @settings(max_examples=8)
    @given(st.data())
    def test_every_window(self, name, data):
        """The rule applies to any window."""
        check(ALWAYS[name], data.draw, always=True)

    @pytest.mark.parametrize("name", WHERE_IT_IS_A_WINDOW)
    @settings(max_examples=25)
    @given(st.data())
    def test_where_it_applies(self, name, data):
        """Not every window of a view is one of its input, and padding is none; what is, is right."""
        check(WHERE_IT_IS_A_WINDOW[name], data.draw, always=False)

    @pytest.mark.parametrize(("window", "kept"), [(((0, 1), None), (1, 4)), ((None, (2, 3)), (3, 1))])
    def test_squeeze_of_a_part_of_length_one(self, window, kept):
        """What becomes a single row is not squeezed away with the dimensions that were single rows before."""
        gm, node = op(aten.squeeze.default, (1, 3, 4)).graph()
        _, result = rebuilt(gm, node, window, applied(node, window))
        assert result.meta["val"].shape == kept


def view(before: tuple[int, ...], after: list[int]) -> Case:
    return op(aten.view.default, before, args=(after,))


class TestViews:
    @pytest.mark.parametrize(
        ("case", "window", "inner"),
        [
            pytest.param(view((6, 4), [2, 3, 4]), ((1, 2), None, None), ((3, 6), None), id="outer-of-a-split"),
            pytest.param(view((6, 4), [2, 3, 4]), (None, None, (1, 3)), (None, (1, 3)), id="another-group"),
            pytest.param(view((6, 4), [2, 3, 4]), (None, (0, 1), None), None, id="inner-of-a-split"),
            pytest.param(view((6, 4), [2, 3, 4]), ((0, 1), (0, 1), None), None, id="outer-and-inner"),
            pytest.param(view((2, 3, 4), [6, 4]), ((3, 6), None), ((1, 2), None, None), id="of-a-join-at-a-border"),
            pytest.param(view((2, 3, 4), [6, 4]), ((2, 4), None), None, id="of-a-join-across-one"),
            pytest.param(view((1, 6, 4), [6, 4]), ((2, 4), None), (None, (2, 4), None), id="size-1-in-front"),
            pytest.param(view((6, 4), [6, 1, 4]), ((2, 4), None, (0, 1)), ((2, 4), (0, 1)), id="size-1-between"),
            pytest.param(view((6, 4), [-1, 2, 4]), ((1, 3), None, None), ((2, 6), None), id="size-that-follows"),
            pytest.param(view((2, 512, 96), [1024, 96]), ((512, 1024), None), ((1, 2), None, None), id="tokens-of-a-batch"),
            pytest.param(view((4, 8, 96), [4, 8, 6, 16]), (None, None, (2, 3), None), (None, None, (32, 48)), id="a-head"),
        ],
    )
    def test_windows(self, case, window, inner):
        """Of a group of neighbouring dimensions, only the outermost may be cut, and at multiples of the others."""
        _, node = case.graph()
        needs = applied(node, window)
        assert (needs and needs[0][1]) == inner


class TestParts:
    def test_cat_asks_only_what_is_met(self):
        """Of three inputs of 2, 3 and 4 rows, row 2 to 4 are in the second, row 4 to 6 in the second and the third."""
        gm, node = of_list(aten.cat.default, (2, 5), (3, 5), (4, 5), dim=0).graph()
        first, second, third = gm.graph.find_nodes(op="placeholder")
        assert applied(node, ((2, 4), None)) == [(second, ((0, 2), None))]
        assert applied(node, ((2, 5), None)) == [(second, (None, None))]
        assert applied(node, ((4, 6), (1, 2))) == [(second, ((2, 3), (1, 2))), (third, ((0, 1), (1, 2)))]
        assert applied(node, (None, (1, 2))) == [(source, (None, (1, 2))) for source in (first, second, third)]

    def test_columns_of_a_linear(self):
        """A gate chunk slices the weight of its linear, and the bias."""
        gm, node = op(aten.addmm.default, (6,), (4, 3), (3, 6)).graph()
        bias, x, weight = gm.graph.find_nodes(op="placeholder")
        assert applied(node, (None, (2, 4))) == [(bias, ((2, 4),)), (x, (None, None)), (weight, (None, (2, 4)))]
        assert applied(node, ((1, 2), None)) == [(bias, (None,)), (x, ((1, 2), None)), (weight, (None, None))]

    def test_slices_leave_no_operator(self):
        """Slicing, splitting and padding only took a part of their input, and are gone."""
        for case in (ALWAYS["slice"], ALWAYS["split"], ALWAYS["pad-by-nothing"]):
            gm, node = case.graph()
            window = tuple((1, 2) for _ in sizes_of(node))
            part_gm, _ = rebuilt(gm, node, window, applied(node, window))
            assert not part_gm.graph.find_nodes(op="call_function", target=node.target)
            assert len(part_gm.graph.nodes) == 2


ROWS = ((1, 2), None, None)

REFUSED = {
    "slice-with-a-step": (op(aten.slice.Tensor, X, args=(0, 0, 4, 2)), ((0, 1), None, None)),
    "view-of-nothing": (op(aten.view.default, (0, 4), args=([4, 0],)), ((1, 2), None)),
    "pad-in-the-window": (op(aten.constant_pad_nd.default, X, args=([0, 0, 0, 0, 2, 0],)), ROWS),
    "pad-behind-the-window": (op(aten.constant_pad_nd.default, X, args=([0, 0, 0, 0, 0, 2],)), ((3, 5), None, None)),
    "pad-in-the-whole": (op(aten.constant_pad_nd.default, X, args=([2, 0],)), ROWS),
    "reduction-that-drops-dims": (op(aten.mean.dim, X, args=([2],)), ((1, 2), None)),
    "mean-of-everything": (op(aten.mean.default, X), ()),
    "no-dimension-is-all": (op(aten.amax.default, X, args=([], True)), ROWS),
    "mean-over-no-dimension": (op(aten.mean.dim, X, args=([], True)), ROWS),
    "cat-with-nothing": (of_list(aten.cat.default, (0,), (2, 4), dim=1), ((0, 1), None)),
    "cat-with-nothing-in-it": (of_list(aten.cat.default, (2, 4), (0,), (2, 4), dim=0), ((0, 1), None)),
    "reduction-of-everything": (op(aten.sum.default, X), ()),
}

WITHOUT_A_RULE = {
    "softmax": op(aten._softmax.default, X, args=(-1, False)),
    "cumsum": op(aten.cumsum.default, X, args=(0,)),
    "flip": op(aten.flip.default, X, args=([0],)),
    "convolution": op(aten.convolution.default, (1, 2, 6), (3, 2, 1), args=(None, [1], [0], [1], False, [0], 1)),
    "view-as-bits": op(aten.view.dtype, X, args=(torch.int32,)),
    "view-as-pairs-of-bytes": op(aten.view.dtype, X, args=(torch.float16,)),
    "view-as-complex": op(aten.view_as_complex.default, (4, 6, 2)),
    "var-mean-with-other-arguments": part_of(aten.var_mean.dim, X, ([2], True), 0),
    "noise": op(aten.bernoulli.p, X, args=(0.5,)),
    "topk": part_of(aten.topk.default, X, (2,), 0),
    "input": Case(lambda emit, x: x, (X,)),
}


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, name):
        case, window = REFUSED[name]
        _, node = case.graph()
        assert applied(node, window) is None

    @pytest.mark.parametrize("name", WITHOUT_A_RULE)
    def test_no_rule(self, name):
        """Operators that mix elements, that draw random numbers, and what is no operator."""
        _, node = WITHOUT_A_RULE[name].graph()
        assert rule_of(node) is None


def dynamic(function: Callable[[Tensor], Tensor]) -> fx.Node:
    """The node that ``function`` of an input with unknown sizes ends in."""

    class Called(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return trace(Called(), torch.randn(*X), dynamic=True).gm.graph.output_node().args[0][0]


class TestSymbolic:
    """A rule does not apply where a size that is not a number decides."""

    @pytest.mark.parametrize(
        ("function", "window", "inner"),
        [
            pytest.param(lambda x: x[:, 2:], (None, (1, None), None), (None, (3, None), None), id="slice"),
            pytest.param(lambda x: x[:, :-2], (None, (1, None), None), None, id="slice-from-the-end"),
            pytest.param(lambda x: x[:, :2], (None, (0, 1), None), None, id="slice-to-a-number"),
            pytest.param(lambda x: x[:, 1], ((1, None), None), None, id="select"),
            pytest.param(lambda x: x.transpose(0, 1), ((1, None), None, None), (None, (1, None), None), id="transpose"),
            pytest.param(lambda x: x.exp(), ((1, None), None, None), ((1, None), None, None), id="pointwise"),
            pytest.param(lambda x: x.reshape(-1, x.shape[2]), ((1, None), None), None, id="view"),
            pytest.param(lambda x: x[None].expand(3, *x.shape), (None, (1, None), None, None), None, id="expand"),
            pytest.param(
                lambda x: torch.nn.functional.pad(x, (0, 0, 2, 0)), (None, (3, None), None), (None, (1, None), None), id="pad"
            ),
            pytest.param(lambda x: torch.nn.functional.pad(x, (0, 0, 0, 2)), (None, (3, None), None), None, id="pad-behind"),
        ],
    )
    def test_of_one_input(self, function, window, inner):
        node = dynamic(function)
        needs = applied(node, window)
        assert (needs and needs[0][1]) == inner

    def test_cat_up_to_an_unknown_part(self):
        """What lies behind a part of unknown length begins nobody knows where."""
        node = dynamic(lambda x: torch.cat([x.new_zeros(3, *x.shape[1:]), x]))
        zeros, x = node.args[0]
        assert applied(node, ((3, None), None, None)) == [(x, (None, None, None))]
        assert applied(node, ((1, None), None, None)) == [(zeros, ((1, 3), None, None)), (x, (None, None, None))]
        assert applied(node, ((1, 2), None, None)) == [(zeros, ((1, 2), None, None))]
        assert applied(node, ((1, 5), None, None)) is None
        turned = dynamic(lambda x: torch.cat([x, x.new_zeros(3, *x.shape[1:])]))
        assert applied(turned, ((3, None), None, None)) is None
