"""``taylorseer-fx calibrate``: the plan it writes is one that a backend takes, of the model it names."""

import io

import pytest
from rich.console import Console

from taylorseer_fx import PlanFile, cli, taylorseer_backend
from taylorseer_fx.calibrate_command import Job, run_calibrate
from taylorseer_fx.shipped import SHIPPED
from tests.turns import in_turns


@pytest.mark.parametrize("model", in_turns(SHIPPED, weeks=2))
def test_plan_of_a_shipped_model(model, tmp_path):
    console = Console(record=True, width=120, file=io.StringIO())
    job = Job(model, 10, (3, 4), 1, "stack", guidance=1.0, num_samples=2, compiler="eager")
    run_calibrate(job, tmp_path / "found.json", console)
    plan = PlanFile.load(tmp_path / "found.json")
    assert (plan.num_steps, plan.order, plan.granularity) == (10, 1, "stack")
    assert [len(steps) for steps in plan.full_steps] == [3, 4]
    assert all(point["held_out_mean_db"] is not None for point in plan.curve)
    shown = console.export_text()
    assert " ".join(map(str, plan.full_steps[0])) in shown
    assert taylorseer_backend(plan=str(tmp_path / "found.json"), granularity="stack", speedup=2.5).config.plan == plan


def test_wrong_settings_are_named(capsys):
    assert cli.main(["calibrate", "digits", "--samples", "0"]) == 2
    assert capsys.readouterr().err == "taylorseer-fx calibrate: samples must be at least 1, got 0\n"


def test_unknown_model(capsys):
    with pytest.raises(SystemExit):
        cli.main(["calibrate", "flux"])
    assert "invalid choice: 'flux' (choose from 'digits', 'fashion')" in capsys.readouterr().err


def test_models_of_the_command_line_are_those_that_ship():
    """Named there a second time, so that ``--help`` imports no torch."""
    assert tuple(SHIPPED) == cli.MODELS
