"""A saved graph runs through the passes again, without the model and in another process; a failing pass saves one."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.errors import NothingCompiledError, PassError, TaylorSeerWarning
from taylorseer_fx.passes import pipeline
from taylorseer_fx.remade import StoredPasses
from taylorseer_fx.replay import main
from taylorseer_fx.repro import PASSES, REPORT, load
from tests.graphs import render
from tests.zoo import tiny, tiny_inputs


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def saved(tmp_path) -> tuple[Path, Any]:
    """A folder, and the report of the backend that saved it."""
    backend = taylorseer_backend(order=2, compiler="eager")
    torch.compile(tiny(), backend=backend)(**tiny_inputs(0))
    backend.save_repro(tmp_path / "folder")
    return tmp_path / "folder", backend.explain()


def test_same_graphs_in_another_process(saved):
    """Printed as the backend's report has them."""
    folder, report = saved
    command = [sys.executable, "-m", "taylorseer_fx.replay", str(folder), "--until", "clean_up_forecast"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    stages = [line.split()[0] for line in ran.stdout.splitlines() if re.fullmatch(r"\w+ +\d+ ops .* ms", line)]
    assert stages == [stage.name for stage in report.stages]
    assert report.graph("forecast").print_readable(print_output=False).splitlines()[-1] in ran.stdout


def test_what_is_saved(saved):
    """The settings, and the graph with its sizes; of the weights nothing."""
    folder, report = saved
    text = (folder / REPORT).read_text()
    assert f"torch: {torch.__version__}" in text
    assert "storage: Storage(order=2, dtype=None, history=None)" in text
    assert "torch.ops.aten." in text
    assert render(load(folder).run().variants[pipeline.StepKind.FORECAST].gm) == render(report.graph("forecast"))
    graph = load(folder).graph()
    assert [*graph.parameters(), *graph.buffers()] == []


def test_unknown_stage(saved, capsys):
    assert main([str(saved[0]), "--until", "nonsense"]) == 2
    assert "there is no stage 'nonsense'; they are trace, canonicalize," in capsys.readouterr().err


def test_no_such_folder(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "folder must be one that holds a passes.pkl" in capsys.readouterr().err


def test_nothing_compiled(tmp_path):
    with pytest.raises(NothingCompiledError):
        taylorseer_backend().save_repro(tmp_path)


def test_a_graph_that_cannot_be_stored(monkeypatch, tmp_path):
    """It is there as text, and that is said."""
    backend = taylorseer_backend(compiler="eager")
    torch.compile(tiny(), backend=backend)(**tiny_inputs(0))
    monkeypatch.setattr(StoredPasses, "of", lambda *_: None)
    with pytest.warns(TaylorSeerWarning, match="holds it as text only"):
        backend.save_repro(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [REPORT]


class TestFailingPass:
    def failed(self, monkeypatch, tmp_path) -> str:
        def fail(*_args: Any) -> None:
            raise ValueError("no such luck")

        monkeypatch.setattr(pipeline, "guard_regions", fail)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(PassError) as raised:
            torch.compile(tiny(), backend=taylorseer_backend(compiler="eager"))(**tiny_inputs(0))
        return str(raised.value)

    def test_names_the_folder_and_how_to_run_it(self, monkeypatch, tmp_path, capsys):
        message = self.failed(monkeypatch, tmp_path)
        (folder,) = tmp_path.iterdir()
        assert f"python -m taylorseer_fx.replay {folder} runs the passes again" in message
        assert "'guard_regions' failed: no such luck" in (folder / REPORT).read_text()
        assert (folder / PASSES).is_file()
        assert main([str(folder)]) == 1
        printed = capsys.readouterr()
        assert "find_stored " in printed.out
        assert "'guard_regions' failed: no such luck" in printed.err
        assert "in fail\n" in printed.err
        monkeypatch.undo()
        assert main([str(folder)]) == 0

    def test_where_nothing_can_be_written(self, monkeypatch, tmp_path):
        message = self.failed(monkeypatch, tmp_path / "missing")
        assert "'guard_regions' failed: no such luck" in message
        assert "No report of it could be saved: FileNotFoundError: " in message
