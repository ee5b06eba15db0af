"""``taylorseer-fx plan`` and ``bench`` at tiny size, and the geometries that the first knows by name."""

import dataclasses
import inspect
import json

import pytest
import torch

from taylorseer_fx import cli, plan
from taylorseer_fx.bench import models, plan_command, suite
from taylorseer_fx.bench.geometries import GEOMETRIES, Geometry
from taylorseer_fx.bench.methods.ours import Ours
from taylorseer_fx.bench.methods.plain import FewerSteps, Plain
from taylorseer_fx.bench.results import Report
from taylorseer_fx.bench.workloads import tiny_pipelines
from taylorseer_fx.config import BackendConfig

PUBLISHED_BILLIONS = {  # parameters, as the models are known
    "FLUX.1-dev": 11.90,
    "FLUX.1-schnell": 11.89,
    "HunyuanVideo": 12.82,
    "DiT-XL/2-256": 0.674,
    "Wan2.1-14B": 14.29,
    "Wan2.1-1.3B": 1.42,
    "SD3-medium": 2.03,
    "SD3.5-medium": 2.24,
    "SD3.5-large": 8.06,
    "Qwen-Image": 20.43,
    "PixArt-alpha": 0.61,
    "CogVideoX-5b": 5.57,
    "LTX-Video": 1.92,
    "Sana-1.6B": 1.60,
}


@pytest.mark.parametrize("name", PUBLISHED_BILLIONS)
def test_sizes(name):
    """As many parameters as the published model; of DiT without embedders, which diffusers repeats in every block."""
    model, inputs = GEOMETRIES[name].on_meta()
    left_out = ("timestep_embedder", "class_embedder") if name.startswith("DiT") else ()
    counted = sum(p.numel() for key, p in model.named_parameters() if not any(part in key for part in left_out))
    assert counted / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], rel=0.01)
    assert all(value.is_meta for value in inputs.values() if isinstance(value, torch.Tensor))


@pytest.fixture
def tiny(monkeypatch) -> str:
    def inputs() -> dict[str, torch.Tensor]:
        times = {"timestep": torch.empty(2, dtype=torch.long), "class_labels": torch.empty(2, dtype=torch.long)}
        return {"hidden_states": torch.empty(2, 4, 8, 8)} | times

    geometry = Geometry("tiny", "a call", "here", lambda: models.dit(2, 2, 8, 8), inputs, torch.float32, num_steps=10)
    monkeypatch.setitem(GEOMETRIES, "tiny", geometry)
    return "tiny"


@pytest.mark.turn(0, 3)
def test_plan(tiny, capsys):
    assert cli.main(["plan", tiny, "--steps", "6", "--interval", "2", "--warmup", "1"]) == 0
    out = capsys.readouterr().out
    assert "full steps     3 of 6: 0, 2, 4" in out
    assert "module" in out
    assert "stack" in out
    assert "16.00 KiB" in out  # module, order 1: 2 x 4 features x 2 x 16 x 16 floats


@pytest.mark.turn(1, 3)
def test_plan_of_listed_steps(tiny, capsys):
    """A list for a shorter run goes on with its last gap, which is noted."""
    assert cli.main(["plan", tiny, "--steps", "8", "--full-steps", "0,1,3"]) == 0
    out = capsys.readouterr().out
    assert "full steps     5 of 8: 0, 1, 3, 5, 7" in out
    assert "note: the run came to step 7, but full_steps ends at 3" in out


@pytest.mark.turn(2, 3)
def test_plan_counts_every_order_on_one_trace(tiny):
    """Buffers grow with the order, FLOPs don't; as ``plan`` counts each by itself."""
    found = plan_command.plan_model(tiny, plan_command.PlanSettings())
    modules = [plan for granularity, plan in found if granularity == "module"]
    assert [plan.buffer_bytes for plan in modules] == [(order + 1) * 8192 for order in range(5)]
    assert len({plan.flops_total for plan in modules}) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--interval", "0", "interval must be an int of at least 1, got 0"),
        ("--buffer-dtype", "float7", "buffer_dtype must be None or one of"),
        ("--buffer-dtype", "nn", "buffer_dtype must be None or one of"),
    ],
)
def test_plan_settings(tiny, option, value, message, capsys):
    assert cli.main(["plan", tiny, option, value]) == 2
    assert message in capsys.readouterr().err


def test_plan_covers_the_settings():
    """Each one that ``plan`` counts by is an option, or a row or column of the table."""
    in_table = {"order", "history", "granularity", "memory_budget"}
    counted_by = set(inspect.signature(plan).parameters) - {"model", "inputs", "num_steps"}
    assert counted_by - in_table == set(plan_command.PLANNED_SETTINGS)


def test_plan_by_default_is_the_backend_by_default():
    first, *_ = plan_command.PlanSettings(orders=(BackendConfig().order,)).configs()
    assert first == BackendConfig()


def test_plan_list(capsys):
    assert cli.main(["plan", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in GEOMETRIES)


@pytest.mark.parametrize("argv", [["plan", "GPT-2"], ["plan"], ["bench", "imagenet"]])
def test_unknown_names(argv, capsys):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert "must be one of" in err
    assert repr(argv[1] if len(argv) > 1 else None) in err


def test_rounds(capsys):
    assert cli.main(["bench", "--rounds", "0"]) == 2
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "bench"])
def test_missing_extra(command, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    assert cli.main([command]) == 1
    assert 'pip install "taylorseer-fx[demo]"' in capsys.readouterr().err


def test_bench(tmp_path, monkeypatch, capsys):
    """Report, table and plots of one tiny workload; nothing is compiled but the graphs of ours, eagerly."""
    workload = dataclasses.replace(tiny_pipelines()[0], num_steps=6)
    methods = (Plain(compiled=False), FewerSteps(compiled=False), Ours(1, compiler="eager"))
    monkeypatch.setattr(suite, "entries", lambda: {"tiny": suite.Entry(lambda: workload, lambda: methods)})
    monkeypatch.setattr("taylorseer_fx.bench.main.entries", suite.entries)
    monkeypatch.setattr(suite, "run_workload", _uncompiled(suite.run_workload))
    assert cli.main(["bench", "tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    report = Report.from_json((tmp_path / "comparison.json").read_text())
    assert [row.status for row in report.workloads[0].rows] == ["ok"] * 3
    assert json.loads((tmp_path / "comparison.json").read_text())["machine"]["versions"]["torch"] == torch.__version__
    assert "tiny DiTPipeline" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "tiny-ditpipeline-steps.png").exists()
    out = capsys.readouterr().out
    assert "the fastest row is ours" in out


def _uncompiled(run_workload):
    def run(workload, methods, settings, on_method):
        return run_workload(workload, methods, settings, on_method, compile_baseline=False)

    return run
