"""Plan files: written by ``calibrate``, read by the backend, and refused where they are for something else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from taylorseer_fx import ConfigError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.calibration import calibrate
from taylorseer_fx.plan_file import FILE_NAME, GraphSignature, PlanFile, RunSignature
from tests.test_attach import TinyPipeline, cached, equal
from tests.zoo import tiny, tiny_inputs

NUM_STEPS = 10


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def attached(model: Any = None, scheduler: Any = None, **settings: Any) -> tuple[TaylorSeerBackend, TinyPipeline]:
    backend = taylorseer_backend(compiler="eager", **settings)
    compiled = torch.compile(model or cached(), backend=backend, fullgraph=True)
    pipe = TinyPipeline(compiled, scheduler or FlowMatchEulerDiscreteScheduler())
    backend.attach(pipe)
    return backend, pipe


@pytest.fixture(scope="module")
def planned() -> PlanFile:
    with torch.no_grad():
        backend, pipe = attached()
        found = calibrate(lambda: torch.stack(pipe()).sum(0), backend, NUM_STEPS, full_steps=(3, 5), moves=1)
    return found.plan()


@pytest.fixture
def path(planned, tmp_path) -> Path:
    planned.save(tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


class TestFile:
    def test_what_is_written_is_read(self, planned, path):
        assert PlanFile.load(path) == planned
        assert PlanFile.load(str(path)).curve == planned.curve
        assert [len(steps) for steps in planned.full_steps] == [3, 5]
        assert planned.versions["torch"] == torch.__version__

    def test_curve_beside_the_papers_schedule(self, planned):
        for point in planned.curve:
            assert point["mean_db"] >= point["paper_mean_db"]
            assert point["worst_db"] <= point["mean_db"]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda text: text[: len(text) // 2], "It is not the JSON of a plan, or not all of it"),
            (lambda text: "", "It is not the JSON of a plan"),
            (lambda text: "[1, 2]", "It is not the JSON of a plan"),
            (lambda text: text.replace('"schema": 1', '"schema": 2'), "a plan file of version 1, got .* It is of version 2"),
            (lambda text: text.replace('"order": 1', '"order": -1'), "Its content is wrong: -1 is no number"),
            (lambda text: text.replace('"3": [', '"4": ['), "is no list of 4 full steps of 10"),
            (lambda text: text.replace('"kinds"', '"kind"'), "Its content is wrong: 'kinds'"),
            (lambda text: json.dumps(json.loads(text) | {"full_steps": {}}), "it has no lists"),
        ],
    )
    def test_damaged(self, path, damage, message):
        path.write_text(damage(path.read_text()))
        with pytest.raises(ConfigError, match=message):
            taylorseer_backend(plan=path, speedup=2)

    @pytest.mark.parametrize("name", ["nowhere.json", "a/b/c", "nowhere/plan.json"])
    def test_no_such_file(self, name):
        with pytest.raises(ConfigError, match="plan must be the path of a file, or a repository of the Hugging Face hub"):
            taylorseer_backend(plan=name, speedup=2)

    def test_from_the_hub(self, planned, path, tmp_path, monkeypatch):
        """From the hub's cache on disk, without a network; and clearly not there where it is not."""
        snapshot = tmp_path / "hub/models--someone--plans/snapshots/0123456789012345678901234567890123456789"
        snapshot.mkdir(parents=True)
        (snapshot / FILE_NAME).write_text(path.read_text())
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        import huggingface_hub

        download = huggingface_hub.hf_hub_download
        monkeypatch.setattr(
            huggingface_hub,
            "hf_hub_download",
            lambda *names: download(*names, cache_dir=tmp_path / "hub", local_files_only=True),
        )
        assert taylorseer_backend(plan="someone/plans", speedup=2).config.plan == planned
        with pytest.raises(ConfigError, match="a repository of the Hugging Face hub that holds"):
            taylorseer_backend(plan="someone/else", speedup=2)


class TestUse:
    def test_runs_by_its_list(self, planned):
        backend, pipe = attached(plan=planned, speedup=2)
        _, listed = attached(full_steps=planned.list_for(2))
        assert equal(pipe(), listed())
        assert [i for i, kind in enumerate(backend.explain().schedule) if kind == "F"] == list(planned.list_for(2))

    def test_shown_before_any_run(self, planned):
        backend = taylorseer_backend(plan=planned, speedup=2, compiler="eager")
        torch.compile(tiny(), backend=backend, fullgraph=True)(**tiny_inputs(0))
        assert "(5 of 10 steps full, ceiling 2.00x)" in str(backend.explain())

    def test_order_and_granularity_are_the_plans(self, planned):
        stack = replace(planned, granularity="stack", order=2)
        config = taylorseer_backend(plan=stack, speedup=2).config
        assert (config.order, config.granularity) == (2, "stack")
        with pytest.raises(ConfigError, match="order must be 2, as in the plan, or left out, got 3"):
            taylorseer_backend(order=3, plan=stack, speedup=2)

    def test_lists_that_there_are(self, planned):
        text = r"speedup must be one that the plan has a list for: 3.333 \(3 full\), 2 \(5 full\)"
        for speedup in (None, 3):
            with pytest.raises(ConfigError, match=text):
                taylorseer_backend(plan=planned, speedup=speedup)

    @pytest.mark.parametrize("other", [{"interval": 4}, {"full_steps": [0]}, {"memory_budget": 100}])
    def test_no_other_schedule(self, planned, other):
        with pytest.raises(ConfigError, match="left out when plan is given"):
            taylorseer_backend(plan=planned, **other)

    def test_without_a_pipeline(self, planned):
        """Nothing tells the length of the run; the list is for one of its own."""
        backend = taylorseer_backend(plan=planned, speedup=2, compiler="eager")
        model = torch.compile(tiny(), backend=backend, fullgraph=True)
        for step in range(NUM_STEPS):
            model(**tiny_inputs(step, num_steps=NUM_STEPS))
        assert backend.stats().full_calls == 5


class TestMismatch:
    """Each is an error that names what differs, and nothing has changed: the run as planned goes on to be right."""

    @pytest.mark.parametrize(
        ("given", "call", "message"),
        [
            ({}, {"num_steps": 7}, "The number of steps: the plan is for 10, here are 7"),
            ({"scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0)}, {}, "The scheduler's settings: the plan is for"),
        ],
    )
    def test_of_a_run(self, planned, given, call, message):
        scheduler = given["scheduler"]() if given else None
        _, pipe = attached(plan=planned, speedup=2, scheduler=scheduler)
        with pytest.raises(ConfigError, match=message):
            pipe(**call)
        if not given:
            _, fresh = attached(plan=planned, speedup=2)
            assert equal(pipe(), fresh())
        backend, pipe = attached(plan=planned, speedup=2, plan_mismatch="warn", scheduler=scheduler)
        with pytest.warns(TaylorSeerWarning, match="the plan is used for what it was not made for"):
            pipe(**call)
        assert backend.stats().forecast_calls > 0

    def test_of_the_model(self, planned):
        graph = GraphSignature((("attention", 99),), ("99 float32[1]",))
        other = replace(planned, graphs=(graph,))
        _, pipe = attached(plan=other, speedup=2)
        with pytest.raises(ConfigError, match=r"The model: the plan is for 99 attention \(99 float32\[1\]\), here is"):
            pipe()
        _, pipe = attached(plan=other, speedup=2, plan_mismatch="warn")
        with pytest.warns(TaylorSeerWarning, match="the plan is used for what it was not made for"):
            pipe()

    def test_of_guidance(self, planned):
        run = RunSignature(scheduler="Euler", settings="{}", guidance=3.5)
        (text,) = replace(planned, runs=run).differences_of_run(replace(run, guidance=7.0))
        assert text == "the guidance scale: the plan is for 3.5, here is 7.0"
        assert not list(replace(planned, runs=None).differences_of_run(run))

    @pytest.mark.parametrize(("sizes", "message"), [({"batch": 5}, None), ({"length": 9}, r"here is .*\[\*, 9, 32\]")])
    def test_of_sizes(self, planned, sizes, message):
        """Another number of samples is no other model; another number of tokens is."""
        backend = taylorseer_backend(compiler="eager", plan=replace(planned, runs=None), speedup=2)
        model = torch.compile(tiny(), backend=backend, fullgraph=True)
        if message is None:
            model(**tiny_inputs(0, num_steps=NUM_STEPS, **sizes))
            assert backend.stats().full_calls == 1
        else:
            with pytest.raises(ConfigError, match=message):
                model(**tiny_inputs(0, num_steps=NUM_STEPS, **sizes))

    def test_neither_error_nor_warning(self):
        with pytest.raises(ConfigError, match="plan_mismatch must be 'error' or 'warn', got 'ignore'"):
            taylorseer_backend(plan_mismatch="ignore")
