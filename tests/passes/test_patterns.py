"""One minimal module for each residual pattern of diffusion transformers: what is found in it, and a picture of its graph.

In a picture every operator stands behind the letter of the region that it belongs to, if any; a star marks a feature. Tokens
are the rows of a matrix, attention has one head and a context that is keys and values at once, and ``tanh`` stands for a norm,
so that a graph has few operators that are not the point.
"""

import re
from string import ascii_uppercase

import torch
from expecttest import TestCase
from torch import Tensor, nn

from tests.graphs import Found, find, op_name, render

T, D, HIDDEN = 3, 4, 8
X = (T, D)
TEXT = (2, D)


class Attention(nn.Module):
    """Softmax attention on a context, on the input itself if there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Parameter(torch.randn(D, D)), nn.Parameter(torch.randn(D, D))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return (x @ self.q @ context.T).softmax(-1) @ context @ self.out


class LinearAttention(Attention):
    """The same without softmax: the product of keys and values comes first."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return (x @ self.q).relu() @ (context.T @ context) @ self.out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(D, HIDDEN)), nn.Parameter(torch.randn(HIDDEN, D))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.up).relu() @ self.down


class ConvMlp(nn.Module):
    """Two pointwise convolutions with a depthwise one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(D, HIDDEN, 1, bias=False), nn.Conv2d(HIDDEN, D, 1, bias=False)
        self.depthwise = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.depthwise(self.up(x).relu()))


class Experts(nn.Module):
    """Every expert chooses the two tokens that suit it best; what it makes of them is scattered back."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(D, count))
        self.weight = nn.Parameter(torch.randn(count, D, D))

    def forward(self, x: Tensor) -> Tensor:
        affinity, index = (x @ self.router).sigmoid().T.topk(2)
        chosen = (x[index] @ self.weight) * affinity[..., None]
        return torch.zeros_like(x).scatter_add(0, index.reshape(-1, 1).expand(-1, D), chosen.reshape(-1, D))


class Block(nn.Module):
    """What most patterns are made of; a pattern says how the two are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), Mlp()


def norm(x: Tensor) -> Tensor:
    return x.tanh()


def tokens(shape: tuple[int, ...] = X, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def gate(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(D, dtype=dtype)


def look(model: nn.Module, **inputs: Tensor) -> tuple[Found, str]:
    """The regions of ``model``, and its picture with weights and inputs called by their names."""
    found = find(model.eval(), **inputs)
    region = {node: ascii_uppercase[i] for i, r in enumerate(found.regions.regions) for node in r.nodes}
    features = {feature.node for feature in found.regions.features}
    text = render(found.gm, bodies=False)
    for name, tensor in [*model.named_parameters(), *inputs.items()]:
        text = re.sub(rf"%{found.node(tensor).name}\b", f"%{name}", text)
    lines = [
        f"{region.get(node, ' ')}{'*' if node in features else ' '} {line}"
        for node, line in zip(found.gm.graph.nodes, text.splitlines(), strict=True)
        if node.op != "placeholder"
    ]
    return found, "\n".join(lines)


def seats(found: Found) -> list[list[str]]:
    """Where the features of each region sit: the operator that makes one, and those that read it."""
    return [
        [f"{op_name(feature.node)} -> {' '.join(map(op_name, feature.node.users))}" for feature in region.features]
        for region in found.regions.regions
    ]


def roots(found: Found) -> set[str]:
    """The first states of the streams that the features are added to."""
    return {feature.residual.root.name for feature in found.regions.features}


class PatternCase(TestCase):
    maxDiff = None

    def assert_found(self, found: Found, kinds: list[str], features: list[list[tuple[int, ...]]], at: list[list[str]]) -> None:
        assert found.kinds == kinds
        assert found.features == features
        assert seats(found) == at
        assert found.regions.rejected == ()


class TestGates(PatternCase):
    def test_g_gated(self):
        """G: ``x + gate * f(norm(x) * scale)``; the region applies the scale, the gate is applied to what it gives."""

        class Gated(Block):
            def forward(self, x: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
                x = x + gate * self.attention(norm(x) * (1 + scale))
                return x + gate * self.mlp(norm(x) * (1 + scale))

        found, picture = look(Gated(), x=tokens(), scale=gate(), gate=gate())
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> mul"], ["mm -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
   %add = add(%scale, 1) : float32[4]
A  %mul = mul(%tanh, %add) : float32[3, 4]
A  %mm = mm(%mul, %attention.q) : float32[3, 4]
A  %permute = permute(%mul, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %mul) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %mul1 = mul(%gate, %mm3) : float32[3, 4]
   %add1 = add(%x, %mul1) : float32[3, 4]
B  %tanh1 = tanh(%add1) : float32[3, 4]
B  %mul2 = mul(%tanh1, %add) : float32[3, 4]
B  %mm4 = mm(%mul2, %mlp.up) : float32[3, 8]
B  %relu = relu(%mm4) : float32[3, 8]
B* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %mul3 = mul(%gate, %mm5) : float32[3, 4]
   %add2 = add(%add1, %mul3) : float32[3, 4]
   return (%add2)""",
        )

    def test_n_no_gate(self):
        """N: ``x + f(norm(x))`` or ``f(norm(x)) + x``; the feature is the whole branch."""

        class Plain(Block):
            def forward(self, x: Tensor) -> Tensor:
                x = self.attention(norm(x)) + x
                return x + self.mlp(norm(x))

        found, picture = look(Plain(), x=tokens())
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> add"], ["mm -> add"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %add = add(%mm3, %x) : float32[3, 4]
B  %tanh1 = tanh(%add) : float32[3, 4]
B  %mm4 = mm(%tanh1, %mlp.up) : float32[3, 8]
B  %relu = relu(%mm4) : float32[3, 8]
B* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %add1 = add(%add, %mm5) : float32[3, 4]
   return (%add1)""",
        )

    def test_x_cross_attention(self):
        """X: an ungated cross-attention behind a gated self-attention; the text that only it projects belongs to it."""

        class Crossing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.own, self.cross = Attention(), Attention()
                self.text = nn.Parameter(torch.randn(D, D))

            def forward(self, x: Tensor, gate: Tensor, prompt: Tensor) -> Tensor:
                x = x + gate * self.own(norm(x))
                return x + self.cross(norm(x), prompt @ self.text)

        found, picture = look(Crossing(), x=tokens(), gate=gate(), prompt=tokens(TEXT))
        self.assert_found(found, ["attention", "attention"], [[X], [X]], [["mm -> mul"], ["mm -> add"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %own.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A* %mm3 = mm(%mm2, %own.out) : float32[3, 4]
   %mul = mul(%gate, %mm3) : float32[3, 4]
   %add = add(%x, %mul) : float32[3, 4]
B  %tanh1 = tanh(%add) : float32[3, 4]
B  %mm4 = mm(%prompt, %text) : float32[2, 4]
B  %mm5 = mm(%tanh1, %cross.q) : float32[3, 4]
B  %permute1 = permute(%mm4, [1, 0]) : float32[4, 2]
B  %mm6 = mm(%mm5, %permute1) : float32[3, 2]
B  %amax1 = amax(%mm6, [-1], True) : float32[3, 1]
B  %sub1 = sub(%mm6, %amax1) : float32[3, 2]
B  %exp1 = exp(%sub1) : float32[3, 2]
B  %sum1 = sum(%exp1, [-1], True) : float32[3, 1]
B  %div1 = div(%exp1, %sum1) : float32[3, 2]
B  %mm7 = mm(%div1, %mm4) : float32[3, 4]
B* %mm8 = mm(%mm7, %cross.out) : float32[3, 4]
   %add1 = add(%add, %mm8) : float32[3, 4]
   return (%add1)""",
        )

    def test_w_sandwich(self):
        """W: ``x + tanh(gate) * norm(f(norm(x)))``; both norms are inside, the gate's own ``tanh`` is not."""

        class Sandwich(Block):
            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                x = x + gate.tanh() * norm(self.attention(norm(x)))
                return x + gate.tanh() * norm(self.mlp(norm(x)))

        found, picture = look(Sandwich(), x=tokens(), gate=gate())
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["tanh -> mul"], ["tanh -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
   %tanh = tanh(%gate) : float32[4]
A  %tanh1 = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh1, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh1, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh1) : float32[3, 4]
A  %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
A* %tanh2 = tanh(%mm3) : float32[3, 4]
   %mul = mul(%tanh, %tanh2) : float32[3, 4]
   %add = add(%x, %mul) : float32[3, 4]
B  %tanh3 = tanh(%add) : float32[3, 4]
B  %mm4 = mm(%tanh3, %mlp.up) : float32[3, 8]
B  %relu = relu(%mm4) : float32[3, 8]
B  %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
B* %tanh4 = tanh(%mm5) : float32[3, 4]
   %mul1 = mul(%tanh, %tanh4) : float32[3, 4]
   %add1 = add(%add, %mul1) : float32[3, 4]
   return (%add1)""",
        )


class TestSharedWork(PatternCase):
    def test_j_joint_siblings_are_forecast_together(self):
        """J: one attention over image and text feeds the adds of both: one region, two features; two MLPs are two regions."""

        class Joint(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention, self.mlp, self.text_mlp = Attention(), Mlp(), Mlp()

            def forward(self, x: Tensor, text: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
                both = self.attention(torch.cat([norm(text), norm(x)]))
                text, x = text + gate * both[: len(text)], x + gate * both[len(text) :]
                return text + self.text_mlp(norm(text)), x + self.mlp(norm(x))

        found, picture = look(Joint(), x=tokens(), text=tokens(TEXT), gate=gate())
        self.assert_found(
            found,
            ["attention", "mlp", "mlp"],
            [[TEXT, X], [TEXT], [X]],
            [["slice -> mul", "slice -> mul"], ["mm -> add"], ["mm -> add"]],
        )
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%text) : float32[2, 4]
A  %tanh1 = tanh(%x) : float32[3, 4]
A  %cat = cat([%tanh, %tanh1]) : float32[5, 4]
A  %mm = mm(%cat, %attention.q) : float32[5, 4]
A  %permute = permute(%cat, [1, 0]) : float32[4, 5]
A  %mm1 = mm(%mm, %permute) : float32[5, 5]
A  %amax = amax(%mm1, [-1], True) : float32[5, 1]
A  %sub = sub(%mm1, %amax) : float32[5, 5]
A  %exp = exp(%sub) : float32[5, 5]
A  %sum = sum(%exp, [-1], True) : float32[5, 1]
A  %div = div(%exp, %sum) : float32[5, 5]
A  %mm2 = mm(%div, %cat) : float32[5, 4]
A  %mm3 = mm(%mm2, %attention.out) : float32[5, 4]
A* %slice = slice(%mm3, 0, 0, 2) : float32[2, 4]
   %mul = mul(%gate, %slice) : float32[2, 4]
   %add = add(%text, %mul) : float32[2, 4]
A* %slice1 = slice(%mm3, 0, 2, 9223372036854775807) : float32[3, 4]
   %mul1 = mul(%gate, %slice1) : float32[3, 4]
   %add1 = add(%x, %mul1) : float32[3, 4]
B  %tanh2 = tanh(%add) : float32[2, 4]
B  %mm4 = mm(%tanh2, %text_mlp.up) : float32[2, 8]
B  %relu = relu(%mm4) : float32[2, 8]
B* %mm5 = mm(%relu, %text_mlp.down) : float32[2, 4]
   %add2 = add(%add, %mm5) : float32[2, 4]
C  %tanh3 = tanh(%add1) : float32[3, 4]
C  %mm6 = mm(%tanh3, %mlp.up) : float32[3, 8]
C  %relu1 = relu(%mm6) : float32[3, 8]
C* %mm7 = mm(%relu1, %mlp.down) : float32[3, 4]
   %add3 = add(%add1, %mm7) : float32[3, 4]
   return (%add2, %add3)""",
        )

    def test_s_single(self):
        """S: attention and MLP side by side, concatenated into one projection: one feature of both kinds."""

        class Single(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention, self.up = Attention(), nn.Parameter(torch.randn(D, HIDDEN))
                self.down = nn.Parameter(torch.randn(D + HIDDEN, D))

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                n = norm(x)
                return x + gate * (torch.cat([self.attention(n), (n @ self.up).relu()], 1) @ self.down)

        found, picture = look(Single(), x=tokens(), gate=gate())
        self.assert_found(found, ["attention+mlp"], [[X]], [["mm -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A  %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
A  %mm4 = mm(%tanh, %up) : float32[3, 8]
A  %relu = relu(%mm4) : float32[3, 8]
A  %cat = cat([%mm3, %relu], 1) : float32[3, 12]
A* %mm5 = mm(%cat, %down) : float32[3, 4]
   %mul = mul(%gate, %mm5) : float32[3, 4]
   %add = add(%x, %mul) : float32[3, 4]
   return (%add)""",
        )

    def test_p_parallel(self):
        """P: two adds whose branches start from one ``norm(x)``: one region, and no way to forecast only one of them."""

        class Parallel(Block):
            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                n = norm(x)
                x = x + gate * self.attention(n)
                return x + gate * self.mlp(n)

        found, picture = look(Parallel(), x=tokens(), gate=gate())
        self.assert_found(found, ["attention+mlp"], [[X, X]], [["mm -> mul", "mm -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %mul = mul(%gate, %mm3) : float32[3, 4]
   %add = add(%x, %mul) : float32[3, 4]
A  %mm4 = mm(%tanh, %mlp.up) : float32[3, 8]
A  %relu = relu(%mm4) : float32[3, 8]
A* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %mul1 = mul(%gate, %mm5) : float32[3, 4]
   %add1 = add(%add, %mul1) : float32[3, 4]
   return (%add1)""",
        )

    def test_nest(self):
        """nest: ``x + gate * mlp(norm(x + gate * attention(norm(x))))``; the inner add is work of the outer branch."""

        class Nest(Block):
            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                return x + gate * self.mlp(norm(x + gate * self.attention(norm(x))))

        found, picture = look(Nest(), x=tokens(), gate=gate())
        self.assert_found(found, ["attention+mlp"], [[X]], [["mm -> mul"]])
        assert found.regions.num_residual_adds == 2
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A  %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
A  %mul = mul(%gate, %mm3) : float32[3, 4]
A  %add = add(%x, %mul) : float32[3, 4]
A  %tanh1 = tanh(%add) : float32[3, 4]
A  %mm4 = mm(%tanh1, %mlp.up) : float32[3, 8]
A  %relu = relu(%mm4) : float32[3, 8]
A* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %mul1 = mul(%gate, %mm5) : float32[3, 4]
   %add1 = add(%x, %mul1) : float32[3, 4]
   return (%add1)""",
        )


class TestKindsOfWork(PatternCase):
    def test_l_linear_attention(self):
        """L: no softmax; activations multiplied with activations make it attention."""

        class Linear(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = LinearAttention()

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                return x + gate * self.attention(norm(x))

        found, picture = look(Linear(), x=tokens(), gate=gate())
        self.assert_found(found, ["attention"], [[X]], [["mm -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %relu = relu(%mm) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%permute, %tanh) : float32[4, 4]
A  %mm2 = mm(%relu, %mm1) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %mul = mul(%gate, %mm3) : float32[3, 4]
   %add = add(%x, %mul) : float32[3, 4]
   return (%add)""",
        )

    def test_c_convolutions(self):
        """C: an MLP of convolutions, on the tokens as pixels; the stream stays a sequence of tokens."""

        class Convolutional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mlp = ConvMlp()

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                pixels = norm(x).unflatten(1, (2, 3)).permute(0, 3, 1, 2)
                return x + gate * self.mlp(pixels).flatten(2).transpose(1, 2)

        found, picture = look(Convolutional(), x=tokens((1, 6, D)), gate=gate())
        self.assert_found(found, ["mlp"], [[(1, 6, D)]], [["permute -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[1, 6, 4]
A  %view = view(%tanh, [1, 2, 3, 4]) : float32[1, 2, 3, 4]
A  %permute = permute(%view, [0, 3, 1, 2]) : float32[1, 4, 2, 3]
A  %convolution = convolution(%permute, %mlp.up.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1) : float32[1, 8, 2, 3]
A  %relu = relu(%convolution) : float32[1, 8, 2, 3]
A  %convolution1 = convolution(%relu, %mlp.depthwise.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 8) : float32[1, 8, 2, 3]
A  %convolution2 = convolution(%convolution1, %mlp.down.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1) : float32[1, 4, 2, 3]
A  %view1 = view(%convolution2, [1, 4, 6]) : float32[1, 4, 6]
A* %permute1 = permute(%view1, [0, 2, 1]) : float32[1, 6, 4]
   %mul = mul(%gate, %permute1) : float32[1, 6, 4]
   %add = add(%x, %mul) : float32[1, 6, 4]
   return (%add)""",  # noqa: E501
        )

    def test_moe(self):
        """MoE: routing, experts and scatter are one branch, with no activation multiplied with another."""

        class MixtureOfExperts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.experts = Experts()

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                return x + gate * self.experts(norm(x))

        found, picture = look(MixtureOfExperts(), x=tokens(), gate=gate())
        self.assert_found(found, ["mlp"], [[X]], [["scatter_add -> mul"]])
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %mm = mm(%tanh, %experts.router) : float32[3, 2]
A  %sigmoid = sigmoid(%mm) : float32[3, 2]
A  %permute = permute(%sigmoid, [1, 0]) : float32[2, 3]
A  %topk = topk(%permute, 2) : tuple
A  %getitem = getitem(%topk, 0) : float32[2, 2]
A  %getitem1 = getitem(%topk, 1) : int64[2, 2]
A  %index = index(%tanh, [%getitem1]) : float32[2, 2, 4]
A  %expand = expand(%index, [2, 2, 4]) : float32[2, 2, 4]
A  %expand1 = expand(%experts.weight, [2, 4, 4]) : float32[2, 4, 4]
A  %bmm = bmm(%expand, %expand1) : float32[2, 2, 4]
A  %unsqueeze = unsqueeze(%getitem, 2) : float32[2, 2, 1]
A  %mul = mul(%bmm, %unsqueeze) : float32[2, 2, 4]
A  %full = full([3, 4], 0, dtype=float32, layout=strided, device=cpu, pin_memory=False) : float32[3, 4]
A  %view = view(%getitem1, [-1, 1]) : int64[4, 1]
A  %expand2 = expand(%view, [-1, 4]) : int64[4, 4]
A  %view1 = view(%mul, [-1, 4]) : float32[4, 4]
A* %scatter_add = scatter_add(%full, 0, %expand2, %view1) : float32[3, 4]
   %mul1 = mul(%gate, %scatter_add) : float32[3, 4]
   %add = add(%x, %mul1) : float32[3, 4]
   return (%add)""",
        )


class TestDress(PatternCase):
    def test_clip(self):
        """clip: in half precision the stream is clamped behind an add; the clamped stream is the same stream."""

        class Clipped(Block):
            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                x = (x + gate * self.attention(norm(x))).clip(-65504, 65504)
                return (x + gate * self.mlp(norm(x))).clip(-65504, 65504)

        half = torch.float16
        x = tokens(dtype=half)
        found, picture = look(Clipped().to(half), x=x, gate=gate(half))
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> mul"], ["mm -> mul"]])
        assert roots(found) == {found.node(x).name}
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float16[3, 4]
A  %mm = mm(%tanh, %attention.q) : float16[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float16[4, 3]
A  %mm1 = mm(%mm, %permute) : float16[3, 3]
A  %convert_element_type = convert_element_type(%mm1, float32) : float32[3, 3]
A  %amax = amax(%convert_element_type, [-1], True) : float32[3, 1]
A  %sub = sub(%convert_element_type, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %convert_element_type1 = convert_element_type(%div, float16) : float16[3, 3]
A  %mm2 = mm(%convert_element_type1, %tanh) : float16[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float16[3, 4]
   %mul = mul(%gate, %mm3) : float16[3, 4]
   %add = add(%x, %mul) : float16[3, 4]
   %convert_element_type2 = convert_element_type(%add, float32) : float32[3, 4]
   %clamp_min = clamp_min(%convert_element_type2, -65504) : float32[3, 4]
   %clamp_max = clamp_max(%clamp_min, 65504) : float32[3, 4]
   %convert_element_type3 = convert_element_type(%clamp_max, float16) : float16[3, 4]
B  %tanh1 = tanh(%convert_element_type3) : float16[3, 4]
B  %mm4 = mm(%tanh1, %mlp.up) : float16[3, 8]
B  %relu = relu(%mm4) : float16[3, 8]
B* %mm5 = mm(%relu, %mlp.down) : float16[3, 4]
   %mul1 = mul(%gate, %mm5) : float16[3, 4]
   %add1 = add(%convert_element_type3, %mul1) : float16[3, 4]
   %convert_element_type4 = convert_element_type(%add1, float32) : float32[3, 4]
   %clamp_min1 = clamp_min(%convert_element_type4, -65504) : float32[3, 4]
   %clamp_max1 = clamp_max(%clamp_min1, 65504) : float32[3, 4]
   %convert_element_type5 = convert_element_type(%clamp_max1, float16) : float16[3, 4]
   return (%convert_element_type5)""",
        )

    def test_chain_of_casts_and_views(self):
        """The stream is pixels, then tokens, and is added to in float32; the branches work, and end, in bfloat16."""

        class Dressed(Block):
            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                update = gate.float() * self.attention(norm(x.flatten(1).T)).float()
                x = (x.float() + update.T.unflatten(1, (2, 3))).type_as(x)
                x = x.flatten(1).T
                return (x.float() + gate.float() * self.mlp(norm(x)).float()).type_as(x)

        brain = torch.bfloat16
        x = tokens((D, 2, 3), brain)
        found, picture = look(Dressed().to(brain), x=x, gate=gate(brain))
        at = ["mm -> convert_element_type"]
        self.assert_found(found, ["attention", "mlp"], [[(6, D)], [(6, D)]], [at, at])
        assert [feature.node.meta["val"].dtype for feature in found.regions.features] == [brain, brain]
        assert roots(found) == {found.node(x).name}
        self.assertExpectedInline(
            picture,
            """\
   %convert_element_type = convert_element_type(%gate, float32) : float32[4]
A  %view = view(%x, [4, 6]) : bfloat16[4, 6]
A  %permute = permute(%view, [1, 0]) : bfloat16[6, 4]
A  %tanh = tanh(%permute) : bfloat16[6, 4]
A  %mm = mm(%tanh, %attention.q) : bfloat16[6, 4]
A  %permute1 = permute(%tanh, [1, 0]) : bfloat16[4, 6]
A  %mm1 = mm(%mm, %permute1) : bfloat16[6, 6]
A  %convert_element_type1 = convert_element_type(%mm1, float32) : float32[6, 6]
A  %amax = amax(%convert_element_type1, [-1], True) : float32[6, 1]
A  %sub = sub(%convert_element_type1, %amax) : float32[6, 6]
A  %exp = exp(%sub) : float32[6, 6]
A  %sum = sum(%exp, [-1], True) : float32[6, 1]
A  %div = div(%exp, %sum) : float32[6, 6]
A  %convert_element_type2 = convert_element_type(%div, bfloat16) : bfloat16[6, 6]
A  %mm2 = mm(%convert_element_type2, %tanh) : bfloat16[6, 4]
A* %mm3 = mm(%mm2, %attention.out) : bfloat16[6, 4]
   %convert_element_type3 = convert_element_type(%mm3, float32) : float32[6, 4]
   %mul = mul(%convert_element_type, %convert_element_type3) : float32[6, 4]
   %convert_element_type4 = convert_element_type(%x, float32) : float32[4, 2, 3]
   %permute2 = permute(%mul, [1, 0]) : float32[4, 6]
   %view1 = view(%permute2, [4, 2, 3]) : float32[4, 2, 3]
   %add = add(%convert_element_type4, %view1) : float32[4, 2, 3]
   %convert_element_type5 = convert_element_type(%add, bfloat16) : bfloat16[4, 2, 3]
   %view2 = view(%convert_element_type5, [4, 6]) : bfloat16[4, 6]
   %permute3 = permute(%view2, [1, 0]) : bfloat16[6, 4]
   %convert_element_type6 = convert_element_type(%permute3, float32) : float32[6, 4]
B  %tanh1 = tanh(%permute3) : bfloat16[6, 4]
B  %mm4 = mm(%tanh1, %mlp.up) : bfloat16[6, 8]
B  %relu = relu(%mm4) : bfloat16[6, 8]
B* %mm5 = mm(%relu, %mlp.down) : bfloat16[6, 4]
   %convert_element_type7 = convert_element_type(%mm5, float32) : float32[6, 4]
   %mul1 = mul(%convert_element_type, %convert_element_type7) : float32[6, 4]
   %add1 = add(%convert_element_type6, %mul1) : float32[6, 4]
   %convert_element_type8 = convert_element_type(%add1, bfloat16) : bfloat16[6, 4]
   return (%convert_element_type8)""",
        )

    def test_slices_of_one_tensor(self):
        """Text and image travel as one tensor, are split, updated apart and joined again."""

        class Sliced(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.text_mlp, self.mlp = Mlp(), Mlp()

            def forward(self, x: Tensor) -> Tensor:
                text, image = x.split([2, 3])
                return torch.cat([text + self.text_mlp(norm(text)), image + self.mlp(norm(image))])

        x = tokens((5, D))
        found, picture = look(Sliced(), x=x)
        self.assert_found(found, ["mlp", "mlp"], [[TEXT], [X]], [["mm -> add"], ["mm -> add"]])
        assert roots(found) == {found.node(x).name}
        self.assertExpectedInline(
            picture,
            """\
   %split_with_sizes = split_with_sizes(%x, [2, 3]) : list
   %getitem = getitem(%split_with_sizes, 0) : float32[2, 4]
   %getitem1 = getitem(%split_with_sizes, 1) : float32[3, 4]
A  %tanh = tanh(%getitem) : float32[2, 4]
A  %mm = mm(%tanh, %text_mlp.up) : float32[2, 8]
A  %relu = relu(%mm) : float32[2, 8]
A* %mm1 = mm(%relu, %text_mlp.down) : float32[2, 4]
   %add = add(%getitem, %mm1) : float32[2, 4]
B  %tanh1 = tanh(%getitem1) : float32[3, 4]
B  %mm2 = mm(%tanh1, %mlp.up) : float32[3, 8]
B  %relu1 = relu(%mm2) : float32[3, 8]
B* %mm3 = mm(%relu1, %mlp.down) : float32[3, 4]
   %add1 = add(%getitem1, %mm3) : float32[3, 4]
   %cat = cat([%add, %add1]) : float32[5, 4]
   return (%cat)""",
        )

    def test_mask_on_the_stream(self):
        """Padding is zeroed after every add, by multiplication or by ``where``: the same stream all along."""

        class Masked(Block):
            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                x = (x + self.attention(norm(x))) * mask
                return torch.where(mask, x + self.mlp(norm(x)), 0.0)

        found, _ = look(Masked(), x=tokens(), mask=torch.tensor([[True], [True], [False]]))
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> add"], ["mm -> add"]])
        assert len(roots(found)) == 1

    def test_recurrence_inside_a_branch(self):
        """A state that is carried from token to token (a delta rule) is a stream that lives and dies in the branch."""

        class Recurrent(Mlp):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.Parameter(torch.randn(D, HIDDEN * HIDDEN))

            def forward(self, x: Tensor) -> Tensor:
                update, mix = norm(x) @ self.up, (norm(x) @ self.mix).view(T, HIDDEN, HIDDEN)
                states = [update[:1]]
                for t in range(1, T):
                    states.append(states[-1] @ mix[t] + update[t : t + 1])
                return x + x.sigmoid() * (torch.cat(states) @ self.down)

        found, _ = look(Recurrent(), x=tokens())
        self.assert_found(found, ["attention+mlp"], [[X]], [["mul -> add"]])


class TestNoFalseTrunk(PatternCase):
    def test_shared_shift(self):
        """Every layer adds one shift of full size and multiplies what comes out with weights: that is no stream."""

        class Shifted(Block):
            def forward(self, x: Tensor, shift: Tensor) -> Tensor:
                x = x + self.attention(norm(x) + shift)
                return x + self.mlp(norm(x) + shift)

        found, picture = look(Shifted(), x=tokens(), shift=tokens())
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> add"], ["mm -> add"]])
        assert found.regions.num_residual_adds == 2
        self.assertExpectedInline(
            picture,
            """\
A  %tanh = tanh(%x) : float32[3, 4]
A  %add = add(%tanh, %shift) : float32[3, 4]
A  %mm = mm(%add, %attention.q) : float32[3, 4]
A  %permute = permute(%add, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %add) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %add1 = add(%x, %mm3) : float32[3, 4]
B  %tanh1 = tanh(%add1) : float32[3, 4]
B  %add2 = add(%tanh1, %shift) : float32[3, 4]
B  %mm4 = mm(%add2, %mlp.up) : float32[3, 8]
B  %relu = relu(%mm4) : float32[3, 8]
B* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %add3 = add(%add1, %mm5) : float32[3, 4]
   return (%add3)""",
        )

    def test_positional_embedding_before_every_layer(self):
        """The embedding feeds each branch and is added to its result, yet the operators between are the stream's."""

        class Positioned(Block):
            def forward(self, x: Tensor, position: Tensor) -> Tensor:
                x = x + position
                x = x + self.attention(norm(x))
                x = x + position
                return x + self.mlp(norm(x))

        found, picture = look(Positioned(), x=tokens(), position=tokens())
        self.assert_found(found, ["attention", "mlp"], [[X], [X]], [["mm -> add"], ["mm -> add"]])
        assert found.regions.num_residual_adds == 2
        self.assertExpectedInline(
            picture,
            """\
   %add = add(%x, %position) : float32[3, 4]
A  %tanh = tanh(%add) : float32[3, 4]
A  %mm = mm(%tanh, %attention.q) : float32[3, 4]
A  %permute = permute(%tanh, [1, 0]) : float32[4, 3]
A  %mm1 = mm(%mm, %permute) : float32[3, 3]
A  %amax = amax(%mm1, [-1], True) : float32[3, 1]
A  %sub = sub(%mm1, %amax) : float32[3, 3]
A  %exp = exp(%sub) : float32[3, 3]
A  %sum = sum(%exp, [-1], True) : float32[3, 1]
A  %div = div(%exp, %sum) : float32[3, 3]
A  %mm2 = mm(%div, %tanh) : float32[3, 4]
A* %mm3 = mm(%mm2, %attention.out) : float32[3, 4]
   %add1 = add(%add, %mm3) : float32[3, 4]
   %add2 = add(%add1, %position) : float32[3, 4]
B  %tanh1 = tanh(%add2) : float32[3, 4]
B  %mm4 = mm(%tanh1, %mlp.up) : float32[3, 8]
B  %relu = relu(%mm4) : float32[3, 8]
B* %mm5 = mm(%relu, %mlp.down) : float32[3, 4]
   %add3 = add(%add2, %mm5) : float32[3, 4]
   return (%add3)""",
        )

    def test_sum_of_two_branches(self):
        """Neither operand of ``mlp(x) + attention(x)`` feeds the other: there is no trunk, and no region."""

        class Summed(Block):
            def forward(self, x: Tensor) -> Tensor:
                return self.mlp(x) + self.attention(x)

        found, picture = look(Summed(), x=tokens())
        self.assert_found(found, [], [], [])
        assert found.regions.num_residual_adds == 0
        self.assertExpectedInline(
            picture,
            """\
   %mm = mm(%x, %mlp.up) : float32[3, 8]
   %relu = relu(%mm) : float32[3, 8]
   %mm1 = mm(%relu, %mlp.down) : float32[3, 4]
   %mm2 = mm(%x, %attention.q) : float32[3, 4]
   %permute = permute(%x, [1, 0]) : float32[4, 3]
   %mm3 = mm(%mm2, %permute) : float32[3, 3]
   %amax = amax(%mm3, [-1], True) : float32[3, 1]
   %sub = sub(%mm3, %amax) : float32[3, 3]
   %exp = exp(%sub) : float32[3, 3]
   %sum = sum(%exp, [-1], True) : float32[3, 1]
   %div = div(%exp, %sum) : float32[3, 3]
   %mm4 = mm(%div, %x) : float32[3, 4]
   %mm5 = mm(%mm4, %attention.out) : float32[3, 4]
   %add = add(%mm1, %mm5) : float32[3, 4]
   return (%add)""",
        )
