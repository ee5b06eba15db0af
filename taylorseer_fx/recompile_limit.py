"""Notice the compilation after which Dynamo gives up on a function: other inputs then run eagerly, and we never hear of them."""

import sys
from types import FrameType

from taylorseer_fx.compat import dynamo_config


def text_at_the_limit() -> str:
    """The warning if the compilation under way is the last that Dynamo allows for its function; else ""."""
    kept = _num_kept()
    if not kept or kept + 1 < dynamo_config.recompile_limit:
        return ""
    return (
        f"Dynamo now keeps {kept + 1} compilations of a function of the model, which is its limit: inputs that fit none of them "
        "will run eagerly, without forecasts and unseen; an attached pipeline's steps are counted all the same, but in a loop of "
        "your own the steps after them are miscounted and forecast worse. Make sizes that vary dynamic "
        "(torch.compile(dynamic=True), torch._dynamo.mark_dynamic), keep other arguments constant, call torch._dynamo.reset() "
        "before another backend is tried on the same class of model, or raise torch._dynamo.config.recompile_limit. "
        "TORCH_LOGS=recompiles reports what differed each time."
    )


def _num_kept() -> int | None:
    """Count the compilations of the function that Dynamo has, whatever the backend; None where it does not report them.

    Dynamo hands no backend its count: it is read where Dynamo holds it, in the call that is compiling.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("convert_frame.py") and "cache_size" in frame.f_locals:
            count = getattr(frame.f_locals["cache_size"], "num_cache_entries_with_same_id_matched_objs", None)
            return count if isinstance(count, int) else None
        frame = frame.f_back
    return None
