"""LoRA adapters on FLUX, through diffusers and peft: loaded, scaled, mixed, fused, swapped and unloaded between generations.

The features of one adapter must never serve the next: each generation is compared with the hook reference of the model as it is.
"""

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from tests.composition.session import Session, assert_differ, equal, flux_modules, short_flux
from tests.turns import in_turns

TARGETS = ["to_q", "to_out.0", "add_k_proj", "proj_mlp", "proj_out", "net.2", "timestep_embedder.linear_1"]


def adapter(seed: int, rank: int = 4) -> dict[str, Tensor]:
    """Weights of an adapter on attention, MLPs and time embedding, large enough to change the picture."""
    model = short_flux().model
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(model).items()}
    return {f"transformer.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def lora_session() -> Session:
    session = Session.of(short_flux())
    session.feature_modules = lambda: flux_modules(session.model)
    return session


@pytest.mark.turn(1, 2)
def test_loaded_scaled_and_unloaded():
    """An adapter comes, is scaled down, and goes: all regions in each graph, and the right picture each time."""
    zoo, session = short_flux(), lora_session()
    plain = session.check()
    session.model.load_lora_adapter(adapter(1), adapter_name="first")
    loaded = session.check()
    session.assert_all_found(zoo)
    assert_differ(loaded, plain)
    session.model.set_adapters(["first"], [0.5])
    assert_differ(session.check(), loaded)
    session.model.unload_lora()
    assert equal(session.check(), plain)
    assert session.backend.stats().buffer_bytes == session.backend.explain().buffer_bytes  # one set of them is kept, not three


def test_fused():
    """Fusing writes into the weights themselves: where the model is compiled already, the next generation has it all the same."""
    session = lora_session()
    plain = session.check()
    session.model.load_lora_adapter(adapter(1), adapter_name="first")
    session.model.fuse_lora(lora_scale=0.7)
    session.model.unload_lora()
    graphs = session.backend.stats().graphs
    assert_differ(session.check(), plain)
    assert session.backend.stats().graphs == graphs == 1


@pytest.mark.turn(0, 2)
def test_two_adapters():
    """A weighted mix of two adapters, then one of them deleted."""
    session = lora_session()
    session.model.load_lora_adapter(adapter(1), adapter_name="first")
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        session.model.load_lora_adapter(adapter(2), adapter_name="second")
    session.model.set_adapters(["first", "second"], [0.5, 0.7])
    mixed = session.check()
    session.model.delete_adapters("second")
    assert_differ(session.check(), mixed)


def test_scale_of_a_call():
    """``joint_attention_kwargs={"scale": s}``, as pipelines pass it: applied in the forward, so part of the graph."""
    session = lora_session()
    session.model.load_lora_adapter(adapter(1), adapter_name="first")
    full = session.expected()
    inputs = session.inputs
    session.inputs = lambda *args, **kwargs: inputs(*args, **kwargs) | {"joint_attention_kwargs": {"scale": 0.4}}
    assert_differ(session.check(), full)


@pytest.mark.parametrize("rank", in_turns([4, 8], weeks=2))
def test_hotswap(rank):
    """Swapping an adapter for another, of its rank or of a higher one, compiles nothing and mixes nothing up."""
    session = lora_session()
    session.model.enable_lora_hotswap(target_rank=8)
    session.model.load_lora_adapter(adapter(1), adapter_name="swapped")
    first = session.check()
    with torch.compiler.set_stance("fail_on_recompile"):
        session.model.load_lora_adapter(adapter(2, rank), adapter_name="swapped", hotswap=True)
        assert_differ(session.check(), first)
        session.model.load_lora_adapter(adapter(1), adapter_name="swapped", hotswap=True)
        assert equal(session.check(), first)
    assert session.backend.stats().compiles == 2
