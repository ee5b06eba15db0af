"""Runs of several workers of a real Ray on this machine: whatever happens, each row is there once, as one process draws it."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[ray]'")

import ray

from taylorseer_fx import ConfigError, TaylorSeerWarning
from taylorseer_fx.compat import inductor_cache_in
from taylorseer_fx.ray import Sampler, connected, connecting, finished_ids, read, sample, unfinished
from taylorseer_fx.ray import fleet as fleet_module
from taylorseer_fx.ray.rows import batches, numbered
from taylorseer_fx.ray.shipped import labelled
from tests.fleets.builds import Noted, Tiny, failing, uncompiled
from tests.fleets.in_this_process import replace_workers

TINY = Tiny()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[None]:
    """One Ray for the file, with a cache of its own that its workers share."""
    with inductor_cache_in(str(tmp_path_factory.mktemp("cache"))), connected(workers=2):
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker of one core has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_one_process(build: Any, table: Any, batch_size: int) -> np.ndarray:
    sampler, columns = Sampler(build, batch_size=batch_size), {name: table[name].to_numpy() for name in table.column_names}
    return sampler(columns)["picture"]


@pytest.mark.usefixtures("fleet")
class TestWorkers:
    @pytest.mark.parametrize(("count", "size"), [(30, 5), pytest.param(640, 16, marks=pytest.mark.turn(3, 4))])
    def test_one_is_killed(self, count, size, tmp_path, monkeypatch):
        """In mid-generation: complete, nothing twice, and equal bit for bit to one process; and a line says so."""
        said: list[str] = []
        monkeypatch.setattr(connecting.log, "warning", said.append)
        table, flag = labelled(count), tmp_path / "killed"
        build = Noted(tmp_path / "log", Tiny(dies_at=count // 2, flag=flag))
        done = sample(build, table, tmp_path / "out", workers=2, batch_size=size)
        assert flag.exists()
        content = read(tmp_path / "out")
        assert content["id"].tolist() == list(range(count))
        assert np.array_equal(content["picture"], in_one_process(TINY, table, size))
        calls = build.drawn()
        assert len({process for process, _ in calls}) == 3
        assert Counter(row for _, ids in calls for row in ids)[count // 2] == 2
        assert (done.num_rows, done.num_found) == (count, 0)
        assert said == ["taylorseer_fx: a worker died; another one takes its place, and draws its batch again"]

    @pytest.mark.turn(1, 4)
    def test_the_run_is_broken_off(self, tmp_path):
        """The next call goes on: what is finished is neither drawn nor touched again."""
        build, seen = Noted(tmp_path / "log", TINY), []

        def stop(finished: int) -> None:
            seen.append(finished)
            if finished >= 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample(build, 40, tmp_path / "out", workers=1, batch_size=4, on_rows=stop)
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
        assert len(finished) >= 2
        ids = finished_ids(tmp_path / "out")
        (tmp_path / "log").write_text("")
        done = sample(build, 40, tmp_path / "out", workers=1, batch_size=4, on_rows=seen.append)
        assert done.num_found == len(ids)
        assert not ids & {row for _, drawn in build.drawn() for row in drawn}
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        content = read(tmp_path / "out")
        assert content["id"].tolist() == list(range(40))
        assert np.array_equal(content["picture"], in_one_process(TINY, numbered(40), 4))
        assert seen[-1] == 40

    @pytest.mark.turn(7, 8)
    @pytest.mark.inductor
    def test_the_second_finds_what_the_first_compiled(self, tmp_path):
        """Both start at once on an empty cache."""
        done = sample(Tiny("inductor"), 24, tmp_path / "out", workers=2, batch_size=2)
        found = sorted((worker.cache_misses > 0, worker.cache_hits > 0) for worker in done.workers)
        assert found == [(False, True), (True, False)]
        assert np.array_equal(read(tmp_path / "out")["picture"], in_one_process(Tiny("inductor"), numbered(24), 2))

    @pytest.mark.turn(2, 4)
    def test_by_hand(self, tmp_path):
        """The actor class in a dataset of the user's, which is filtered by what is finished."""
        out = tmp_path / "out"
        out.mkdir()
        Sampler(TINY, batch_size=3, out=out)({"id": np.array([3, 4])})
        dataset = unfinished(ray.data.from_items([{"id": row} for row in range(8)]), out)
        given = {"batch_size": 3, "out": str(out)}
        compute = ray.data.ActorPoolStrategy(size=1)
        report = dataset.map_batches(
            Sampler, fn_constructor_args=(TINY,), fn_constructor_kwargs=given, batch_size=3, compute=compute
        )
        assert sorted(row["id"] for row in report.take_all()) == [0, 1, 2, 5, 6, 7]
        assert read(out)["id"].tolist() == list(range(8))

    @pytest.mark.turn(3, 8)
    def test_a_cluster_by_its_address(self, tmp_path):
        """Another process joins the Ray of this one, and leaves it running."""
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-W", "ignore", "-c", JOINING, str(tmp_path / "out"), address]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        assert read(tmp_path / "out")["id"].tolist() == [0, 1, 2, 3]
        assert ray.is_initialized()

    @pytest.mark.turn(1, 4)
    def test_what_workers_warn_of(self, tmp_path):
        with pytest.warns(TaylorSeerWarning, match="nothing was compiled in a worker") as caught:
            sample(uncompiled, 4, tmp_path, workers=1, batch_size=2)
        assert len(caught) == 1

    @pytest.mark.turn(3, 4)
    def test_a_build_that_fails(self, tmp_path):
        """What it raises comes through, and is no reason to try for ever."""
        with pytest.raises(Exception, match="no weights here"):
            sample(failing, 4, tmp_path, workers=1)


class TestGoingOn:
    """What a run does with a folder, without the cost of starting workers."""

    @pytest.fixture(autouse=True)
    def _no_workers(self, monkeypatch):
        replace_workers(monkeypatch)

    @pytest.mark.parametrize("files", ["parquet", "png"])
    def test_where_it_was(self, files, tmp_path):
        build, seen = Noted(tmp_path / "log", Tiny(as_bytes=True)), []

        def stop(finished: int) -> None:
            if finished == 6:
                raise KeyboardInterrupt

        given: dict[str, Any] = {"out": tmp_path / "out", "batch_size": 3, "files": files}
        with pytest.raises(KeyboardInterrupt):
            sample(build, 11, on_rows=stop, **given)
        done = sample(build, 11, on_rows=seen.append, **given)
        assert [ids for _, ids in build.drawn()] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 10)]
        assert (done.num_rows, done.num_found, seen) == (11, 6, [6, 9, 11])
        again = sample(failing, 11, **given)
        assert (again.num_found, again.workers) == (11, ())
        assert finished_ids(tmp_path / "out") == set(range(11))

    def test_folders_that_are_not_shared(self, tmp_path, monkeypatch):
        """A worker that writes somewhere else is found out."""
        monkeypatch.setattr("taylorseer_fx.ray.files.os.replace", lambda *_: None)
        with pytest.raises(ConfigError, match=r"out must be a folder that all machines .* 4 rows, such as 0, were written"):
            sample(TINY, 4, tmp_path, batch_size=4)


class TestRows:
    def test_ids(self):
        assert numbered(3).column("id").to_pylist() == [0, 1, 2]
        assert numbered([{"prompt": "a"}, {"prompt": "b"}]).column("id").to_pylist() == [0, 1]
        assert numbered([{"id": 7, "prompt": "a"}]).column("id").to_pylist() == [7]

    def test_batches_are_the_same_in_every_run(self):
        """What is left out does not move the others; one that is finished in part is drawn whole."""
        table = numbered(10)
        cut = [batch.column("id").to_pylist() for batch in batches(table, 4, set())]
        assert cut == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert [batch.column("id").to_pylist() for batch in batches(table, 4, {0, 1, 2, 3, 8})] == cut[1:]

    @pytest.mark.parametrize(
        ("rows", "text"),
        [
            (0, "rows must be at least one row, or a count of at least 1, got 0"),
            ([], "rows must be at least one row, or a count of at least 1, got 'none'"),
            ([{"id": 1}, {"id": 1}], "id must be different in each row, got 1"),
            ([{"id": -1}], r"id must be a column of integers of 0 to 2\*\*32 - 1, got -1"),
            ([{"id": 2**32}], "got 4294967296"),
            ([{"id": "one"}], "got 'one'"),
        ],
    )
    def test_wrong_ones(self, rows, text, tmp_path):
        with pytest.raises(ConfigError, match=text):
            sample(TINY, rows, tmp_path)


class TestWrongUse:
    """Each is told before a Ray is started."""

    @pytest.fixture(autouse=True)
    def _never_started(self, monkeypatch):
        monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a Ray was started"))

    @pytest.mark.parametrize(
        ("setting", "value", "text"),
        [
            ("workers", 0, "workers must be an int of at least 1, got 0"),
            ("batch_size", 0, "batch_size must be an int of at least 1, got 0"),
            ("seed", -1, "seed must be an int of at least 0, got -1"),
            ("files", "jpeg", "files must be 'parquet' or 'png', got 'jpeg'"),
        ],
    )
    def test_settings(self, setting, value, text, tmp_path):
        with pytest.raises(ConfigError, match=text):
            sample(TINY, 4, tmp_path, **{setting: value})

    @pytest.mark.parametrize(("address", "text"), [("127.0.0.1:1", "Nothing answers there"), ("nowhere", "HOST:PORT")])
    def test_no_cluster(self, address, text, tmp_path, monkeypatch):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConfigError, match=f"address must be that of a running Ray cluster.*{text}"):
            sample(TINY, 4, tmp_path, address=address)

    def test_a_build_that_cannot_be_sent(self, tmp_path):
        lock = Lock()
        with pytest.raises(ConfigError, match=r"build must be a function that can be sent to a worker.* inside of it"):
            sample(lambda: lock, 4, tmp_path)

    @pytest.mark.parametrize(("setting", "text"), [("num_cpus", "3 CPUs, got '2 for each of 2'"), ("num_gpus", "0 GPUs, got")])
    def test_more_than_ray_has(self, setting, text, tmp_path, monkeypatch):
        """Rather than wait for it."""
        monkeypatch.setattr(fleet_module, "connected", lambda *_: nullcontext())
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
        with pytest.raises(ConfigError, match=f"{setting} must be at most what this Ray has for all workers together, {text}"):
            sample(TINY, 4, tmp_path, workers=2, batch_size=2, **{setting: 2})

    @pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_size": 3}, {"rows": 5}, {"settings": {"steps": 5}}])
    def test_a_folder_of_another_run(self, changed, tmp_path, monkeypatch):
        given: dict[str, Any] = {"rows": 4, "seed": 0, "batch_size": 2, "settings": {"steps": 4}}
        monkeypatch.setattr("taylorseer_fx.ray.fleet._Drawing.run", lambda *_: pytest.fail("drawn"))
        (tmp_path / "0000000001.png").touch()
        with pytest.raises(ConfigError, match=r"It holds pictures, but no run\.json"):
            sample(TINY, out=tmp_path, **given)
        (tmp_path / "0000000001.png").unlink()
        with pytest.raises(BaseException, match=r"a Ray was started|drawn"):
            sample(TINY, out=tmp_path, **given)
        with pytest.raises(ConfigError, match="out must be a new folder, or one with a run of the same rows and settings"):
            sample(TINY, out=tmp_path, **given | changed)

    def test_a_folder_in_use(self, tmp_path):
        from filelock import FileLock

        with FileLock(tmp_path / ".run.lock"), pytest.raises(ConfigError, match="out must be a folder that no other run"):
            sample(TINY, 4, tmp_path)


JOINING = """
import sys
from taylorseer_fx.ray import sample
from tests.fleets.builds import Tiny
sample(Tiny(), 4, sys.argv[1], batch_size=2, address=sys.argv[2])
"""
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from taylorseer_fx.cli import main
print(main(["sample"]))
try:
    import taylorseer_fx.ray
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_ray():
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == 'taylorseer-fx sample needs ray: pip install "taylorseer-fx[ray]"\n'
    assert done.stdout.splitlines() == [
        "1",
        'taylorseer_fx.ray needs ray, which is not installed: pip install "taylorseer-fx[ray]"',
    ]
