"""Models whose residual adds are hidden in operators: found, and forecast as the reference does."""

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from taylorseer_fx import (
    ConfigError,
    NoRegionsError,
    TaylorSeerBackend,
    TaylorSeerWarning,
    register_residual_op,
    taylorseer_backend,
)
from taylorseer_fx.cache import cache_tag
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.fingerprint import fingerprint
from taylorseer_fx.passes.regions import Reason
from taylorseer_fx.passes.residual_ops import REGISTERED
from taylorseer_fx.remade import StoredPasses
from tests.custom_ops import as_add, gated_add, gated_add_, is_traced, nothing_registered
from tests.graphs import trace
from tests.reference import HookReference
from tests.zoo import TinyAttention, smooth

OPS = torch.ops.taylorseer_tests
NUM_STEPS, WIDTH = 14, 16
SETTINGS: dict[str, Any] = {"order": 2, "interval": 4, "warmup": 3}
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_registered(), torch.no_grad():
        torch._dynamo.reset()
        yield


class Timed(nn.Module):
    """A stream that begins with a sample and its time, and ends in a projection; ``added`` is what the layers added to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.added = nn.Identity()
        self.is_tapped = False

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * torch.logspace(0, -2, WIDTH // 2)
        time = self.time(torch.cat([phase.sin(), phase.cos()], dim=-1))[:, None]
        entry = x + time
        last = self.layers(entry, time)
        return self.out(entry + self.added(last - entry) if self.is_tapped else last)


class Gated(Timed):
    """Attention and an MLP, added by an engine's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = TinyAttention(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.features = [self.attention, self.mlp]

    def layers(self, x: Tensor, time: Tensor) -> Tensor:
        x = gated_add(x, self.attention(x), time)
        return gated_add(x, self.mlp(x), time)


class Encoder(Timed):
    """Layers that torch runs as one operator each; hooks on what ends a branch see what it adds."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.features = [module for layer in self.encoder.layers for module in (layer.dropout1, layer.dropout2)]

    def layers(self, x: Tensor, time: Tensor) -> Tensor:
        return self.encoder(x)


def inputs(step: int) -> dict[str, Tensor]:
    return {"x": smooth((2, 5, WIDTH), step, 0, torch.float32), "timestep": torch.full((2,), 1000.0 - 20 * step)}


def assert_parity(model: Callable[[], Timed], granularity: str) -> TaylorSeerBackend:
    """Every step equals the reference, and forecast ones are not what the model says."""
    plain, tapped = model().eval(), model().eval()
    tapped.is_tapped = granularity == "stack"
    features = [tapped.added] if granularity == "stack" else tapped.features
    reference = HookReference(tapped, features, **SETTINGS)
    backend = taylorseer_backend(granularity=granularity, compiler="eager", **SETTINGS)
    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    for step in range(NUM_STEPS):
        actual, expected, exact = compiled(**inputs(step)), reference(step, inputs(step)), plain(**inputs(step))
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.allclose(actual, exact, rtol=TOLERANCE, atol=TOLERANCE) == reference.is_full(step), f"step {step}"
    return backend


class TestParity:
    @pytest.mark.parametrize(("granularity", "kinds"), [("module", ["attention", "mlp"]), ("stack", ["stack"])])
    def test_registered_operator(self, granularity, kinds):
        register_residual_op(gated_add, as_add)
        report = assert_parity(Gated, granularity).explain()
        assert ([region.kind for region in report.regions], report.rejected) == (kinds, ())

    @pytest.mark.skipif(not is_traced(), reason="torch before 2.13 does not compile it")
    @pytest.mark.parametrize("norm_first", [False, True])
    def test_encoder(self, norm_first):
        report = assert_parity(partial(Encoder, norm_first), "module").explain()
        assert ([region.kind for region in report.regions], report.rejected) == (["attention", "mlp"] * 2, ())

    @pytest.mark.skipif(not is_traced(), reason="torch before 2.13 does not compile it")
    def test_stack_of_an_encoder(self):
        """With the norms in the branches there is one stream from end to end."""
        report = assert_parity(partial(Encoder, True), "stack").explain()
        assert [region.kind for region in report.regions] == ["stack"]


class TestNotRegistered:
    def test_error_names_it(self):
        compiled = torch.compile(Gated().eval(), backend=taylorseer_backend(compiler="eager"))
        with pytest.raises(NoRegionsError) as raised:
            compiled(**inputs(0))
        assert raised.match(
            r"register it with taylorseer_fx\.register_residual_op \(taylorseer_tests\.gated_add\.default, at .*1 more"
        )

    def test_report_names_it_beside_regions(self):
        class Mixed(Gated):
            def layers(self, x: Tensor, time: Tensor) -> Tensor:
                x = gated_add(x, self.attention(x), time)
                return x + self.mlp(x)

        backend = taylorseer_backend(compiler="eager")
        with pytest.warns(TaylorSeerWarning, match="executed in every step"):
            torch.compile(Mixed().eval(), backend=backend)(**inputs(0))
        report = backend.explain()
        assert [entry.reason for entry in report.rejected] == [Reason.OPAQUE]
        assert "register_residual_op (taylorseer_tests.gated_add.default" in str(report)


class TestArguments:
    @pytest.mark.parametrize("op", [operator.add, torch.add, "aten::add", None, 3])
    def test_not_an_operator(self, op):
        with pytest.raises(ConfigError, match=r"^op must be an operator, such as torch\.ops\."):
            register_residual_op(op, as_add)

    def test_several_overloads(self):
        with pytest.raises(ConfigError, match=r"several overloads \(Tensor, Scalar, .*name one"):
            register_residual_op(torch.ops.aten.add, torch.add)

    def test_in_place(self):
        with pytest.raises(ConfigError, match=r"^op must be an operator that writes to none.*gated_add_\.default"):
            register_residual_op(gated_add_, as_add)

    def test_operator_that_torch_looks_into(self):
        @torch.library.triton_op("taylorseer_tests::seen", mutates_args=())
        def seen(x: Tensor, f: Tensor) -> Tensor:
            return x + f

        with pytest.raises(ConfigError, match=r"^op must be an operator not made with torch\.library\.triton_op"):
            register_residual_op(seen, torch.add)

    @pytest.mark.parametrize("op", [torch.ops.aten.addcmul, torch.ops.aten._transformer_encoder_layer_fwd.default])
    def test_known_already(self, op):
        with pytest.raises(ConfigError, match=r"^op must be an operator that is not known already"):
            register_residual_op(op, as_add)

    @pytest.mark.parametrize("decomposition", [None, "x + f", 1])
    def test_not_callable(self, decomposition):
        with pytest.raises(ConfigError, match=r"^decomposition must be a function of tensors"):
            register_residual_op(gated_add, decomposition)

    def test_twice(self):
        """The same again is no mistake, as where a cell of a notebook runs twice; another is."""
        for _ in range(2):
            register_residual_op(gated_add, lambda x, f, gate: x + gate * f)
        with pytest.raises(ConfigError, match="not registered with another decomposition"):
            register_residual_op(gated_add, lambda x, f, gate: x - gate * f)
        assert REGISTERED[OPS.gated_add.default](1, 2, 3) == 7

    @pytest.mark.parametrize("op", [gated_add, OPS.gated_add, OPS.gated_add.default])
    def test_every_name_of_an_operator(self, op):
        register_residual_op(op, as_add)
        assert list(REGISTERED) == [OPS.gated_add.default]


factor = 2.0


def scaled(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return x + factor * f * gate


class TestCache:
    def test_tag_depends_on_what_is_registered(self, monkeypatch):
        """On the operator, on the code, and on what the code reads."""
        gm, tags = fx.symbolic_trace(nn.ReLU()), []
        for decomposition in (None, as_add, lambda x, f, gate: x - f * gate, scaled):
            REGISTERED.clear()
            if decomposition is not None:
                register_residual_op(gated_add, decomposition)
            tags.append(cache_tag(gm, [], BackendConfig()))
        monkeypatch.setitem(globals(), "factor", 3.0)
        tags.append(cache_tag(gm, [], BackendConfig()))
        assert None not in tags
        assert len(set(tags)) == len(tags)
        monkeypatch.undo()
        assert cache_tag(gm, [], BackendConfig()) == tags[-2]

    def test_nothing_is_cached_where_the_code_cannot_be_told(self):
        """Another process may hold another number behind the same attribute."""
        register_residual_op(gated_add, Scale(2.0))
        assert cache_tag(fx.symbolic_trace(nn.ReLU()), [], BackendConfig()) is None

    def test_explaining_later_is_as_it_was_compiled(self):
        """What is registered meanwhile has no part in the graph at hand."""
        traced = trace(Gated().eval(), **inputs(0)).gm
        config, regions = BackendConfig(), []
        for names in ((), ("taylorseer_tests.gated_add.default",)):
            arguments = {"static_inputs": (), "storage": config.storage, "selection": config.selection, "registered": names}
            stored = StoredPasses.of(traced, arguments)
            register_residual_op(gated_add, as_add)
            regions.append(len(stored.run().found.regions))
        assert regions == [0, 2]


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
        return x + self.factor * f * gate


def made_with(value: Any) -> Callable[..., Any]:
    return lambda x: (x, value)


class TestFingerprint:
    def test_same_code_is_the_same(self):
        assert fingerprint(made_with(1)) == fingerprint(made_with(1)) != fingerprint(made_with(2))

    @pytest.mark.parametrize("value", [1.5, "a", (1, [2]), {"a": {1, 2}}, torch.float32, torch.relu, as_add, partial(as_add, 1)])
    def test_known_values(self, value):
        assert fingerprint(made_with(value)) is not None

    @pytest.mark.parametrize(
        "value", [torch.ones(1), Scale(1.0), Scale(1.0).__call__, pytest], ids=lambda value: type(value).__name__
    )
    def test_unknown_values(self, value):
        """A tensor, an object, a method, a module that may be edited."""
        assert fingerprint(made_with(value)) is None

    def test_arguments_in_advance(self):
        prints = {fingerprint(partial(as_add, gate=gate)) for gate in (1, 2)} | {fingerprint(as_add)}
        assert len(prints) == 3
