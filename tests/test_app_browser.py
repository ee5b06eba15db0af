"""The page in a real browser without a window: what is chosen is what is run, and what is shown is what was counted."""

from collections.abc import Iterator
from typing import Any

import pytest

from taylorseer_fx.app.runs import Workbench
from taylorseer_fx.app.settings import Setting, generation
from taylorseer_fx.text import format_bytes
from tests.browsers import BROWSERS, browser_path, launched, press, set_slider, visited
from tests.comparisons import made

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "taylorseer-fx[app]"')
pytest.importorskip("playwright.sync_api", reason='it drives the browser: pip install "taylorseer-fx[test]"')

# Gradio calls pandas, for a summary of its queue, by names that are going out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if browser_path() is None:
        pytest.skip(f"no browser on the PATH, looked for {', '.join(BROWSERS)}")
    with launched() as found:
        yield found


class Prepared:
    """In place of a workbench: computes nothing, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def compare(self, what: Any, settings: Any, compiler: str, on_progress: Any) -> Any:
        self.asked.append((what, settings, compiler))
        on_progress(0.5, "half of it")
        return made(names="AB"[: len(settings)])


def kinds(page: Any) -> str:
    return str(page.locator("#A-steps").get_attribute("data-kinds"))


def picture(page: Any) -> str:
    return str(page.locator("#A-picture").get_attribute("src"))


def shown(page: Any, measure: str) -> str:
    return str(page.locator(f"#A-{measure}").inner_text())


def test_a_slider_changes_the_picture_and_numbers_are_the_backends(browser):
    bench = Workbench()
    with visited(browser, bench) as page:
        page.get_by_label("eager", exact=True).check()
        set_slider(page, "num-steps", 6)
        page.wait_for_selector("#A-preview >> text=2 of 6 steps in full")
        press(page)
        before = picture(page)
        assert kinds(page).count("F") == 2
        (backend,) = bench.backends()
        counted = backend.stats()

        set_slider(page, "A-speedup", 2)
        page.wait_for_selector("#A-preview >> text=3 of 6 steps in full")
        press(page)
        after = backend.stats()
        num_full, num_forecast = after.full_calls - counted.full_calls, after.forecast_calls - counted.forecast_calls
        assert (num_full, num_forecast) == (3, 3)
        assert (kinds(page).count("F"), kinds(page).count("T")) == (num_full, num_forecast)
        assert shown(page, "full-steps") == f"{num_full} of 6"
        assert shown(page, "buffers") == format_bytes(after.peak_buffer_bytes)
        assert after.compiles == counted.compiles
        assert picture(page) != before
        assert page.locator("#A-picture").evaluate("image => image.naturalWidth") == 100
        assert float(shown(page, "psnr").removesuffix(" dB")) > 10
        assert page.locator("#full-steps .ts-bars i").count() == page.locator("#A-steps .ts-bars i").count() == 6


def test_all_controls_on_a_small_screen(browser):
    bench = Prepared()
    with visited(browser, bench) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.get_by_label("fashion (FLUX, flow matching)").check()
        set_slider(page, "num-steps", 28)
        set_slider(page, "guidance", 3.5)
        page.locator("#seed input").fill("7")
        set_slider(page, "A-order", 2)
        page.locator("#A-granularity").get_by_label("stack").check()
        page.get_by_role("tab", name="Setting B").click()
        page.get_by_label("Compare A with B").check()
        set_slider(page, "B-interval", 4)
        set_slider(page, "B-warmup", 2)
        press(page)
        assert page.locator("#pictures img").count() == 5
        assert page.locator("#B-psnr").inner_text() == "33.2 dB"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    (asked,) = bench.asked
    papers = {"interval": 4, "warmup": 2}
    settings = [Setting(2, "stack", {"speedup": 5}), Setting(1, "module", papers)]
    assert asked == (generation("fashion", 28, 3.5, 7), settings, "inductor")


def test_a_bad_setting_is_explained_on_the_page(browser, capfd):
    bench = Workbench()
    with visited(browser, bench) as page:
        page.locator("#A-placed-by").get_by_label("list").check()
        page.locator("#A-full-steps textarea, #A-full-steps input").fill("")
        page.wait_for_selector("#A-preview [role=alert]")
        press(page)
        text = page.locator("#message [role=alert]").inner_text()
        assert page.locator("#pictures img").count() == 0
    assert text.startswith("full_steps must be an increasing list of step indices that begins with 0, got ().")
    assert bench.backends() == []
    assert "Traceback" not in capfd.readouterr().err


def test_an_order_that_there_is_none_of(browser, capfd):
    """Explained as it is typed; the slider then takes the highest."""
    with visited(browser, Prepared()) as page:
        page.locator("#A-order input[type=number]").fill("9")
        page.wait_for_selector("#A-preview [role=alert] >> text=order must be an int of 0 to 4, got 9")
        page.locator("#A-order input[type=number]").press("Tab")
        page.wait_for_selector("#A-preview .ts-strip")
        assert page.locator("#A-order input[type=number]").input_value() == "4"
    assert "Traceback" not in capfd.readouterr().err
