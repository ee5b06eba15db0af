"""Wrong arguments raise where they are given, naming the argument, what it may be, and what came."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from taylorseer_fx import ConfigError, TaylorSeerError, plan, taylorseer_backend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.entry import taylorseer
from taylorseer_fx.passes.storage import Selection

FULL_STEPS = "an increasing list of step indices that begins with 0"

GRANULARITY = "'module' or 'stack'"
BUFFER_DTYPE = (
    "None or one of torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn"
)

OF_A_TARGET = ("sum_few_rows", "join_slices", "store_early", "patches_as_products", "sum_small_weights", "fold_repeats")
DISABLED_PASSES = f"a list of 'find_stored', 'find_cut_branches', 'narrow', {', '.join(map(repr, OF_A_TARGET))}"

BAD = [
    ("order", 5, "an int of 0 to 4"),
    ("order", -1, "an int of 0 to 4"),
    ("order", True, "an int of 0 to 4"),
    ("order", 1.0, "an int of 0 to 4"),
    ("order", "1", "an int of 0 to 4"),
    ("order", None, "an int of 0 to 4"),
    ("interval", 0, "an int of at least 1"),
    ("interval", -5, "an int of at least 1"),
    ("interval", False, "an int of at least 1"),
    ("interval", 2.5, "an int of at least 1"),
    ("warmup", 0, "an int of at least 1"),
    ("warmup", True, "an int of at least 1"),
    ("warmup", 3.0, "an int of at least 1"),
    ("full_steps", [0, 7, 3], FULL_STEPS),
    ("full_steps", [0, 3, 3], FULL_STEPS),
    ("full_steps", [0, -1], FULL_STEPS),
    ("full_steps", [-1, 0], FULL_STEPS),
    ("full_steps", [], FULL_STEPS),
    ("full_steps", [1, 2], FULL_STEPS),
    ("full_steps", [0, 2.0], FULL_STEPS),
    ("full_steps", [0, True], FULL_STEPS),
    ("full_steps", "012", FULL_STEPS),
    ("full_steps", 3, FULL_STEPS),
    ("granularity", "block", GRANULARITY),
    ("granularity", None, GRANULARITY),
    ("memory_budget", 0, "an int of at least 1"),
    ("memory_budget", -1, "an int of at least 1"),
    ("memory_budget", 1e9, "an int of at least 1"),
    ("memory_budget", True, "an int of at least 1"),
    ("memory_budget", "1 GiB", "an int of at least 1"),
    ("max_streams", 0, "an int of at least 1"),
    ("max_streams", -1, "an int of at least 1"),
    ("max_streams", True, "an int of at least 1"),
    ("max_streams", 8.0, "an int of at least 1"),
    ("total_memory_budget", 0, "an int of at least 1"),
    ("total_memory_budget", "1 GiB", "an int of at least 1"),
    ("stream_policy", "lru", "'error' or 'evict'"),
    ("stream_policy", None, "'error' or 'evict'"),
    ("stream_policy", "evict", "left out unless max_streams or total_memory_budget is given"),
    ("stream_ttl", 0, "a number of seconds above 0"),
    ("stream_ttl", -1.0, "a number of seconds above 0"),
    ("stream_ttl", float("inf"), "a number of seconds above 0"),
    ("stream_ttl", float("nan"), "a number of seconds above 0"),
    ("stream_ttl", True, "a number of seconds above 0"),
    ("stream_ttl", "60", "a number of seconds above 0"),
    ("compiler", "tvm", "'inductor' or 'eager'"),
    ("on_no_regions", "ignore", "'error' or 'warn'"),
    ("disabled_passes", ["clean_up"], DISABLED_PASSES),
    ("disabled_passes", "narrow", DISABLED_PASSES),
    ("disabled_passes", 3, DISABLED_PASSES),
    ("buffer_dtype", torch.int8, BUFFER_DTYPE),
    ("buffer_dtype", torch.float8_e4m3fnuz, BUFFER_DTYPE),
    ("buffer_dtype", torch.complex64, BUFFER_DTYPE),
    ("buffer_dtype", "bfloat16", BUFFER_DTYPE),
    ("cuda_graphs", "yes", "None, True or False"),
    ("cuda_graphs", 1, "None, True or False"),
    ("compiler_options", [("max_autotune", True)], "a mapping from Inductor's option names to values"),
    ("compiler_options", "max_autotune", "a mapping from Inductor's option names to values"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD, ids=[f"{name}={value!r}" for name, value, _ in BAD])
def test_bad_argument(name, value, allowed):
    with pytest.raises(ConfigError) as raised:
        taylorseer_backend(**{name: value})
    assert str(raised.value).startswith(f"{name} must be {allowed}, got {value!r}")


@pytest.mark.parametrize("value", [1 << 40, 100])
def test_large_values_are_fine(value):
    backend = taylorseer_backend(interval=value, warmup=value)
    assert (backend.config.interval, backend.config.warmup) == (value, value)


@pytest.mark.parametrize(("name", "value"), [("interval", 4), ("warmup", 2), ("warmup", 0)])
def test_full_steps_stand_alone(name, value):
    """Interval or warm-up beside an explicit list would be ignored, so they are refused."""
    with pytest.raises(ConfigError, match=re.escape(f"{name} must be left out when full_steps is given, got {value}")):
        taylorseer_backend(full_steps=[0, 1], **{name: value})


def test_a_budget_beside_the_stack():
    """The budget chooses the granularity, so it says nothing where that is given."""
    with pytest.raises(ConfigError, match="granularity must be left out when memory_budget is given, got 'stack'"):
        taylorseer_backend(granularity="stack", memory_budget=1 << 30)


def test_unknown_compiler_option_is_named():
    with pytest.raises(ConfigError, match=r"compiler_options must be options of torch\._inductor.*got 'max_autotun'"):
        taylorseer_backend(compiler_options={"max_autotun": True})


def test_compiler_options_need_inductor():
    with pytest.raises(ConfigError, match=r"compiler_options must be empty with compiler='eager', got {'max_autotune': True}"):
        taylorseer_backend(compiler="eager", compiler_options={"max_autotune": True})


def test_cuda_graphs_by_the_back_door():
    with pytest.raises(ConfigError, match=r"compiler_options\['triton.cudagraphs'\] must be left off, got True. Use cuda_graphs"):
        taylorseer_backend(compiler_options={"triton.cudagraphs": True})


def test_errors_are_value_errors_of_this_package():
    """So that callers may catch either."""
    with pytest.raises(ValueError, match="order") as raised:
        taylorseer_backend(order=9)
    assert isinstance(raised.value, TaylorSeerError)


class TestGood:
    def test_defaults(self):
        config = taylorseer_backend().config
        assert (config.order, config.interval, config.warmup, config.full_steps) == (1, 5, 3, None)
        assert (config.granularity, config.compiler, config.buffer_dtype) == ("module", "inductor", None)
        assert (config.memory_budget, config.cuda_graphs) == (None, None)

    @pytest.mark.parametrize("order", range(5))
    def test_every_order(self, order):
        assert taylorseer_backend(order).config.order == order

    @pytest.mark.parametrize("steps", [[0], [0, 1, 2, 7], (0, 5), range(0, 50, 5), iter([0, 3]), {0: "a", 4: "b"}.keys()])
    def test_full_steps_from_any_iterable(self, steps):
        """Also from one that can be read only once."""
        config = taylorseer_backend(full_steps=steps).config
        assert isinstance(config.full_steps, tuple)
        assert config.full_steps[0] == 0
        assert config.schedule.full_steps_of(config.full_steps[-1] + 1) == list(config.full_steps)

    def test_defaults_beside_full_steps_are_no_conflict(self):
        assert BackendConfig(interval=5, warmup=3, full_steps=(0, 4)).full_steps == (0, 4)

    @pytest.mark.parametrize(
        ("dtype", "stored", "keeps_differences"),
        [
            (None, (torch.float16, torch.float16), False),
            (torch.float64, (torch.float64, torch.float64), False),
            (torch.float32, (torch.float32, torch.float32), False),
            (torch.bfloat16, (torch.bfloat16, torch.bfloat16), False),
            (torch.float16, (torch.float16, torch.float16), False),
            (torch.float8_e5m2, (torch.float16, torch.float8_e5m2), True),
            (torch.float8_e4m3fn, (torch.float16, torch.float8_e4m3fn), True),
        ],
    )
    def test_buffer_dtypes(self, dtype, stored, keeps_differences):
        """What is stored of a half-precision feature, at orders 0 and 1; eight bits are for differences only."""
        storage = taylorseer_backend(buffer_dtype=dtype).config.storage
        assert (storage.dtypes(torch.float16), storage.keeps_differences) == (stored, keeps_differences)

    def test_selection(self):
        """The budget goes with modules; the granularity is what was said."""
        assert taylorseer_backend().config.selection == Selection("module", None)
        assert taylorseer_backend(memory_budget=1 << 40).config.selection == Selection("module", 1 << 40)
        assert taylorseer_backend(granularity="stack").config.selection == Selection("stack", None)

    def test_compiler_options_are_copied(self):
        """What the caller does with the dictionary afterwards changes nothing."""
        options = {"max_autotune": True}
        backend = taylorseer_backend(compiler_options=options)
        options["no_such_option"] = True
        assert backend.config.compiler_options == {"max_autotune": True}

    def test_schedule(self):
        assert taylorseer_backend(interval=6).config.schedule.full_steps_of(50) == [0, 1, 2, *range(8, 50, 6)]


class TestOptionsByName:
    """``torch.compile(model, backend="taylorseer", options={...})``."""

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"ordr": 2}, "Did you mean 'order'?"),
            ({"intervall": 2}, "Did you mean 'interval'?"),
            ({"buffer_type": None}, "Did you mean 'buffer_dtype'?"),
        ],
    )
    def test_misspelt(self, options, hint):
        (name,) = options
        with pytest.raises(ConfigError) as raised:
            BackendConfig.from_options(options)
        message = str(raised.value)
        assert message.startswith("option name must be one of order, interval, warmup, ")
        assert f"got {name!r}" in message
        assert message.endswith(hint)

    def test_nothing_like_it(self):
        with pytest.raises(ConfigError) as raised:
            BackendConfig.from_options({"zzz": 1})
        assert "Did you mean" not in str(raised.value)

    def test_values_are_checked_too(self):
        with pytest.raises(ConfigError, match="order must be an int of 0 to 4, got 7"):
            BackendConfig.from_options({"order": 7})

    def test_same_settings_as_the_function(self):
        settings: Mapping[str, Any] = {"order": 3, "interval": 4, "warmup": 2, "compiler": "eager", "buffer_dtype": torch.float32}
        assert BackendConfig.from_options(settings) == taylorseer_backend(**settings).config

    def test_mode_is_refused(self):
        with pytest.raises(ConfigError, match="mode must be left out, got 'max-autotune'"):
            taylorseer(None, [], mode="max-autotune")


class TestDeclaredOnce:
    """``BackendConfig`` declares the settings; whatever else lists them is checked against it."""

    NAMES = tuple(field.name for field in fields(BackendConfig))

    def test_the_function_takes_all_with_the_same_defaults(self):
        parameters = inspect.signature(taylorseer_backend).parameters
        assert sorted(parameters) == sorted(self.NAMES)
        assert taylorseer_backend().config == BackendConfig()
        for field in fields(BackendConfig):
            assert field.name == "compiler_options" or parameters[field.name].default == field.default

    def test_each_is_described(self):
        page = Path(__file__).parents[1].joinpath("docs", "choosing.md").read_text()
        table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
        for name in self.NAMES:
            assert f"\n        {name}: " in taylorseer_backend.__doc__
            assert f"`{name}`" in table

    def test_plan_takes_what_it_counts_by(self):
        """All but how graphs are compiled and run; with the same defaults."""
        not_counted = {"cuda_graphs", "compiler", "compiler_options", "on_no_regions", "disabled_passes", "forecaster"}
        not_counted |= {"plan", "plan_mismatch"}  # which has been chosen, when it comes to a plan
        not_counted |= {"max_streams", "total_memory_budget", "stream_policy", "stream_ttl"}  # of many streams, and it is for one
        parameters = inspect.signature(plan).parameters
        for name in set(self.NAMES) - {"num_steps"}:  # of a plan, the length of the run
            assert (name in parameters) == (name not in not_counted)
            assert name in not_counted or parameters[name].default == getattr(BackendConfig(), name)


class TestStreamArguments:
    @pytest.mark.parametrize("name", [3, None, b"cond"])
    def test_name(self, name):
        with pytest.raises(ConfigError, match=re.escape(f"name must be a string, got {name!r}")):
            taylorseer_backend().stream(name)

    @pytest.mark.parametrize("step", [-1, 1.0, True, "0", torch.tensor(1)])
    def test_step(self, step):
        with pytest.raises(ConfigError, match=re.escape(f"step must be None or an int of at least 0, got {step!r}")):
            taylorseer_backend().stream("cond", step=step)
