"""``python -m benchmarks.gpu`` runs: on the CPU, at tiny size, with what it writes and what the README makes of it."""

import json
from dataclasses import replace

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import cases
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


@pytest.mark.turn(0, 3)
def test_small_run(tmp_path, capsys, monkeypatch):
    """Every figure of a row is there and positive; the README's table has it."""
    dit = next(case for case in cases(True) if "256x256, batch 2" in case.name)
    monkeypatch.setattr("benchmarks.gpu.__main__.cases", lambda *_: [replace(dit, settings=dit.settings[:1])])
    out = tmp_path / "gpu.json"
    main([*TINY, "--only", "256x256, batch 2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [row["granularity"] for row in result["rows"]] == ["module"]
    assert result["left_out"] == []
    for row in result["rows"]:
        for figures in (row["compiled"], row["cuda_graphs"]):
            assert figures.keys() >= FIGURES
            assert all(figures[name] > 0 for name in FIGURES - {"peak_bytes", "compile_seconds"})
            assert figures["ceiling"] == pytest.approx(5 / 3)
            bytes_too = 5 * row["plain"]["step_ms"] / (3 * row["plain"]["step_ms"] + 2 * figures["byte_ms"])
            assert figures["realised_over_byte_ceiling"] == pytest.approx(figures["over_plain"] / bytes_too)
        assert (row["eager"]["seconds"] > 0) is (row["plain"]["seconds"] > 0) is True
    assert capsys.readouterr().out.count("DiT-XL/2 256x256, batch 2, order 2") == 1
    for name, text in (("demo", "{}"), ("benchmarks", "{}")):
        (tmp_path / f"{name}.json").write_text(text)
    assert "| DiT-XL/2 256x256, batch 2, order 2, interval 5, module |" in _gpu_table(tmp_path)


def _gpu_table(results) -> str:
    from benchmarks import readme

    text = "<!-- gpu -->\n<!-- /gpu -->"
    tables = {"gpu": readme._TABLES["gpu"]}
    before, readme._TABLES = readme._TABLES, tables
    try:
        return with_tables(text, results)
    finally:
        readme._TABLES = before


def test_nothing_measured(tmp_path):
    """Without a file the README says so, and holds no figure."""
    assert "Not measured on a GPU yet" in _gpu_table(tmp_path)


def test_no_time(tmp_path, capsys):
    """What was left out is said."""
    main([*TINY, "--only", "DiT-XL/2 256x256, batch 64", "--minutes", "0"])
    assert "left out, no time: DiT-XL/2 256x256, batch 64, all of it" in capsys.readouterr().out


def test_without_a_gpu(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        main([])
    assert "--device cpu --small runs the same code without one" in capsys.readouterr().err


def test_the_cases():
    """The models and settings that the paper and the README speak of."""
    rows = [f"{case.name}: {s.order} {s.interval} {s.granularity}" for case in cases(False) for s in case.settings]
    assert {f"FLUX.1-dev 1024x1024: {o} {i} {g}" for o in (1, 2) for i in (5, 6) for g in ("module", "stack")} < set(rows)
    assert "HunyuanVideo 480x640x65: 1 5 module" in rows
    assert {"DiT-XL/2 256x256, batch 2: 2 5 stack", "DiT-XL/2 256x256, batch 64: 2 5 module"} < set(rows)
