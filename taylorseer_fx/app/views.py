"""What the page shows of a comparison, as HTML; ``page.css`` has the colours. No figure here is computed anew."""

import math
from collections.abc import Callable, Sequence
from html import escape

from taylorseer_fx.app.pictures import difference_picture, picture
from taylorseer_fx.app.runs import Comparison, Forecast
from taylorseer_fx.app.settings import Setting
from taylorseer_fx.demo.picture import BRIGHTEST_DIFFERENCE
from taylorseer_fx.demo.runs import Run
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.text import format_bytes

HEADER = """<header class="ts-header"><h1>taylorseer_fx</h1>
<p>The same pictures from the same noise, with every step executed and with most steps forecast: what it saves, and what it
costs.</p></header>"""
WAITING = """<p class="ts-waiting">Choose, and press <b>Run</b>. The first run of each model, order and granularity
compiles, which takes longer than the run itself; compiled code is kept until the program ends.</p>"""
KINDS = {"F": ("ts-full", "full"), "T": ("ts-forecast", "forecast")}
LEGEND = '<p class="ts-legend"><i class="ts-full"></i> full step <i class="ts-forecast"></i> forecast step</p>'
HEADROOM = 1.3  # of the slowest run's median full step: where bars end

_Cell = Callable[[Run, Forecast | None], str]
MEASURES: dict[str, tuple[str, _Cell]] = {
    "speedup": ("speed-up over the full run", lambda _, forecast: "-" if forecast is None else f"{forecast.speedup:.2f}x"),
    "psnr": ("PSNR against the full run", lambda _, forecast: "-" if forecast is None else _db(forecast.psnr_db)),
    "full-steps": ("full steps", lambda run, _: f"{len(run.full_steps)} of {len(run.step_seconds)}"),
    "buffers": ("derivative buffers", lambda run, _: format_bytes(run.buffer_bytes)),
    "seconds": ("seconds, all steps", lambda run, _: f"{run.seconds:.2f} s"),
    "full-step": ("full step, median", lambda run, _: _ms(run.full_step_seconds)),
    "forecast-step": ("forecast step, median", lambda run, _: _ms(run.forecast_step_seconds)),
    "ceiling": ("ceiling: steps over full steps", lambda run, _: f"{run.ceiling:.2f}x"),
    "compile": ("compilation, once", lambda run, _: f"{run.compile_seconds:.1f} s" if run.compile_seconds else "-"),
}


def numbers(comparison: Comparison) -> str:
    """A table: measures down, runs across."""
    runs = [("full", comparison.full, None), *((each.name, each.run, each) for each in comparison.forecasts)]
    head = "".join(f"<th>{name}</th>" for name, _, _ in runs)
    body = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(f'<td id="{name}-{key}">{cell(run, forecast)}</td>' for name, run, forecast in runs)
        + "</tr>"
        for key, (label, cell) in MEASURES.items()
    )
    return f'<table class="ts-numbers"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>{_codes(comparison)}'


def summary(comparison: Comparison) -> str:
    """A sentence for each setting, and what is worth knowing of it."""
    return "".join(
        f"<p class='ts-summary'><b>{each.name}</b> {each.speedup:.2f} times as fast as the full run, {_near(each.psnr_db)}</p>"
        + notes([f"{each.name}: {text}" for text in each.notes])
        for each in comparison.forecasts
    )


def _near(psnr_db: float) -> str:
    return "equal to it" if math.isinf(psnr_db) else f"{psnr_db:.1f} dB of PSNR against it"


def _codes(comparison: Comparison) -> str:
    calls = [(each.name, escape(each.setting.code(comparison.generation.num_steps))) for each in comparison.forecasts]
    return "".join(f'<p class="ts-code">{name} <code>{code}</code></p>' for name, code in calls)


def pictures(comparison: Comparison) -> str:
    """The full run's, then for each setting its own and where they differ, side by side."""
    full = comparison.full.samples
    scale = f"Differences from 0 (white) to {BRIGHTEST_DIFFERENCE:g} and above (red); from paper to ink is 2."
    panels = [_panel("full", "full run", picture(full)), f'<p class="ts-legend">{scale}</p>']
    for each in comparison.forecasts:
        panels.append(_panel(each.name, f"{each.name}, {_db(each.psnr_db)}", picture(each.run.samples)))
        panels.append(_panel(f"{each.name}-difference", f"|{each.name} - full|", difference_picture(each.run.samples, full)))
    return f'<div class="ts-pictures">{"".join(panels)}</div>'


def _panel(name: str, caption: str, address: str) -> str:
    image = f'<img id="{name}-picture" alt="{caption}" src="{address}">'
    return f'<figure class="ts-panel" id="{name}-panel">{image}<figcaption>{caption}</figcaption></figure>'


def steps(comparison: Comparison) -> str:
    """Seconds per step as bars, on one scale for all runs, and the kinds of the steps as a strip below."""
    top = HEADROOM * max(run.full_step_seconds for run in (comparison.full, *(each.run for each in comparison.forecasts)))
    charts = [_chart("full", comparison.full, top), *(_chart(each.name, each.run, top) for each in comparison.forecasts)]
    return f"{LEGEND}{''.join(charts)}"


def _chart(name: str, run: Run, top: float) -> str:
    kinds = kinds_of(run)
    bars = "".join(map(_bar, range(len(kinds)), kinds, run.step_seconds, [top] * len(kinds)))
    title = "full run" if name == "full" else name
    label = f"Milliseconds per step of {title}, from step 0 to {len(kinds) - 1}"
    return (
        f'<figure class="ts-chart" id="{name}-steps" data-kinds="{kinds}"><figcaption><b>{title}</b> '
        f"{kinds.count('F')} full, {kinds.count('T')} forecast, scale to {_ms(top)}</figcaption>"
        f'<div class="ts-bars" role="img" aria-label="{label}">{bars}</div>{strip(kinds)}</figure>'
    )


def _bar(step: int, kind: str, seconds: float, top: float) -> str:
    css, word = KINDS[kind]
    height = min(seconds / top, 1)
    return f'<i class="{css}" style="height:{height:.1%}" title="step {step}, {word}: {_ms(seconds)}"></i>'


def kinds_of(run: Run) -> str:
    """``FTTTF...``, as the backend counted them."""
    full = set(run.full_steps)
    return "".join("F" if i in full else "T" for i in range(len(run.step_seconds)))


def strip(kinds: str) -> str:
    """A cell a step."""
    cells = "".join(f'<i class="{KINDS[kind][0]}" title="step {i}, {KINDS[kind][1]}"></i>' for i, kind in enumerate(kinds))
    return f'<div class="ts-strip" role="img" aria-label="{kinds}">{cells}</div>'


def preview(setting: Callable[[], Setting], num_steps: int) -> str:
    """The schedule of a setting before it is run, or what is wrong with it."""
    try:
        kinds = setting().schedule_of(num_steps).describe(num_steps)
        said = setting().notes(num_steps)
    except ConfigError as error:
        return failure(error)
    return f"{strip(kinds)}<p class='ts-legend'>{kinds.count('F')} of {num_steps} steps in full</p>{notes(said)}"


def failure(error: Exception) -> str:
    return f'<p class="ts-error" role="alert">{escape(str(error))}</p>'


def notes(texts: Sequence[str]) -> str:
    return "".join(f'<p class="ts-note">{escape(text[:1].upper() + text[1:])}</p>' for text in texts)


def _db(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f} dB"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"
