"""The page's settings, computation and HTML, without a browser; ``tests/test_app_browser.py`` looks at it in one."""

import base64
import io
import math
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from PIL import Image

from taylorseer_fx import ConfigError, cli, taylorseer_backend
from taylorseer_fx.app import pictures, views
from taylorseer_fx.app.runs import Workbench
from taylorseer_fx.app.settings import Setting, generation, step_list
from taylorseer_fx.demo.quality import psnr
from taylorseer_fx.demo.runs import Generation
from taylorseer_fx.passes import runner
from taylorseer_fx.shipped import DIGITS, FASHION
from tests.comparisons import LISTED, blank, made

WHAT = Generation(DIGITS, num_steps=6, rows=1, seed=3)
PLACED = Setting(schedule={"speedup": 3.0})
IN_FULL = Setting(schedule={"speedup": 1.0})


@pytest.fixture(scope="module")
def pressed() -> Any:
    """The button pressed twice: two settings that share order and granularity, then one other schedule."""
    bench, said = Workbench(), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "always_verifies", False)  # other tests verify the same model
        first = bench.compare(WHAT, [PLACED, LISTED], "eager", lambda *progress: said.append(progress))
        between = [backend.stats() for backend in bench.backends()]
        second = bench.compare(WHAT, [IN_FULL], "eager", lambda *progress: said.append(progress))
    return SimpleNamespace(bench=bench, said=said, first=first, between=between, second=second)


class TestCompare:
    def test_the_full_run_is_the_model_as_it_is(self, pressed):
        alone = DIGITS.sample(DIGITS.load(), WHAT.labels, num_steps=6, seed=3)
        assert torch.equal(pressed.first.full.samples, alone)
        assert pressed.first.full.full_steps == tuple(range(6))
        assert pressed.first.full.buffer_bytes == 0

    def test_each_setting_has_its_own_schedule(self, pressed):
        """Also where both are of one order and granularity."""
        runs = [each.run for each in pressed.first.forecasts]
        assert [each.name for each in pressed.first.forecasts] == ["A", "B"]
        assert [run.full_steps for run in runs] == [tuple(PLACED.schedule_of(6).full_steps), (0, 1, 4)]
        assert [len(run.step_seconds) for run in runs] == [6, 6]

    def test_numbers_are_those_of_the_backends(self, pressed):
        """Beside a full step and a forecast one, which compiled."""
        for each, stats in zip(pressed.first.forecasts, pressed.between, strict=True):
            num_full = len(each.run.full_steps)
            assert (stats.full_calls, stats.forecast_calls) == (1 + num_full, 1 + 6 - num_full)
            assert each.run.buffer_bytes == stats.peak_buffer_bytes > 0

    def test_decibels_are_against_the_full_run(self, pressed):
        """More full steps are nearer to it; all of them, computed by other graphs, are the same for the eye."""
        full = pressed.first.full
        near = [psnr(each.run.samples, full.samples) for each in pressed.first.forecasts]
        assert [each.psnr_db for each in pressed.first.forecasts] == near
        assert 10 < near[0] < near[1] < pressed.second.forecasts[0].psnr_db
        assert pressed.second.forecasts[0].psnr_db > 80

    def test_speedup_is_of_all_steps(self, pressed):
        for each in pressed.first.forecasts:
            assert each.speedup == pytest.approx(sum(pressed.first.full.step_seconds) / sum(each.run.step_seconds))

    def test_compiled_code_is_kept(self, pressed):
        after = [backend.stats() for backend in pressed.bench.backends()]
        assert [stats.compiles for stats in after] == [stats.compiles for stats in pressed.between] == [2, 2]
        assert after[0].full_calls - pressed.between[0].full_calls == 6
        assert [stats.buffer_bytes for stats in after] == [0, 0]

    def test_progress_is_shown(self, pressed):
        compiling = ["compiling digits, no forecasting", *["compiling digits, order 1, module"] * 2]
        steps = [f"denoising, step {i} of 6 of each run" for i in range(1, 7)]
        assert [text for _, text in pressed.said] == [*compiling, *steps, *steps]
        assert [fraction for fraction, _ in pressed.said[:3]] == [0, 1 / 3, 2 / 3]
        assert [fraction for fraction, _ in pressed.said[-6:]] == pytest.approx([i / 6 for i in range(1, 7)])

    @pytest.mark.turn(2, 4)
    def test_without_guidance_batches_are_half_as_large(self, monkeypatch):
        """So it compiles once more, and not again afterwards; of the other model, too."""
        monkeypatch.setattr(runner, "always_verifies", False)
        bench, said = Workbench(), []
        guided, plain = (Generation(FASHION, num_steps=2, rows=1, guidance=scale) for scale in (2.0, 1.0))
        setting = Setting(granularity="stack", schedule={"full_steps": (0,)})
        found = [
            bench.compare(what, [setting], "eager", lambda *progress: said.append(progress)) for what in (guided, plain, guided)
        ]
        assert [text for _, text in said if "compiling" in text] == [
            "compiling fashion, no forecasting",
            "compiling fashion, order 1, stack",
        ] * 2
        first, second, third = (comparison.forecasts[0] for comparison in found)
        assert first.run.buffer_bytes == third.run.buffer_bytes == 2 * second.run.buffer_bytes
        assert torch.equal(first.run.samples, third.run.samples)
        assert not torch.equal(first.run.samples, second.run.samples)


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (Setting(order=9), "order must be an int of 0 to 4, got 9"),
            (Setting(granularity="layer"), "granularity must be 'module' or 'stack', got 'layer'"),
            (Setting(schedule={"speedup": 0.5}), "speedup must be a number of at least 1"),
            (Setting(schedule={"interval": 0, "warmup": 3}), "interval must be an int of at least 1, got 0"),
            (Setting(schedule={"full_steps": ()}), "full_steps must be an increasing list of step indices that begins with 0"),
            (Setting(schedule={"full_steps": (2, 3)}), "The first step has nothing to forecast from"),
        ],
    )
    def test_a_bad_one_is_refused_before_anything_runs(self, setting, message):
        bench = Workbench()
        with pytest.raises(ConfigError, match=re.escape(message)):
            bench.compare(WHAT, [PLACED, setting], "eager")
        assert bench.backends() == []

    def test_unknown_compiler(self):
        with pytest.raises(ConfigError, match="compiler must be 'inductor' or 'eager', got 'gcc'"):
            Workbench().compare(WHAT, [PLACED], "gcc")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("flux", 50, 2, 0), "model must be 'digits' or 'fashion', got 'flux'"),
            (("digits", 1, 2, 0), "num_steps must be an int of 2 to 200, got 1"),
            (("digits", 2.5, 2, 0), "num_steps must be an int of 2 to 200, got 2.5"),
            (("digits", 50, math.nan, 0), "guidance must be a number of 1 to 10, got nan"),
            (("digits", 50, 2, None), "seed must be an int of 0 to"),
        ],
    )
    def test_what_is_generated_is_checked(self, given, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            generation(*given)

    def test_what_is_generated(self):
        what = generation("fashion", 28, 3, 7)
        assert (what.model.name, what.num_steps, what.guidance, what.seed, len(what.labels)) == ("fashion", 28, 3.0, 7, 20)

    @pytest.mark.parametrize("text", ["0, 1, 4, 8", "0 1 4 8", " 0,1;4,8, "])
    def test_list_of_steps(self, text):
        assert step_list(text) == (0, 1, 4, 8)

    def test_no_list_of_steps(self):
        assert step_list("") == step_list(None) == ()
        with pytest.raises(ConfigError, match=r"full_steps must be step indices with commas between them, .* got '0, one'"):
            step_list("0, one")

    @pytest.mark.parametrize("setting", [PLACED, LISTED, Setting(2, "stack", {"interval": 4, "warmup": 2})])
    def test_its_code_makes_the_same_backend(self, setting):
        config = eval(setting.code(50), {"taylorseer_backend": taylorseer_backend}).config
        assert (config.order, config.granularity) == (setting.order, setting.granularity)
        assert config.schedule.for_run(50) == setting.schedule_of(50)

    def test_notes(self):
        assert PLACED.notes(50) == []
        (shorter,) = LISTED.notes(50)
        assert shorter.startswith("the run came to step 7, but full_steps ends at 4")
        (longer,) = Setting(schedule={"full_steps": (0, 2, 60, 61)}).notes(50)
        assert longer == "the run of 50 steps ends before the full steps 60, 61 of the list."
        (all_full,) = Setting(schedule={"interval": 5, "warmup": 3}).notes(3)
        assert all_full.startswith("a run of 3 steps forecasts nothing: the warm-up takes 3")


def pixels(address: str) -> Any:
    """Of a picture's address, as ``[row][column]`` of red, green and blue."""
    image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))).convert("RGB")
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


class TestPictures:
    def test_ink_is_black_on_white(self):
        samples = blank()
        samples[13, 0, 0, 1] = 7.0  # beyond the range: clipped
        found = pixels(pictures.picture(samples))
        assert (len(found), len(found[0])) == (2 * 4, 10 * 4)
        black = [(y, x) for y, row in enumerate(found) for x, pixel in enumerate(row) if pixel == (0, 0, 0)]
        assert black == [(4 + 1, 3 * 4 + 2)]  # the second row's fourth picture, within its border

    def test_differences_are_red_where_they_are(self):
        samples = blank()
        samples[0, 0, 1, 0] = 1.0
        found = pixels(pictures.difference_picture(samples, blank()))
        none = pixels(pictures.difference_picture(blank(), blank()))
        changed = [(y, x) for y, row in enumerate(found) for x, pixel in enumerate(row) if pixel != none[y][x]]
        assert changed == [(2, 1)]
        red, green, blue = found[2][1]
        assert red > 50 > green
        assert blue < 50


class TestViews:
    def test_numbers(self):
        cells = dict(re.findall(r'<td id="([^"]+)">([^<]+)</td>', views.numbers(made())))
        assert cells["A-speedup"] == "1.67x"
        assert cells["A-psnr"] == "33.2 dB"
        assert (cells["full-full-steps"], cells["A-full-steps"]) == ("4 of 4", "2 of 4")
        assert (cells["full-seconds"], cells["A-seconds"]) == ("0.40 s", "0.24 s")
        assert (cells["A-full-step"], cells["A-forecast-step"], cells["full-forecast-step"]) == ("100.0 ms", "20.0 ms", "-")
        assert (cells["full-compile"], cells["A-compile"]) == ("12.0 s", "-")
        assert (cells["full-buffers"], cells["A-buffers"]) == ("0 B", "3.00 MiB")
        assert "taylorseer_backend(order=1, granularity=&#x27;module&#x27;, full_steps=(0, 1, 4))" in views.numbers(made())

    def test_steps_are_bars_on_one_scale(self):
        shown = views.steps(made())
        assert re.findall(r'data-kinds="(\w+)"', shown) == ["FFFF", "FTTF"]
        heights = [float(height) for height in re.findall(r"height:([\d.]+)%", shown)]
        assert heights == pytest.approx([76.9] * 4 + [76.9, 7.7, 23.1, 76.9])
        assert 'title="step 2, forecast: 30.0 ms"' in shown

    def test_summary_has_the_notes(self):
        shown = views.summary(made(math.inf, ("the run ends <early>.",)))
        assert "1.67 times as fast as the full run, equal to it" in shown
        assert "A: the run ends &lt;early&gt;." in shown

    def test_pictures_and_differences(self):
        assert re.findall(r'<img id="([^"]+)"', views.pictures(made(names="A"))) == [
            "full-picture",
            "A-picture",
            "A-difference-picture",
        ]

    def test_preview(self):
        assert 'aria-label="FTFTTF' in views.preview(lambda: PLACED, 50)
        assert "17 of 50 steps in full" in views.preview(lambda: PLACED, 50)
        assert "The run came to step 7" in views.preview(lambda: LISTED, 50)

    def test_preview_of_a_bad_setting(self):
        shown = views.preview(lambda: Setting(schedule={"full_steps": step_list("<b>")}), 50)
        assert 'role="alert"' in shown
        assert "got &#x27;&lt;b&gt;&#x27;" in shown


class TestCommand:
    def test_missing_extra_is_named(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gradio", None)
        for name in [name for name in sys.modules if name.startswith("taylorseer_fx.app.")]:
            monkeypatch.delitem(sys.modules, name)
        assert cli.main(["app"]) == 1
        assert capsys.readouterr().err == 'taylorseer-fx app needs gradio: pip install "taylorseer-fx[app]"\n'

    def test_a_port_that_is_taken(self, capsys):
        pytest.importorskip("gradio", reason='the page needs Gradio: pip install "taylorseer-fx[app]"')
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            assert cli.main(["app", "--port", str(port)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"taylorseer-fx app: port must be one that is free, or 0 for any that is, got {port}. ")

    @pytest.mark.turn(3, 4)
    def test_it_prints_its_address_and_nothing_else(self):
        pytest.importorskip("gradio", reason='the page needs Gradio: pip install "taylorseer-fx[app]"')
        command = [sys.executable, "-m", "taylorseer_fx.cli", "app", "--port", "0"]
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a job in the background ignores it, and so its children
        try:
            served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        with served:
            try:
                assert served.stdout is not None
                said = served.stdout.readline()
                found = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+/) until Ctrl\+C stops it\.\n", said)
                content = urlopen(found[1]).read().decode() if found else ""
                served.send_signal(signal.SIGINT)
                rest, errors = served.communicate(timeout=60)
            finally:
                served.kill()
        assert (served.returncode, rest, errors) == (0, "", "")
        assert '"analytics_enabled":false' in content
