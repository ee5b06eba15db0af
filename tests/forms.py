"""Every form in which a branch ``y`` joins its stream ``x``; ``g`` is a gate, which does not depend on the stream."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.torch_version import TRACES_LERP

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

# With y = 0 these are linear in x, which is how the entry of a stack is to be scaled.
LINEAR: dict[str, Form] = {
    "scaled": lambda x, y, g: 0.7 * x + 0.3 * y,
    "magnitude-preserving": lambda x, y, g: (0.7 * x + 0.3 * g * y) / math.sqrt(0.58),
    "over-a-number": lambda x, y, g: x / 2 + y,
    "gated-trunk": lambda x, y, g: x * (1 + g) + y,
    "gate-first": lambda x, y, g: (1 + g) * x + y,
    "full-gate": lambda x, y, g: g.expand_as(x) * x + y,
    "two-gates": lambda x, y, g: -(x * g.sin()) * g.cos() + y * g,
    "highway": lambda x, y, g: x * (1 - g.sigmoid()) + y * g.sigmoid(),
    "softmax-of-gates": lambda x, y, g: sum(w * z for w, z in zip(torch.stack([g, -g]).softmax(0), (x, y), strict=True)),
    "lerp-small": lambda x, y, g: torch.lerp(x, y * g, 0.3),
    "lerp-large": lambda x, y, g: torch.lerp(x, y * g, 0.8),
    "lerp-tensor": lambda x, y, g: torch.lerp(x, y, g.sigmoid()),
    "lerp-backwards": lambda x, y, g: torch.lerp(y, x, g.sigmoid()),
    "from-the-branch": lambda x, y, g: y + g * (x - y),
    "difference": lambda x, y, g: x - g * y,
    "difference-in-place": lambda x, y, g: x.clone().sub_(y, alpha=0.5),
    "from-the-trunk": lambda x, y, g: torch.rsub(g * y, x, alpha=0.5),
    "negated": lambda x, y, g: -(g * y - x),
    "negated-trunk": lambda x, y, g: g * y - x,
    "sum-of-a-list": lambda x, y, g: sum([x, g * y]),
    "sum-of-a-stack": lambda x, y, g: torch.stack([x, g * y]).sum(0),
    "mean-of-a-stack": lambda x, y, g: torch.stack([y, x, g.expand_as(x) * y], -1).mean(-1),
    "broadcast": lambda x, y, g: x + g * y.mean(-2, keepdim=True),
    "broadcast-and-scaled": lambda x, y, g: y.mean(-1, keepdim=True) - 0.5 * x,
    "alpha": lambda x, y, g: torch.add(x, y, alpha=0.5),
    "alpha-of-the-trunk": lambda x, y, g: torch.add(y, x, alpha=0.5),
    "addcmul": lambda x, y, g: torch.addcmul(x, g, y, value=0.5),
    "addcdiv": lambda x, y, g: torch.addcdiv(x, y, g.exp(), value=0.5),
    "cast": lambda x, y, g: (0.7 * x.double() + (g * y).double()).to(x.dtype),
}
# These are not, or their branch holds the trunk too.
OTHERS: dict[str, Form] = {
    "normed": lambda x, y, g: F.layer_norm(1.7 * x + g * y, x.shape[-1:]),
    "towards-the-branch": lambda x, y, g: x + g * (y - x),
    "away-from-the-branch": lambda x, y, g: x - 0.3 * (x - g * y),
}
if not TRACES_LERP:
    LINEAR = {name: form for name, form in LINEAR.items() if not name.startswith("lerp")}
FORMS = LINEAR | OTHERS
