"""Weights that change or move: reloaded, edited, cast, and offloaded to the CPU by accelerate and by diffusers."""

import copy
from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading
from torch import nn

from taylorseer_fx import TaylorSeerWarning
from tests.composition.session import (
    NUM_STEPS,
    ROUNDING,
    Session,
    assert_close,
    assert_differ,
    check_runs_plainly,
    equal,
    first_of,
    tiny_zoo,
)
from tests.turns import in_turns
from tests.zoo import ZooModel, dit, randomize, sd3


def load(model: nn.Module) -> None:
    model.load_state_dict(randomize(dit().model, seed=8).state_dict())


def assign(model: nn.Module) -> None:
    model.load_state_dict(randomize(dit().model, seed=8).state_dict(), assign=True)


def edit(model: nn.Module) -> None:
    for parameter in model.transformer_blocks[0].parameters():
        parameter.mul_(1.5)


def swap_block(model: nn.Module) -> None:
    model.transformer_blocks[0] = copy.deepcopy(model.transformer_blocks[1])


@pytest.mark.parametrize("change", in_turns([load, edit], weeks=2))
def test_changed_in_place(change):
    """New values in the old weights: the next generation follows them, and nothing recompiles."""
    session = Session.of(dit())
    before = session.check()
    change(session.model)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_differ(session.check(), before)


@pytest.mark.parametrize("change", in_turns([assign, swap_block], weeks=2))
def test_replaced(change):
    """Other tensors in the place of the weights, or another block in the place of one."""
    session = Session.of(dit())
    session.feature_modules = lambda: [module for block in session.model.transformer_blocks for module in (block.attn1, block.ff)]
    before = session.check()
    change(session.model)
    session.model.requires_grad_(False)
    assert_differ(session.check(), before)


def test_changed_in_mid_generation():
    """A change between two steps shows in the very next one: what is executed uses it, and only the features are older."""
    session = Session.of(dit())
    before = session.generate()
    session.generate()
    outputs = []
    for step in range(NUM_STEPS):
        if step == 5:  # a forecast step, which runs the modulation and the output layer
            session.model.proj_out_2.weight.mul_(2)
            session.model.proj_out_2.bias.mul_(2)
        outputs.append(first_of(session.compiled(**session.inputs(step))).clone())
    assert equal(outputs[:5], before[:5])
    assert_close(outputs[5:], [2 * output for output in before[5:]], ROUNDING[torch.float32])


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
def test_cast_and_back():
    """To float64 and back between generations: each generation in its dtype, the third one as the first."""
    session = Session.of(dit())
    first = session.check()
    inputs = session.inputs
    nn.Module.to(session.model, torch.float64)
    session.inputs = lambda *args, **kwargs: {name: widen(value) for name, value in inputs(*args, **kwargs).items()}
    assert session.check(1e-12)[0].dtype is torch.float64
    session.inputs = inputs
    nn.Module.to(session.model, torch.float32)
    assert equal(session.check(), first)


def widen(value: object) -> object:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


# Offloading. Without an accelerator "onto the device" is onto the CPU, but the hooks, and the breaks they cause, are the same.


def test_model_offload():
    """``enable_model_cpu_offload`` puts this hook around the whole forward: one break before it, the model in one piece."""
    zoo = dit()
    zoo = type(zoo)(**vars(zoo) | {"model": cpu_offload_with_hook(zoo.model, execution_device="cpu")[0]})
    session = Session.of(zoo, fullgraph=False)
    session.check()
    session.assert_all_found(zoo)


@pytest.mark.turn(0, 3)
def test_block_level_group_offload():
    """Diffusers' hooks around each block break the graph there. Each block is a graph of its own, and forecast."""
    zoo = sd3()
    device = torch.device("cpu")
    zoo.model.enable_group_offload(device, device, offload_type="block_level", num_blocks_per_group=1)
    session = Session.of(zoo, fullgraph=False)
    session.graphs_per_forward = 3
    with pytest.warns(
        TaylorSeerWarning, match="does not compile to one graph"
    ):  # since nothing is to be found between the blocks
        session.check()
    assert session.backend.explain().rejected == ()


def sequential(model: nn.Module) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def leaf_level(model: nn.Module) -> None:
    apply_group_offloading(model, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


def short_dit() -> ZooModel:
    zoo = dit()
    zoo.model.transformer_blocks = zoo.model.transformer_blocks[:1]
    return zoo


@pytest.mark.parametrize(("offload", "make"), in_turns([(sequential, short_dit), (leaf_level, tiny_zoo)], weeks=2))
def test_offload_of_every_layer(offload: Callable[[nn.Module], None], make: Callable[[], ZooModel]):
    """Hooks around every layer leave no attention in one piece: so nothing is forecast, and is said to be."""
    zoo = make()
    offload(zoo.model)
    check_runs_plainly(zoo, ROUNDING[torch.float32])
