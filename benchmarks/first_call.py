"""Print the seconds until the first result in this process: python -m benchmarks.first_call plain|ours WORKLOAD"""

import sys
import time

import torch
import torch._inductor.compile_fx  # imports are nobody's compile time

from benchmarks import workloads
from taylorseer_fx import taylorseer_backend


def main() -> None:
    which, workload = sys.argv[1], getattr(workloads, sys.argv[2])()
    torch.set_num_threads(1)
    inputs = workload.inputs(0)
    backend = taylorseer_backend(order=2) if which == "ours" else "inductor"
    with torch.no_grad():
        started = time.perf_counter()
        torch.compile(workload.model, backend=backend)(**inputs)
        print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
