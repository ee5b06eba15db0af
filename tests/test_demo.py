"""The demo's numbers, picture and command line; the demo itself runs from the wheel in CI."""

import io
import json
import math
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from taylorseer_fx import cli
from taylorseer_fx.demo import main as demo
from taylorseer_fx.demo import runs
from taylorseer_fx.demo.quality import psnr
from taylorseer_fx.demo.results import measure
from taylorseer_fx.demo.runs import DemoConfig, Run, demo_config
from taylorseer_fx.digits.judge import load_real_digits
from taylorseer_fx.shipped import DIGITS, FASHION, SHIPPED
from taylorseer_fx.version import __version__
from tests.turns import in_turns


def test_psnr_of_a_known_error():
    """An error of 0.2 everywhere in a range of 2 is 20 dB."""
    reference = torch.zeros(4, 1, 8, 8)
    assert psnr(reference + 0.2, reference) == pytest.approx(20.0, abs=1e-5)


def test_psnr_of_equal_pictures_is_infinite():
    assert psnr(torch.ones(2), torch.ones(2)) == math.inf


def test_psnr_ignores_what_the_screen_cannot_show():
    assert psnr(torch.full((3,), 5.0), torch.full((3,), 1.0)) == math.inf


def _run(name: str, samples: torch.Tensor, seconds: list[float], full_steps: list[int]) -> Run:
    return Run(name, samples, tuple(seconds), tuple(full_steps), compile_seconds=3.0, buffer_bytes=2048)


def test_rows_come_from_the_runs():
    """Real digits in place of samples: the classifier names them, and the ratios follow from the seconds."""
    config = DemoConfig(num_steps=4, rows=1)
    images, labels = load_real_digits()
    shown = torch.stack([images[labels == digit][0] for digit in range(10)])
    eager = _run("eager", shown, [2.0] * 4, [0, 1, 2, 3])
    ours = _run("ours", shown + 0.02, [2.0, 2.0, 0.5, 0.5], [0, 1])
    row = measure([eager, eager, ours], config)[-1]
    assert row.speedup_over_eager == pytest.approx(8 / 5)
    assert (row.full_step_ms, row.forecast_step_ms, row.ceiling) == (2000.0, 500.0, 2.0)
    assert row.accuracy == 1.0
    assert 30 < row.psnr_db < math.inf


@pytest.mark.parametrize("model", in_turns(SHIPPED, weeks=2))
def test_demo_writes_picture_table_and_numbers(model, tmp_path, monkeypatch):
    """Everything but the compiling: the eager model takes all three places."""
    config = DemoConfig(SHIPPED[model], num_steps=2, rows=1)
    monkeypatch.setattr(demo, "compiled", runs.eager)
    monkeypatch.setattr(demo, "forecast", runs.eager)
    console = Console(record=True, width=100, file=io.StringIO())
    demo.run_demo(config, tmp_path / "demo.png", console, tmp_path / "demo.json")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["schedule"] == "FF"
    assert [row["name"] for row in content["rows"]] == ["eager", "eager", "eager"]
    shown = console.export_text()
    assert "forecast step, ms" in shown
    assert SHIPPED[model].title in shown


def test_demo_of_a_model_by_its_name():
    assert demo_config("digits") == DemoConfig(DIGITS)
    assert demo_config("fashion", quick=True) == DemoConfig(FASHION, num_steps=20, rows=1)


FIRST_SCREEN = """
import sys
from types import ModuleType
from taylorseer_fx import cli
demo = ModuleType("demo")  # all of it but what takes a minute
demo.run_demo = lambda *_: print("the demo")
sys.modules["taylorseer_fx.demo.main"] = demo
sys.exit(cli.main(["demo"]) or cli.main(["plan", "--list"]))
"""


@pytest.mark.turn(1, 2)
def test_first_screen_is_ours():
    """Whatever optional libraries are there: their troubles are none of the demo's, nor of the plan's."""
    done = subprocess.run([sys.executable, "-c", FIRST_SCREEN], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"taylorseer-fx {__version__}: loading torch and diffusers\nthe demo\n")
    assert "FLUX.1-dev" in done.stdout


def test_missing_extra_is_named(monkeypatch, capsys):
    """Without the demo's libraries the command says which one, and what to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["demo"]) == 1
    assert 'pip install "taylorseer-fx[demo]"' in capsys.readouterr().err


def test_command_prints_its_version():
    out = subprocess.run([sys.executable, "-m", "taylorseer_fx.cli", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0.2.0"


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err
