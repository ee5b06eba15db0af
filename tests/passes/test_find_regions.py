"""The region finder on hand-written blocks: one for each residual pattern of diffusion transformers, and what is none."""

import ast
from collections.abc import Callable
from pathlib import Path

import diffusers.models.transformers
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import taylorseer_fx
from tests.graphs import Found, find

B, T, D = 2, 5, 8
HIDDEN = 3 * D  # of an MLP; its weights tell it apart from the projections of attention


class Attention(nn.Module):
    """Softmax attention of ``x`` on ``context`` (on itself if None), with separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = heads(self.q(x)), heads(self.k(context)), heads(self.v(context))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return self.proj(merge(F.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, D // 2)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,))


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Wired(nn.Module):
    """An attention and an MLP, joined by a function given from outside: ``wire(block, *inputs)``."""

    def __init__(self, wire: Callable[..., object]) -> None:
        super().__init__()
        self.attention, self.mlp, self.modulation, self.wire = Attention(), Mlp(), nn.Linear(D, 6 * D), wire

    def forward(self, *inputs: Tensor) -> object:
        return self.wire(self, *inputs)

    def modulate(self, temb: Tensor) -> tuple[Tensor, ...]:
        return self.modulation(F.silu(temb))[:, None].chunk(6, -1)


def find_in(wire: Callable[..., object], *inputs: Tensor) -> Found:
    """The regions of ``wire``, on inputs ``x`` and ``temb`` unless given."""
    torch.manual_seed(0)
    return find(Wired(wire).eval(), *(inputs or (tokens(), vector())))


def tokens(count: int = T, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, count, D, dtype=dtype)


def vector() -> Tensor:
    return torch.randn(B, D)


X = [(B, T, D)]


def gated_block(m: Wired, x: Tensor, temb: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = m.modulate(temb)
    x = x + gate1 * m.attention(norm(x) * (1 + scale1) + shift1)
    return x + gate2 * m.mlp(norm(x) * (1 + scale2) + shift2)


class TestGates:
    """The feature is what the gate multiplies; the gate is computed in every step."""

    def test_gated_residual(self):
        """adaLN-Zero: an attention and an MLP region, each reading its shift and scale, none its gate."""
        found = find_in(gated_block)
        assert found.kinds == ["attention", "mlp"]
        assert found.features == [X, X]
        assert found.paths == ["attention", "mlp"]
        assert found.regions.rejected == ()
        assert found.region_of("addmm", 0) is None, "the modulation belongs to no region"
        for region in found.regions.regions:
            (feature,) = region.features
            assert feature.node in region.nodes
            gates = [user for user in feature.node.users if user.target is torch.ops.aten.mul.Tensor]
            assert len(gates) == 1
            assert gates[0] not in region.nodes
            (gate,) = [arg for arg in gates[0].args if arg is not feature.node]
            assert gate not in region.live_ins

    def test_live_ins_are_what_the_region_reads_from_outside(self):
        x, temb = tokens(), vector()
        torch.manual_seed(0)
        model = Wired(gated_block).eval()
        found = find(model, x, temb)
        attention, mlp = found.regions.regions
        assert found.node(x) in attention.live_ins
        assert found.node(x) not in mlp.live_ins, "the MLP reads the stream after the attention"
        assert found.node(temb) not in (*attention.live_ins, *mlp.live_ins)
        for weight in model.attention.parameters():
            assert found.node(weight) in attention.live_ins
        for region in (attention, mlp):
            inside = set(region.nodes)
            read = {source for node in region.nodes for source in node.all_input_nodes} - inside
            assert set(region.live_ins) == read

    @pytest.mark.parametrize(
        "join",
        [
            pytest.param(lambda x, gate, f: x + gate * f, id="trunk-first"),
            pytest.param(lambda x, gate, f: gate * f + x, id="branch-first"),
            pytest.param(lambda x, gate, f: x + f * gate, id="gate-last"),
            pytest.param(lambda x, gate, f: torch.addcmul(x, gate, f), id="addcmul"),
            pytest.param(lambda x, gate, f: x.add(gate * f), id="method"),
            pytest.param(lambda x, gate, f: x.clone().add_(gate * f), id="in-place"),
            pytest.param(lambda x, gate, f: x + gate * (f / 1.0), id="feature-over-one"),
            pytest.param(lambda x, gate, f: (x + gate * f) / 1.0, id="sum-over-one"),
            pytest.param(lambda x, gate, f: x + (gate / 1.0) * f, id="gate-over-one"),
            pytest.param(lambda x, gate, f: x + gate * (f / 2.0), id="feature-over-two"),
            pytest.param(lambda x, gate, f: x + gate * -f, id="negated"),
            pytest.param(lambda x, gate, f: x + gate * (gate * f), id="two-gates"),
            pytest.param(lambda x, gate, f: x + gate.tanh() * f, id="tanh"),
            pytest.param(lambda x, gate, f: x + gate.expand_as(f) * f, id="per-token"),
            pytest.param(lambda x, gate, f: x + gate * F.dropout(f, 0.0, training=True), id="dropout-of-zero"),
        ],
    )
    def test_however_it_is_written(self, join):
        """Operand order, in-place adds, a division by one and several gates change nothing: the feature is the proj's output."""

        def wire(m: Wired, x: Tensor, temb: Tensor) -> Tensor:
            gate = m.modulate(temb)[0]
            x = join(x, gate, m.attention(norm(x)))
            return join(x, gate, m.mlp(norm(x)))

        found = find_in(wire)
        assert found.kinds == ["attention", "mlp"]
        assert found.features == [X, X]
        for feature in found.regions.features:
            assert "addmm" in {feature.node.name.split("_")[0], feature.node.all_input_nodes[0].name.split("_")[0]}

    def test_a_gate_made_from_the_stream_is_part_of_the_feature(self):
        """A factor that reads the stream would be stale if it were executed while the rest is forecast."""
        found = find_in(lambda m, x: x + torch.sigmoid(m.mlp(x)) * m.attention(x), tokens())
        assert found.kinds == ["attention+mlp"]
        (feature,) = found.regions.features
        assert feature.node is feature.residual.branch


class TestSharing:
    """Work that several branches share: grouped if it is of their streams, left outside if not."""

    def test_the_last_text_update_is_dead(self):
        """Where nothing reads the text any more, its feature is gone, and the image's stays."""

        def wire(m: Wired, x: Tensor, text: Tensor) -> Tensor:
            joint = m.attention(torch.cat([norm(text), norm(x)], 1))
            text, x = text + joint[:, : text.shape[1]], x + joint[:, text.shape[1] :]
            text + m.mlp(norm(text))
            return x + m.mlp(norm(x))

        found = find_in(wire, tokens(), tokens(3))
        assert found.kinds == ["attention", "mlp"]
        assert found.features == [X, X]

    def test_a_stream_that_ends_keeps_its_features(self):
        """The text of the last joint attention is updated, read once more and dropped; its updates are forecast all the same."""

        def wire(m: Wired, x: Tensor, text: Tensor) -> Tensor:
            text = text + m.mlp(norm(text))
            return x + m.attention(norm(x), norm(text))

        found = find_in(wire, tokens(), tokens(3))
        assert (B, T, D) in [shape for shapes in found.features for shape in shapes]
        assert found.regions.rejected == ()
        covered = {node for region in found.regions.regions for node in region.nodes}
        heavy = [node for node in found.gm.graph.nodes if node.name.startswith(("addmm", "_scaled_dot"))]
        assert set(heavy) <= covered, "nothing heavy is left for a forecast step"

    def test_sum_of_attention_and_mlp(self):
        found = find_in(lambda m, x: x + (m.attention(norm(x)) + m.mlp(norm(x))), tokens())
        assert found.kinds == ["attention+mlp"]
        assert found.features == [X]

    def test_branch_with_a_residual_of_its_own(self):
        """h = mlp(x); x + h + mlp(h), summed inside first (Sana video): the inner stream is born in the branch."""

        def wire(m: Wired, x: Tensor) -> Tensor:
            x = x + m.attention(norm(x))
            h = m.mlp(norm(x))
            return x + 0.5 * (h + m.mlp(h))

        found = find_in(wire, tokens())
        assert found.kinds == ["attention", "mlp"]
        assert found.features == [X, X]
        assert {found.region_of("addmm", i) for i in range(4, 8)} == {1}, "both MLPs, of two projections each"
        assert found.regions.rejected == ()

    def test_skip_around_the_whole_model(self):
        """x + mlp(blocks(mlp(x))): the blocks keep their regions, and the projection behind them is one more."""

        def wire(m: Wired, x: Tensor) -> Tensor:
            h = m.mlp(x)
            h = h + m.attention(norm(h))
            h = h + m.mlp(norm(h))
            return x + m.mlp(norm(h))

        found = find_in(wire, tokens())
        assert found.kinds == ["attention", "mlp", "mlp"]
        assert found.features == [X, X, X]

    def test_rotary_tables_stay_outside(self):
        """All blocks share the sine and cosine of the positions; a forecast step leaves them unread, no region owns them."""

        def wire(m: Wired, x: Tensor, positions: Tensor) -> Tensor:
            angles = positions[:, None] * torch.arange(1, 1 + D // 2)
            rotary = (angles.cos(), angles.sin())
            x = x + m.attention(norm(x), rotary=rotary)
            return x + m.attention(norm(x), rotary=rotary)

        found = find_in(wire, tokens(), torch.arange(T).float())
        assert found.kinds == ["attention", "attention"]
        assert found.region_of("cos") is None
        assert found.region_of("sin") is None
        cos = next(node for node in found.gm.graph.nodes if node.name.startswith("cos"))
        for region in found.regions.regions:
            assert {cos, *cos.users} & set(region.live_ins)

    def test_text_projection_of_several_cross_attentions_stays_outside(self):
        def wire(m: Wired, x: Tensor, text: Tensor) -> Tensor:
            text = m.mlp(text)
            x = x + m.attention(norm(x), text)
            return x + m.attention(norm(x), text)

        found = find_in(wire, tokens(), tokens(3))
        assert found.kinds == ["attention", "attention"]
        assert [found.region_of("addmm", i) for i in (0, 1)] == [None, None]

    def test_feature_read_elsewhere(self):
        """A second reader of the feature (a later block's input) gets the forecast; the region is the same."""

        def wire(m: Wired, x: Tensor) -> Tensor:
            feature = m.attention(norm(x))
            x = x + feature
            return x + m.mlp(norm(x) + feature.mean(1, keepdim=True))

        found = find_in(wire, tokens())
        assert found.kinds == ["attention", "mlp"]
        assert found.regions.features[0].node in found.regions.regions[1].live_ins

    def test_one_module_called_twice(self):
        """Weights say nothing about which call it is; each call is a region."""
        found = find_in(lambda m, x: (h := x + m.mlp(x)) + m.mlp(h), tokens())
        assert found.kinds == ["mlp", "mlp"]


class TestDress:
    """The stream behind casts, clamps and views is the same stream."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_casts_around_the_add(self, dtype):
        """(x.float() + gate * f.float()).type_as(x), as Wan has it; the feature is taken in the narrow dtype."""

        def wire(m: Wired, x: Tensor, gate: Tensor) -> Tensor:
            x = (x.float() + gate * m.attention(norm(x.float()).type_as(x)).float()).type_as(x)
            return (x.float() + gate * m.mlp(norm(x.float()).type_as(x)).float()).type_as(x)

        found = find(Wired(wire).to(dtype).eval(), tokens(dtype=dtype), torch.randn(B, 1, D))
        assert found.kinds == ["attention", "mlp"]
        assert [feature.node.meta["val"].dtype for feature in found.regions.features] == [dtype, dtype]

    def test_views_of_the_stream(self):
        """The add may happen on pixels while the branch reads tokens."""

        def wire(m: Wired, image: Tensor) -> Tensor:
            branch = m.attention(image.flatten(2).transpose(1, 2))
            return image + branch.transpose(1, 2).unflatten(2, (2, 3))

        found = find_in(wire, torch.randn(B, D, 2, 3))
        assert found.kinds == ["attention"]


class TestKinds:
    """Kind comes from what is multiplied with what."""

    def test_attention_written_as_matmuls(self):
        def wire(m: Wired, x: Tensor) -> Tensor:
            n = norm(x)
            q, k, v = m.attention.q(n), m.attention.k(n), m.attention.v(n)
            return x + m.attention.proj(torch.softmax(q @ k.transpose(1, 2) / 3, -1) @ v)

        assert find_in(wire, tokens()).kinds == ["attention"]

    def test_gated_linear_unit_is_an_mlp(self):
        """Activations are multiplied element by element, not contracted."""
        found = find_in(lambda m, x: x + m.mlp.down(m.mlp.up(x) * F.silu(m.mlp.up(x).flip(-1))), tokens())
        assert found.kinds == ["mlp"]

    @pytest.mark.parametrize(("inputs", "kind"), [(3, "attention"), (1, "mlp")])
    def test_custom_operators_are_heavy(self, inputs, kind):
        """A kernel unknown to torch is taken for work: for attention if it reads three activations."""
        with torch.library._scoped_library("taylorseer_tests", "DEF") as library:
            signature = ", ".join(f"Tensor x{i}" for i in range(inputs))
            library.define(f"kernel({signature}) -> Tensor")
            library.impl("kernel", lambda *args: args[0] * 2, "CPU")
            torch.library.register_fake("taylorseer_tests::kernel", lambda *args: torch.empty_like(args[0]), lib=library)
            kernel = torch.ops.taylorseer_tests.kernel
            found = find_in(lambda m, x: x + kernel(*(norm(x) * (i + 2) for i in range(inputs))), tokens())
        assert found.kinds == [kind]

    def test_dynamic_shapes(self):
        """Symbolic sizes compare equal where they are."""
        found = find(Wired(gated_block).eval(), tokens(), vector(), dynamic=True)
        assert found.kinds == ["attention", "mlp"]


class TestPaths:
    def test_innermost_common_module(self):
        """A path names the module that holds all of a region's heavy operators."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(Wired(gated_block) for _ in range(2))

            def forward(self, x: Tensor, temb: Tensor) -> Tensor:
                for layer in self.layers:
                    x = layer(x, temb)
                return x

        assert find(Model(), tokens(), vector()).paths == [
            "layers.0.attention",
            "layers.0.mlp",
            "layers.1.attention",
            "layers.1.mlp",
        ]

    def test_region_across_modules(self):
        found = find_in(lambda m, x: x + m.mlp(norm(x + m.attention(x))), tokens())
        assert found.paths != ["attention"]
        assert found.paths != ["mlp"]
        assert len(found.paths[0]) > 0


class TestNotARegion:
    """Adds that are no residual branch, and branches that cannot be forecast, with the reason."""

    @pytest.mark.parametrize(
        "wire",
        [
            pytest.param(lambda m, x, other: m.mlp(x) + other, id="positional-embedding"),
            pytest.param(lambda m, x, other: m.mlp(x) + m.attention(x), id="sum-of-two-branches"),
            pytest.param(lambda m, x, other: m.mlp(x) + other[0, 0], id="bias"),
            pytest.param(lambda m, x, other: x.mean(1, keepdim=True) + m.mlp(x), id="broadcast-trunk"),
            pytest.param(lambda m, x, other: x + 1.0, id="constant"),
            pytest.param(lambda m, x, other: x.view(torch.bfloat16)[..., : x.shape[-1]].float() + m.mlp(x), id="its-bits"),
            pytest.param(lambda m, x, other: x + norm(x), id="nothing-heavy"),
            pytest.param(lambda m, x, other: m.mlp(x + other), id="embedding-before"),
            pytest.param(lambda m, x, other: m.attention.proj(x) * m.mlp(x) + other, id="product"),
        ],
    )
    def test_other_adds(self, wire):
        found = find_in(wire, tokens(), tokens())
        assert found.regions.regions == ()
        assert found.regions.rejected == ()
        assert found.regions.num_residual_adds == 0

    def test_num_heavy_counts_what_was_there(self):
        assert find_in(lambda m, x: m.mlp(x), tokens()).regions.num_heavy == 2

    def test_skip_by_concatenation(self):
        """cat([x, skip]) into a linear layer is no add; the residual blocks around it are found."""

        class Skipping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.fuse = Mlp(), Mlp(), nn.Linear(2 * D, D)

            def forward(self, x: Tensor) -> Tensor:
                skip = x + self.first(norm(x))
                x = self.fuse(torch.cat([skip.sin(), skip], -1))
                return x + self.second(norm(x))

        found = find(Skipping(), tokens())
        assert found.paths == ["first", "second"]
        assert found.region_of("cat") is None

    def test_needed_elsewhere(self):
        """The heavy operators also feed an output, so leaving them out of a forecast step would save nothing."""

        def wire(m: Wired, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = m.mlp(x)
            return x + hidden.relu(), hidden

        found = find_in(wire, tokens())
        assert found.reasons == ["NEEDED_ELSEWHERE"]
        assert found.kinds == []
        assert "also feed something that is not forecast" in str(found.regions.rejected[0])

    def test_needed_elsewhere_spares_the_others(self):
        def wire(m: Wired, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = m.mlp(x)
            x = x + hidden.relu()
            return x + m.attention(norm(x)), hidden

        found = find_in(wire, tokens())
        assert (found.kinds, found.reasons) == (["attention"], ["NEEDED_ELSEWHERE"])

    def test_not_floating(self):
        class Product(nn.Module):
            def forward(self, x: Tensor, weight: Tensor) -> Tensor:
                return x + x @ weight

        found = find(Product(), torch.ones(3, D, dtype=torch.int64), torch.ones(D, D, dtype=torch.int64))
        assert (found.kinds, found.reasons) == ([], ["NOT_FLOATING"])
        assert "torch.int64" in str(found.regions.rejected[0])

    def test_cycle(self):
        """Two branches share norm(x), yet the second needs the first's result: they are no one region, nor two."""

        def wire(m: Wired, x: Tensor) -> Tensor:
            n = norm(x)
            h = x + m.attention(n)
            return h + m.mlp(n) * torch.sigmoid(h)

        found = find_in(wire, tokens())
        assert (found.kinds, found.reasons) == ([], ["CYCLE"])


class TestRegionSet:
    def test_regions_are_disjoint_and_in_graph_order(self):
        found = find_in(gated_block)
        nodes = [node for region in found.regions.regions for node in region.nodes]
        assert len(nodes) == len(set(nodes))
        position = {node: i for i, node in enumerate(found.gm.graph.nodes)}
        for region in found.regions.regions:
            assert sorted(region.nodes, key=position.__getitem__) == list(region.nodes)
            assert sorted(region.live_ins, key=position.__getitem__) == list(region.live_ins)

    def test_only_features_leave_a_region(self):
        for region in find_in(gated_block).regions.regions:
            outputs = {feature.node for feature in region.features}
            leaving = {node for node in region.nodes if any(user not in region.nodes for user in node.users)}
            assert leaving == outputs


PACKAGE = Path(taylorseer_fx.__file__).parent
MODEL_MODULE_NAMES = (
    "attn",
    "transformer_blocks",
    "ff.",
    ".ff",
    "single_transformer",
    "norm1",
    "norm2",
    "to_q",
    "to_k",
    "to_out",
)


def literals_and_names(source: str) -> list[str]:
    """String literals, less docstrings, and identifiers; comments are not part of the syntax tree."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(parent, (ast.Module, ast.ClassDef, ast.FunctionDef))
        for node in parent.body[:1]
        if isinstance(node, ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.append(node.value)
        elif isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return found


def test_literals_and_names_sees_code_and_no_prose():
    source = '"""attn1"""\nimport a.b\n# attn2\ndef f(x):\n    """attn3"""\n    return x.attn4 + "attn5" + attn6\n'
    assert {text for text in literals_and_names(source) if "attn" in text} == {"attn4", "attn5", "attn6"}


@pytest.mark.parametrize("folder", ["passes", "runtime", "."])
def test_no_model_is_known_by_name(folder):
    """Structure decides: no class of diffusers and no module name occurs in the passes, the runtime or the package."""
    classes = {name for name in dir(diffusers.models.transformers) if "Transformer" in name or name.endswith("Model")}
    assert len(classes) > 40
    files = sorted((PACKAGE / folder).glob("*.py"))
    assert len(files) > 4
    for file in files:
        texts = literals_and_names(file.read_text())
        assert not [text for text in texts if any(name in text for name in MODEL_MODULE_NAMES)], file.name
        assert not classes.intersection(texts), file.name
        assert not [text for text in texts if text.startswith("diffusers")], file.name
