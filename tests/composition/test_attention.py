"""Kernels of attention: diffusers' backends, flex attention with its closures, and masks of either kind."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tests.composition.session import NUM_STEPS, Session, assert_differ, equal, short_flux
from tests.turns import in_turns
from tests.zoo import Tiny, ZooModel, randomize, tiny_inputs

LENGTH = 6
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # the reference does


@eager_flex
@pytest.mark.parametrize("name", in_turns(["native", "_native_math", "_native_flash", "flex"], weeks=4))
def test_diffusers_backends(name):
    """FLUX with each of diffusers' backends that runs on a CPU."""
    zoo = short_flux()
    zoo.model.set_attention_backend(name)
    session = Session.of(zoo)
    session.check()
    session.assert_all_found(zoo)


@eager_flex
def test_another_backend_between_generations():
    zoo = short_flux()
    zoo.model.set_attention_backend("native")
    session = Session.of(zoo)
    first = session.check()
    zoo.model.set_attention_backend("flex")
    session.check()
    zoo.model.set_attention_backend("native")
    assert equal(session.check(), first)


class HeadAttention(nn.Module):
    """Attention of two heads; ``attend(q, k, v, mask)`` is its kernel."""

    def __init__(self, width: int, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.qkv, self.out, self.attend = nn.Linear(width, 3 * width), nn.Linear(width, width), attend

    def forward(self, x: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(query, key, value, mask).transpose(1, 2).flatten(2))


class Masked(Tiny):
    """``Tiny`` with an attention that takes a mask."""

    def __init__(self, attend: Callable[..., Tensor], width: int = 32) -> None:
        super().__init__(width)
        self.attention = HeadAttention(width, attend)

    def forward(self, x: Tensor, timestep: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        gate = self.gate(torch.cat([phase.sin(), phase.cos()], dim=-1))
        x = x + gate[:, None] * self.attention(x, mask)
        return x + self.mlp(x)


def masked(attend: Callable[..., Tensor]) -> ZooModel:
    model = Masked(attend)
    return ZooModel("masked", randomize(model), tiny_inputs, [model.attention, model.mlp], {"attention": 1, "mlp": 1}, 2)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask | None) -> Tensor:
    def nearer_is_better(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 0.3 * (i - j).abs()

    return flex_attention(query, key, value, score_mod=nearer_is_better, block_mask=mask)


def causal(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def check_masked(attend: Callable[..., Tensor], mask: Tensor | BlockMask, compiler: str = "eager") -> None:
    zoo = masked(attend)
    session = Session.of(zoo, mask=mask, compiler=compiler)
    assert_differ(session.check(), [zoo.model(**zoo.inputs(step)) for step in range(NUM_STEPS)])
    session.assert_all_found(zoo)


def masks() -> dict[str, Tensor]:
    lower = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    padding = torch.arange(LENGTH).expand(2, 1, 1, -1) < torch.tensor([3, LENGTH]).view(2, 1, 1, 1)
    generator = torch.Generator().manual_seed(3)
    return {"causal": lower, "padding": padding & lower, "bias": torch.randn(2, 2, LENGTH, LENGTH, generator=generator)}


@pytest.mark.parametrize("name", masks())
def test_masks(name):
    """A boolean mask, one a sample, and an additive bias, all inputs of the model."""
    check_masked(sdpa, masks()[name])


def test_mask_that_changes():
    """A mask is an input like any other: another one in the next generation, and nothing recompiles or is remembered."""
    zoo = masked(sdpa)
    session = Session.of(zoo, mask=masks()["causal"])
    first = session.check()
    inputs = session.inputs
    session.inputs = lambda *args, **kwargs: inputs(*args, **kwargs) | {"mask": masks()["causal"].flip(0, 1)}
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_differ(session.check(), first)


@eager_flex
@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=[pytest.mark.inductor, pytest.mark.turn(0, 3)])])
def test_flex_attention(compiler):
    """Flex attention with a score function and a block mask: one opaque operator to the passes, gone from forecast steps."""
    mask = create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")
    check_masked(flex, mask, compiler)
