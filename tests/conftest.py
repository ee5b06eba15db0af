"""What every test gets without asking: a Dynamo that has compiled nothing yet, and a core to itself."""

import gc
from collections.abc import Iterator
from datetime import date

import hypothesis
import pytest
import torch

from taylorseer_fx.passes import runner
from tests.turns import skip_in_other_weeks
from tests.zoo import attention_backend_kept

hypothesis.settings.register_profile("suite", deadline=None)  # workers share the cores, so an example may wait
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-variants", action="store_true", help="all of every wide table, whatever week it is")


def pytest_configure(config: pytest.Config) -> None:
    runner.always_verifies = True
    _share_the_cores(config)


def _share_the_cores(config: pytest.Config) -> None:
    """Workers that run side by side share the cores: threads that wait for one another's core are ten times slower."""
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all-variants"):
        skip_in_other_weeks(items, date.today())


def pytest_collection_finish() -> None:
    """The garbage collector is off, as its sweeps took 6 % of the zoo's time; ``fresh_dynamo`` calls it now and then."""
    collect()
    gc.disable()
    torch._dynamo.config.run_gc_after_compile = False


@pytest.fixture(scope="module")
def little_garbage() -> None:
    """For tests that look through all objects alive: those of other tests take them ten times as long."""
    collect()


ENOUGH_GARBAGE = 5_000_000  # objects, about a gigabyte of traced graphs


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Compiled code, counters and the recompile limit belong to one test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with attention_backend_kept():
        yield
    torch._dynamo.reset()
    if gc.get_count()[0] > ENOUGH_GARBAGE:
        collect()


def collect() -> None:
    """Free the garbage; what is alive, mostly torch's, need not be looked through again."""
    gc.collect()
    gc.freeze()
