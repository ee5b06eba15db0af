"""The actor class in this process: a row's picture is its own whatever batch it is in, and what is finished stays as it is."""

import os
import pickle
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[ray]'")

import pyarrow.parquet as pq

from taylorseer_fx import ConfigError, TaylorSeerWarning
from taylorseer_fx.compat import compile_counters, inductor_cache_folder, inductor_cache_in
from taylorseer_fx.ray import Sampler, finished_ids, read
from taylorseer_fx.ray.files import UNFINISHED, remove_leftovers
from taylorseer_fx.ray.first_call import first_call
from taylorseer_fx.ray.noise import NUM_IDS, generators
from taylorseer_fx.ray.shipped import ShippedBuild, labelled
from tests.fleets.builds import Noted, Tiny, one_short, uncompiled

SIZE = 10
TINY = Tiny()
EAGER = {"order": 1, "interval": 3, "warmup": 2, "granularity": "stack", "compiler": "eager"}
DIGITS = ShippedBuild("digits", num_steps=6, guidance=1.0, settings=EAGER)


def rows(*ids: int) -> dict[str, Any]:
    return {"id": np.array(ids), "label": np.array(ids) % 10}


class TestNoise:
    def test_of_an_id(self):
        first, again, other = (torch.randn(3, generator=one) for one in generators(0, [7, 7, 8]))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        (of_another_run,) = generators(1, [7])
        assert not torch.equal(first, torch.randn(3, generator=of_another_run))

    def test_no_two_ids_share_a_seed(self):
        seeds = [one.initial_seed() for one in generators(3, range(5000))]
        assert len(set(seeds)) == 5000
        assert max(seeds) < NUM_IDS


class TestPictures:
    def test_of_every_batch(self):
        """Bit for bit: in another order, in smaller batches, alone, and in one that is larger than the model is called with."""
        sampler = Sampler(DIGITS, batch_size=SIZE)
        together = sampler(rows(*range(SIZE)))["picture"]
        assert together.shape == (SIZE, 1, 8, 8)
        assert np.array_equal(sampler(rows(*reversed(range(SIZE))))["picture"], together[::-1])
        for ids in ((3,), (2, 9), tuple(range(7))):
            assert np.array_equal(sampler(rows(*ids))["picture"], together[list(ids)])
        many = sampler(rows(*range(2 * SIZE + 3)))
        assert np.array_equal(many["picture"][:SIZE], together)
        assert set(many) == {"id", "label", "picture"}
        assert len(many["picture"]) == len(many["id"]) == 2 * SIZE + 3
        assert compile_counters["stats"]["unique_graphs"] == 1

    def test_no_rows(self):
        assert len(Sampler(TINY)(rows())["id"]) == 0

    def test_the_seed_counts(self):
        first, other = (Sampler(TINY, batch_size=1, seed=seed)(rows(1))["picture"] for seed in (0, 1))
        assert not np.array_equal(first, other)

    @pytest.mark.turn(0, 2)
    def test_bytes_of_a_shipped_model(self):
        """White ink on black paper."""
        floats, drawn = (
            Sampler(ShippedBuild("digits", 4, 1.0, EAGER, as_bytes), batch_size=1)(rows(1))["picture"]
            for as_bytes in (False, True)
        )
        assert drawn.dtype == np.uint8
        assert np.abs(drawn / 127.5 - 1 - floats[:, 0]).max() < 1 / 127


class TestFiles:
    @pytest.mark.parametrize("files", ["parquet", "png"])
    def test_written_once(self, files, tmp_path):
        build = Noted(tmp_path / "log", Tiny(as_bytes=files == "png"))
        sampler, out = Sampler(build, batch_size=4, out=tmp_path / "out", files=files), tmp_path / "out"
        out.mkdir()
        for ids in ((5, 6, 7), (1, 2), (5, 6, 7)):
            report = sampler(rows(*ids))
            assert report["id"].tolist() == list(ids)
        assert finished_ids(out) == {1, 2, 5, 6, 7}
        assert [ids for _, ids in build.drawn()] == [(5, 6, 7, 7), (1, 2, 2, 2)]
        assert set(report["worker"]) == {f"{platform.node()}:{os.getpid()}"}

    def test_read(self, tmp_path):
        sampler = Sampler(TINY, batch_size=2, out=tmp_path)
        for ids in ((5, 6), (1, 2)):
            sampler(rows(*ids))
        content = read(tmp_path)
        assert content["id"].tolist() == [1, 2, 5, 6]
        assert content["label"].tolist() == [1, 2, 5, 6]
        assert np.array_equal(content["picture"][:2], Sampler(TINY, batch_size=2)(rows(1, 2))["picture"])

    def test_the_format_is_that_of_arrow(self, tmp_path):
        Sampler(TINY, batch_size=2, out=tmp_path)(rows(1, 2))
        (path,) = tmp_path.glob("*.parquet")
        kind = str(pq.read_schema(path).field("picture").type)
        assert kind.startswith("extension<arrow.fixed_shape_tensor[value_type=float, shape=[5,8]")

    def test_a_half_written_file_is_none(self, tmp_path, monkeypatch):
        """Neither counted nor in the way; and removed by the next run."""

        def broken(_table: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr("taylorseer_fx.ray.files.pq.write_table", broken)
        with pytest.raises(OSError, match="no space left"):
            Sampler(TINY, batch_size=2, out=tmp_path)(rows(1, 2))
        assert list(tmp_path.iterdir()) == []
        leftover = tmp_path / f".rows-1.parquet.killed{UNFINISHED}"
        leftover.touch()
        assert finished_ids(tmp_path) == set()
        remove_leftovers(tmp_path)
        assert not leftover.exists()

    def test_nothing_to_read(self, tmp_path):
        with pytest.raises(ConfigError, match="out must be a folder with finished Parquet files"):
            read(tmp_path)

    def test_png_of_floats(self, tmp_path):
        with pytest.raises(ConfigError, match=r"picture must be uint8 of shape \[h, w\].* got 'float32 of shape \[5, 8\]'"):
            Sampler(TINY, batch_size=2, out=tmp_path, files="png")(rows(1))


class TestWrongUse:
    def test_another_number_of_pictures(self):
        with pytest.raises(ConfigError, match=r"draw must be a function that returns 4 pictures .* got '3 of them'"):
            Sampler(one_short, batch_size=4)(rows(1, 2, 3, 4))

    def test_no_ids(self):
        with pytest.raises(ConfigError, match=r"id must be a column of the rows, got \['label'\]"):
            Sampler(TINY)({"label": np.arange(3)})

    @pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("seed", -1), ("files", "jpeg")])
    def test_settings(self, setting, value):
        with pytest.raises(ConfigError, match=f"{setting} must be"):
            Sampler(TINY, **{setting: value})

    def test_nothing_compiled(self, tmp_path):
        """The report has the warning, since what a worker prints is seen by nobody."""
        with pytest.warns(TaylorSeerWarning, match="nothing was compiled in a worker"):
            Sampler(uncompiled)(rows(1))
        report = Sampler(uncompiled, out=tmp_path)(rows(1))
        assert "build() must load and compile the model itself" in report["warning"][0]

    def test_other_warnings_go_their_way(self, tmp_path):
        def build() -> Callable[..., Any]:
            draw = TINY()

            def warns(*given: Any) -> Any:
                import warnings

                warnings.warn("of a library", UserWarning, stacklevel=2)
                return draw(*given)

            return warns

        with pytest.warns(UserWarning, match="of a library"):
            report = Sampler(build, batch_size=1, out=tmp_path)(rows(1))
        assert report["warning"].tolist() == [""]

    def test_labels_are_of_the_classes_in_turn(self):
        assert labelled(12).column("label").to_pylist() == [*range(10), 0, 1]

    def test_a_build_is_pickled_without_its_model(self):
        assert len(pickle.dumps(DIGITS)) < 1000


HOLDER = """
import pathlib, sys, time
from taylorseer_fx.ray.first_call import first_call
with first_call("run"):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
"""


class TestFirstCall:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path):
        with inductor_cache_in(str(tmp_path)):
            yield

    def test_the_next_waits_and_is_free_when_the_first_is_done(self):
        """In the order of their locks; a third does not wait for the second."""
        with first_call("run"):
            lock = Path(inductor_cache_folder()) / "taylorseer_fx_runs" / "run.lock"
            assert lock.exists()
        with first_call("run"), first_call("run"):
            pass

    def test_its_death_frees_the_lock(self, tmp_path):
        """Killed while it compiles: the next one is the first."""
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "held")])
        while not (tmp_path / "held").exists():
            assert holder.poll() is None
            time.sleep(0.05)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        begun = time.monotonic()
        with first_call("run"):
            assert time.monotonic() - begun < 30
            assert not list(Path(inductor_cache_folder()).glob("*/run.done"))
        assert list(Path(inductor_cache_folder()).glob("*/run.done"))

    def test_a_first_call_that_fails_is_none(self):
        with pytest.raises(ValueError, match="failed"), first_call("run"):
            raise ValueError("failed")
        assert not list(Path(inductor_cache_folder()).glob("*/run.done"))

    def test_other_runs_are_forgotten(self, monkeypatch):
        with first_call("old"):
            pass
        monkeypatch.setattr("taylorseer_fx.ray.first_call.DAY_S", -1.0)
        with first_call("new"):
            pass
        assert not list(Path(inductor_cache_folder()).glob("*/old.*"))
