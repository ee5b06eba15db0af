"""Every benchmark begins with a Dynamo that has compiled nothing: past its limit of recompiles it would run eagerly."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()
