"""``taylorseer-fx doctor``: the report names what there is and what is missing; the self-test fails when something is wrong."""

import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taylorseer_fx import cli
from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.bench.hook_reference import HookReference
from taylorseer_fx.compat import inductor_config
from taylorseer_fx.doctor import main as doctor
from taylorseer_fx.doctor import self_test
from taylorseer_fx.doctor.self_test import SelfTest, run_self_test


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inductor, which takes seconds."""
    monkeypatch.setattr(self_test, "CONFIG", replace(self_test.CONFIG, compiler="eager"))


@pytest.mark.inductor
@pytest.mark.turn(5, 6)
def test_the_command():
    """In a process of its own: it passes, and prints nothing that is not ours."""
    done = subprocess.run([sys.executable, "-m", "taylorseer_fx.cli", "doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^\S.*$", done.stdout, re.MULTILINE) == ["versions", "machine", "compiling", "self-test"]
    assert re.search(rf"^  torch +{re.escape(torch.__version__)}$", done.stdout, re.MULTILINE)
    assert "FFTTFTTF: 4 of 8 steps full, 4 forecast" in done.stdout
    assert re.search(r"^  result +passed$", done.stdout, re.MULTILINE)


class TestSelfTest:
    def test_passes(self, uncompiled):
        result = run_self_test("cpu")
        assert result.passed
        assert 0 < result.error < 1e-5
        assert (result.stats.full_calls, result.stats.forecast_calls) == (4, 4)

    def test_wrong_numbers_fail(self, uncompiled, monkeypatch):
        """Forecasts of another order than the reference's."""
        monkeypatch.setattr(self_test, "HookReference", lambda *args: HookReference(*args[:2], 0, *args[3:]))
        result = run_self_test("cpu")
        assert result.is_as_scheduled
        assert result.error > self_test.TOLERANCE
        assert not result.passed

    def test_no_forecasts_fail(self, uncompiled, monkeypatch):
        """Compiled by somebody else: right numbers, but no step was forecast by us."""
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, backend: compile_(model, backend="eager"))
        result = run_self_test("cpu")
        assert not result.is_as_scheduled
        assert not result.passed

    def test_no_numbers_fail(self):
        stats = SimpleNamespace(full_calls=1, forecast_calls=1)
        assert not SelfTest("cpu", "FT", stats, math.nan, 0.0).passed
        assert SelfTest("cpu", "FT", stats, 0.0, 0.0).passed

    def test_what_fails_is_told(self, uncompiled, monkeypatch, capsys):
        """Exit status 1, and the report goes to its end."""

        def broken(*_: Any) -> None:
            raise RuntimeError("no such compiler\nat all")

        monkeypatch.setattr(TaylorSeerBackend, "__call__", broken)
        assert cli.main(["doctor"]) == 1
        printed = capsys.readouterr().out
        assert re.search(r"^  problem +BackendCompilerFailed: .*no such compiler\n +at all", printed, re.MULTILINE | re.DOTALL)
        assert re.search(r"^  result +FAILED$", printed, re.MULTILINE)

    def test_warnings_are_told(self, uncompiled, monkeypatch):
        model = self_test._model

        def warning() -> Any:
            warnings.warn("look here", UserWarning, stacklevel=1)
            return model()

        monkeypatch.setattr(self_test, "_model", warning)
        lines: list[str] = []
        assert doctor.examine(lines.append)
        assert re.search(r"^  warnings +UserWarning: look here$", lines[-1], re.MULTILINE)

    def test_leaves_random_numbers_alone(self, uncompiled):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        run_self_test("cpu")
        assert torch.equal(torch.rand(1), expected)


class TestReport:
    def section(self, title: str) -> str:
        lines: list[str] = []
        stats = SimpleNamespace(full_calls=1, forecast_calls=1, captures=2)
        doctor.examine(lines.append, lambda device: SelfTest(device, "FT", stats, 0.0, 1.0))
        return next(text for text in lines if text.startswith(title))

    def test_no_compiler(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert re.search(r"C\+\+ compiler +not found: .*\. Install g\+\+, or set CXX", self.section("compiling"))

    def test_a_compiler_that_does_not_run(self, tmp_path):
        compiler = tmp_path / "c++"
        compiler.write_text("not a program")
        compiler.chmod(0o755)
        with inductor_config.patch({"cpp.cxx": (None, str(compiler))}):
            assert "does not run" in self.section("compiling")

    def test_a_compiler_with_arguments(self, tmp_path):
        """As ``CXX="ccache g++"`` has it."""
        wrapper = tmp_path / "wrapper"
        wrapper.write_text('#!/bin/sh\necho "called with $*"\n')
        wrapper.chmod(0o755)
        with inductor_config.patch({"cpp.cxx": (None, f"{wrapper} g++")}):
            assert f"called with g++ --version ({wrapper})" in self.section("compiling")

    @pytest.mark.parametrize(
        ("cuda", "text"),
        [(None, r"not possible: torch \S+ is built without CUDA"), ("13.0", "not possible: torch finds no GPU")],
    )
    def test_why_there_are_no_cuda_graphs(self, monkeypatch, cuda, text):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert re.search(rf"CUDA graphs +{text}", self.section("compiling"))

    def test_a_gpu(self, monkeypatch):
        """Named, and the self-test runs there."""
        found = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
        assert re.search(r"devices +cuda:0 NVIDIA H100, 80\.00 GiB, capability 9\.0", self.section("machine"))
        assert re.search(r"CUDA graphs +possible", self.section("compiling"))
        assert re.search(r"device +cuda\n", self.section("self-test"))
        assert "1 forecast, 2 CUDA graphs captured" in self.section("self-test")

    def test_folders(self, monkeypatch, tmp_path):
        assert re.fullmatch(rf"{tmp_path}/a/b, .* free, not made yet", doctor._folder(tmp_path / "a" / "b"))
        assert re.fullmatch(rf"{tmp_path}, .* free", doctor._folder(tmp_path))
        monkeypatch.setattr("os.access", lambda *_: False)
        assert doctor._folder(tmp_path) == f"{tmp_path}, which cannot be written to"

    def test_variables(self, monkeypatch):
        monkeypatch.setenv("TORCHDYNAMO_VERBOSE", "1")
        monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
        assert re.search(r"TORCHDYNAMO_VERBOSE=1\n( {16}.*\n)* {16}TRITON_CACHE_DIR=/elsewhere", self.section("compiling"))

    def test_a_package_that_is_missing(self, monkeypatch):
        monkeypatch.setattr(doctor, "FURTHER", ("no-such-package",))
        assert re.search(r"^  no-such-package +not installed$", self.section("versions"), re.MULTILINE)
