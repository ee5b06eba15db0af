"""Count the bytes that the buffers of a feature take."""

from torch import Tensor

from taylorseer_fx.passes.regions import Feature
from taylorseer_fx.passes.sizes import hint
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.windows import num_elements


def num_buffer_bytes(feature: Feature, storage: Storage) -> int:
    """The size of all buffers of ``feature``, in bytes; with dynamic shapes, for the sizes of the trace."""
    if feature.stored_window is None:
        return 0
    value: Tensor = feature.node.meta["val"]
    numel = num_elements([hint(size) for size in value.shape], feature.window)
    return numel * sum(dtype.itemsize for dtype in storage.dtypes(value.dtype))
