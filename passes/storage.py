"""The choice of features, and of the buffers that each of them has."""

from dataclasses import dataclass

import torch

FLOAT8 = (torch.float8_e5m2, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Selection:
    """The granularity of features: every attention and MLP ("module"), or a whole residual stream ("stack").

    With a ``budget``, in bytes: modules if their buffers fit in it.
    """

    granularity: str = "module"
    budget: int | None = None


@dataclass(frozen=True)
class Storage:
    """The buffers of a feature: ``history`` of them, by default ``order + 1``, in ``dtype`` or the feature's own.

    An eight-bit ``dtype`` is that of the differences of order 1 and up; the feature itself is stored as it is.
    """

    order: int
    dtype: torch.dtype | None = None
    history: int | None = None

    @property
    def num_buffers(self) -> int:
        """The number of buffers of a feature."""
        return self.order + 1 if self.history is None else self.history

    @property
    def keeps_differences(self) -> bool:
        return self.dtype in FLOAT8

    def dtypes(self, feature: torch.dtype) -> tuple[torch.dtype, ...]:
        """The dtypes of the buffers of a feature, order by order (newest first, where they are snapshots)."""
        dtype = self.dtype or feature
        return (feature if self.keeps_differences else dtype, *[dtype] * (self.num_buffers - 1))
