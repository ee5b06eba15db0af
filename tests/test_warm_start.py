"""What AOTAutograd's cache holds of ours: loaded by the next process, and by none for which it would be wrong."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache

import taylorseer_fx.cache
import taylorseer_fx.passes
import taylorseer_fx.remade
import taylorseer_fx.runtime
import taylorseer_fx.traced
from taylorseer_fx import NoRegionsError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.plan_file import PlanFile
from tests.warm_worker import Model, run

pytestmark = pytest.mark.inductor
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compiled_kernels() -> Iterator[None]:
    """Nobody else's caches. What g++ made is kept from test to test: that takes longest, and is found by its source."""
    with fresh_cache():
        yield


@pytest.fixture(autouse=True)
def cold(compiled_kernels) -> None:
    """No graph is cached yet."""
    for name in ("aotautograd", "fxgraph"):
        shutil.rmtree(Path(cache_dir()) / name, ignore_errors=True)


@pytest.fixture
def pass_runs(monkeypatch) -> list[Any]:
    """Grows by one whenever the passes run."""
    runs: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args)
        return run_passes(*args, **kwargs)

    run_passes = taylorseer_fx.traced.run_passes
    for module in (taylorseer_fx.traced, taylorseer_fx.remade):
        monkeypatch.setattr(module, "run_passes", counted)
    return runs


def anew(model: nn.Module | None = None, **settings: Any) -> tuple[TaylorSeerBackend, list[Tensor]]:
    """A generation as a new process would run it."""
    torch.compiler.reset()
    counters.clear()
    backend = taylorseer_backend(order=1, interval=3, warmup=2) if not settings else taylorseer_backend(**settings)
    return backend, run(model or Model(), backend)


def lookups() -> tuple[int, int]:
    found = counters["aot_autograd"]
    return found["autograd_cache_hit"], found["autograd_cache_miss"]


def worker(directory: Path) -> dict[str, Any]:
    """Another process, with the caches of this one."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tests.warm_worker", str(directory / "out.pt")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return torch.load(directory / "out.pt")


def test_second_process(tmp_path):
    """It traces nothing, and says and gives the same. The passes run for each graph that is asked for, and for nothing else."""
    first, second = worker(tmp_path), worker(tmp_path)
    assert first["lookups"] == (0, 1)
    assert second["lookups"] == (1, 0)
    assert first["pass_runs"] == [1, 1, 3]
    assert second["pass_runs"] == [0, 0, 2]
    assert first["stats"] == second["stats"]
    assert first["stats"]["compiles"] == 2
    assert first["report"] == second["report"]
    assert first["graphs"] == second["graphs"]
    assert all(torch.equal(a, b) for a, b in zip(first["outputs"], second["outputs"], strict=True))


def test_other_settings_miss():
    """The schedule is no part of the key, and another order is."""
    anew(order=1)
    anew(order=1, interval=2, warmup=1)
    assert lookups() == (1, 0)
    anew(order=2)
    assert lookups() == (0, 1)


def test_what_the_tag_depends_on():
    """Every setting but schedule, capturing, and what torch's key has; and where a graph comes from. Uncompiled: not stored."""
    gm = fx.symbolic_trace(nn.ReLU())
    others: dict[str, Any] = {
        "order": 2,
        "history": 3,
        "buffer_dtype": torch.bfloat16,
        "granularity": "stack",
        "memory_budget": 1,
        "on_no_regions": "warn",
        "disabled_passes": ["narrow"],
    }
    the_same: list[dict[str, Any]] = [
        {"interval": 2},
        {"warmup": 1},
        {"full_steps": [0, 3]},
        {"speedup": 2, "num_steps": 10},
        {"plan": PlanFile(10, 1, "module", ((0, 3),), ()), "plan_mismatch": "warn"},
        {"forecaster": "newton"},
        {"cuda_graphs": False},
        {"compiler_options": {"epilogue_fusion": False}},
        {"max_streams": 8, "total_memory_budget": 10**9, "stream_policy": "evict", "stream_ttl": 60.0},
    ]
    named = {name for given in the_same for name in given}
    assert {field.name for field in fields(BackendConfig)} == {*others, *named, "compiler"}
    settings = [{}, *({name: value} for name, value in others.items())]
    tags = [taylorseer_fx.cache.cache_tag(gm, [], BackendConfig(**given)) for given in settings]
    tags.append(taylorseer_fx.cache.cache_tag(gm, [], BackendConfig(), "model.py:3"))
    assert None not in tags
    assert len(set(tags)) == len(tags)
    for given in the_same:
        assert taylorseer_fx.cache.cache_tag(gm, [], BackendConfig(**given)) == tags[0]
    assert taylorseer_fx.cache.cache_tag(gm, [], BackendConfig(compiler="eager")) is None


def test_the_tag_names_the_vector_instructions(monkeypatch):
    """Where there are inputs on a CPU: those of a GPU never ask for a C++ compiler."""
    gm, config = fx.symbolic_trace(nn.ReLU()), BackendConfig()
    on_cpu, elsewhere = [torch.ones(1)], [torch.ones(1, device="meta")]
    tag, other = (taylorseer_fx.cache.cache_tag(gm, inputs, config) for inputs in (on_cpu, elsewhere))
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert taylorseer_fx.cache.cache_tag(gm, on_cpu, config) not in (tag, other)
    assert taylorseer_fx.cache.cache_tag(gm, elsewhere, config) == other
    outer = torch.compiler.config.cache_key_tag
    with taylorseer_fx.cache.keyed_by_instructions(elsewhere):
        assert torch.compiler.config.cache_key_tag == outer
    with taylorseer_fx.cache.keyed_by_instructions(on_cpu):
        assert torch.compiler.config.cache_key_tag == f"{outer}|INVALID_VEC_ISA"


@pytest.mark.turn(3, 4)
def test_other_options_of_inductor_miss():
    anew(order=1)
    anew(order=1, compiler_options={"epilogue_fusion": False})
    assert lookups() == (0, 1)


@pytest.mark.turn(1, 2)
def test_other_vector_instructions_miss(monkeypatch):
    """A folder that two machines share: what one made for AVX-512 gives NaN on another that has AVX2, and does not compile here,
    where vectors are not to be used at all. Neither AOTAutograd's cache nor Inductor's own may have it.
    """
    _, expected = anew()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    _, outputs = anew()
    assert lookups() == (0, 1)
    assert counters["inductor"]["fxgraph_cache_hit"] == 0
    torch.testing.assert_close(outputs, expected)
    anew()
    assert lookups() == (1, 0)


def test_other_sources_miss(monkeypatch, pass_runs):
    anew()
    monkeypatch.setattr(taylorseer_fx.cache, "SOURCES", "edited")
    anew()
    assert lookups() == (0, 1)
    assert counters["inductor"]["fxgraph_cache_hit"] == 2, "the variants did not change, and are found"
    assert len(pass_runs) == 2


@pytest.mark.parametrize("package", [taylorseer_fx, taylorseer_fx.passes, taylorseer_fx.runtime], ids=lambda p: p.__name__)
def test_sources_are_all_files(package, monkeypatch, tmp_path):
    """An edit of any file, and a new one, is another identity."""
    copied = Path(shutil.copytree(package.__path__[0], tmp_path / "copy", ignore=shutil.ignore_patterns("demo", "digits")))
    monkeypatch.setattr(package, "__path__", [str(copied)])
    assert taylorseer_fx.cache._hash_sources() == taylorseer_fx.cache.SOURCES
    seen = {taylorseer_fx.cache.SOURCES}
    for path in sorted(copied.glob("*.py")):
        path.write_text(path.read_text() + "#\n")
        seen.add(taylorseer_fx.cache._hash_sources())
    (copied / "new.py").touch()
    seen.add(taylorseer_fx.cache._hash_sources())
    assert len(seen) == len(list(copied.glob("*.py"))) + 1


@pytest.mark.turn(1, 2)
def test_other_names_miss():
    """A model that computes the same under other names: ``explain()`` is to tell its own."""

    class Renamed(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.blocks = self.blocks, None

    anew()
    backend, _ = anew(Renamed())
    assert lookups() == (0, 1)
    assert backend.explain().regions[0].path.startswith("layers")


@pytest.mark.turn(1, 2)
def test_plain_compile_keeps_its_own():
    """Neither takes the other's: the key is the same but for the tag."""
    anew()
    torch.compiler.reset()
    counters.clear()
    model = Model()
    expected = run(model, None)
    plain = run(model, "inductor")
    assert lookups() == (0, 1)
    torch.testing.assert_close(plain, expected)
    anew()
    assert lookups() == (1, 0)


@pytest.mark.turn(0, 2)
def test_dynamic_shapes():
    """Loaded for one size, right for others."""

    def both_sizes(backend: Any) -> list[Tensor]:
        compiled = torch.compile(model, backend=backend, dynamic=True)
        with torch.no_grad():
            return [compiled(torch.ones(2, size, 8), torch.full((2,), time)) for size in (5, 9) for time in (9.0, 8.0, 7.0, 6.0)]

    model = Model()
    results = []
    for _ in range(2):
        torch.compiler.reset()
        counters.clear()
        backend = taylorseer_backend(order=1, interval=3, warmup=2)
        results.append(both_sizes(backend))
    assert lookups() == (1, 0)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert backend.stats().forecast_calls == 4
    assert "s" in str(backend.explain().regions[0].features[0].shape[1])


def test_no_regions(pass_runs):
    """Warned of, or refused, by every process."""

    class Other(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return x * time[:, None, None]

    for _ in range(2):
        with pytest.warns(TaylorSeerWarning, match="no attention or MLP"):
            anew(Other(), on_no_regions="warn")
    assert lookups() == (1, 0)
    assert len(pass_runs) == 1
    for _ in range(2):
        with pytest.raises(NoRegionsError, match="no attention or MLP"):
            anew(Other(), on_no_regions="error")


@pytest.mark.turn(0, 2)
def test_graph_breaks():
    """Each graph is an entry of its own."""

    class Broken(Model):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            x = super().forward(x, time)
            torch._dynamo.graph_break()
            return super().forward(x, time)

    model = Broken()
    first, expected = anew(model)
    stats = first.stats()
    second, loaded = anew(model)
    assert lookups() == (2, 0)
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)
    assert second.stats() == stats
    assert [entry.ends_at for entry in second.explain().graphs] == [entry.ends_at for entry in first.explain().graphs]


@pytest.mark.turn(0, 2)
def test_what_cannot_be_stored_is_compiled_each_time(monkeypatch, pass_runs):
    def refuse(*_args: Any) -> bytes:
        raise NotImplementedError

    monkeypatch.setattr(taylorseer_fx.remade.GraphPickler, "dumps", refuse)
    _, expected = anew()
    _, again = anew()
    assert lookups() == (0, 1)
    assert len(pass_runs) == 2
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


@pytest.mark.turn(0, 2)
def test_unsupported_torch(monkeypatch, pass_runs):
    monkeypatch.setattr(taylorseer_fx.cache, "_IS_SUPPORTED", False)
    anew()
    anew()
    assert lookups() == (0, 0)
    assert len(pass_runs) == 2


@pytest.mark.turn(1, 2)
def test_a_damaged_entry_is_compiled_again(pass_runs):
    anew()
    entries = list((Path(cache_dir()) / "aotautograd").glob("*/*"))
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:100])
    anew()
    assert lookups() == (0, 1)
    assert len(pass_runs) == 2


@pytest.mark.turn(3, 4)
def test_an_entry_of_another_tag_is_not_taken(monkeypatch, pass_runs):
    """Should some torch leave our tag out of its key, what it finds there is not run."""
    anew(order=1)
    deaf = SimpleNamespace(cache_key_tag="", patch=lambda **_: nullcontext())
    monkeypatch.setattr(taylorseer_fx.cache, "compiler_config", deaf)
    anew(order=1)
    assert lookups() == (0, 1)
    _, expected = anew(order=2, interval=3, warmup=2)
    _, again = anew(order=2, interval=3, warmup=2)
    assert lookups() == (0, 0), "an entry was found and refused"
    assert len(pass_runs) == 4
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
