"""The ATen graph that ``torch.compile`` would hand to Inductor on a GPU, traced on the meta device.

    Dynamo and AOTAutograd on meta -> the same graph replayed over fake CUDA tensors

Attention is written as the operator that CUDA picks for it; on meta it would be decomposed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from taylorseer_fx.compile import CompileGraph, trace_and_compile
from taylorseer_fx.passes.emit import outputs

CUDA = torch.device("cuda", 0)
OPTIONS = {"joint_graph_constant_folding": False}  # it folds by computing, and on meta everything looks constant to it


@dataclass(frozen=True)
class Traced:
    """A functional ATen graph over fake CUDA tensors; ``static_inputs``: the positions of its weights."""

    gm: fx.GraphModule
    static_inputs: tuple[int, ...]

    @property
    def inputs(self) -> list[Any]:
        return [node.meta["val"] for node in self.gm.graph.find_nodes(op="placeholder")]


def trace(model: nn.Module, inputs: dict[str, Any]) -> Traced:
    """The graph of one call of a model on meta, which must not break it."""
    traced: list[Traced] = []

    def record(gm: fx.GraphModule, _: Sequence[Any], static: Sequence[int], __: CompileGraph) -> Callable[..., Any]:
        traced.append(Traced(_on_cuda(gm), tuple(static)))
        results = fx.map_arg(outputs(gm.graph), lambda node: node.meta["val"])
        run: Any = lambda _args: results  # noqa: E731  # a boxed callable is told by an attribute
        run._boxed_call = True
        return run

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return trace_and_compile(_with_flash_attention(gm), example_inputs, record, OPTIONS)

    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(**inputs)
    (only,) = traced
    return only


def _with_flash_attention(gm: fx.GraphModule) -> fx.GraphModule:
    for node in gm.graph.find_nodes(op="call_function", target=torch.nn.functional.scaled_dot_product_attention):
        node.target = _flash_attention
    gm.recompile()
    return gm


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What scaled_dot_product_attention comes to on an H100 in half precision without a mask."""
    assert attn_mask is None
    assert not enable_gqa
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return attended


def _on_cuda(gm: fx.GraphModule) -> fx.GraphModule:
    mode, graph, env = FakeTensorMode(), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in gm.graph.nodes:
        if node.op == "output":
            new = graph.output(fx.map_arg(node.args[0], env.__getitem__))
        elif node.op == "placeholder":
            new = graph.placeholder(node.name)
            new.meta["val"] = _like(node.meta["val"], mode)
        else:
            assert node.op == "call_function", "constants of the model are its inputs"
            args, kwargs = pytree.tree_map(_moved, fx.map_arg((node.args, node.kwargs), env.__getitem__))
            new = graph.call_function(node.target, args, kwargs)
            with mode:
                values: Any = fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
                new.meta["val"] = node.target(*values[0], **values[1])
        new.meta = {**node.meta, **new.meta}
        env[node] = new
    return fx.GraphModule(nn.Module(), graph)


def _like(value: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device=CUDA)


def _moved(value: Any) -> Any:
    return CUDA if isinstance(value, torch.device) else value
