"""``python -m benchmarks.gpu`` runs: on the CPU, at tiny size, with what it writes and what the README makes of it."""

import json
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import rows
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import Case, Setting, cases
from benchmarks.gpu.merge import SAME, merged
from benchmarks.gpu.recording import Record
from benchmarks.gpu.rows import Bench, GraphPair, by_graph, describe, measure_case
from benchmarks.readme import with_tables

FIGURES = {"seconds", "full_ms", "forecast_ms", "forecast_gigabytes_a_second", "bandwidth_share", "host_us_forecast"}
FIGURES |= {
    "over_eager",
    "over_plain",
    "ceiling",
    "realised_over_ceiling",
    "realised_over_byte_ceiling",
    "peak_bytes",
    "buffer_bytes",
    "compile_seconds",
}
TINY = ["--device", "cpu", "--small", "--compiler", "eager", "--steps", "5"]


@pytest.mark.turn(3, 6)
def test_small_run(tmp_path, capsys, monkeypatch):
    """Every figure of a row is there and positive; the README's table has it."""
    dit = next(case for case in cases(True) if "256x256, batch 2" in case.name)
    monkeypatch.setattr("benchmarks.gpu.__main__.cases", lambda *_: [replace(dit, settings=dit.settings[:1])])
    out = tmp_path / "gpu.json"
    main([*TINY, "--only", "256x256, batch 2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [row["granularity"] for row in result["rows"]] == ["module"]
    assert result["left_out"] == []
    assert result["baselines"].keys() == {"DiT-XL/2 256x256, batch 2"}
    for row in result["rows"]:
        for figures, plain in ((row["compiled"], row["plain"]), (row["cuda_graphs"], row["plain_cuda_graphs"])):
            assert figures.keys() >= FIGURES
            assert all(figures[name] > 0 for name in FIGURES - {"peak_bytes", "compile_seconds"})
            assert figures["ceiling"] == pytest.approx(5 / 3)
            bytes_too = 5 * plain["step_ms"] / (3 * plain["step_ms"] + 2 * figures["byte_ms"])
            assert figures["over_plain"] == pytest.approx(plain["seconds"] / figures["seconds"])
            assert figures["realised_over_byte_ceiling"] == pytest.approx(figures["over_plain"] / bytes_too)
        assert (row["eager"]["seconds"] > 0) is (row["plain"]["seconds"] > 0) is True
    assert capsys.readouterr().out.count("DiT-XL/2 256x256, batch 2, order 2") == 2
    for name, text in (("demo", "{}"), ("benchmarks", "{}")):
        (tmp_path / f"{name}.json").write_text(text)
    assert "| DiT-XL/2 256x256, batch 2, order 2, interval 5, module |" in _gpu_table(tmp_path)


def _gpu_table(results) -> str:
    return with_tables("<!-- gpu -->\n<!-- /gpu -->", results, ["gpu"])


def test_nothing_measured(tmp_path):
    """Without a file the README says so, and holds no figure."""
    assert "Not measured on a GPU yet" in _gpu_table(tmp_path)


def test_no_time(tmp_path, capsys):
    """What was left out is said."""
    main([*TINY, "--only", "DiT-XL/2 256x256, batch 64", "--minutes", "0"])
    assert "left out, no time: DiT-XL/2 256x256, batch 64, all of it" in capsys.readouterr().out


SETTINGS = (Setting(2, 3), Setting(2, 3, granularity="stack"), Setting(2, 2))
INTERVALS = [["order 2, interval 3, module", "order 2, interval 2, module"], ["order 2, interval 3, stack"]]


@pytest.fixture
def dit() -> Case:
    return replace(next(case for case in cases(True) if "256x256, batch 2" in case.name), settings=SETTINGS)


def bench(minutes: float = 10) -> Bench:
    return Bench(torch.device("cpu"), 7, "eager", 1e9, time.monotonic() + 60 * minutes)


def test_settings_of_the_same_graphs_go_together():
    assert [list(map(describe, group)) for group in by_graph(SETTINGS)] == INTERVALS


@pytest.mark.turn(4, 6)
def test_one_compilation_for_all_intervals(dit):
    """The second interval finds everything compiled, and has a schedule of its own."""
    record = Record({})
    measure_case(bench(), dit, 1.0, record)
    assert [row["setting"] for row in record.rows] == [name for group in INTERVALS for name in group]
    for name in ("cuda_graphs", "compiled"):
        first, second, _ = (row[name] for row in record.rows)
        assert first["compile_seconds"] > 0 == second["compile_seconds"]
        assert first["ceiling"] == pytest.approx(7 / 4)
        assert second["ceiling"] == pytest.approx(7 / 5)


@pytest.mark.turn(2, 6)
def test_what_was_measured_outlives_the_run(dit, tmp_path, monkeypatch):
    """A run that is cut off leaves all that it had finished."""
    path, measure = tmp_path / "gpu.json", GraphPair.measure

    def once(pair, bench, setting):
        if setting.interval == 2:
            raise KeyboardInterrupt
        return measure(pair, bench, setting)

    monkeypatch.setattr(GraphPair, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        measure_case(bench(), dit, 1.0, Record({}, path))
    result = json.loads(path.read_text())
    assert result["baselines"][dit.name].keys() == {"eager", "plain", "plain_cuda_graphs"}
    assert [row["setting"] for row in result["rows"]] == INTERVALS[0][:1]
    assert list(tmp_path.iterdir()) == [path]


def test_compiling_counts_as_time(dit, monkeypatch):
    """A setting whose graphs would have to be compiled is not begun, one that finds them compiled is."""
    figures = {"seconds": 1.0, "step_ms": 1.0, "compile_seconds": 200.0}
    monkeypatch.setattr(rows, "BASELINES", dict.fromkeys(rows.BASELINES, lambda *_: figures))
    clock, measured = bench(7), []

    def measure(pair, bench, setting):
        measured.append(setting)
        object.__setattr__(clock, "deadline", clock.deadline - 100)
        return {"seconds": 1.0, "full_ms": 1, "forecast_ms": 1, "byte_ms": 0.1, "ceiling": 2.0, "compile_seconds": 250.0}

    monkeypatch.setattr(GraphPair, "measure", measure)
    record = Record({})
    measure_case(clock, dit, 1.0, record)
    assert list(map(describe, measured)) == INTERVALS[0]
    without = [f"{dit.name}, {name}, without CUDA graphs" for name in INTERVALS[0]]
    assert record.left_out == [*without, f"{dit.name}, {INTERVALS[1][0]}"]


def _result(left_out: list[str], *settings: str, seconds: float = 1.0, **header) -> dict:
    measured = {"cuda_graphs": {"seconds": seconds}}
    made = [{"case": "DiT", "setting": setting, **measured} for setting in settings]
    header = dict.fromkeys(SAME, 1) | {"date": "2026-01-01", "copy_gigabytes_a_second": 2.0} | header
    return Record(header, None, {"DiT": {}}, made, left_out).content


def test_merging():
    """The later file's row counts, and what one run left out another may have measured."""
    first = _result(["DiT, b", "DiT, a, without CUDA graphs", "FLUX, all of it"], "a")
    record = merged([first, _result([], "b", "a", seconds=2.0, copy_gigabytes_a_second=1.5)])
    assert [(row["setting"], row["cuda_graphs"]["seconds"]) for row in record.rows] == [("a", 2.0), ("b", 2.0)]
    assert record.left_out == ["DiT, a, without CUDA graphs", "FLUX, all of it"]
    assert record.header["copy_gigabytes_a_second"] == 1.5
    with pytest.raises(ValueError, match="differ in device: H100, H200"):
        merged([_result([], "a", device="H100"), _result([], "a", device="H200")])


def test_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        main([])
    assert "--device cpu --small runs the same code without one" in capsys.readouterr().err


def test_the_cases():
    """The models and settings that the paper and the README speak of."""
    settings = [f"{case.name}: {s.order} {s.interval} {s.granularity}" for case in cases(False) for s in case.settings]
    assert {f"FLUX.1-dev 1024x1024: {o} {i} {g}" for o in (1, 2) for i in (5, 6) for g in ("module", "stack")} < set(settings)
    assert "HunyuanVideo 480x640x65: 1 5 module" in settings
    assert {"DiT-XL/2 256x256, batch 2: 2 5 stack", "DiT-XL/2 256x256, batch 64: 2 5 module"} < set(settings)
