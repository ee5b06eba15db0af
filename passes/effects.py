"""Identify nodes that do more than return a result, so that they may not be removed, moved or repeated."""

from torch import fx

from taylorseer_fx.passes.collectives import NAMESPACE


def is_mutation(node: fx.Node) -> bool:
    """Does the operator write into one of its inputs?"""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def has_effect(node: fx.Node) -> bool:
    """Does ``node`` have an effect, by FX's own rule (inputs, outputs, writes, assertions), less the collectives?

    A collective that is dead in the graph of a step kind is dead on every rank, as all ranks run the same graph.
    """
    return getattr(node.target, "namespace", None) != NAMESPACE and bool(node.is_impure())


def eliminate_dead_code(graph: fx.Graph) -> None:
    """Remove, in place, what nothing reads and what has no effect."""
    graph.eliminate_dead_code(is_impure_node=has_effect)
    graph.lint()
