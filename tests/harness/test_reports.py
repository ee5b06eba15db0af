"""JSON, tables and plots, from rows made by hand."""

import json
import math
from dataclasses import replace

import pytest

from taylorseer_fx.bench.plots import save_plots
from taylorseer_fx.bench.results import SCHEMA_VERSION, STATUSES, Report, Row, WorkloadResult
from taylorseer_fx.bench.tables import markdown

MACHINE = {"date": "2026-01-01", "cpu": "cpu", "threads": 2, "python": "3.11", "versions": {"torch": "2"}, "commit": "abc"}
ROW = Row(
    method="ours, module, order 1",
    family="ours, module",
    compiled=True,
    status="ok",
    num_steps=4,
    full_steps=(0, 2),
    flops=100,
    ceiling=2.0,
    seconds=1.0,
    speedup=1.8,
    speedup_low=1.7,
    speedup_high=1.9,
    full_step_ms=10.0,
    forecast_step_ms=1.0,
    graphs=1,
    graph_breaks=0,
    recompiles=0,
    relative_l2=0.1,
    trajectory_error=(0.0, 0.01, 0.05, 0.08, 0.1),
    psnr_db=30.0,
    held_bytes=1024,
    peak_bytes=4096,
)
RESULT = WorkloadResult("work", "2 blocks of 28", True, 4, (0, 2), 3, 1000, 0.1, 0.01, (ROW,), "ours.")
REPORT = Report((RESULT,), MACHINE)


def test_round_trip():
    assert Report.from_json(REPORT.to_json()) == REPORT


def test_schema():
    """What a reader of the JSON may rely on."""
    content = json.loads(REPORT.to_json())
    assert set(content) == {"workloads", "machine", "schema_version"}
    assert content["schema_version"] == SCHEMA_VERSION
    assert set(content["machine"]) == set(MACHINE)
    (workload,) = content["workloads"]
    assert {"workload", "schedule", "plain_step_flops", "rows", "verdict"} <= set(workload)
    (row,) = workload["rows"]
    assert {"method", "status", "full_steps", "speedup", "psnr_db", "held_bytes", "peak_bytes", "graphs"} <= set(row)
    assert row["status"] in STATUSES


def test_machine_is_described():
    machine = Report((RESULT,)).machine
    assert set(machine) == set(MACHINE)
    assert "torch" in machine["versions"]


def test_other_schema_is_refused():
    with pytest.raises(ValueError, match=f"schema_version must be {SCHEMA_VERSION}, got 0"):
        Report.from_json(json.dumps(json.loads(REPORT.to_json()) | {"schema_version": 0}))


def test_other_fields_are_refused():
    content = json.loads(REPORT.to_json())
    del content["workloads"][0]["rows"][0]["speedup"]
    with pytest.raises(ValueError, match=r"Row must have exactly its fields, differing: \['speedup'\]"):
        Report.from_json(json.dumps(content))


def test_not_finite_is_null():
    report = Report((replace(RESULT, reuse_error=math.nan),), MACHINE)
    assert json.loads(report.to_json())["workloads"][0]["reuse_error"] is None


def test_realised():
    assert ROW.realised == pytest.approx(0.9)
    assert replace(ROW, speedup=None).realised is None


def test_markdown():
    failed = replace(ROW, method="peer", status="failed", reason="RuntimeError: no such block")
    text = markdown(Report((replace(RESULT, rows=(ROW, failed)),), MACHINE))
    assert "| ours, module, order 1 | 2 of 4 | 1.80x (1.70-1.90) | 30.0 |" in text
    assert "| peer (failed) |" in text
    assert "- peer: failed, RuntimeError: no such block" in text
    assert "cpu, 2 threads" in text
    assert "2 blocks of 28" in text


def test_random_weights_have_no_psnr():
    text = markdown(Report((replace(RESULT, trained=False),), MACHINE))
    assert "PSNR" not in text
    assert "off full run" in text


def test_plots(tmp_path):
    """Three pictures; rows that don't count are in none of them."""
    written = save_plots(REPORT, tmp_path)
    assert [path.name for path in written] == ["work-quality.png", "work-trajectory.png", "work-steps.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert save_plots(Report((replace(RESULT, rows=(replace(ROW, status="failed"),)),), MACHINE), tmp_path / "none") == []


@pytest.mark.parametrize(("errors", "is_drawn"), [((0.0, 0.05, 1e-5), True), ((0.0, 1e-7, 1e-5), False)])
def test_a_line_for_whoever_left_the_trajectory(tmp_path, errors, is_drawn):
    """At some step, even where the decoded result hardly shows it."""
    rows = (replace(ROW, trajectory_error=errors, relative_l2=errors[-1]),)
    written = save_plots(Report((replace(RESULT, rows=rows),), MACHINE), tmp_path)
    assert ("work-trajectory.png" in [path.name for path in written]) == is_drawn
