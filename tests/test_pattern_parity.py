"""Every pattern of residual branch, in a model that has it, over a whole generation: each step equals the hook reference.

``tests/test_models.py`` knows of every model that full steps are exact and that forecasts are where nothing changes. Here inputs
move, and what the forecast of a feature is to be comes from the reference, which is told by name which modules make the features.
"""

import re
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.passes.ops import packet
from tests.models import VARIANTS
from tests.models.variant import Inputs, Variant
from tests.reference import HookReference
from tests.turns import in_turns
from tests.zoo import TinyAttention, randomize, smooth

NUM_STEPS = 50
TOLERANCE = 1e-4
ORDER, INTERVAL, WARMUP = 2, 5, 3


class ClippedBlock(nn.Module):
    """A gated attention and an MLP; after each the stream is cut off, as text streams are in float16, but where it matters."""

    limit = 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = TinyAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = (x + gate * self.attention(self.norm(x))).clip(-self.limit, self.limit)
        return (x + self.mlp(self.norm(x))).clip(-self.limit, self.limit)


class Clipped(nn.Module):
    """Three such blocks, and a projection so that the output does not stop at the limit itself."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -2, width))
        self.gate = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(ClippedBlock(width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        gate = self.gate(torch.cat([phase.sin(), phase.cos()], dim=-1))[:, None]
        for block in self.blocks:
            x = block(x, gate)
        return self.out(x)


def clipped_inputs(step: float, seed: int) -> Inputs:
    return {"x": smooth((2, 6, 16), step, seed, torch.float32), "timestep": torch.full((2,), 1000.0 - 20 * step)}


@dataclass(frozen=True)
class Pattern:
    """``features``: the names of the modules whose outputs are forecast, as a regular expression. ``unread``: how many of these
    outputs nobody reads, so that they are not forecast.
    """

    variant: Variant
    features: str
    unread: int = 0

    def feature_modules(self, model: nn.Module) -> list[nn.Module]:
        return [module for name, module in model.named_modules() if re.fullmatch(self.features, name)]


CODES = {
    "G": "gated branch",
    "N": "branch without a gate",
    "X": "cross-attention without a gate beside gated self-attention",
    "W": "a norm behind the branch as well as before it",
    "J": "one attention, branches of two streams",
    "S": "attention and MLP in one branch",
    "P": "two branches from one norm",
    "L": "linear attention",
    "C": "MLP of convolutions",
    "MoE": "experts that choose their tokens",
    "nest": "the attention is inside the branch that the MLP ends",
    "U-skip": "streams joined by concatenation, with no add",
    "clip": "the stream is clipped after the add",
}
JOINT = r"(transformer_blocks\.\d+\.(attn|attn2|ff|ff_context))"
BASIC = r"(transformer_)?blocks\.\d+\.(attn1|attn2|ff|ffn)"
PATTERNS = {
    "G": Pattern(VARIANTS["DiTTransformer2DModel"], r"transformer_blocks\.\d+\.(attn1|ff)"),
    "N": Pattern(VARIANTS["StableAudioDiTModel"], BASIC),
    "X": Pattern(VARIANTS["WanTransformer3DModel-t2v"], BASIC),
    "W": Pattern(VARIANTS["ZImageTransformer2DModel"], r"(layers|\w+_refiner)\.\d+\.(attention_norm2|ffn_norm2)"),
    "J": Pattern(VARIANTS["SD3Transformer2DModel"], JOINT, unread=1),  # the last block has no text to update
    "S": Pattern(VARIANTS["FluxTransformer2DModel"], JOINT + r"|single_transformer_blocks\.\d+\.proj_out"),
    "P": Pattern(VARIANTS["SD3Transformer2DModel-dual_attention"], JOINT, unread=1),
    "L": Pattern(VARIANTS["SanaTransformer2DModel"], BASIC),
    "C": Pattern(VARIANTS["SanaVideoTransformer3DModel"], BASIC),
    "MoE": Pattern(VARIANTS["NucleusMoEImageTransformer2DModel"], r"transformer_blocks\.\d+\.(attn|img_mlp)"),
    "nest": Pattern(VARIANTS["AuraFlowTransformer2DModel"], r"(joint|single)_transformer_blocks\.\d+\.(ff|ff_context)"),
    "U-skip": Pattern(VARIANTS["HunyuanDiT2DModel"], BASIC),
    "clip": Pattern(Variant("Clipped", lambda: randomize(Clipped()), clipped_inputs), r"blocks\.\d+\.(attention|mlp)"),
}


def test_every_pattern_has_an_entry():
    assert PATTERNS.keys() == CODES.keys()


def tensors(output: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest value, of the output where that is worst; NaN if any is."""
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(actual, expected, strict=True)]).max())


@pytest.mark.parametrize("code", in_turns(CODES, weeks=6))
def test_generation_equals_the_reference(code):
    """50 steps, of which 38 are forecast; once more they are the same to the bit, and forecasts are not what the model says."""
    pattern = PATTERNS[code]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models, as in test_models
        model = pattern.variant.build()
        assert_parity(pattern, model, pattern.variant.inputs, TOLERANCE)


def assert_parity(pattern: Pattern, model: nn.Module, inputs: Any, tolerance: float) -> TaylorSeerBackend:
    backend = taylorseer_backend(ORDER, INTERVAL, WARMUP, compiler="eager")
    reference = HookReference(model, pattern.feature_modules(model), ORDER, INTERVAL, WARMUP)
    expected = [tensors(reference(step, inputs(step, 0))) for step in range(NUM_STEPS)]
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    first = [tensors(compiled(**inputs(step, 0))) for step in range(NUM_STEPS)]
    with torch.compiler.set_stance("fail_on_recompile"):
        second = [tensors(compiled(**inputs(step, 0))) for step in range(NUM_STEPS)]
    for step in range(NUM_STEPS):
        error = relative_error(first[step], expected[step])
        assert error <= tolerance, f"step {step} is off by {error:.2e}"
        assert all(map(torch.equal, second[step], first[step])), f"step {step} of the second generation"
        if not reference.is_full(step) and step % 4 == 0:
            assert relative_error(first[step], tensors(model(**inputs(step, 0)))) > 2 * tolerance, f"step {step} is not forecast"
    assert (backend.stats().full_calls, backend.stats().forecast_calls) == (24, 76)
    num_outputs = sum(map(len, reference.streams[None].differences.values()))
    assert sum(len(region.features) for region in backend.explain().regions) == num_outputs - pattern.unread > 0
    return backend


def in_float16(variant: Variant, step: float, seed: int) -> Inputs:
    return _pytree.tree_map_only(Tensor, lambda x: x.half() if x.is_floating_point() else x, variant.inputs(step, seed))


def count_clips(graph: torch.fx.GraphModule) -> int:
    clips = (torch.ops.aten.clamp, torch.ops.aten.clamp_min, torch.ops.aten.clamp_max)
    return sum(packet(node) in clips for node in graph.graph.nodes)


@pytest.mark.turn(2, 3)
def test_flux_in_float16():
    """Where FLUX clips both streams. Float16 rounds to 5e-4; the buffers are rounded to it, and so is every sum of a forecast."""
    pattern = PATTERNS["S"]
    with torch.no_grad():
        model = nn.Module.to(pattern.variant.build(), torch.float16)
        backend = assert_parity(pattern, model, partial(in_float16, pattern.variant), 0.01)
    report = backend.explain()
    assert 2 * count_clips(report.graph("forecast")) == count_clips(report.graph("full")) > 0  # nobody reads the text there


def test_the_clip_matters():
    """The limit is reached by some of the stream and not by all of it, so that a lost clip would show above."""
    pattern = PATTERNS["clip"]
    model = pattern.variant.build()
    shares = []

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        shares.append(float((output.abs() == ClippedBlock.limit).float().mean()))

    for block in model.blocks:
        block.register_forward_hook(watch)
    with torch.no_grad():
        for step in range(0, NUM_STEPS, 7):
            model(**clipped_inputs(step, 0))
    assert 0.02 < min(shares) <= max(shares) < 0.6
