"""The controls of the page, and what they are set to."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from taylorseer_fx.app.settings import Setting, generation, step_list
from taylorseer_fx.config import COMPILERS, GRANULARITIES, MAX_ORDER
from taylorseer_fx.demo.runs import Generation
from taylorseer_fx.shipped import SHIPPED

SPEEDUP, INTERVAL, LISTED = "speed-up", "interval", "list"  # the ways to place the full steps
MAX_STEPS_SHOWN = 100

OURS: dict[str, Any] = {"api_visibility": "private", "preprocess": False}  # of events; values are checked by us, who explain
AT_ONCE: dict[str, Any] = {**OURS, "queue": False, "show_progress": "hidden"}

Values = Mapping[Component, Any]


class GenerationControls:
    """What is generated, and by which compiler."""

    def __init__(self) -> None:
        models = [(model.title, name) for name, model in SHIPPED.items()]
        self.model = gr.Radio(models, value="digits", label="Model", elem_id="model")
        self.num_steps = gr.Slider(2, MAX_STEPS_SHOWN, value=50, step=1, label="Steps", elem_id="num-steps")
        self.guidance = gr.Slider(1, 6, value=2, step=0.5, label="Guidance scale (1: none)", elem_id="guidance")
        with gr.Row():
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed", scale=1, min_width=80)
            self.compiler = gr.Radio(
                list(COMPILERS), value="inductor", label="Compiler", elem_id="compiler", scale=2, min_width=240
            )

    @property
    def all(self) -> list[Any]:
        """Components, to which Gradio adds their events as it makes the classes."""
        return [self.model, self.num_steps, self.guidance, self.seed, self.compiler]

    def read(self, values: Values) -> Generation:
        """Raises:
        ConfigError: one is out of its range.
        """
        return generation(*(values[control] for control in self.all[:-1]))


class SettingControls:
    """One way to forecast; of the ways to place the full steps only the chosen one's controls are shown."""

    def __init__(self, name: str, placed_by: str) -> None:
        def known_as(control: str) -> str:
            return f"{name}-{control}"

        self.placed_by = gr.Radio(
            [SPEEDUP, INTERVAL, LISTED], value=placed_by, label="Full steps by", elem_id=known_as("placed-by")
        )
        self.speedup = gr.Slider(1, 12, value=5, step=0.25, label="Speed-up", elem_id=known_as("speedup"))
        self.interval = gr.Slider(1, 12, value=5, step=1, label="Interval", elem_id=known_as("interval"))
        self.warmup = gr.Slider(1, 12, value=3, step=1, label="Warm-up", elem_id=known_as("warmup"))
        self.full_steps = gr.Textbox("0, 1, 4, 8, 13, 18, 23, 28, 34, 40", label="The full steps", elem_id=known_as("full-steps"))
        self.order = gr.Slider(0, MAX_ORDER, value=1, step=1, label="Order", elem_id=known_as("order"))
        self.granularity = gr.Radio(list(GRANULARITIES), value="module", label="Granularity", elem_id=known_as("granularity"))
        self.preview = gr.HTML(elem_id=known_as("preview"), apply_default_css=False)
        self._of_way: dict[str, list[Component]] = {
            SPEEDUP: [self.speedup],
            INTERVAL: [self.interval, self.warmup],
            LISTED: [self.full_steps],
        }
        hideable = [control for controls in self._of_way.values() for control in controls]
        for control, update in zip(hideable, self._shown(placed_by), strict=True):
            control.visible = update["visible"]
        self.placed_by.change(self._shown, self.placed_by, hideable, **AT_ONCE)

    def _shown(self, placed_by: str) -> list[dict[str, Any]]:
        return [gr.update(visible=way == placed_by) for way, controls in self._of_way.items() for _ in controls]

    @property
    def all(self) -> list[Any]:
        ways = [self.speedup, self.interval, self.warmup, self.full_steps]
        return [self.placed_by, *ways, self.order, self.granularity]

    def read(self, values: Values) -> Setting:
        """Raises:
        ConfigError: the list of full steps is none.
        """
        schedule: dict[str, Any]
        if values[self.placed_by] == SPEEDUP:
            schedule = {"speedup": values[self.speedup]}
        elif values[self.placed_by] == INTERVAL:
            schedule = {"interval": values[self.interval], "warmup": values[self.warmup]}
        else:
            schedule = {"full_steps": step_list(values[self.full_steps])}
        return Setting(values[self.order], values[self.granularity], schedule)
