"""Derivative buffers: sized by the call, zeroed, ordinary tensors."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx.passes.guard_regions import guard_regions
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.buffers import BufferLayout, num_bytes
from tests.graphs import pass_inputs, trace


def fake(*shape: int, dtype: torch.dtype = torch.float32, permuted: bool = False) -> Tensor:
    with FakeTensorMode():
        tensor = torch.empty(shape, dtype=dtype)
        return tensor.transpose(0, 1) if permuted else tensor


class TestStatic:
    def test_shape_dtype_and_strides_of_the_template(self):
        layout = BufferLayout.of([fake(2, 3, dtype=torch.bfloat16), fake(4, 5, permuted=True)], [])
        first, second = layout.allocate([])
        assert (first.shape, first.dtype) == ((2, 3), torch.bfloat16)
        assert (second.shape, second.stride()) == ((5, 4), (1, 5))

    def test_zero(self):
        """The first update reads what it is about to replace; a NaN there would stay."""
        (buffer,) = BufferLayout.of([fake(64, 64)], []).allocate([])
        assert not buffer.any()

    def test_no_size_to_tell_shapes_apart(self):
        assert BufferLayout.of([fake(2, 3)], [fake(2, 3)]).sizes([torch.empty(2, 3)]) == ()

    def test_each_allocation_is_its_own(self):
        layout = BufferLayout.of([fake(2)], [])
        (one,), (other,) = layout.allocate([]), layout.allocate([])
        one.fill_(1)
        assert not other.any()

    def test_ordinary_tensors_in_inference_mode(self):
        """Allocated inside, written to outside."""
        with torch.inference_mode():
            (buffer,) = BufferLayout.of([fake(2)], []).allocate([])
        assert not buffer.is_inference()
        buffer.add_(1)

    def test_num_bytes(self):
        layout = BufferLayout.of([fake(2, 3), fake(5, dtype=torch.float64), fake(3, dtype=torch.bfloat16)], [])
        assert num_bytes(layout.allocate([])) == 24 + 40 + 6
        assert num_bytes([]) == 0


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Doubled(Residual):
    """The feature is twice as long as the input."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x], 1)
        return x + self.linear(x)


class TestDynamic:
    @pytest.mark.parametrize(("model", "factor"), [(Residual(), 1), (Doubled(), 2)], ids=["same", "derived"])
    @pytest.mark.parametrize(("batch", "tokens"), [(3, 5), (2, 7), (6, 11)])
    def test_sized_by_the_call(self, model, factor, batch, tokens):
        """One layout, traced once at 3 x 5, serves every shape, also where a size is computed from the input's."""
        traced = trace(model, torch.randn(3, 5, 4), dynamic=True)
        guarded = guard_regions(*pass_inputs(traced), Storage(0))
        layout = BufferLayout.of([node.meta["val"] for node in guarded.buffers], traced.fake_inputs)
        x = torch.randn(batch, tokens, 4)
        args = [x if isinstance(real, Tensor) and real.shape == (3, 5, 4) else real for real in traced.real_inputs]
        sizes = {3: batch, 5: tokens}
        args = [sizes[arg] if isinstance(arg, int) else arg for arg in args]
        (buffer,) = layout.allocate(args)
        assert buffer.shape == (batch, tokens * factor, 4)
        assert buffer.is_contiguous()
        assert sorted(layout.sizes(args)) == sorted((batch, tokens))
