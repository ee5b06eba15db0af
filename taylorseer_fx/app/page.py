"""The page: controls on the left, what they do on the right. Gradio draws it; nothing is computed here."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from taylorseer_fx.app import views
from taylorseer_fx.app.controls import AT_ONCE, INTERVAL, OURS, SPEEDUP, GenerationControls, SettingControls, Values
from taylorseer_fx.app.runs import Workbench
from taylorseer_fx.errors import TaylorSeerError

CSS = Path(__file__).with_name("page.css")
CLEAR = "() => ''"  # what a message says is over: progress is shown in its place


class Page:
    """Builds the page in ``blocks``; what it runs, it runs on ``bench``."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        with gr.Blocks(title="taylorseer_fx", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(views.HEADER, elem_id="heading", apply_default_css=False)
            with gr.Row():
                with gr.Column(scale=0, min_width=370, elem_id="controls"):
                    self._draw_controls()
                with gr.Column(scale=1, min_width=320):
                    self._draw_results()
            self._connect()

    def _draw_controls(self) -> None:
        with gr.Group():
            self.what = GenerationControls()
        with gr.Tabs():
            with gr.Tab("Setting A"), gr.Group():
                self.first = SettingControls("A", SPEEDUP)
            with gr.Tab("Setting B"), gr.Group():
                self.compares = gr.Checkbox(False, label="Compare A with B", elem_id="compares")
                self.second = SettingControls("B", INTERVAL)

    def _draw_results(self) -> None:
        with gr.Row():
            self.button = gr.Button("Run", variant="primary", elem_id="run", scale=0, min_width=140)
            with gr.Column(scale=1, min_width=240):
                self.message = gr.HTML(views.WAITING, elem_id="message", apply_default_css=False)
        self.pictures = gr.HTML(elem_id="pictures", apply_default_css=False)
        self.numbers = gr.HTML(elem_id="numbers", apply_default_css=False)
        self.steps = gr.HTML(elem_id="steps", apply_default_css=False)

    def _connect(self) -> None:
        for setting in (self.first, self.second):
            controls = {self.what.num_steps, *setting.all}
            events = [self.blocks.load, *(control.change for control in controls)]
            gr.on(events, partial(self.preview, setting), controls, setting.preview, trigger_mode="always_last", **AT_ONCE)
        self.button.click(None, None, self.message, js=CLEAR, **AT_ONCE)
        self.button.click(
            self.press,
            {*self.what.all, *self.first.all, self.compares, *self.second.all},
            [self.message, self.pictures, self.numbers, self.steps],
            show_progress_on=[self.message],
            concurrency_limit=1,
            **OURS,
        )

    def preview(self, setting: SettingControls, values: Values) -> str:
        """The schedule as it stands, or what is wrong with it."""
        return views.preview(lambda: setting.read(values), values[self.what.num_steps])

    def press(self, values: Values, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008  # how Gradio asks for it
        """Run, and show; or explain what is wrong, and leave the rest as it is."""
        settings = [self.first, self.second] if values[self.compares] else [self.first]
        try:
            found = self.bench.compare(
                self.what.read(values),
                [setting.read(values) for setting in settings],
                values[self.what.compiler],
                lambda fraction, text: progress(fraction, desc=text),
            )
        except TaylorSeerError as error:
            return [views.failure(error), gr.skip(), gr.skip(), gr.skip()]
        return [views.summary(found), views.pictures(found), views.numbers(found), views.steps(found)]
