"""The torch at hand, for what an older one traces into other operators."""

import pytest
import torch

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

# Before 2.12, lerp is traced as a choice between constants; what is not recognised then is reported as such.
TRACES_LERP = TORCH >= (2, 12)
since_2_12 = pytest.mark.skipif(TORCH < (2, 12), reason="torch 2.11 traces it into other operators")
since_2_13 = pytest.mark.skipif(TORCH < (2, 13), reason="torch 2.12 cannot trace it")
