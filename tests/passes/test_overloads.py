"""Overloads of an operator differ in their arguments: each that the passes know does what they take it for, no other is meant."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from taylorseer_fx.passes import ops, window_rules
from taylorseer_fx.passes.emit import emitter, placeholder
from taylorseer_fx.passes.flops import count_flops
from taylorseer_fx.passes.ops import (
    CASTS,
    CONTRACTION_OPERANDS,
    DRESS,
    ELEMENTWISE_DRESS,
    FUSED_ATTENTION,
    OVERLOADS,
    contraction_operands,
    dressed_input,
    is_heavy,
    packet,
)
from taylorseer_fx.passes.window_rules import rule_of
from tests.graphs import hand_made
from tests.passes.test_window_rules import ALWAYS, REFUSED, WHERE_IT_IS_A_WINDOW, cut, rebuilt
from tests.torch_version import since_2_13

aten, prims = torch.ops.aten, torch.ops.prims


def functional_overloads(operator: OpOverloadPacket) -> list[OpOverload]:
    """Those that a functional graph may hold: from tensors to tensors, without writing to any."""
    overloads = [getattr(operator, name) for name in operator.overloads()]
    return [overload for overload in overloads if is_functional(overload)]


def is_functional(overload: OpOverload) -> bool:
    schema = overload._schema
    takes = [str(argument.type) for argument in schema.arguments]
    returns = [str(value.type) for value in schema.returns]
    has_tensors = any("Tensor" in text for text in takes) and all("Tensor" in text for text in returns)
    by_name = any(argument.name == "dim" and str(argument.type) == "str" for argument in schema.arguments)  # until torch 2.12
    return has_tensors and bool(returns) and not schema.is_mutable and not by_name and "Dimname" not in str(schema)


def named_operators() -> set[OpOverloadPacket]:
    """Every operator that a pass names without an overload, in its code or in a table."""
    named = set().union(CONTRACTION_OPERANDS, FUSED_ATTENTION, DRESS, CASTS, ELEMENTWISE_DRESS, ops._SPLITS)
    named |= set(window_rules._RULES) | set(window_rules._GETITEM)
    for path in Path(ops.__file__).parent.glob("*.py"):
        code = re.sub(r'""".*?"""|``.*?``', "", path.read_text(), flags=re.DOTALL)
        named |= {getattr(aten, name) for name in re.findall(r"\baten\.(\w+)\b(?!\.\w)", code) if hasattr(aten, name)}
    return {operator for operator in named if isinstance(operator, OpOverloadPacket)}


NAMED = sorted(named_operators(), key=str)


def call(overload: OpOverload) -> fx.Node:
    """A call of ``overload`` on an input, whatever else it takes."""
    graph = fx.Graph()
    return graph.call_function(overload, (graph.placeholder("x"),))


class TestNames:
    @pytest.mark.parametrize("operator", NAMED, ids=str)
    def test_overloads_are_listed_where_there_are_several(self, operator):
        """If this fails: find out which overloads the passes that name the operator are right for, and list them."""
        several = len(functional_overloads(operator)) > 1
        assert not several or operator in OVERLOADS or operator in FUSED_ATTENTION or operator in CONTRACTION_OPERANDS

    @pytest.mark.parametrize("operator", OVERLOADS, ids=str)
    def test_listed_ones_exist(self, operator):
        assert OVERLOADS[operator] <= set(operator.overloads())

    @pytest.mark.parametrize("operator", OVERLOADS, ids=str)
    def test_any_other_is_an_operator_of_its_own(self, operator):
        """It is neither dress nor has it the rule of its siblings; work it is all the same where they are."""
        for overload in functional_overloads(operator):
            node = call(overload)
            is_known = overload._overloadname in OVERLOADS[operator]
            assert packet(node) is (operator if is_known else overload)
            assert is_heavy(node) == (operator in CONTRACTION_OPERANDS)
            if not is_known:
                assert dressed_input(node) is None
                assert rule_of(node) in (None, window_rules._POINTWISE)

    def test_of_view_and_its_kind(self):
        """What tells bits or pairs of numbers for other numbers is no dress and no cast."""
        for overload in (aten.view.dtype, aten.view_as_real.default, aten.view_as_complex.default, aten.where.ScalarSelf):
            assert dressed_input(call(overload)) is None
            assert packet(call(overload)) not in CASTS
        assert packet(call(aten.view.default)) is aten.view

    def test_work_is_what_torch_counts_the_flops_of(self):
        """Forward operators, that is; a higher-order one is opaque."""
        counted = [op for op in flop_registry if isinstance(op, OpOverloadPacket) and "backward" not in str(op)]
        assert [op for op in counted if op not in CONTRACTION_OPERANDS and op not in FUSED_ATTENTION] == []


# Examples of what is dress: the first input is the tensor that is dressed.

X = torch.arange(24.0).reshape(1, 4, 6)
MASK = X % 2 == 0

DRESSED: dict[OpOverload, tuple[Any, ...]] = {
    aten.view.default: (X, [4, 6]),
    aten._unsafe_view.default: (X, [2, 12]),
    aten.reshape.default: (X, [6, 4]),
    aten.permute.default: (X, [-1, 0, 1]),
    aten.transpose.int: (X, 0, -1),
    aten.t.default: (X[0],),
    aten.unsqueeze.default: (X, -1),
    aten.squeeze.default: (X,),
    aten.squeeze.dim: (X, 0),
    aten.squeeze.dims: (X, [0, 1]),
    aten.alias.default: (X,),
    aten.detach.default: (X,),
    aten.clone.default: (X,),
    aten.contiguous.default: (X,),
    aten._to_copy.default: (X, {"dtype": torch.float64, "memory_format": torch.contiguous_format}),
    aten.slice.Tensor: (X, -1, -4, -1, 2),
    aten.select.int: (X, 1, -1),
    aten.clamp.default: (X, -100.0, None),
    aten.clamp_min.default: (X, -100.0),
    aten.clamp_max.default: (X, 100.0),
    aten.expand.default: (X, [2, -1, -1]),
    aten.lift_fresh_copy.default: (X,),
    prims.convert_element_type.default: (X, torch.float64),
}

SPLIT: dict[OpOverload, tuple[Any, ...]] = {
    aten.split.Tensor: (X, 4, -1),
    aten.split.sizes: (X, [1, 3], 1),
    aten.split_with_sizes.default: (X, [1, 3], -2),
    aten.unbind.int: (X, -1),
    aten.chunk.default: (X, 3, 2),
}


def run(overload: OpOverload, arguments: tuple[Any, ...]) -> Any:
    positional = [argument for argument in arguments if not isinstance(argument, dict)]
    keywords = arguments[-1] if isinstance(arguments[-1], dict) else {}
    return overload(*positional, **keywords)


def known(operators: Any) -> set[OpOverload]:
    """The overloads that a table means."""
    overloads = (overload for operator in operators for overload in functional_overloads(operator))
    return {overload for overload in overloads if packet(call(overload)) in operators}


class TestTables:
    def test_there_is_an_example_of_each(self):
        assert known(DRESS) == set(DRESSED)
        assert known(ops._SPLITS) == set(SPLIT)

    @pytest.mark.parametrize("overload", DRESSED, ids=str)
    def test_dress(self, overload):
        """Every number of the result is one of the tensor; under elementwise dress each once, in a cast each in its place."""
        x, result = DRESSED[overload][0], run(overload, DRESSED[overload]).float()
        assert set(result.flatten().tolist()) <= set(x.flatten().tolist())
        if overload in known(ELEMENTWISE_DRESS):
            assert result.flatten().sort().values.equal(x.flatten().sort().values)
        if overload in known(CASTS):
            assert result.equal(x)
        assert dressed_input(call(overload)) is not None

    @pytest.mark.parametrize("overload", SPLIT, ids=str)
    def test_split(self, overload):
        parts = run(overload, SPLIT[overload])
        assert sorted(value for part in parts for value in part.flatten().tolist()) == X.flatten().tolist()

    @pytest.mark.parametrize("mask", [aten.where.self, aten.mul.Tensor], ids=str)
    def test_mask(self, mask):
        """A mask is dress in both of its forms."""
        arguments = (MASK, X, torch.zeros(1)) if mask is aten.where.self else (MASK, X)
        graph, mode = fx.Graph(), FakeTensorMode()
        nodes = [placeholder(graph, f"x{i}", mode.from_tensor(value)) for i, value in enumerate(arguments[:2])]
        zero = [emitter(graph, mode)(aten.full.default, [1], 0.0)] if len(arguments) > 2 else []
        assert dressed_input(emitter(graph, mode)(mask, *nodes, *zero)) is nodes[1]
        assert set(mask(*arguments).flatten().tolist()) <= set(X.flatten().tolist()) | {0.0}

    def test_every_rule_has_an_example(self):
        """Of each overload that a rule is meant for, the tests of the rules narrow one (or refuse to)."""
        cases = [*ALWAYS.values(), *WHERE_IT_IS_A_WINDOW.values(), *(case for case, _ in REFUSED.values())]
        tried = {node.target for case in cases for node in case.graph()[0].graph.nodes}
        on_a_gpu = {operator.dtype for operator in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)}
        assert (known(window_rules._RULES) | known(window_rules._GETITEM)) - on_a_gpu <= tried

    @pytest.mark.parametrize(
        ("overload", "shapes"),
        [
            pytest.param(aten.mm.dtype, ((4, 3), (3, 6)), id="mm"),
            pytest.param(aten.bmm.dtype, ((2, 4, 3), (2, 3, 6)), id="bmm"),
            pytest.param(aten.addmm.dtype, ((6,), (4, 3), (3, 6)), id="addmm", marks=since_2_13),
        ],
    )
    def test_products_into_another_dtype(self, overload, shapes):
        """These have kernels on GPUs only: narrowed, they write the same dtype; their FLOPs are counted."""
        gm = hand_made(lambda emit, *x: [emit(overload, *x, torch.float32)], *shapes, dtype=torch.bfloat16)
        node = gm.graph.output_node().args[0][0]
        window = (None, *((1, 3),) * (node.meta["val"].dim() - 1))
        _, part = rebuilt(gm, node, window, rule_of(node).needs(node, window))
        assert part.args[-1] is torch.float32
        assert (part.meta["val"].dtype, part.meta["val"].shape[1:]) == (torch.float32, (2, 2)[: len(window) - 1])
        plain = hand_made(lambda emit, *x: [emit(packet(node).default, *x)], *shapes)
        assert count_flops(gm.graph) == count_flops(plain.graph) > 0


A, B, V, BATCHED = torch.randn(4, 6), torch.randn(6, 5), torch.randn(6), torch.randn(2, 4, 6)

PRODUCTS: dict[OpOverload, tuple[Any, ...]] = {
    aten.mm.default: (A, B),
    aten.bmm.default: (BATCHED, BATCHED.mT),
    aten.mv.default: (A, V),
    aten.dot.default: (V, V + 1),
    aten.matmul.default: (BATCHED, B),
    aten.linear.default: (A, B.T),
    aten.convolution.default: (BATCHED, torch.randn(3, 4, 3), None, [1], [1], [1], False, [0], 1),
    aten.addmm.default: (torch.zeros(5), A, B),
    aten.addmv.default: (torch.zeros(4), A, V),
    aten.baddbmm.default: (torch.zeros(2, 4, 4), BATCHED, BATCHED.mT),
    aten.addbmm.default: (torch.zeros(4, 4), BATCHED, BATCHED.mT),
    aten._addmm_activation.default: (torch.zeros(5), A.abs(), B.abs()),
}


class TestProducts:
    @pytest.mark.parametrize("overload", PRODUCTS, ids=str)
    def test_is_linear_in_the_operands(self, overload):
        """What is taken for the operands is what is multiplied."""
        arguments = PRODUCTS[overload]
        graph = fx.Graph()
        nodes = [graph.placeholder("x") if isinstance(argument, Tensor) else argument for argument in arguments]
        node = graph.call_function(overload, tuple(nodes))
        places = [nodes.index(operand) for operand in contraction_operands(node)]
        assert len(places) == 2
        for place in places:
            doubled = [2 * argument if i == place else argument for i, argument in enumerate(arguments)]
            torch.testing.assert_close(overload(*doubled), 2 * overload(*arguments))

    @pytest.mark.parametrize("operator", sorted(CONTRACTION_OPERANDS, key=str), ids=str)
    def test_operands_are_tensors(self, operator):
        """In every overload there is."""
        for overload in functional_overloads(operator):
            assert all(str(overload._schema.arguments[place].type) == "Tensor" for place in CONTRACTION_OPERANDS[operator]), (
                overload
            )

    @pytest.mark.parametrize("operator", sorted(FUSED_ATTENTION, key=str), ids=str)
    def test_attention_begins_with_queries_keys_and_values(self, operator):
        for overload in functional_overloads(operator):
            assert [argument.name for argument in overload._schema.arguments[:3]] == ["query", "key", "value"], overload


# Elementwise operators, by torch's own tag: each is narrowed as such.


def elementwise() -> list[OpOverload]:
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        operator, _, overload = rest.partition(".")
        if namespace in ("aten", "prims") and hasattr(getattr(torch.ops, namespace), operator):
            target = getattr(getattr(getattr(torch.ops, namespace), operator), overload or "default", None)
            if target is not None and is_functional(target) and torch.Tag.pointwise in target.tags:
                found.append(target)
    return sorted(found, key=str)


WINDOW = ((1, 3), (0, 2))
OTHER = {"number": 2, "int": 1, "SymInt": 1, "float": 0.5, "bool": False, "str": "none", "ScalarType": torch.float64}
OPTIONAL: dict[OpOverload, dict[str, Any]] = {
    aten.clamp.default: {"max": 0.5},
    aten.clip.default: {"max": 0.5},
    aten.clamp.Tensor: {"max": torch.full((4,), 0.5)},
    aten.clip.Tensor: {"max": torch.full((4,), 0.5)},
    aten.div.Tensor_mode: {"rounding_mode": "floor"},
    aten.div.Scalar_mode: {"rounding_mode": "floor"},
    aten.round.decimals: {"decimals": 1},
}
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)


def examples(overload: OpOverload) -> Iterator[tuple[Any, ...]]:
    """Arguments for it, of the first kind of numbers that it takes: tensors of one shape, and some to broadcast."""
    needed = [argument for argument in overload._schema.arguments if not argument.has_default_value() and not argument.kwarg_only]
    types = [str(argument.real_type) for argument in needed]
    for others in ((3, 4), (1, 4), (4,)) if sum("Tensor" in text for text in types) > 1 else ((3, 4),):
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(0)
            shapes = iter([(3, 4), *[others] * len(types)])
            arguments = tuple(
                (torch.rand(next(shapes), generator=generator) * 4 % 3 + 0.25).to(dtype) if "Tensor" in text else OTHER.get(text)
                for text in types
            )
            try:
                overload(*arguments, **OPTIONAL.get(overload, {}))
            except (RuntimeError, TypeError):
                continue
            yield arguments
            break


def check_narrowed(overload: OpOverload, arguments: tuple[Any, ...]) -> None:
    """A window of the result, from what the rule asks for; nothing to check where there is no rule."""
    optional = OPTIONAL.get(overload, {})
    expected = overload(*arguments, **optional)
    graph, values = fx.Graph(), dict[fx.Node, Tensor]()

    def as_node(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = placeholder(graph, "x", value)
        values[node] = value
        return node

    node = graph.call_function(
        overload, tuple(map(as_node, arguments)), {name: as_node(value) for name, value in optional.items()}
    )
    node.meta["val"] = expected
    rule = rule_of(node)
    needs = rule.needs(node, WINDOW) if rule is not None else None
    if needs is not None:
        inputs: list[Any] = [cut(values[source], window) for source, window in needs]
        part = rule.build(lambda target, *args, **kwargs: target(*args, **kwargs), node, WINDOW, inputs)
        torch.testing.assert_close(part, cut(expected, WINDOW), equal_nan=True)


class TestElementwise:
    def test_each_is_narrowed_as_the_whole(self):
        """Or left alone."""
        tried = set()
        for overload in elementwise():
            for arguments in examples(overload):
                if isinstance(overload(*arguments, **OPTIONAL.get(overload, {})), Tensor):
                    check_narrowed(overload, arguments)
                    tried.add(overload)
        untried = set(elementwise()) - tried
        assert len(untried) < 5 < 200 < len(tried), untried
