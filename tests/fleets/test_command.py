"""``taylorseer-fx sample``: what it draws and prints, that it leaves nothing running, and what it refuses."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[ray]'")

import ray
from PIL import Image
from rich.console import Console

from taylorseer_fx import cli
from taylorseer_fx.ray import finished_ids, read
from taylorseer_fx.ray.command import Job, run_sample
from tests.fleets.in_this_process import replace_workers

QUICK = {"num_steps": 4, "guidance": 1.0, "granularity": "stack", "compiler": "eager", "batch_size": 4}


@pytest.fixture
def _no_workers(monkeypatch) -> None:
    replace_workers(monkeypatch)


def printed(job: Job, out: Path) -> str:
    console = Console(record=True, width=120, file=io.StringIO())
    run_sample(job, out, console)
    return console.export_text()


@pytest.mark.usefixtures("_no_workers")
class TestWhatItDraws:
    def test_parquet_and_going_on(self, tmp_path):
        job = Job("digits", count=6, workers=2, **QUICK)
        text = printed(job, tmp_path / "out")
        assert "6/6" in text
        assert "drawn     6 pictures in" in text
        assert "compiled without a cache" in text
        content = read(tmp_path / "out")
        assert content["label"].tolist() == [0, 1, 2, 3, 4, 5]
        assert content["picture"].shape == (6, 1, 8, 8)
        assert "drawn     0 pictures in" in (again := printed(job, tmp_path / "out"))
        assert "6 were there already" in again

    @pytest.mark.turn(0, 2)
    def test_png_of_the_other_model(self, tmp_path):
        printed(Job("fashion", count=2, workers=1, files="png", **QUICK), tmp_path)
        assert finished_ids(tmp_path) == {0, 1}
        with Image.open(tmp_path / "0000000001.png") as picture:
            assert picture.size == (28, 28)
            assert np.asarray(picture).std() > 0


ALONE = """
import sys
from pathlib import Path
from rich.console import Console
from taylorseer_fx.ray.command import Job, run_sample
settings = dict(num_steps=4, guidance=1.0, granularity="stack", compiler="eager", batch_size=4)
run_sample(Job("digits", 8, 2, **settings), Path(sys.argv[1]), Console())
"""


@pytest.mark.turn(6, 8)
def test_a_ray_of_its_own(tmp_path):
    """Nothing on the console but ours, and no process left behind."""
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path / "out")]
    environment = os.environ | {MARK: str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=environment)
    ending = time.monotonic() + 120  # for workers that were told to end
    while (left := list(of_the_command(str(tmp_path)))) and time.monotonic() < ending:
        time.sleep(0.5)
    assert left == []
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.strip() and "pictures ━" not in line]
    assert (lines[0], {*lines[1:-1]}, lines[-1]) == ("drawn", {"worker"}, "pictures")
    assert [line for line in done.stderr.splitlines() if "ray" in line.lower()] == []
    assert read(tmp_path / "out")["id"].tolist() == list(range(8))


MARK = "TAYLORSEER_FX_TEST"


def of_the_command(mark: str) -> Iterator[str]:
    """Processes that it started, or one of its own did."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process.name()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--count", "0"], "count must be an int of at least 1, got 0"),
        (["--workers", "0"], "workers must be an int of at least 1, got 0"),
        (["--steps", "0"], "steps must be an int of at least 1, got 0"),
        (["--seed", "-1"], "seed must be an int of at least 0, got -1"),
        (["--batch", "0"], "batch_size must be an int of at least 1, got 0"),
        (["--speedup", "0.5"], "speedup must be"),
        (["--address", "127.0.0.1:1"], "address must be that of a running Ray cluster"),
    ],
)
def test_what_it_refuses(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a Ray was started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cli.main(["sample", "--out", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"taylorseer-fx sample: {text}")


def test_stopped_by_hand(tmp_path, monkeypatch, capsys):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorseer_fx.ray.command.run_sample", stop)
    assert cli.main(["sample", "--out", str(tmp_path)]) == 130
    assert f"the same command goes on with what is in {tmp_path}" in capsys.readouterr().err
