"""Fourier transforms in place of attention (FNet, global filters): heavy operators without weights, complex in between."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import taylorseer_backend
from tests.graphs import find
from tests.reference import HookReference

TOKENS, WIDTH = 6, 8


class FourierMixer(nn.Module):
    """FNet's: the real part of a transform over tokens and channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


class GlobalFilter(nn.Module):
    """A product with learned complex factors between two transforms over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(TOKENS // 2 + 1, WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.factors)
        return torch.fft.irfft(spectrum, n=TOKENS, dim=1, norm="ortho")


class Mixed(nn.Module):
    """``x + gate * mixer(norm(x))``, then ``x + mlp(x)``."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.norm, self.gate = mixer, nn.LayerNorm(WIDTH), nn.Linear(2, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        time = torch.stack([timestep.sin(), timestep.cos()], dim=-1)
        x = x + self.gate(time)[:, None] * self.mixer(self.norm(x))
        return x + self.mlp(x)


def mixed(mixer: Callable[[], nn.Module]) -> Mixed:
    torch.manual_seed(0)
    return Mixed(mixer()).eval()


def inputs(step: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(2.0 * TOKENS * WIDTH).view(2, TOKENS, WIDTH)
    return torch.sin(0.37 * x + 0.1 * step), torch.full((2,), 1 - step / 10)


@pytest.mark.parametrize("mixer", [FourierMixer, GlobalFilter])
def test_the_mixer_is_a_region(mixer):
    """Its feature is real, whatever is complex inside, and taken before the gate."""
    found = find(mixed(mixer), *inputs(0))
    assert found.paths == ["mixer", "mlp"]
    (feature,) = found.regions.regions[0].features
    assert feature.node.meta["val"].dtype is torch.float32
    assert not any("fft" in node.name for region in found.regions.regions[1:] for node in region.nodes)


@pytest.mark.parametrize("mixer", [FourierMixer, GlobalFilter])
def test_follows_the_reference(mixer):
    model = mixed(mixer)
    backend = taylorseer_backend(order=1, interval=3, warmup=2, compiler="eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    reference = HookReference(model, [model.mixer, model.mlp], order=1, interval=3, warmup=2)
    with torch.no_grad():
        for step in range(6):
            x, timestep = inputs(step)
            expected = reference(step, {"x": x, "timestep": timestep})
            torch.testing.assert_close(compiled(x, timestep), expected, rtol=1e-5, atol=1e-5)
    assert backend.stats().forecast_calls == 3
    assert not any("fft" in node.name for node in backend.explain().graph("forecast").graph.nodes)


def test_a_complex_stream_is_left_alone():
    """Its sum has no real polynomial; that is told."""

    class Complex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.complex(x, x)
            return (z + torch.fft.fft(z, dim=1)).abs()

    found = find(Complex(), inputs(0)[0])
    assert found.reasons == ["NOT_FLOATING"]
    assert found.regions.regions == ()


def test_as_the_stack():
    """The transform dies with the rest of the block in a forecast step."""
    backend = taylorseer_backend(granularity="stack", compiler="eager")
    compiled = torch.compile(mixed(FourierMixer), backend=backend)
    with torch.no_grad():
        compiled(*inputs(0))
    assert [region.kind for region in backend.explain().regions] == ["stack"]
    assert not any("fft" in node.name for node in backend.explain().graph("forecast").graph.nodes)
