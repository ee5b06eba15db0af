"""The inputs that carry the diffusion time are told by use: sines and cosines, then a weight."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from taylorseer_fx.passes.call_inputs import find_samples
from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.time_inputs import find_time_inputs
from tests.graphs import trace

WIDTH = 32  # up to 16, Inductor turns the product with a single row into a sum


class Model(nn.Module):
    """Embedders by the name of their input, then a sum of all that comes out."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.sinusoid, self.time, self.guidance = (
            Timesteps(WIDTH, True, 0),
            TimestepEmbedding(WIDTH, 4),
            TimestepEmbedding(WIDTH, 4),
        )
        self.labels, self.linear, self.q, self.k = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.fourier = nn.Parameter(torch.randn(4))
        self.wire = forward

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.wire(self, **inputs)


def found(forward: Callable[..., Tensor], is_part: bool = False, is_sure: bool = True, **inputs: Tensor) -> set[str]:
    """The names of the inputs that may carry a time; none where none does for certain, unless ``is_sure`` is False."""
    traced = trace(Model(forward).eval(), **inputs)
    gm = canonicalize(traced.gm)
    placeholders = gm.graph.find_nodes(op="placeholder")
    weights = {placeholders[i] for i in traced.static_inputs}
    positions, has_time = find_time_inputs(gm.graph, weights, find_samples(gm.graph, weights, is_part), is_part)
    if is_sure and not has_time:
        return set()
    by_identity = {id(tensor): name for name, tensor in inputs.items()}
    return {by_identity[id(traced.real_inputs[i])] for i in positions}


def rotary_attention(m: Model, x: Tensor, ids: Tensor) -> Tensor:
    """Queries and keys turned by the sine and cosine of position ids."""
    cos, sin = ids[:, None].cos(), ids[:, None].sin()
    q, k = (p * cos + p.flip(-1) * sin for p in (m.q(x), m.k(x)))
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ x


X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    "t",
    [torch.tensor([7, 7]), torch.tensor([0.7, 0.7]), torch.tensor([0.7]), torch.tensor([0.5, 0.5], dtype=torch.float64)],
    ids=["int64", "float32", "batch-of-one", "float64"],
)
def test_sinusoidal_timestep(t):
    assert found(lambda m, x, t: x + m.time(m.sinusoid(t))[:, None], x=X, t=t.clone()) == {"t"}


def test_timestep_scaled_before_the_embedding():
    """Flux multiplies by a thousand first."""
    assert found(lambda m, x, t: x + m.time(m.sinusoid(t * 1000))[:, None], x=X, t=torch.tensor([0.5, 0.5])) == {"t"}


def test_timestep_a_token():
    """A time for every token."""

    def forward(m, x, t):
        return x + m.time(m.sinusoid(t.flatten())).view(2, 3, 4)

    assert found(forward, x=X, t=torch.rand(2, 3)) == {"t"}


def test_gaussian_fourier_embedding():
    """Learnt frequencies: the weight that multiplies the time is no other input."""

    def forward(m, x, t):
        angles = t[:, None] * m.fourier * 2 * math.pi
        return x + m.linear(torch.cat([angles.sin(), angles.cos()], -1)[:, ::2])[:, None]

    assert found(forward, x=X, t=torch.rand(2)) == {"t"}


def test_two_times_in_one_embedding():
    """A target time beside the current one, in one vector, masked by padding: both are times, the mask is none."""

    def forward(m, x, s, t, mask):
        both = torch.cat([(s[:, None] * m.fourier).sin(), (t[:, None] * m.fourier).cos()], -1)[:, ::2]
        return x + m.linear(both * mask)[:, None]

    mask = torch.tensor([[True], [True]])
    assert found(forward, x=X, s=torch.rand(2), t=torch.rand(2), mask=mask) == {"s", "t"}


def test_a_time_less_another():
    """Models of mean velocities embed the end of a step, or its length; positions in the place of an end are no time."""

    def forward(m, x, t, r):
        return x + m.time(m.sinusoid((t - r).flatten()))[: len(t), None]

    t = torch.tensor([0.5, 0.5])
    assert found(forward, x=X, t=t, r=torch.tensor([0.4, 0.4])) == {"t", "r"}
    assert found(forward, x=X, t=t[:, None], r=torch.rand(2, 3)) == set()


def test_guidance_is_found_too():
    """It does not move from step to step, by which the time is known."""

    def forward(m, x, t, g):
        return x + (m.time(m.sinusoid(t)) + m.guidance(m.sinusoid(g)))[:, None]

    assert found(forward, x=X, t=torch.rand(2), g=torch.rand(2)) == {"t", "g"}


def test_rotary_position_ids_are_no_time():
    def forward(m, x, t, ids):
        return rotary_attention(m, x, ids) + m.time(m.sinusoid(t))[:, None]

    assert found(forward, x=X, t=torch.rand(2), ids=torch.arange(3.0)) == {"t"}


def test_only_rotary_ids():
    assert found(rotary_attention, x=X, ids=torch.arange(3.0)) == set()


def test_class_labels_are_no_time():
    def forward(m, x, t, y):
        return x + m.linear(m.time(m.sinusoid(t)) + m.labels(y))[:, None]

    assert found(forward, x=X, t=torch.rand(2), y=torch.tensor([1, 2])) == {"t"}


def test_no_time_at_all():
    assert found(lambda m, x, y: m.linear(x) + m.labels(y)[:, None], x=X, y=torch.tensor([1, 2])) == set()


def test_sine_as_an_activation_is_no_time():
    """Sines of what a weight and two inputs made belong to neither input."""
    assert found(lambda m, x, z: m.linear((m.q(x) + z).sin()), x=X, z=torch.randn(2, 3, 4)) == set()


def test_parameters_are_never_found():
    """A learnt position that passes through sines and a weight is no input of the call."""
    assert found(lambda m, x: x + m.linear(m.fourier.sin()[None]), x=X) == set()


def test_positions_are_in_order_and_of_the_graph():
    def forward(m, x, t, g):
        return x + (m.time(m.sinusoid(t)) + m.guidance(m.sinusoid(g)))[:, None]

    traced = trace(Model(forward).eval(), x=X, t=torch.rand(2), g=torch.rand(2))
    gm = canonicalize(traced.gm)
    placeholders = gm.graph.find_nodes(op="placeholder")
    positions, _ = find_time_inputs(gm.graph, [placeholders[i] for i in traced.static_inputs])
    assert positions == tuple(sorted(positions))
    assert [tuple(placeholders[i].meta["val"].shape) for i in positions] == [(2,), (2,)]


def test_the_sample_is_no_time():
    """Fourier features of the coordinates themselves, beside the time, before one product: as the time in all but its shape."""

    def forward(m, x, t):
        waves = torch.cat([(x[..., :1] * m.fourier).sin(), (t[:, None, None] * m.fourier).cos().expand(2, 3, 4)], -1)
        return x + m.linear(waves[..., ::2])

    assert found(forward, x=X, t=torch.rand(2)) == {"t"}


def test_the_sample_alone_is_no_time():
    assert found(lambda m, x: x + m.linear((x * m.fourier).sin()), is_sure=False, x=X) == set()


def test_a_time_for_every_sample_of_numbers():
    """Where the sample is one number, as wide as the time is: both may be the time, until they move."""

    def forward(m, x, t):
        return x + m.linear(torch.cat([(x * m.fourier).sin(), (t * m.fourier).cos()], -1)[:, ::2])[:, :1]

    assert found(forward, x=torch.rand(2, 1), t=torch.rand(2, 1)) == {"x", "t"}


def test_a_token_of_its_own():
    """Sines and cosines that join the tokens before any weight meets them."""

    def forward(m, x, t):
        return m.linear(torch.cat([(t[:, None] * m.fourier).sin()[:, None], x], 1))

    assert found(forward, x=X, t=torch.rand(2)) == {"t"}


def test_added_to_the_tokens():
    assert found(lambda m, x, t: m.linear(x + (t[:, None] * m.fourier).sin()[:, None]), x=X, t=torch.rand(2)) == {"t"}


@pytest.mark.parametrize(("is_part", "expected"), [(True, {"t"}), (False, set())])
def test_returned_as_waves(is_part, expected):
    """Where the model breaks behind its sines, the weight is in another graph."""
    assert found(lambda m, t: (t[:, None] * m.fourier).sin(), is_part=is_part, t=torch.rand(2)) == expected


def test_looked_up():
    """Rows of a table of sines, or of classes: which of them moves is seen when the model runs."""

    def forward(m, x, t, y):
        return x + m.linear(m.labels.weight[t] + m.labels(y))[:, None]

    inputs = {"x": X, "t": torch.tensor([1, 1]), "y": torch.tensor([1, 2])}
    assert found(forward, **inputs) == set()
    assert found(forward, is_sure=False, **inputs) == {"t", "y"}
