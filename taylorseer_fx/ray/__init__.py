"""Fleets: draw many pictures with several workers of Ray, on one machine or a cluster. Needs ``taylorseer-fx[ray]``.

sample(build, rows, "pictures", workers=4)            # cuts rows into batches, resumes, shows progress
dataset.map_batches(Sampler, fn_constructor_args=(build,), batch_size=16, ...)   # the actor class it is made of

noise       a row's noise, by its id
rows        what is drawn: numbered rows, cut into batches
files       what is written: Parquet or PNG, finished or not there
first_call  one worker compiles, the others wait for the cache
sampler     the actor class
fleet       the whole run
connecting  Ray itself: an embedded one, or a cluster
shipped     the two models of the package, for command and tests
command     ``taylorseer-fx sample``
"""

try:
    import pyarrow  # noqa: F401  # what Ray Data needs beside Ray
    import ray.data  # noqa: F401
except ModuleNotFoundError as error:
    name = (error.name or "").partition(".")[0]
    if name not in ("ray", "pyarrow"):
        raise
    text = f'taylorseer_fx.ray needs {name}, which is not installed: pip install "taylorseer-fx[ray]"'
    raise ModuleNotFoundError(text, name=name) from None

from taylorseer_fx.ray.connecting import connected
from taylorseer_fx.ray.files import finished_ids, read
from taylorseer_fx.ray.fleet import Summary, sample
from taylorseer_fx.ray.rows import unfinished
from taylorseer_fx.ray.sampler import Sampler

__all__ = ["Sampler", "Summary", "connected", "finished_ids", "read", "sample", "unfinished"]
