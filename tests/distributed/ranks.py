"""Run a function of ``tests.distributed.tasks`` in several processes, as the ranks of one gloo group."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
TIMEOUT = 900  # seconds; a minute or two on a quiet machine

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed is built without gloo"
)


def run_ranks(task: str, directory: Path, *arguments: Any, world_size: int = 2, cache: Path | None = None) -> list[Any]:
    """What ``tasks.<task>(*arguments)`` returned in each rank.

    ``directory`` must be new for each call: the ranks meet in a file there. ``cache``: where compiled graphs are stored.
    """
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(arguments, directory / "arguments.pt")
    extra = {"TORCHINDUCTOR_CACHE_DIR": str(cache)} if cache is not None else {}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | extra
    with ExitStack() as stack:
        workers = []
        for rank in range(world_size):
            printed = stack.enter_context((directory / f"{rank}.txt").open("w"))
            command = [sys.executable, "-m", "tests.distributed.ranks", task, str(rank), str(world_size), str(directory)]
            workers.append(subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT))
        _wait_for(workers, directory)
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _wait_for(workers: Sequence["subprocess.Popen[bytes]"], directory: Path) -> None:
    try:
        for rank, worker in enumerate(workers):
            assert worker.wait(TIMEOUT) == 0, (directory / f"{rank}.txt").read_text()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def main(task: str, rank: int, world_size: int, directory: Path) -> None:
    """One of the processes."""
    from tests.distributed import tasks

    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    arguments = torch.load(directory / "arguments.pt", weights_only=False)
    function = getattr(tasks, task)
    with torch.no_grad():
        result = function(*arguments)
    torch.save(result, directory / f"{rank}.pt")
    if getattr(function, "ends_alone", False):
        os._exit(0)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
