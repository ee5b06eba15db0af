"""The harness' workloads under the name that the benchmarks here use."""

from taylorseer_fx.bench.workloads import Workload, dit_s2, dit_xl2, flux_narrow, tiny_dit

__all__ = ["Workload", "dit_s2", "dit_xl2", "flux_narrow", "tiny_dit"]
